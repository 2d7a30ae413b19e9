"""Distances of samples and of held-out images to their nearest training image."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.experiments.figure import BLUE, GREY, finish, new_figure, save_figure

if TYPE_CHECKING:
    from ddpm_ref.experiments.neighbours import Neighbours


def save_distances(path: Path, result: "Neighbours") -> Path:
    """The share of images nearer than each distance, in each space: a model that remembers lies far to the left."""
    spaces = [("Pixels", "RMS to the nearest, 0…255", result.pixels)]
    if result.features is not None:
        spaces.append(("Features", "distance to the nearest", result.features))
    figure, all_axes = new_figure(len(spaces))
    for axes, (title, xlabel, space) in zip(all_axes, spaces, strict=True):
        for name, color, found in (("samples", BLUE, space.samples), ("held-out images", GREY, space.held_out)):
            if found is not None:
                nearest = np.sort(found.distance[:, 0])
                share = np.arange(1, len(nearest) + 1) / len(nearest)
                axes.step([0, *nearest], [0, *share], where="post", color=color, linewidth=2, label=name)
        finish(axes, title, xlabel, "share of images at most so far")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    return save_figure(path, figure)

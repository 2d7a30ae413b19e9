"""What is lost of interpolated images over t, as curves."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_ref.experiments.figure import BLUE, GREY, ORANGE, RED, finish, new_figure, save_figure

if TYPE_CHECKING:
    from ddpm_ref.experiments.interpolation_result import Interpolation


def save_details(path: Path, result: "Interpolation") -> Path:
    """Reconstruction error and departure from the pixel blend; what is lost of coarse and fine parts; the travel."""
    figure, (left, middle, right) = new_figure(3)
    t = result.t
    left.plot(t, result.reconstruction, "o-", color=BLUE, markersize=4, label=r"reconstruction, $\lambda$ = 0 and 1")
    left.plot(t, result.departure, "o-", color=ORANGE, markersize=4, label=r"from the pixel blend, 0 < $\lambda$ < 1")
    finish(left, "How far decoded images are off", "$t$", "RMS, 0…255")
    for lost, color, name in zip(result.lost.T, (BLUE, RED), ("coarse part", "fine part"), strict=True):
        middle.plot(t, lost, "o-", color=color, markersize=4, label=name)
    middle.axhline(1, color=GREY, linestyle="--", label="another image")
    finish(middle, "Lost of the sources", "$t$", "error / difference of two sources")
    right.plot(t, result.travel, "o-", color=BLUE, markersize=4)
    finish(right, r"From $\lambda$ = 0 to 1", "$t$", "distance / distance of the sources", legend=False)
    for axes in (left, middle, right):
        axes.set_ylim(bottom=0)
    return save_figure(path, figure)

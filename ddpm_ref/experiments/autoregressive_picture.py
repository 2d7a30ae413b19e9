"""The picture of `ddpm-ref autoregressive`: samples beside digits, one sample's chain, and what each pixel costs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.experiments.figure import save_figure
from ddpm_ref.extras import import_extra

if TYPE_CHECKING:
    from ddpm_ref.experiments.autoregressive import AutoregressiveResult

COLUMNS = 6


def save_autoregressive(path: str | os.PathLike[str], result: "AutoregressiveResult") -> Path:
    """To a PNG file; returns its path."""
    Figure = import_extra("matplotlib.figure", "a picture with text").Figure
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(2, 1))
    bits = result.bits_per_dim
    titles = {
        "real": "held-out digits",
        "samples": f"logistic regressions\n{bits['logistic regressions']['held_out']:.3f} bits/dim",
        "independent": f"independent pixels\n{bits['independent pixels']['held_out']:.3f} bits/dim",
    }
    for axes, (name, title) in zip(top.subplots(1, 4)[:3], titles.items(), strict=True):
        _show(axes, _tiles(np.array(getattr(result, name), dtype=float), result.shape), title)
    axes = top.axes[3]
    axes.set_title("bits of each pixel", fontsize=10)
    drawn = axes.imshow(np.reshape(result.terms, result.shape), cmap="viridis", vmin=0, vmax=1)
    axes.axis("off")
    top.colorbar(drawn, ax=axes, shrink=0.6)
    strip = below.subplots(1, len(result.steps))
    for axes, t, x_t in zip(strip, result.shown_steps, result.steps, strict=True):
        _show(axes, np.reshape(np.array(x_t, dtype=float), result.shape), f"$x_{{{t}}}$")
    return save_figure(path, figure)


def _show(axes: Any, x: Array, title: str) -> None:
    """0 white, 1 black, masked (2) in between with a colour of its own, gaps (-1) grey."""
    colours = np.array([[0.78, 0.78, 0.78], [1, 1, 1], [0.1, 0.1, 0.1], [0.95, 0.78, 0.6]])
    axes.imshow(colours[x.astype(int) + 1])
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#c7c7c7")


def _tiles(images: Array, shape: tuple[int, int]) -> Array:
    """Images (N, D) in rows of COLUMNS, -1 between them."""
    h, w = shape
    rows = -(-len(images) // COLUMNS)
    grid = np.full((rows * (h + 1) + 1, COLUMNS * (w + 1) + 1), -1.0)
    for k, image in enumerate(images):
        y, x = k // COLUMNS * (h + 1) + 1, k % COLUMNS * (w + 1) + 1
        grid[y : y + h, x : x + w] = image.reshape(h, w)
    return grid

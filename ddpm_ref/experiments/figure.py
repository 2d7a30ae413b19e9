"""Curves of the experiments: matplotlib's objects without pyplot, one style for all."""

import io
import os
from pathlib import Path
from typing import Any

from ddpm_ref.extras import import_extra
from ddpm_ref.files.atomic import write_bytes

BLUE, RED, GREY, ORANGE = "#1f4e79", "#a2352c", "#8a8a8a", "#d9622b"


def new_figure(columns: int, *, width: float = 4.4, height: float = 3.6, sharey: bool = False) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side.  width, height: of each, in inches of 120 pixels."""
    Figure = import_extra("matplotlib.figure", "a picture with text").Figure
    figure = Figure(figsize=(width * columns, height), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, sharey=sharey)[0])


def finish(axes: Any, title: str, xlabel: str, ylabel: str, *, legend: bool = True, grid: str = "both") -> None:
    """Title, names of the axes, grid and legend.  grid: at "both" kinds of ticks or "major" ones."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(which=grid, color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def save_figure(path: str | os.PathLike[str], figure: Any) -> Path:
    """The figure as a PNG file, which does not name the version that drew it; returns its path."""
    canvas: Any = import_extra("matplotlib.backends.backend_agg", "a picture with text").FigureCanvasAgg(figure)
    data = io.BytesIO()
    canvas.print_png(data, metadata={"Software": None})
    return write_bytes(path, data.getvalue())

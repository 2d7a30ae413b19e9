"""The bound as a picture: each term and the error of x̂_0 against t."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.extras import import_extra
from ddpm_ref.files.atomic import replacing
from ddpm_ref.schedule import Table

COLORS = {"train": "#9ab3cc", "held-out": "#d9622b"}
WIDTHS = {"train": 3.0, "held-out": 1.0}  # the first shows behind the second where they agree


def save_terms(path: Path, curves: dict[str, tuple[Table, Table]]) -> Path:
    """L_{t-1} in bits/dim and the RMSE of x̂_0 at x_t against t = 1 … T, on logarithmic axes, to a PNG file.

    curves: by part, L (T+1,) with row t = L_t, and RMSE (T+1,) on the scale 0…255.
    """
    figure, (left, right) = panels(2)
    for part, (L, rmse) in curves.items():
        t, width = np.arange(1, len(L)), WIDTHS[part]
        left.plot(t[:1], L[:1], "o", color=COLORS[part], markersize=3 + 2 * width, label=f"$L_0$, {part}")
        left.plot(t[1:], L[1:-1], color=COLORS[part], linewidth=width, label=f"$L_{{t-1}}$, {part}")
        right.plot(t, rmse[1:], color=COLORS[part], linewidth=width, label=part)
    left.set(title="What each step costs", xlabel="$t$", ylabel="$L_{t-1}$, bits/dim")
    right.set(title=r"What $x_t$ tells of $x_0$", xlabel="$t$", ylabel=r"RMSE of $\hat{x}_0(x_t)$, 0…255")
    for axes in (left, right):
        axes.set_xscale("log")
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in axes.lines):
            axes.set_yscale("log")
        axes.legend(frameon=False)
    return save_figure(path, figure)


def panels(number: int) -> tuple[Any, Any]:
    """A figure with panels side by side, and their axes."""
    Figure = import_extra("matplotlib.figure", "a picture with curves").Figure
    figure = Figure(figsize=(5 * number, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, number)
    for one in axes:
        one.grid(which="major", color="#e6e6e6", linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(path: Path, figure: Any) -> Path:
    """The figure to a PNG file, whole or not at all."""
    canvas = import_extra("matplotlib.backends.backend_agg", "a picture with curves").FigureCanvasAgg(figure)
    data = io.BytesIO()
    canvas.print_png(data)
    with replacing(path) as temporary:
        temporary.write_bytes(data.getvalue())
    return path

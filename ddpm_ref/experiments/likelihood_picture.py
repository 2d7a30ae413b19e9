"""The bound as a picture: each term and the error of x̂_0 against t."""

from pathlib import Path

import numpy as np

from ddpm_ref.experiments.figure import finish, new_figure, save_figure
from ddpm_ref.schedule import Table

COLORS = {"train": "#9ab3cc", "held-out": "#d9622b"}
WIDTHS = {"train": 3.0, "held-out": 1.0}  # the first shows behind the second where they agree


def save_terms(path: Path, curves: dict[str, tuple[Table, Table]]) -> Path:
    """L_{t-1} in bits/dim and the RMSE of x̂_0 at x_t against t = 1 … T, on logarithmic axes, to a PNG file.

    curves: by part, L (T+1,) with row t = L_t, and RMSE (T+1,) on the scale 0…255.
    """
    figure, (left, right) = new_figure(2, width=5, height=4)
    for part, (L, rmse) in curves.items():
        t, width = np.arange(1, len(L)), WIDTHS[part]
        left.plot(t[:1], L[:1], "o", color=COLORS[part], markersize=3 + 2 * width, label=f"$L_0$, {part}")
        left.plot(t[1:], L[1:-1], color=COLORS[part], linewidth=width, label=f"$L_{{t-1}}$, {part}")
        right.plot(t, rmse[1:], color=COLORS[part], linewidth=width, label=part)
    finish(left, "What each step costs", "$t$", "$L_{t-1}$, bits/dim", grid="major")
    finish(right, r"What $x_t$ tells of $x_0$", "$t$", r"RMSE of $\hat{x}_0(x_t)$, 0…255", grid="major")
    for axes in (left, right):
        axes.set_xscale("log")
        if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in axes.lines):
            axes.set_yscale("log")
    return save_figure(path, figure)

"""Figure 5: distortion and rate against the reverse steps, and against each other."""

from pathlib import Path

import numpy as np

from ddpm_ref.experiments.likelihood_picture import panels, save_figure
from ddpm_ref.schedule import Table

INK, FAINT = "#1f4e79", "#8a8a8a"


def save_curves(path: Path, rate: Table, rmse: Table, grey_level: float) -> Path:
    """The three panels of Figure 5, to a PNG file.

    rate (bits/dim), rmse (0…255): (T+1,), row t after x_T … x_t have been received; row 0, lossless, is not drawn.
    grey_level: the distance between two grey levels of the data on 0…255, marked in the panels that show RMSE.
    """
    figure, (left, middle, right) = panels(3)
    rate, rmse = rate[1:], rmse[1:]
    received = len(rate) - np.arange(len(rate))  # T - t + 1 at t = 1 … T
    left.plot(received, rmse, color=INK)
    left.set(title="Distortion", xlabel="reverse steps $T - t + 1$", ylabel="RMSE, 0…255")
    middle.plot(received, rate, color=INK)
    middle.set(title="Rate", xlabel="reverse steps $T - t + 1$", ylabel="bits/dim")
    right.plot(rate, rmse, color=INK)
    right.set(title="Rate and distortion", xlabel="bits/dim", ylabel="RMSE, 0…255")
    for axes in (left, right):
        axes.axhline(grey_level, color=FAINT, linewidth=1, linestyle="--", label="one grey level of the data")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper right")
    return save_figure(path, figure)

"""Figure 5: distortion and rate against the reverse steps, and against each other."""

from pathlib import Path

import numpy as np

from ddpm_ref.experiments.figure import BLUE, GREY, finish, new_figure, save_figure
from ddpm_ref.schedule import Table


def save_curves(path: Path, rate: Table, rmse: Table, grey_level: float) -> Path:
    """The three panels of Figure 5, to a PNG file.

    rate (bits/dim), rmse (0…255): (T+1,), row t after x_T … x_t have been received; row 0, lossless, is not drawn.
    grey_level: the distance between two grey levels of the data on 0…255, marked in the panels that show RMSE.
    """
    figure, (left, middle, right) = new_figure(3, width=5, height=4)
    rate, rmse = rate[1:], rmse[1:]
    received = len(rate) - np.arange(len(rate))  # T - t + 1 at t = 1 … T
    left.plot(received, rmse, color=BLUE)
    middle.plot(received, rate, color=BLUE)
    right.plot(rate, rmse, color=BLUE)
    for axes in (left, right):
        axes.axhline(grey_level, color=GREY, linewidth=1, linestyle="--", label="one grey level of the data")
    finish(left, "Distortion", "reverse steps $T - t + 1$", "RMSE, 0…255")
    finish(middle, "Rate", "reverse steps $T - t + 1$", "bits/dim", legend=False)
    finish(right, "Rate and distortion", "bits/dim", "RMSE, 0…255")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    return save_figure(path, figure)

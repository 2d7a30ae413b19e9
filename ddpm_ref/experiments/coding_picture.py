"""The picture of `ddpm-ref coding`: lengths against n, KL by step, the receiver's error, and what it shows."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_ref.experiments.figure import BLUE, ORANGE, save_figure
from ddpm_ref.extras import import_extra

if TYPE_CHECKING:
    from ddpm_ref.experiments.coding import CodingResult, ToyResult

GREEN, GREY = "#2e7d5b", "#8c8c8c"


def save_coding(path: str | os.PathLike[str], result: "CodingResult") -> Path:
    """A row for each toy, to a PNG file; returns its path."""
    Figure = import_extra("matplotlib.figure", "a picture with text").Figure
    rows = len(result.toys)
    figure = Figure(figsize=(16.5, 4 * rows), dpi=110, layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=[1, 1, 1, 1.25])
    for axes, toy in zip(grid, result.toys, strict=True):
        _lengths(axes[0], toy)
        _steps(axes[1], toy)
        _errors(axes[2], toy)
        _shown(axes[3], toy)
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
    return save_figure(path, figure)


def _lengths(axes: Any, toy: "ToyResult") -> None:
    n = [row.n for row in toy.lengths]
    axes.plot(n, [row.bound for row in toy.lengths], color=ORANGE, marker="v", ms=4,
              label=r"$\sum$ [KL + log$_2$(KL + 1) + 5] + $L_0$")  # fmt: skip
    axes.errorbar(n, [row.bits for row in toy.lengths], [2 * row.bits_error for row in toy.lengths], color=BLUE,
                  marker="o", ms=4, capsize=3, label="messages, mean ± 2 s.e.")  # fmt: skip
    axes.errorbar(n, [row.x_t_bits for row in toy.lengths], [2 * row.excess_error for row in toy.lengths], color=GREEN,
                  marker="s", ms=4, capsize=3, label="of it, codes of $x_T$ … $x_1$")  # fmt: skip
    axes.plot(n, [row.kl for row in toy.lengths], color=GREEN, ls="--", lw=1.2, label=r"$\sum$ KL of these, as sent")
    axes.axhline(toy.entropy, color=GREY, ls=":", lw=1.2, label=r"$H(x_0)$")
    axes.set(xscale="log", xlabel="$n$, copies in a message", ylabel="bits for each copy",
             title=f"{toy.name}: length")  # fmt: skip
    axes.set_xticks(n, [str(k) for k in n])
    axes.minorticks_off()
    axes.set_ylim(0, 1.3 * max(row.bound for row in toy.lengths))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _steps(axes: Any, toy: "ToyResult") -> None:
    """KL of a block of every step as sent, for every n, beside the 4 to 12 bits at which it pays."""
    t = np.arange(toy.T, 0, -1)
    shades = np.linspace(0.75, 0.0, len(toy.lengths))
    for row, shade in zip(toy.lengths, shades, strict=True):
        blocks = "" if row.blocks < toy.T + 0.5 else f", {row.blocks / toy.T:.1f} blocks"
        axes.plot(t, row.kl_by_step, "o-", ms=4, lw=1, color=str(shade), label=f"$n$ = {row.n}{blocks}")
    axes.axhspan(4, 12, color=GREEN, alpha=0.08, lw=0)
    axes.set(xlabel="$t$ of $x_t$, in the order sent", ylabel="KL of a block, bits", title=f"{toy.name}: KL by step")
    axes.set_xlim(toy.T + 0.4, 0.6)
    axes.set_xticks(t)
    axes.set_ylim(0, 1.35 * max(12, *(kl for row in toy.lengths for kl in row.kl_by_step)))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def _errors(axes: Any, toy: "ToyResult") -> None:
    """Against the bits received, as Figure 5 has it."""
    received = np.cumsum([*toy.L[:0:-1], toy.L[0]])
    axes.plot(received, toy.rmse_exact, color=BLUE, lw=1.2, label="exact expectation")
    axes.plot(received, toy.rmse, "o", color=ORANGE, ms=5, label="as received")
    last = -np.inf
    for k, (x, y) in enumerate(zip(received, toy.rmse, strict=True)):
        if x - last < 0.02 * received[-1]:  # it would be written over the one before
            continue
        last = x
        axes.annotate(f"$x_{{{toy.T - k}}}$", (x, y), xytext=(6, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=r"ideal bits so far, $\sum$ KL of one copy", ylabel=r"RMSE of $\hat{x}_0$",
             title=f"{toy.name}: what the receiver sees")  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _shown(axes: Any, toy: "ToyResult") -> None:
    """x̂_0 of some copies, after x_T grey and small, after x_1 dark, and x_0 as rings."""
    shown, x_0 = np.asarray(toy.shown), np.asarray(toy.x_0)
    axes.plot(shown[:, :, 0], shown[:, :, 1], color="#cccccc", lw=0.6, zorder=1)
    steps = len(shown) - 1
    for k in range(steps):
        shade = 0.75 * (1 - (k + 1) / steps)
        axes.scatter(
            *shown[k].T, s=6 + 4 * k, color=str(shade), zorder=2 + k, lw=0, label=rf"$\hat{{x}}_0(x_{{{steps - k}}})$"
        )
    axes.scatter(*x_0.T, s=36, facecolors="none", edgecolors=ORANGE, zorder=99, label="$x_0$")
    axes.set(
        xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", title=f"{toy.name}: $\\hat{{x}}_0$ on its way to $x_0$"
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

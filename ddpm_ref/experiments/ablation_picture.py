"""Table 2 as a picture: a dot for each seed, a bar at their mean; sample quality on the left, bits/dim on the right."""

from pathlib import Path
from typing import Any

from ddpm_ref.experiments.ablation_cells import Cell
from ddpm_ref.experiments.ablation_result import AblationResult
from ddpm_ref.experiments.figure import BLUE, ORANGE, RED, new_figure, save_figure
from ddpm_ref.extras import import_extra

_PREDICTED = {"mu": r"$\tilde{\mu}$", "eps": r"$\epsilon$", "x_0": r"$x_0$", "v": r"$v$"}
_ON = {"learned": r"$L$, learned $\Sigma$", "fixed": r"$L$, fixed $\Sigma$", "simple": "unweighted MSE"}
_GREY = "#808080"  # of lines that dots lie on
WIDE = 20.0  # an axis whose largest number is so many times the least is logarithmic


def save_ablation(path: Path, result: AblationResult) -> Path:
    """The picture as a PNG; returns its path. Numbers that are not finite are words."""
    cells = result.cells
    figure, (left, right) = new_figure(2, width=5.5, height=1.5 + 0.55 * len(cells), sharey=True)
    panel(left, result, (("frechet_features", BLUE, "samples"),))
    panel(right, result, (("bits_train", ORANGE, "training images"), ("bits_held_out", BLUE, "held-out images")))
    if (real := result.reference.get("frechet_features")) is not None:
        left.axvline(real, color=_GREY, linewidth=1, linestyle="--", label="held-out images", zorder=1)
    bits = [x for one in cells for x in one.values("bits_held_out") if x is not None]
    if bits and max(bits) > result.limits.bits:
        right.axvline(result.limits.bits, color=_GREY, linewidth=1, linestyle="--", label="no model", zorder=1)
    left.set(title="Sample quality (less is better)", xlabel="Fréchet distance to the training images, on features")
    right.set(title="Code length (less is better)", xlabel="bound in bits/dim")
    left.set_yticks(range(len(cells)), [_label(one.cell) for one in cells])
    left.set_ylim(len(cells) - 0.5, -0.5)
    for number, one in enumerate(cells):
        if mark := one.mark(result.limits):
            place = dict(transform=left.get_yaxis_transform(), color=RED, fontsize=8, va="center", ha="right")
            left.text(0.985, number - 0.34, mark, **place)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return save_figure(path, figure)


def panel(axes: Any, result: AblationResult, measures: tuple[tuple[str, str, str], ...]) -> None:
    """Dots and bars of one or two measures, one row for each cell."""
    values = [x for name, _, _ in measures for one in result.cells for x in one.values(name) if x is not None and x > 0]
    if values and max(values) > WIDE * min(values):
        ticker = import_extra("matplotlib.ticker", "a picture with text")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if max(values) < 1e3 * min(values) else (1,)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    for k, (name, color, text) in enumerate(measures):
        shift, reach = 0.24 * (k - (len(measures) - 1) / 2), 0.18 / len(measures)
        for number, one in enumerate(result.cells):
            y, found = number + shift, [x for x in one.values(name) if x is not None]
            dots = dict(s=26, color=color, alpha=0.7, linewidths=0, zorder=3)
            axes.scatter(found, [y] * len(found), label=text if number == 0 else None, **dots)
            if (centre := one.mean(name)) is not None:
                axes.plot([centre, centre], [y - reach, y + reach], color=color, linewidth=2.2, zorder=2)
            else:
                place = dict(transform=axes.get_yaxis_transform(), color=RED, fontsize=8, va="center")
                axes.text(0.02, y, "not finite", **place)
    axes.grid(axis="x", which="both", color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _label(cell: Cell) -> str:
    on = r"$L_{\mathrm{simple}}$" if cell.name == "eps-simple" else _ON[cell.trained_on]
    return f"{_PREDICTED[cell.predicts]},  {on}"

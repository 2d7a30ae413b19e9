"""Quality of x̂_0 over the reverse process, as curves (Figure 10)."""

from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_ref.experiments.figure import BLUE, GREY, RED, finish, new_figure, save_figure

if TYPE_CHECKING:
    from ddpm_ref.experiments.generation import Generation

NAMES = {
    "frechet": ("Fréchet distance to training images", "Fréchet distance, raw pixels"),
    "score": ("Classifier score", "exp E KL(p(k | x) ‖ p(k))"),
}


def save_quality(path: Path, result: "Generation") -> Path:
    """What was measured of x̂_0 at each t, noise at the left, beside held-out images; and its distance to the sample."""
    there = [name for name in NAMES if getattr(result.quality[0], name) is not None]
    figure, (first, *others) = new_figure(1 + len(there))
    first.plot(result.t, result.change, "o-", color=RED, markersize=4)
    finish(first, r"Change still to come of $\hat{x}_0$", "$t$", "RMS to the sample, 0…255", legend=False)
    for axes, name in zip(others, there, strict=True):
        axes.plot(result.t, [getattr(row, name) for row in result.quality], "o-", color=BLUE, markersize=4,
                  label=rf"$\hat{{x}}_0$ of {result.count} samples")  # fmt: skip
        if result.held_out is not None:
            axes.axhline(getattr(result.held_out, name), color=GREY, linestyle="--", label="held-out images")
        finish(axes, NAMES[name][0], "$t$", NAMES[name][1])
        axes.set_ylim(bottom=0)
    for axes in (first, *others):
        axes.invert_xaxis()  # time runs to the right: from noise to the sample
    return save_figure(path, figure)

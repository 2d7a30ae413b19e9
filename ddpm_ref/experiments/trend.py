"""Claims about t decided over pairs of images or latents: one number of each, and Student's interval of their mean."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ddpm_ref.checks import Array
from ddpm_ref.experiments.ablation_findings import DOES_NOT_HOLD, HOLDS, UNDECIDED, quantile


@dataclass(frozen=True)
class Trend:
    """The mean of n numbers that a claim says is above 0, the ends of its 95 % interval, and the verdict.

    mean: None without finite numbers.  low, high: None for fewer than two of them too.
    """

    verdict: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))

    def sentence(self) -> str:
        """The verdict and the numbers."""
        if self.mean is None:
            return self.verdict
        interval = "" if self.low is None or self.high is None else f", {self.low:.3g} … {self.high:.3g}"
        return f"{self.verdict} (mean {self.mean:.3g}{interval})"


def decide(numbers: ArrayLike) -> Trend:
    """Whether the mean of n independent numbers, one of each pair or latent, is above 0.

    By Student's interval d̄ ± t_{n-1} s / √n: the claim holds if all of it is above 0, does not if all of it is below,
    and is not decided otherwise, nor for n < 2 or numbers that are not finite.
    """
    x = np.asarray(numbers, dtype=np.float64)
    if not len(x) or not np.isfinite(x).all():
        return Trend(UNDECIDED)
    mean = float(x.mean())
    if len(x) < 2:
        return Trend(UNDECIDED, mean)
    half = quantile(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    low, high = mean - half, mean + half
    return Trend(HOLDS if low > 0 else DOES_NOT_HOLD if high < 0 else UNDECIDED, mean, low, high)


def slopes(t: ArrayLike, values: Array) -> Array:
    """The slope against t (K,) of the least-squares line through each column of values (K, n): (n,), per step.

    Empty if K < 2: there is no line.
    """
    x = np.asarray(t, dtype=np.float64)
    if len(x) < 2:
        return np.empty(0)
    x = x - x.mean()
    slope: Array = x @ values / (x @ x)
    return slope

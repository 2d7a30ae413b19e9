"""Does an ablation find what the paper found? Each comparison is decided by numbers, or said to be undecided (§4.2)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from ddpm_ref.extras import import_extra

HOLDS, DOES_NOT_HOLD, UNDECIDED = "holds", "does not hold", "not decided at this spread"
CONFIDENCE = 0.95  # of the interval around the mean difference (Student's t over the seeds)
ALIKE = 0.25  # two cells are about as good if their difference is surely within this share of the second's mean

Values = Callable[[str], list[float | None]]
"""values(measure): that number of each seed's run, None where it is not finite."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper: `measure` is lower in one cell than in another, or, if `alike`, about the same."""

    text: str
    lower: str
    higher: str
    measure: str
    paper: str
    alike: bool = False


FEATURES, PIXELS, BITS = "frechet_features", "frechet", "bits_held_out"
_NAMES = {FEATURES: "Fréchet distance of features", PIXELS: "Fréchet distance of pixels", BITS: "bits/dim"}

CLAIMS = (
    Claim("predicting ε, L_simple draws better samples than L (by features)", "eps-simple", "eps-fixed", FEATURES,
          "FID 3.17 against 13.51"),
    Claim("predicting ε, L_simple draws better samples than L (by raw pixels)", "eps-simple", "eps-fixed", PIXELS,
          "FID 3.17 against 13.51"),
    Claim("predicting ε, L codes held-out images in fewer bits than L_simple", "eps-fixed", "eps-simple", BITS,
          "3.70 against 3.75 bits/dim"),
    Claim("predicting μ̃ needs the bound: L draws better samples than the unweighted MSE", "mu-fixed", "mu-simple",
          FEATURES, "FID 13.22 against unstable"),
    Claim("predicting μ̃, a fixed Σ draws better samples than a learned one", "mu-fixed", "mu-learned", FEATURES,
          "FID 13.22 against 23.69"),
    Claim("predicting ε, a fixed Σ draws better samples than a learned one", "eps-fixed", "eps-learned", FEATURES,
          "FID 13.51 against unstable"),
    Claim("with L and fixed Σ, predicting ε draws about as good samples as predicting μ̃", "eps-fixed", "mu-fixed",
          FEATURES, "FID 13.51 and 13.22", alike=True),
    Claim("ε with L_simple draws better samples than μ̃ with L", "eps-simple", "mu-fixed", FEATURES,
          "FID 3.17 against 13.22"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A claim and the numbers that decide it.

    differences: higher minus lower of each seed, None where either is not finite: positive is as claimed.
    low, high: the interval around their mean, None for fewer than two seeds or where any difference is missing.
    """

    claim: Claim
    differences: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    verdict: str
    note: str = ""

    def sentence(self) -> str:
        """The claim, the verdict, the numbers."""
        c = self.claim
        each = ", ".join("not finite" if d is None else f"{d:+.3g}" for d in self.differences)
        numbers = f"{_NAMES[c.measure]}, {c.higher} less {c.lower}, seed by seed: {each}"
        if self.mean is not None:
            numbers += f"; mean {self.mean:+.3g}"
        if self.low is not None and self.high is not None:
            numbers += f", {CONFIDENCE:.0%} interval {self.low:+.3g} … {self.high:+.3g}"
        text = f"{c.text}: {self.verdict}"
        return f"{text}{f' ({self.note})' if self.note else ''}. {numbers}. The paper: {c.paper}."

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the sentence."""
        own = {name: value for name, value in vars(self).items() if name != "claim"}
        return {**vars(self.claim), **own, "differences": list(self.differences), "sentence": self.sentence()}


def find(cells: Mapping[str, Values]) -> tuple[Finding, ...]:
    """The claims about cells that are there, each rated on runs with equal seeds."""
    return tuple(decide(c, cells[c.lower], cells[c.higher]) for c in CLAIMS if {c.lower, c.higher} <= cells.keys())


def decide(claim: Claim, lower: Values, higher: Values) -> Finding:
    """Whether the claim holds at the spread of these numbers.

    By the interval of the mean difference d̄ over n seeds, d̄ ± t_{n-1} s / √n:
        lower        holds if all of it is above 0, does not if all of it is below
        alike        holds if all of it is within ± ALIKE of higher's mean, does not if none of it is
    A number that is not finite is beyond every other; where only higher's are missing and no seed speaks against the
    claim, it holds.
    """
    a, b = lower(claim.measure), higher(claim.measure)
    differences = tuple(None if x is None or y is None else y - x for x, y in zip(a, b, strict=True))
    if None in differences:
        return _without_numbers(claim, a, b, differences)
    found = [d for d in differences if d is not None]
    centre = mean(found)
    if len(found) < 2:
        return Finding(claim, differences, centre, None, None, UNDECIDED, "a single seed has no spread")
    half = quantile(len(found) - 1) * stdev(found) / math.sqrt(len(found))
    low, high = centre - half, centre + half
    if claim.alike:
        margin = ALIKE * mean(y for y in b if y is not None)
        inside, outside = max(-low, high) <= margin, low > margin or high < -margin
    else:
        inside, outside = low > 0, high < 0
    verdict = HOLDS if inside else DOES_NOT_HOLD if outside else UNDECIDED
    return Finding(claim, differences, centre, low, high, verdict)


def _without_numbers(
    claim: Claim, a: list[float | None], b: list[float | None], differences: tuple[float | None, ...]
) -> Finding:
    """The verdict where some run has no finite number."""
    missing = [name for name, values in ((claim.lower, a), (claim.higher, b)) if None in values]
    note = f"{' and '.join(missing)}: not finite"
    if missing == [claim.lower] or claim.alike:
        verdict = DOES_NOT_HOLD if len(missing) == 1 else UNDECIDED
    else:
        against = any(d is not None and d <= 0 for d in differences)
        verdict = UNDECIDED if against or len(missing) == 2 else HOLDS
    return Finding(claim, differences, None, None, None, verdict, note)


def quantile(degrees: int) -> float:
    """Student's t that CONFIDENCE of draws stay within, either side."""
    return float(import_extra("scipy.stats", "the spread over seeds").t.ppf((1 + CONFIDENCE) / 2, degrees))

"""Does an ablation find what the paper found? Each comparison is decided by numbers, or said to be undecided (§4.2)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from ddpm_ref.extras import import_extra

HOLDS, DOES_NOT_HOLD, UNDECIDED = "holds", "does not hold", "not decided at this spread"
CONFIDENCE = 0.95  # of the interval around the mean (Student's t over the seeds)
ALIKE = 1.25  # two cells are about as good if surely neither's Fréchet distance is more than so many times the other's

Values = Callable[[str], list[float | None]]
"""values(measure): that number of each seed's run, None where it is not finite."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper: `measure` is lower in one cell than in another, or, if `alike`, about the same.

    why: what may be said of the digits if the claim does not hold there: measured facts, and hypotheses called so.
    """

    text: str
    lower: str
    higher: str
    measure: str
    paper: str
    alike: bool = False
    why: str = ""

    @property
    def by_ratio(self) -> bool:
        """Fréchet distances scatter in proportion to their size: they are compared by ratios, bits by differences."""
        return self.measure != BITS


FEATURES, PIXELS, BITS = "frechet_features", "frechet", "bits_held_out"
_NAMES = {FEATURES: "Fréchet distance of features", PIXELS: "Fréchet distance of pixels", BITS: "bits/dim"}

_FEW_BITS = (
    "Measured: the digits have 17 grey levels, so that with σ_1 = 0.007 the discretised decoder costs about nothing, "
    "and nearly all bits are KLs at small t; Eq. 12 weights ε's error 185 times as much at t = 1 as at t = 349. "
    "Measured with one seed: L_simple is ahead by 0.10 bits/dim at 4,000 steps, by 0.03 at 12,000; at 24,000 L is, "
    "by 0.03 (2.69 against 2.72), L_simple having begun to fit the training images alone (2.54 on these, L 2.65). "
    "Hypothesis: at batches of 64 the gradient of L is the noisier one, so that it takes more steps"
)
_FINE_MEANS = (
    "Measured: where μ̃ is predicted the network must hit it to within σ_t, 0.007 … 0.14, before samples and bits are "
    "sensible, while from ε it is right in scale from the start; all cells of μ̃ are far from the data here. "
    "Hypothesis: this training, short beside the paper's 800,000 steps, is over before they get there, and the order "
    "of cells that are all far off says nothing of trained ones"
)
CLAIMS = (
    Claim("predicting ε, L_simple draws better samples than L (by features)", "eps-simple", "eps-fixed", FEATURES,
          "FID 3.17 against 13.51"),
    Claim("predicting ε, L_simple draws better samples than L (by raw pixels)", "eps-simple", "eps-fixed", PIXELS,
          "FID 3.17 against 13.51"),
    Claim("predicting ε, L codes held-out images in fewer bits than L_simple", "eps-fixed", "eps-simple", BITS,
          "3.70 against 3.75 bits/dim", why=_FEW_BITS),
    Claim("predicting μ̃ needs the bound: L draws better samples than the unweighted MSE", "mu-fixed", "mu-simple",
          FEATURES, "FID 13.22 against unstable", why=_FINE_MEANS),
    Claim("predicting μ̃, a fixed Σ draws better samples than a learned one", "mu-fixed", "mu-learned", FEATURES,
          "FID 13.22 against 23.69", why=_FINE_MEANS),
    Claim("predicting ε, a fixed Σ draws better samples than a learned one", "eps-fixed", "eps-learned", FEATURES,
          "FID 13.51 against unstable"),
    Claim("with L and fixed Σ, predicting ε draws about as good samples as predicting μ̃", "eps-fixed", "mu-fixed",
          FEATURES, "FID 13.51 and 13.22", alike=True, why=_FINE_MEANS),
    Claim("ε with L_simple draws better samples than μ̃ with L", "eps-simple", "mu-fixed", FEATURES,
          "FID 3.17 against 13.22"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A claim and the numbers that decide it.

    apart: higher over lower of each seed, or, of bits/dim, higher minus lower; None where either is not finite.
    mean: of the ratios the geometric one.  why: the claim's, if it is to be said.
    low, high: the interval around the mean, None for fewer than two seeds or where any number is missing.
    """

    claim: Claim
    apart: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    verdict: str
    note: str = ""
    why: str = ""

    def numbers(self) -> str:
        """The numbers that decide it, the rule of likeness, and the note, as a sentence."""
        c = self.claim
        sign, between = ("", "over") if c.by_ratio else ("+", "less")
        each = ", ".join("not finite" if x is None else f"{x:{sign}.3g}" for x in self.apart)
        numbers = f"{_NAMES[c.measure]}, {c.higher} {between} {c.lower}, seed by seed: {each}"
        if self.mean is not None:
            numbers += f"; mean {self.mean:{sign}.3g}"
        if self.low is not None and self.high is not None:
            numbers += f", {CONFIDENCE:.0%} interval {self.low:{sign}.3g} … {self.high:{sign}.3g}"
        if c.alike:
            numbers += f"; alike if surely between {1 / ALIKE:.3g} and {ALIKE:.3g}"
        return f"{numbers} ({self.note})" if self.note else numbers

    def sentence(self) -> str:
        """The claim, the verdict, the numbers, what the paper has, and why it is otherwise here."""
        c = self.claim
        return f"{c.text}: {self.verdict}. {self.numbers()}. The paper: {c.paper}.{f' {self.why}.' if self.why else ''}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the claim, what was found, and both in words, `numbers`, `paper` and `sentence`."""
        own = {name: value for name, value in vars(self).items() if name != "claim"}
        words = {"numbers": self.numbers(), "sentence": self.sentence()}
        return {**vars(self.claim), **own, "apart": list(self.apart), **words}


def find(cells: Mapping[str, Values], *, reasons: bool = False) -> tuple[Finding, ...]:
    """The claims about cells that are there, each rated on runs with equal seeds.

    reasons: the data are the digits, and claims that do not hold are told their `why`.
    """
    there = [c for c in CLAIMS if {c.lower, c.higher} <= cells.keys()]
    found = [decide(c, cells[c.lower], cells[c.higher]) for c in there]
    return tuple(replace(f, why=f.claim.why) if reasons and f.verdict != HOLDS else f for f in found)


def decide(claim: Claim, lower: Values, higher: Values) -> Finding:
    """Whether the claim holds at the spread of these numbers.

    By the interval of the mean d̄ over n seeds, d̄ ± t_{n-1} s / √n; d = log(higher / lower), of bits higher - lower:
        lower        holds if all of it is above 0, does not if all of it is below
        alike        holds if all of it is within ± log ALIKE, does not if none of it is
    A number that is not finite is beyond every other; where only higher's are missing and no seed speaks against the
    claim, it holds.
    """
    a, b = lower(claim.measure), higher(claim.measure)
    to, back = (_log, _exp) if claim.by_ratio else (float, float)
    each = tuple(None if x is None or y is None else to(y) - to(x) for x, y in zip(a, b, strict=True))
    apart = tuple(None if d is None else back(d) for d in each)
    if None in each:
        return _without_numbers(claim, a, b, apart)
    found = [d for d in each if d is not None]
    centre = mean(found)
    if len(found) < 2:
        return Finding(claim, apart, back(centre), None, None, UNDECIDED, "a single seed has no spread")
    half = quantile(len(found) - 1) * stdev(found) / math.sqrt(len(found))
    low, high = centre - half, centre + half
    if claim.alike:
        inside, outside = max(-low, high) <= to(ALIKE), low > to(ALIKE) or high < -to(ALIKE)
    else:
        inside, outside = low > 0, high < 0
    verdict = HOLDS if inside else DOES_NOT_HOLD if outside else UNDECIDED
    return Finding(claim, apart, back(centre), back(low), back(high), verdict)


def _log(x: float) -> float:
    """Of a Fréchet distance, which rounding may leave at 0."""
    return math.log(max(x, 1e-12))


def _exp(x: float) -> float:
    """Two seeds can make an interval that no float holds the end of."""
    return math.exp(min(x, 700.0))


def _without_numbers(
    claim: Claim, a: list[float | None], b: list[float | None], apart: tuple[float | None, ...]
) -> Finding:
    """The verdict where some run has no finite number."""
    missing = [name for name, values in ((claim.lower, a), (claim.higher, b)) if None in values]
    note = f"{' and '.join(missing)}: not finite"
    if missing == [claim.lower] or claim.alike:
        verdict = DOES_NOT_HOLD if len(missing) == 1 else UNDECIDED
    else:
        against = any(x is not None and y is not None and y <= x for x, y in zip(a, b, strict=True))
        verdict = UNDECIDED if against or len(missing) == 2 else HOLDS
    return Finding(claim, apart, None, None, None, verdict, note)


def quantile(degrees: int) -> float:
    """Student's t that CONFIDENCE of draws stay within, either side."""
    return float(import_extra("scipy.stats", "the spread over seeds").t.ppf((1 + CONFIDENCE) / 2, degrees))

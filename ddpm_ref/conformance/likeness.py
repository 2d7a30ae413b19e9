"""How what came differs from what is wanted: from which t on, by what, and whether a known mistake explains it."""

import numpy as np

from ddpm_ref.checks import Array


def explained_rows(got: Array, wanted: Array, mistake: Array, eps: float) -> Array:
    """The steps at which a mistake is closer to what came than what is wanted, by far, and not by chance."""
    with np.errstate(all="ignore"):
        off, miss, size, apart = (
            np.sqrt((x.reshape(len(got), -1) ** 2).mean(axis=1))
            for x in (got - wanted, got - mistake, wanted, mistake - wanted)
        )
        rows: Array = (miss < 0.1 * off) & (apart > 8 * eps * size)
    return rows


def fits(got: Array, candidate: Array, slack: Array, wanted: Array, tol: Array, bad: Array) -> bool:
    """Whether a candidate explains (nearly) every value that is wrong, by more than being near what is wanted.

    And whether what is right does not contradict it. Nearly, because the two ends of t may differ.
    """
    off = np.abs(candidate - wanted)
    near = np.abs(got - candidate) <= np.minimum(slack, 0.25 * off) + tol + 1e-9 * np.abs(candidate)
    apart, told = ~(off <= 0.5 * tol), bad | (off > 4 * (slack + tol))
    return bool(near[bad].mean() >= 0.9 and apart[bad].mean() >= 0.5 and near[told].mean() >= 0.9)


def extent(t: Array, rows: Array, theirs: int) -> str:
    """Of which of the t that were asked a break is one, in words to follow the first."""
    known = np.unique(t)
    if len(known) < 2:
        return ""
    bad = np.isin(known, t[rows])
    first = int(np.argmax(bad))
    if bad.all():
        return "at all t"
    if bad.sum() == 1:
        return "only"
    if bad[first:].all():
        return "and from there on" + (" (does t overflow 8 bits?)" if theirs in (128, 256) else "")
    last = len(bad) - 1 - int(np.argmax(bad[::-1]))
    return f"up to t = {known[last]}" if bad[first : last + 1].all() else f"at {bad.sum()} of {len(bad)} t"


def half_precision(table: Array) -> str:
    """Whether every number is one of float16 or bfloat16: more than chance if they are many."""
    single = table.astype(np.float32)
    if len(np.unique(table)) > 3 and np.array_equal(single.astype(np.float64), table):
        if not (single.view(np.uint32) & 0xFFFF).any():
            return "every value is a bfloat16: half precision"
        with np.errstate(over="ignore"):
            if np.array_equal(single.astype(np.float16).astype(np.float64), table):
                return "every value is a float16: half precision"
    return ""


def constant_factor(got: Array, wanted: Array, bad: Array) -> str:
    """One factor between got and wanted, where they differ."""
    with np.errstate(all="ignore"):
        ratio = (got / wanted)[bad]
    ratio = ratio[np.isfinite(ratio)]
    middle = float(np.median(ratio)) if len(ratio) else 1.0
    if len(ratio) > 3 and np.ptp(ratio) <= 1e-3 * abs(middle) and abs(middle - 1) > 1e-3:
        return f"{np.median(ratio):.6g} times what is wanted, everywhere"
    return ""


def worst(error: Array, wanted: Array, t: Array) -> list[str]:
    """A note on the precision of a table that holds, if it is worse than 1e-5."""
    if error.ndim > 1:
        return []
    relative = np.where(wanted != 0, error / np.abs(wanted), 0)
    at = int(np.argmax(relative))
    return [f"worst relative error {relative[at]:.0e} at t = {t[at]}"] if relative[at] > 1e-5 else []

"""Whether a contender computes what NumPy does: what each side writes before it is timed, and how far apart it may be.

    output          ε_θ on given x_t, t
    step            x_{t-1} - x_t of one reverse step with the noise off
    gradient        of L_simple over all parameters
    worst gradient  of whichever one parameter is farthest off
    update          θ after one training step with given draws - θ before
    ema             the EMA after that step - θ before

All are relative norms, ‖theirs - NumPy's‖ / ‖NumPy's‖. k's bias is excepted from the last three: softmax does not see a
constant added to its row, so that the true gradient is 0 and what there is of it is rounding.
"""

from pathlib import Path

import numpy as np

from benchmarks.cases import Job
from benchmarks.contenders import result_path
from ddpm_ref.nn.unet import UNet

RESULTS = ("output", "gradient", "step", "update", "ema")
"""Names of files of results."""
WORST = "worst gradient"
NOT_THE_SAME = "not the same computation"
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "tf32": 5e-2, "bf16": 5e-2}
"""Of outputs, gradients and reverse steps; in the last two, what rounding every operand of a whole network costs
PyTorch too."""
WORST_TOLERANCE = {"float32": 1e-3, "float64": 1e-8, "tf32": 0.5, "bf16": 0.5}
UPDATE_TOLERANCE = {"float32": 1e-2, "float64": 1e-6, "tf32": 0.7, "bf16": 0.7}
"""Adam's first step is g / (|g| + ε), nearly the sign of g: where g is of the size of its rounding, its sign is
anybody's. No step at all is 1 away, a step in the wrong direction 2."""
_CHUNK = 1 << 20


def tolerance(what: str, precision: str) -> float:
    """The largest gap that is still the same computation."""
    kinds = {WORST: WORST_TOLERANCE, "update": UPDATE_TOLERANCE, "ema": UPDATE_TOLERANCE}
    return kinds.get(what, TOLERANCE)[precision]


def disagreement(agreement: dict[str, float], precision: str) -> str | None:
    """What is wrong with a contender whose results are this far from NumPy's, or None."""
    wrong = [
        f"its {what} differs by {one:.1e} (at most {tolerance(what, precision):.0e})"
        for what, one in agreement.items()
        if not one <= tolerance(what, precision)
    ]
    return f"{NOT_THE_SAME}: {' and '.join(wrong)}" if wrong else None


def gaps(folder: Path, job: Job, reference: str, name: str) -> dict[str, float]:
    """How far a contender's files of results are from NumPy's, by what they hold."""
    found = {what: gap(folder, job, reference, name, what) for what in RESULTS}
    agreement = {what: one for what, one in found.items() if one is not None}
    if job.loop is None and np.isfinite(agreement.get("gradient", np.inf)):
        a, b = (_numbers(folder, job, one, "gradient") for one in (reference, name))
        agreement[WORST] = worst_gap(UNet(job.config).shapes, a, b)
    return agreement


def gap(folder: Path, job: Job, reference: str, name: str, what: str) -> float | None:
    """‖theirs - NumPy's‖ / ‖NumPy's‖ of what both have written; None if neither has."""
    ours, theirs = result_path(folder, reference, what), result_path(folder, name, what)
    if not ours.exists() and not theirs.exists():
        return None
    if not (ours.exists() and theirs.exists()) or ours.stat().st_size != theirs.stat().st_size:
        return float("inf")
    return relative_gap(_numbers(folder, job, reference, what), _numbers(folder, job, name, what))


def _numbers(folder: Path, job: Job, name: str, what: str) -> np.ndarray:
    return np.memmap(result_path(folder, name, what), np.dtype(job.dtype), "r")


def worst_gap(shapes: dict[str, tuple[int, ...]], reference: np.ndarray, other: np.ndarray) -> float:
    """The largest relative gap of a single parameter in two flat vectors of these."""
    worst, first = 0.0, 0
    for name, shape in shapes.items():
        part = slice(first, first + int(np.prod(shape)))
        first = part.stop
        if compared(name):
            worst = max(worst, relative_gap(reference[part], other[part]))
    return worst


def compared(name: str) -> bool:
    """Whether a parameter's own gradient says anything."""
    return not name.endswith("/k/b")


def relative_gap(reference: np.ndarray, other: np.ndarray) -> float:
    """‖other - reference‖ / ‖reference‖, summed in float64 a part at a time; NaN and infinities are infinitely far."""
    off = size = 0.0
    for first in range(0, len(reference), _CHUNK):
        part = slice(first, first + _CHUNK)
        a, b = reference[part].astype(np.float64), other[part].astype(np.float64)
        off, size = off + float(np.sum((b - a) ** 2)), size + float(np.sum(a**2))
    relative = np.sqrt(off) / (np.sqrt(size) + 1e-30)
    return float(relative) if np.isfinite(relative) else float("inf")

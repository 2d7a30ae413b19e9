"""One job measured: contenders made, compared, timed in turns A B C A B C …, and the rows that come of it."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import Job
from benchmarks.contenders import Worker, is_ours, result_path
from benchmarks.work import Work

NOISY = 0.10
"""A row whose interquartile range is more than this part of its median is marked, and not to be quoted."""
TOLERANCE = {"float32": 1e-4, "float64": 1e-9, "tf32": 5e-2, "bf16": 5e-2}
"""How far, by relative norm, an output or a gradient may be from NumPy's; in the last two, what rounding every operand
of a whole network costs PyTorch too."""
PATIENCE = 3600.0
REFERENCE = "numpy"
_CHUNK = 1 << 20

Seconds = dict[str, list[dict[str, Any]]]
"""Of each contender, round by round, what `Worker.visit` returned."""


class Rates(NamedTuple):
    """The machine's ceilings for a job: operations and bytes a second; None where they were not measured."""

    flops: float | None
    bytes: float | None

    def floor(self, work: Work) -> float | None:
        """The least seconds."""
        if self.flops is None or self.bytes is None or not (work.flops or work.bytes):
            return None
        return work.floor(self.flops, self.bytes)


class Outcome(NamedTuple):
    """rows, and by "case: contender" why others were left out."""

    rows: list[dict[str, Any]]
    left_out: dict[str, str]


class Ready(NamedTuple):
    """A contender that may be timed: its facts, and how far its results are from NumPy's."""

    worker: Worker
    facts: dict[str, Any]
    agreement: dict[str, float]


Note = Callable[[str], None]


def measure(job: Job, rates: Rates, patience: float = PATIENCE, note: Note = lambda _: None) -> Outcome:
    """Time all contenders of a job. patience: seconds to be made in.  note: told what is being done."""
    left: dict[str, str] = {}
    with TemporaryDirectory() as place, ExitStack() as stack:
        ready = _make(job, Path(place), stack, patience, left, note)
        rounds = _take_turns(job, ready, left, note)
        memory = {name: ready[name].worker.stop() for name in rounds}
    rows = []
    for part, work in job.parts:
        seconds = {name: [job.scale * visit[part] for visit in visits] for name, visits in rounds.items()}
        for name in rounds:
            row = {"case": f"{job.case}{part}"} | job.keys() | {"contender": name, "ours": is_ours(name)}
            row |= summary(seconds, name) | ceiling(work, rates, statistics.median(seconds[name]))
            row |= ready[name].facts | memory[name] | {"agreement": ready[name].agreement, "unit": "s"}
            row |= {fact: value for fact, value in rounds[name][-1].items() if fact not in dict(job.parts)}
            rows.append(row)
    return Outcome(rows, {f"{job.label}: {name}": why for name, why in left.items()})


def _make(
    job: Job, folder: Path, stack: ExitStack, patience: float, left: dict[str, str], note: Note
) -> dict[str, Ready]:
    """Every contender that computes what NumPy does. They are made one after another: they may compile."""
    names = [name for name in job.contenders if name != REFERENCE]
    ready: dict[str, Ready] = {}
    for name in [REFERENCE, *names]:  # first what all are compared with, whether it is to be timed or not
        note(f"{job.label}: making {name}")
        own = job if name in job.contenders else replace(job, precision=job.dtype)
        worker = stack.enter_context(Worker(own, name, folder))
        facts = worker.ready(patience)
        if isinstance(facts, str):
            if name == REFERENCE:
                raise RuntimeError(f"{job.label}: NumPy, the reference, failed: {facts}")
            left[name] = facts
            continue
        gaps = {what: gap(folder, job, name, what) for what in ("output", "gradient")}
        agreement = {what: one for what, one in gaps.items() if one is not None}
        if wrong := disagreement(agreement, TOLERANCE[job.precision]):
            left[name] = wrong
            worker.stop()
            continue
        ready[name] = Ready(worker, facts, agreement)
    for name in names:
        for what in ("output", "gradient"):
            result_path(folder, name, what).unlink(missing_ok=True)
    if REFERENCE not in job.contenders:
        ready.pop(REFERENCE).worker.stop()
    return {name: ready[name] for name in job.contenders if name in ready}


def _take_turns(job: Job, ready: dict[str, Ready], left: dict[str, str], note: Note) -> Seconds:
    """Rounds A B C A B C …; a contender that fails in one is left out."""
    seconds: Seconds = {name: [] for name in ready}
    skipped = 1 if job.warm_up else 0
    for round_ in range(job.rounds + skipped):
        for name in list(seconds):
            note(f"{job.label}: round {round_ + 1 - skipped} of {job.rounds}, {name}")
            got = ready[name].worker.visit(round_)
            if isinstance(got, str):
                left[name] = got
                del seconds[name]
            elif round_ >= skipped:
                seconds[name].append(got)
    return seconds


# --- agreement -------------------------------------------------------------------------------------------------------


def gap(folder: Path, job: Job, name: str, what: str) -> float | None:
    """‖theirs - NumPy's‖ / ‖NumPy's‖ of what both have written; None if neither has."""
    ours, theirs = result_path(folder, REFERENCE, what), result_path(folder, name, what)
    if not ours.exists() and not theirs.exists():
        return None
    if not (ours.exists() and theirs.exists()) or ours.stat().st_size != theirs.stat().st_size:
        return float("inf")
    dtype = np.dtype(job.dtype)
    a, b = np.memmap(ours, dtype, "r"), np.memmap(theirs, dtype, "r")
    return relative_gap(a, b)


def relative_gap(reference: np.ndarray, other: np.ndarray) -> float:
    """‖other - reference‖ / ‖reference‖, summed in float64 a part at a time; NaN and infinities are infinitely far."""
    off = size = 0.0
    for first in range(0, len(reference), _CHUNK):
        part = slice(first, first + _CHUNK)
        a, b = reference[part].astype(np.float64), other[part].astype(np.float64)
        off, size = off + float(np.sum((b - a) ** 2)), size + float(np.sum(a**2))
    relative = np.sqrt(off) / (np.sqrt(size) + 1e-30)
    return float(relative) if np.isfinite(relative) else float("inf")


def disagreement(agreement: dict[str, float], tolerance: float) -> str | None:
    """What is wrong with a contender whose results are this far from NumPy's, or None."""
    wrong = [f"its {what} differs by {one:.1e}" for what, one in agreement.items() if not one <= tolerance]
    return f"not the same computation: {' and '.join(wrong)} (at most {tolerance:.0e})" if wrong else None


# --- figures ---------------------------------------------------------------------------------------------------------


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third; of a single value three times itself."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def summary(seconds: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Median and quartiles of a contender, whether they are far apart, and every other's time over its, in pairs."""
    own = seconds[name]
    first, median, third = quartiles(own)
    return {
        "seconds": own,
        "median": median,
        "quartiles": [first, third],
        "noisy": (third - first) / median > NOISY,
        "over": {
            other: quartiles([b / a for a, b in zip(own, theirs, strict=True)])
            for other, theirs in seconds.items()
            if other != name
        },
    }


def ceiling(work: Work, rates: Rates, median: float) -> dict[str, Any]:
    """What there is to do, how fast it could be done, and how close to that it was."""
    floor = rates.floor(work)
    fraction = None if floor is None else floor / median
    return {"flops": work.flops, "bytes": work.bytes, "floor_seconds": floor, "fraction": fraction}

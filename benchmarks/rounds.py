"""One job measured: contenders made, compared, timed in turns A B C, B C A, C A B, …, and the rows that come of it."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.agreement import RESULTS, disagreement, gaps
from benchmarks.cases import Job
from benchmarks.contenders import Worker, is_ours, result_path
from benchmarks.provenance import memory_gib
from benchmarks.work import Work, step_work

NOISY = 0.10
"""A row whose interquartile range is more than this part of its median is marked, and not to be quoted."""
FEWEST = 3
"""Rounds; of fewer nobody knows whether they are far apart, so that they are marked too."""
STEPS_APART = 0.05
"""By what part a contender may need other steps to the target loss than ours."""
PATIENCE = 3600.0
REFERENCE = "numpy"

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
    """Time all contenders of a job. patience: seconds to be made in, and for a visit.  note: told what is done."""
    left: dict[str, str] = {}
    ready: dict[str, Ready] = {}
    rounds: Seconds = {}
    memory: dict[str, dict[str, Any]] = {}
    names = [REFERENCE, *(name for name in job.contenders if name != REFERENCE)]
    together = fits_in_memory(job)
    with TemporaryDirectory() as place:
        for group in [names] if together else [[name] for name in names]:
            with ExitStack() as stack:
                made = _make(job, group, Path(place), stack, patience, left, note)
                turns = _take_turns(job, made, patience, left, note)
                for name in turns:
                    got = made[name].worker.stop()
                    if isinstance(got, str):
                        left[name] = got
                    else:
                        ready[name], rounds[name], memory[name] = made[name], turns[name], got
    leave_out_other_steps(rounds, left)
    if job.what == "reach":  # a trainer, its data and its draws in turn: no figure that sides share
        memory = {name: {"peak_memory_gib": None, "start_memory_gib": None} for name in rounds}
    rows = []
    in_order = [name for name in job.contenders if name in rounds]
    for part, work in job.parts:
        seconds = {name: [job.scale * visit[part] for visit in rounds[name]] for name in in_order}
        for name in in_order:
            row = {"case": f"{job.case}{part}"} | job.keys() | {"contender": name, "ours": is_ours(name)}
            row |= summary(seconds, name) | ceiling(work, rates, statistics.median(seconds[name]))
            row |= ready[name].facts | memory[name] | {"agreement": ready[name].agreement, "unit": "s"}
            row |= {fact: value for fact, value in rounds[name][-1].items() if fact not in dict(job.parts)}
            rows.append(row | {"interleaved": together})
    return Outcome(rows, {f"{job.label}: {name}": why for name, why in left.items()})


def fits_in_memory(job: Job) -> bool:
    """Whether all contenders may live at once; otherwise each has its rounds alone, and rows say so.

    A contender holds about half of the bytes that a step moves: every array is written once and read once or more.
    """
    memory = memory_gib()
    if memory is None or job.loop is not None or job.what == "reach":
        return True
    held = step_work(job.config, job.batch, "train" if job.what == "train" else "sample").bytes / 2
    return len(job.contenders) * held < 0.8 * memory * 2**30


def _make(
    job: Job, names: list[str], folder: Path, stack: ExitStack, patience: float, left: dict[str, str], note: Note
) -> dict[str, Ready]:
    """Those that compute what NumPy does, in the order of the job. They are made one after another: they may compile.

    NumPy, with which all are compared, is made first and whether it is to be timed or not.
    """
    ready: dict[str, Ready] = {}
    for name in names:
        note(f"{job.label}: making {name}")
        own = job if name in job.contenders else replace(job, precision=job.dtype)
        worker = stack.enter_context(Worker(own, name, folder))
        facts = worker.ready(patience)
        if isinstance(facts, str):
            if name == REFERENCE:
                raise RuntimeError(f"{job.label}: NumPy, the reference, failed: {facts}")
            left[name] = facts
            continue
        agreement = gaps(folder, job, REFERENCE, name)
        if name != REFERENCE:
            for what in RESULTS:
                result_path(folder, name, what).unlink(missing_ok=True)
        wrong = disagreement(agreement, job.precision)
        if wrong or name not in job.contenders:
            worker.stop()
            left |= {name: wrong} if wrong else {}
            continue
        ready[name] = Ready(worker, facts, agreement)
    return {name: ready[name] for name in job.contenders if name in ready}


def _take_turns(job: Job, ready: dict[str, Ready], patience: float, left: dict[str, str], note: Note) -> Seconds:
    """Rounds A B C, B C A, …: nobody comes after the same one always. A contender that fails in one is left out."""
    seconds: Seconds = {name: [] for name in ready}
    skipped = 1 if job.warm_up else 0
    for round_ in range(job.rounds + skipped):
        for name in rotated(list(seconds), round_):
            note(f"{job.label}: round {round_ + 1 - skipped} of {job.rounds}, {name}")
            got = ready[name].worker.visit(round_, patience)
            if isinstance(got, str):
                left[name] = got
                del seconds[name]
            elif round_ >= skipped:
                seconds[name].append(got)
    return seconds


def rotated(names: list[str], round_: int) -> list[str]:
    """The order of a round."""
    first = round_ % len(names) if names else 0
    return names[first:] + names[:first]


def leave_out_other_steps(rounds: Seconds, left: dict[str, str]) -> None:
    """Take out, and say so, who needed more or fewer steps to the target loss than the first of ours by STEPS_APART."""
    steps = {name: visits[-1]["steps"] for name, visits in rounds.items() if "steps" in visits[-1]}
    ours = next((count for name, count in steps.items() if is_ours(name)), None)
    for name, count in steps.items():
        if ours and abs(count - ours) > STEPS_APART * ours:
            left[name] = f"{count} steps to the loss, ours {ours} (at most {STEPS_APART:.0%} apart)"
            del rounds[name]


# --- figures ---------------------------------------------------------------------------------------------------------


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third; of a single value three times itself."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def summary(seconds: dict[str, list[float]], name: str) -> dict[str, Any]:
    """Median and quartiles of a contender, whether they are noisy, and every other's time over its, in pairs."""
    own = seconds[name]
    first, median, third = quartiles(own)
    return {
        "seconds": own,
        "median": median,
        "quartiles": [first, third],
        "noisy": len(own) < FEWEST or (third - first) / median > NOISY,
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

"""How fast each backend is on this machine, beside what one would use instead, and how far from the machine's limits.

    python -m benchmarks [loops|steps|runs|scaling|all] [--quick|--full]    measure
    python -m benchmarks report                                             results/ into RESULTS.md and pictures
    python -m benchmarks compare OLD.json NEW.json                          what got slower beyond noise

Every contender lives in a process of its own and is held to NumPy's output and gradient on the same weights before it
is timed; rounds go A B C, B C A, …, on fresh random numbers; ratios are taken round by round. The file is rewritten
after every case, and --out with a file that the same command and commit began goes on where that was stopped. The exit
status is 1 if a backend of ours was left out because it computes something else.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import ceilings, loops, options, rounds, runs, scaling, steps, table
from benchmarks.agreement import NOT_THE_SAME
from benchmarks.cases import Job
from benchmarks.contenders import is_ours, why_left_out
from benchmarks.provenance import provenance
from benchmarks.record import Record

JOBS = {"loops": loops.jobs, "steps": steps.jobs, "runs": runs.jobs, "scaling": scaling.jobs}


def main(argv: list[str] | None = None) -> int:
    """Report, compare, or measure."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["report"]:
        from benchmarks import report

        return int(report.main(argv[1:]) or 0)
    if argv[:1] == ["compare"]:
        from benchmarks import compare

        return int(compare.main(argv[1:]) or 0)
    asked = options.parse(argv, __doc__)
    try:
        document = json.loads(run(asked, command_of(argv)).read_text(encoding="utf-8"))
    except (ValueError, RuntimeError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: stopped; what was measured is in the file", file=sys.stderr)
        return 130
    return 1 if wrong_of_ours(document["left_out"]) else 0


def wrong_of_ours(left_out: dict[str, str]) -> list[str]:
    """Which of our backends are left out because they compute something else."""
    names = {label.rpartition(": ")[2] for label, why in left_out.items() if why.startswith(NOT_THE_SAME)}
    return sorted(name for name in names if is_ours(name))


def command_of(argv: list[str]) -> str:
    """The command as it is kept in the file, which it does not name."""
    words, skip = [], False
    for word in argv:
        if skip or word.startswith("--out"):
            skip = word == "--out"
        else:
            words.append(word)
    return shlex.join(["python", "-m", "benchmarks", *words])


def run(asked: options.Options, command: str) -> Path:
    """Measure what was asked for; returns the file."""
    path = asked.out or Path("runs", f"benchmarks-{datetime.now():%Y%m%d-%H%M%S}.json")
    record = Record(path, provenance(command, asked.threads, asked.level, asked.gpu))
    asked, left = usable(asked)
    record.document["left_out"] |= left
    record.write()
    machine = record.document["machine"]["name"]
    print(f"{machine}, {asked.threads} threads, {asked.level}; results: {path}", flush=True)
    for name, why in record.document["left_out"].items():
        print(f"  {name}: left out, {why}")
    jobs = [job for level in asked.levels for job in JOBS[level](asked)]
    with _bar(len(jobs)) as (say, note, advance):
        for job in jobs:
            if not record.done(job):
                outcome = rounds.measure(job, _rates(record, job, asked.gpu, say), note=note)
                record.add(job, outcome)
                _show(job, outcome, say)
            advance()
    for fit in record.document["fits"]:
        print(table.fit_line(fit))
    print(f"results: {path}")
    return path


def usable(asked: options.Options) -> tuple[options.Options, dict[str, str]]:
    """The same without the contenders that cannot be had here, and why. Raises ValueError if none of ours is left."""
    left = {name: why for name in (*asked.backends, *asked.peers) if (why := why_left_out(name))}
    ours, peers = (tuple(one for one in names if one not in left) for names in (asked.backends, asked.peers))
    if not ours:
        raise ValueError("backends: none of these can be used here: " + "; ".join(f"{n}: {w}" for n, w in left.items()))
    return replace(asked, backends=ours, peers=peers), left


def _rates(record: Record, job: Job, gpu: bool, say: Any) -> rounds.Rates:
    """The machine's ceilings with the threads of this job, measured when first asked for."""
    known, threads = record.document["ceilings"], 1 if gpu else job.threads
    if ceilings.rate(known, "copy", "float32", threads) is None:
        found = ceilings.measure_ceilings(threads, gpu)
        known += found
        record.write()
        for one in found:
            say(table.ceiling_line(one))
    product = ceilings.rate(known, "gemm", job.precision, threads)
    return rounds.Rates(product, ceilings.rate(known, "copy", job.precision, threads))


def _show(job: Job, outcome: rounds.Outcome, say: Any) -> None:
    for part, _ in job.parts:
        rows = [row for row in outcome.rows if row["case"] == f"{job.case}{part}"]
        say(replace(job, case=f"{job.case}{part}").label)
        for line in table.lines(rows):
            say(line)
    for name, why in outcome.left_out.items():
        say(f"  {name.rpartition(': ')[2]}: left out, {why}")


@contextmanager
def _bar(total: int) -> Iterator[tuple[Any, Any, Any]]:
    """say(line), note(what is done now) and advance(), under a bar where standard error is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield (lambda line: print(line, flush=True)), (lambda text: None), (lambda: None)
        return
    with tqdm(total=total, unit="case", disable=None, dynamic_ncols=True, smoothing=0) as bar:

        def say(line: str) -> None:
            bar.clear()
            print(line, flush=True)

        yield say, bar.set_postfix_str, bar.update


if __name__ == "__main__":
    sys.exit(main())

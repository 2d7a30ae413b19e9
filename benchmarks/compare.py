"""What got slower between two result files: python -m benchmarks compare OLD.json NEW.json

A row of ours is called slower when its rounds in NEW stand above those in OLD, each made longer by --bound, in a one-
sided Mann-Whitney test, whose p-value is exact and takes nothing for granted about the noise but that rounds are
independent and alike. Holm's correction runs over all rows tested, so if rounds are independent and no row is slower by
more than the bound, the chance that any is called so is at most --alarm, for the whole comparison. Faster is judged
likewise, by itself. A row with too few rounds for any outcome to be significant is not judged: it is named if its
ranges lie apart by more than the bound, and how many rounds would do is said.

Rounds of one file are not quite independent. A contender is one process over all its rounds: where its arrays happen to
lie in memory is the same in all of them and another in the next file, and so is a warmer machine or a busier neighbour.
No test within two files can see that. So measure two files a side, each by a call of its own, and compare each of OLD
with each of NEW: what is slower in all four is slower. The peers, whose code did not change between OLD and NEW, are
the control, and how much they moved is printed beside the verdict.

Exit status: 0 nothing got slower; 1 a row of ours did, or has no row in NEW any more, or could not be judged and all
its rounds lie above OLD's by more than the bound; else 2 if nothing could be judged or the files cannot be compared.
"""

import argparse
import itertools
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.as_text import label
from benchmarks.as_text import time as as_time
from benchmarks.stored import LEVELS, Result, Row, read_result

ALARM = 0.01
GROWN, GROWN_GIB = 0.05, 1 / 64
"""Memory has grown if by more than this part and by more than this much: one figure a row, so there is no test."""

Pair = tuple[Row, Row]


@dataclass(frozen=True)
class Verdict:
    """What is said of rows with rounds in both files, (old, new) each. unsure: slower, but too few rounds to judge."""

    slower: list[Pair]
    faster: list[Pair]
    same: list[Pair]
    unjudged: list[Pair]
    unsure: list[Pair]

    @property
    def judged(self) -> int:
        return len(self.slower) + len(self.faster) + len(self.same)


def main(argv: list[str] | None = None) -> int:
    """Compare two files; see the top of this file for what is judged."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--bound", type=float, default=0.05, help="changes up to this part do not count (%(default)s)")
    parser.add_argument(
        "--alarm", type=float, default=ALARM, help="chance of a false alarm, over all rows (%(default)s)"
    )
    parser.add_argument("--level", nargs="+", choices=LEVELS, default=LEVELS, help="only these: fewer rows, more power")
    parser.add_argument("--only", default="", help="only rows whose case matches this regular expression")
    parser.add_argument("--force", action="store_true", help="compare different machines all the same")
    args = parser.parse_args(argv)
    try:
        wanted = re.compile(args.only)
        old, new = read_result(args.old), read_result(args.new)
        _check(args.bound, args.alarm)
        _same_machine(old, new, args.force)
        before, after = (_rows(result, args.level, wanted) for result in (old, new))
        if not before:
            raise ValueError(f"{args.old}: wanted rows of these levels and cases, got none")
    except (ValueError, re.error) as error:
        print(error, file=sys.stderr)
        return 2
    pairs = [(before[key], after[key]) for key in before if key in after]
    verdict = judge([pair for pair in pairs if pair[1].ours], args.bound, args.alarm)
    _say(verdict, args.bound, args.alarm)
    _say_surroundings(old, new, pairs)
    missing = [before[key] for key in before if key not in after]
    _list("missing in NEW", [_name(row) for row in missing])
    _list("new in NEW", [_name(after[key]) for key in after if key not in before])
    if verdict.slower or verdict.unsure or any(row.ours for row in missing):
        return 1
    return 0 if verdict.judged else 2


# --- the judgement ---------------------------------------------------------------------------------------------------


def judge(pairs: Sequence[Pair], bound: float = 0.05, alarm: float = ALARM) -> Verdict:
    """Slower and faster beyond bound, each with a chance of at most `alarm` of one false name among all pairs."""
    _check(bound, alarm)
    family = _judgeable(pairs, alarm)
    shorter = [p_longer(old.seconds, new.seconds, bound) for old, new in family]
    longer = [p_longer(new.seconds, old.seconds, bound) for old, new in family]
    slower, faster = holm(shorter, alarm), holm(longer, alarm)
    judged = {id(pair) for pair in family}
    unjudged = [pair for pair in pairs if id(pair) not in judged]
    return Verdict(
        slower=[pair for pair, called in zip(family, slower, strict=True) if called],
        faster=[pair for pair, called in zip(family, faster, strict=True) if called],
        same=[pair for pair, up, down in zip(family, slower, faster, strict=True) if not (up or down)],
        unjudged=unjudged,
        unsure=[pair for pair in unjudged if _above(pair, bound)],
    )


def p_longer(first: Sequence[float], second: Sequence[float], bound: float) -> float:
    """p-value of "second is not longer than (1 + bound) first", by the exact one-sided Mann-Whitney test.

    A tie counts for the hypothesis, so the test errs on that side.
    """
    from scipy.stats import mannwhitneyu

    longest = np.nextafter((1 + bound) * np.asarray(first, np.float64), np.inf)
    exact = len(first) * len(second) <= 10_000
    found = mannwhitneyu(second, longest, alternative="greater", method="exact" if exact else "asymptotic")
    return float(found.pvalue)


def holm(p: Sequence[float], alarm: float) -> list[bool]:
    """Which hypotheses fall: in the order of p, the k-th of m (from 0) while p ≤ alarm / (m - k)."""
    called = [False] * len(p)
    for k, at in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[at] > alarm / (len(p) - k):
            break
        called[at] = True
    return called


def _judgeable(pairs: Sequence[Pair], alarm: float) -> list[Pair]:
    """The most rows that a correction over all of them could call, were their rounds apart altogether.

    The others would only weigh on these. Which they are depends on the numbers of rounds, never on the times, so that
    leaving them out is no choice by result.
    """
    least = [_least_p(pair) for pair in pairs]
    limit = max((p for p in set(least) if p * sum(one <= p for one in least) <= alarm), default=0.0)
    return [pair for pair, p in zip(pairs, least, strict=True) if p <= limit]


def _least_p(pair: Pair) -> float:
    """The p-value if all rounds of one file lie above all of the other: 1 in (n + m choose n)."""
    n, m = (len(row.seconds) for row in pair)
    return 1 / math.comb(n + m, n)


def _above(pair: Pair, bound: float) -> bool:
    """Whether all rounds (the medians, where none are stored) of the new row lie above the old's by over the bound."""
    old, new = (row.seconds or (row.median,) for row in pair)
    return min(new) > (1 + bound) * max(old)


def rounds_needed(rows: int, alarm: float) -> int:
    """The fewest rounds, as many in either file, by which every one of so many rows could be called."""
    return next(n for n in itertools.count(1) if rows <= alarm * math.comb(2 * n, n))


# --- what can be compared --------------------------------------------------------------------------------------------


def _check(bound: float, alarm: float) -> None:
    if not 0 <= bound < 1:
        raise ValueError(f"bound: wanted a part of 0 or more and below 1, got {bound}")
    if not 0 < alarm < 1:
        raise ValueError(f"alarm: wanted a probability above 0 and below 1, got {alarm}")


def _same_machine(old: Result, new: Result, force: bool) -> None:
    """ValueError, or with force a warning, if the files are of different machines."""

    def place(result: Result) -> dict[str, Any]:
        words = {word: result.machine.get(word) for word in ("name", "cpu", "cores")}
        gpu = result.machine.get("gpu")
        return words | {"gpu": gpu.get("name") if isinstance(gpu, dict) else gpu, "threads": result.threads}

    a, b = place(old), place(new)
    unlike = [f"{word} {a[word]} and {b[word]}" for word in a if a[word] != b[word]]
    if unlike and not force:
        raise ValueError(f"wanted two files of one machine, got {'; '.join(unlike)} (--force compares all the same)")
    if unlike:
        print(f"WARNING: different machines, {'; '.join(unlike)}: a difference is not one of the code", file=sys.stderr)


def _rows(result: Result, levels: Sequence[str], wanted: re.Pattern[str]) -> dict[tuple[Any, ...], Row]:
    """Rows by what they did and who did it."""
    rows = [row for row in result.rows if row.level in levels and wanted.search(row.case)]
    found = {(*row.key, row.dtype, row.contender): row for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"{result.name}: wanted one row for each case and contender, got some twice")
    return found


# --- what is printed -------------------------------------------------------------------------------------------------


def _say(verdict: Verdict, bound: float, alarm: float) -> None:
    print(
        f"{verdict.judged} rows of ours judged: changes beyond {bound:.0%}, exact Mann-Whitney tests with Holm's "
        f"correction; chance of any false alarm {alarm:g}, if rounds are independent"
    )
    for title, pairs in (("slower", verdict.slower), ("faster", verdict.faster)):
        ordered = sorted(pairs, key=_change, reverse=title == "slower")
        _list(title, [_line(pair) for pair in ordered])
    if not verdict.slower:
        print("nothing that was judged got slower" if verdict.judged else "nothing could be judged")
    if verdict.unjudged:
        rounds = sorted({len(row.seconds) for pair in verdict.unjudged for row in pair})
        rows = verdict.judged + len(verdict.unjudged)
        print(
            f"{len(verdict.unjudged)} rows not judged, too few rounds ({', '.join(map(str, rounds))}) for so many: "
            f"{rounds_needed(rows, alarm)} rounds in either file are enough for {rows} rows"
        )
    _list("not judged, and slower: measure with more rounds", [_line(pair) for pair in verdict.unsure])


def _say_surroundings(old: Result, new: Result, pairs: Sequence[Pair]) -> None:
    """Memory that grew, what the peers did, versions that differ."""
    grown = []
    for a, b in pairs:
        if b.ours and a.peak_memory_gib and b.peak_memory_gib:
            more = b.peak_memory_gib - a.peak_memory_gib
            if more > max(GROWN * a.peak_memory_gib, GROWN_GIB):
                grown.append(f"{_name(b)}: {a.peak_memory_gib:.2f} → {b.peak_memory_gib:.2f} GiB")
    _list("more memory", grown)
    peers = [_change(pair) for pair in pairs if not pair[1].ours]
    if peers:
        print(f"control: the peers' {len(peers)} rows took {statistics.median(peers):.3f} times as long (median)")
    names = sorted(old.versions | new.versions)
    changed = [name for name in names if old.versions.get(name) != new.versions.get(name)]
    _list("versions", [f"{name} {old.versions.get(name)} → {new.versions.get(name)}" for name in changed])


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"{title}:")
        print("".join(f"  {line}\n" for line in lines), end="")


def _change(pair: Pair) -> float:
    return pair[1].median / pair[0].median


def _name(row: Row) -> str:
    return f"{row.level}: {label(row)}, {row.contender}"


def _line(pair: Pair) -> str:
    old, new = pair
    noisy = " (noisy)" if old.noisy or new.noisy else ""
    return f"{_name(new)}: {as_time(old.median)} → {as_time(new.median)}, {_change(pair):.3f} times{noisy}"


if __name__ == "__main__":
    sys.exit(main())

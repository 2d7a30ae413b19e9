"""Who is ahead, from rows: what the report's tables and pictures have in common.

    ratio(ours, peer)    the peer's time / ours: round by round where they were timed in turns, else of the medians
    best peer            the one that the ratio is smallest over; of ours the best is the one with the least median
    quotable             not marked noisy

A noisy row may be the best: then nothing that rests on who is best is quoted, rather than a slower row in its place.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.scaling import fit_exponent
from benchmarks.stored import LEVELS, Ceiling, Result, Row, Spread

NEAR_BEST = 0.8
"""A backend scales as long as its rate is at least this part of its best on the curve."""
CARE = {"quick": 0, "default": 1, "full": 2}
"""Of two files with the same row the one of the level with more rounds speaks; of one level, the newer."""


@dataclass(frozen=True)
class Group:
    """Rows with one key, from one file: the same work by several contenders.

    ours, peer: the best of our backends and of the others, None where none ran.
    """

    rows: tuple[Row, ...]
    ours: Row | None
    peer: Row | None

    @property
    def any(self) -> Row:
        return self.rows[0]

    @property
    def ratio(self) -> Spread | None:
        """The best peer's time / our best backend's."""
        return ratio(self.ours, self.peer) if self.ours and self.peer else None

    @property
    def noisy(self) -> bool:
        """Whether the ratio rests on a noisy row, or a noisy one on either side has a lower median than its best."""
        bests = [row for row in (self.ours, self.peer) if row]
        return any(row.noisy and row.median <= b.median for b in bests for row in self.rows if row.ours == b.ours)

    @property
    def faster(self) -> list[Row]:
        """Quotable peers that are faster than our best backend, if that can be quoted."""
        ours = self.ours
        if ours is None or ours.noisy:
            return []
        return [row for row in self.rows if not row.ours and not row.noisy and ratio(ours, row)[1] < 1]

    def by(self, contender: str) -> Row | None:
        return next((row for row in self.rows if row.contender == contender), None)


@dataclass(frozen=True)
class Machine:
    """All results of one machine, newest last. groups: of each key one file's, the most careful, then the newest."""

    name: str
    results: tuple[Result, ...]
    groups: tuple[Group, ...]

    def at(self, *levels: str) -> list[Group]:
        return [group for group in self.groups if group.any.level in levels]

    @property
    def common(self) -> tuple[str, ...]:
        """What need not be said of every row, being the same in all: the precision, the threads."""
        rows = [row for group in self.groups for row in group.rows]
        kinds, threads = (
            {row.precision or row.dtype for row in rows},
            {row.threads for row in rows if row.axis != "threads"},
        )
        return tuple(word for word, found in (("precision", kinds), ("threads", threads)) if len(found) == 1)

    @property
    def ceilings(self) -> list[Ceiling]:
        """The newest of each kind."""
        newest = {(c.what, c.precision, c.threads): c for result in self.results for c in result.ceilings}
        return list(newest.values())


def machines(results: Iterable[Result]) -> list[Machine]:
    """Results by machine, GPUs last, names in order."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.machine["name"], []).append(result)
    found = []
    for name, own in by_name.items():
        own.sort(key=lambda result: (result.started or "", result.name))
        speaks: dict[tuple[object, ...], list[Row]] = {}
        newest = next((result.commit for result in reversed(own) if result.commit), None)
        for result in sorted(own, key=lambda result: CARE.get(result.level or "default", 1)):
            theirs: dict[tuple[object, ...], list[Row]] = {}
            for row in result.rows:
                theirs.setdefault(row.key, []).append(replace(row, mark=_mark(result, newest)))
            speaks |= theirs
        groups = sorted(map(group, speaks.values()), key=_order)
        found.append(Machine(name, tuple(own), tuple(groups)))
    return sorted(found, key=lambda machine: (bool(machine.results[-1].machine.get("gpu")), machine.name))


def _mark(result: Result, newest: str | None) -> str:
    """What is to be said of every row of a file. newest: the commit that its machine was last measured at."""
    other = "" if result.commit == newest else f"commit {result.commit[:7] if result.commit else 'not recorded'}"
    return ", ".join(word for word in (other, "dirty" if result.dirty else "") if word)


def group(rows: Iterable[Row]) -> Group:
    """Rows of one key, with the best on either side, noisy or not."""
    rows = tuple(rows)
    ours = min((row for row in rows if row.ours), key=lambda row: row.median, default=None)

    def rank(row: Row) -> float:
        return ratio(ours, row)[1] if ours else row.median

    return Group(rows, ours, min((row for row in rows if not row.ours), key=rank, default=None))


def ratio(ours: Row, other: Row) -> Spread:
    """The other's time / ours: above 1, ours is faster."""
    if other is ours:
        return None, 1.0, None
    if not (ours.interleaved and other.interleaved):
        return None, other.median / ours.median, None
    if other.contender in ours.over:
        return ours.over[other.contender]
    if ours.contender in other.over:
        low, middle, high = other.over[ours.contender]
        return (1 / high if high else None), 1 / middle, (1 / low if low else None)
    return None, other.median / ours.median, None


def _order(group: Group) -> tuple[object, ...]:
    """Levels as in LEVELS; within one by case (the numbers in it as numbers), x, batch, precision and threads."""
    row = group.any
    case = [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", row.case) if word]
    kind = row.precision or row.dtype or ""
    return (LEVELS.index(row.level), case, row.axis or "", row.x or 0, row.batch or 0, kind, row.threads or 0)


def losses(machine: Machine) -> list[tuple[Group, Row, Spread]]:
    """Every quotable row of a peer faster than our best backend, worst first: group, peer, its time / ours."""
    found = [(g, row, ratio(g.ours, row)) for g in machine.groups if g.ours for row in g.faster]
    return sorted(found, key=lambda one: one[2][1])


def sure_though_noisy(machine: Machine) -> list[tuple[Group, Row]]:
    """Peers that were faster than our best backend in three rounds of four or more, where one of the two is noisy."""
    pairs = [(g, row, ratio(g.ours, row)[2]) for g in machine.groups if g.ours for row in g.rows if not row.ours]
    return [(g, row) for g, row, high in pairs if high and high < 1 and (row.noisy or (g.ours and g.ours.noisy))]


def larger(machine: Machine) -> list[tuple[Group, Row]]:
    """Where the peer that holds least memory holds less than our best backend: group and peer, worst first."""
    found = []
    for group in machine.groups:
        held = [row for row in group.rows if not row.ours and row.peak_memory_gib]
        if group.ours and group.ours.peak_memory_gib and held:
            peer = min(held, key=_memory)
            if _memory(peer) < _memory(group.ours):
                found.append((group, peer))
    return sorted(found, key=lambda one: _memory(one[1]) / _memory(one[0].ours))


def _memory(row: Row | None) -> float:
    return row.peak_memory_gib or 0.0 if row else 0.0


def limit(row: Row, ceilings: Iterable[Ceiling]) -> str | None:
    """What bounds a row, "arithmetic" or "memory": the larger of operations / rate and bytes / bandwidth."""
    if row.flops is None and row.bytes is None:
        return None
    product, copy = (_ceiling(ceilings, what, row) for what in ("gemm", "copy"))
    arithmetic = (row.flops or 0) / product.rate if product else 0.0
    memory = (row.bytes or 0) / copy.rate if copy else 0.0
    if not product and not copy:
        return "arithmetic" if row.flops else "memory"
    return "arithmetic" if arithmetic >= memory else "memory"


def _ceiling(ceilings: Iterable[Ceiling], what: str, row: Row) -> Ceiling | None:
    """The ceiling of a row: of its threads if there is one, and of its precision for products."""
    kinds = {row.precision, row.dtype, None}
    own = [c for c in ceilings if c.what == what and (what == "copy" or c.precision in kinds)]
    return min(own, key=lambda c: (c.threads != row.threads, c.precision is None, -c.rate), default=None)


def rate(row: Row, bound: str | None) -> tuple[float, str] | None:
    """What a row reaches of what bounds it: GFLOP/s or GB/s."""
    work = {"arithmetic": row.flops, "memory": row.bytes}.get(bound or "")
    return None if not work else (work / row.median / 1e9, "GFLOP/s" if bound == "arithmetic" else "GB/s")


# --- scaling ---------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """What all points of a curve have in common. threads: None on the axis of threads. mark: as of its rows."""

    case: str
    axis: str
    precision: str | None
    threads: int | None
    mark: str


def curves(machine: Machine) -> dict[Curve, dict[str, list[Row]]]:
    """Quotable rows of the scaling level by what they have in common, then by contender, each along x."""
    found: dict[Curve, dict[str, list[Row]]] = {}
    for row in [row for group in machine.at("scaling") for row in group.rows]:
        if row.axis and row.x and not row.noisy:
            threads = None if row.axis == "threads" else row.threads
            key = Curve(row.case, row.axis, row.precision or row.dtype, threads, row.mark)
            found.setdefault(key, {}).setdefault(row.contender, []).append(row)
    for lines in found.values():
        for rows in lines.values():
            rows.sort(key=lambda row: row.x or 0)
    return found


def exponent(rows: list[Row]) -> tuple[float, float | None] | None:
    """Of time along a curve, with its standard error where there are three points: fitted to what is quotable alone."""
    return fit_exponent([row.x or 0 for row in rows], [row.median for row in rows]) if len(rows) > 1 else None


def efficiency(rows: list[Row]) -> list[float] | None:
    """Work a second along a curve, over the best on it; on the axis `threads`, a second and thread.

    The work is the row's operations, else x for batch and T, which cost in proportion; None for other axes.
    """
    axis = rows[0].axis
    if axis == "threads":
        each = [1 / (row.median * (row.x or 1)) for row in rows]
    elif all(row.flops for row in rows):
        each = [(row.flops or 0) / row.median for row in rows]
    elif axis in ("batch", "T"):
        each = [(row.x or 0) / row.median for row in rows]
    else:
        return None
    return [one / max(each) for one in each]


def reach(rows: list[Row]) -> tuple[float, float | None] | None:
    """Where a curve is at its best, and the first x after it at which the rate is below NEAR_BEST of that, if any."""
    parts = efficiency(rows)
    if parts is None:
        return None
    top = parts.index(1.0)
    fallen = [row.x for row, part in zip(rows[top:], parts[top:], strict=True) if part < NEAR_BEST]
    return rows[top].x or 0, fallen[0] if fallen else None

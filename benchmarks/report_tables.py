"""The tables of RESULTS.md, each as Markdown, each empty where a machine has nothing for it."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks import standings
from benchmarks.as_text import NONE, curve, figures, label, memory, part, quoted, rate, table, time, times
from benchmarks.standings import Group, Machine
from benchmarks.stored import Result, Row, Spread

# --- where we lose ---------------------------------------------------------------------------------------------------


def losses(machines: Sequence[Machine]) -> str:
    """Every quotable row in which a peer is faster than our best backend, or holds less memory, worst first."""
    found = sorted(
        ((machine, *one) for machine in machines for one in standings.losses(machine)), key=lambda one: one[3][1]
    )

    def slower(*levels: str) -> str:
        return table(
            ["What", "Machine", "Ours", "Time", "Faster peer", "Its time", "Ours takes", "Ratio"],
            (
                [label(row), machine.name, group.ours.contender, time(group.ours.median), row.contender,
                 time(row.median), _more(spread), times(spread)]
                for machine, group, row, spread in found
                if group.ours and row.level in levels
            ),
        )  # fmt: skip

    parts = ["".join(f"- {_sum(machine)}\n" for machine in machines)]
    if found:
        parts += ["Every quotable row in which a peer was faster than the best of our backends, worst first.\n"]
    else:
        parts += ["In no quotable row was a peer faster than the best of our backends.\n"]
    for title, levels in (("Whole steps and runs", ("steps", "runs")), ("Loops and curves", ("loops", "scaling"))):
        if text := slower(*levels):
            parts += [f"{title}:\n", text]
    return "\n".join([*parts, _though_noisy(machines), _larger(machines)])


def _though_noisy(machines: Sequence[Machine]) -> str:
    """One line, without figures: the order of two may be sure where their times are not."""
    found = [
        f"{label(row)} ({row.contender}, {machine.name})"
        for machine in machines
        for _, row in standings.sure_though_noisy(machine)
    ]
    words = "Too noisy to quote, but the peer was faster in three rounds of four or more"
    return f"{words}: {'; '.join(found)}.\n" if found else ""


def _more(spread: Spread) -> str:
    """How much longer ours takes, and whether the quartiles leave it open."""
    _, middle, high = spread
    return f"{1 / middle - 1:.1%} longer" + (", quartiles on both sides of 1" if high and high > 1 else "")


def _sum(machine: Machine) -> str:
    """One line: how many compared, in how many behind, in how many it is not known, and the ratios, per level."""
    words = []
    for level in ("steps", "runs", "loops", "scaling"):
        groups = [group for group in machine.at(level) if group.ratio]
        sure = [group.ratio[1] for group in groups if group.ratio and not group.noisy]
        if groups:
            behind = sum(bool(group.faster) for group in groups)
            unknown = sum(group.noisy and not group.faster for group in groups)
            noisy = f", {unknown} noisy" if unknown else ""
            words.append(
                f"{level}: behind the best peer in {behind} of {len(groups)}{noisy}"
                + (f" (ratio {min(sure):.2f} to {max(sure):.2f})" if sure else "")
            )
    return f"**{machine.name}**: " + ("; ".join(words) if words else "no peer was measured beside ours") + "."


def _larger(machines: Sequence[Machine]) -> str:
    """Where a peer needs less memory than the fastest of our backends."""
    rows = [
        [label(group.any), machine.name, group.ours.contender, memory(group.ours), peer.contender, memory(peer)]
        for machine in machines
        for group, peer in standings.larger(machine)
        if group.ours
    ]
    head = ["What", "Machine", "Ours", "Peak memory", "Peer with least", "Its peak memory"]
    return f"Where a peer holds less memory:\n\n{table(head, rows)}" if rows else ""


# --- one machine -----------------------------------------------------------------------------------------------------


def provenance(machine: Machine) -> str:
    """A table for each file: what ran where, on what, from which commit, by which command."""
    return "\n".join(_provenance(result) for result in machine.results)


def common(machine: Machine) -> str:
    """What the other tables need not say, being the same in every row."""
    row = machine.groups[0].any if machine.groups else _NOBODY
    facts = {"precision": row.precision or row.dtype, "threads": row.threads and f"{row.threads} threads"}
    said = [str(facts[word]) for word in machine.common if facts[word]]
    return f"\nEvery row: {', '.join(said)}.\n" if said else ""


def _provenance(result: Result) -> str:
    given = result.machine
    facts: list[tuple[str, object]] = [
        (word.replace("_", " "), ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value)
        for word, value in given.items()
        if word != "name" and value is not None
    ]
    dirty = " with changes that are not committed" if result.dirty else ""
    facts += [
        ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ("threads", result.threads),
        ("commit", f"{result.commit}{dirty}" if result.commit else "not recorded"),
        ("command", f"`{result.command}`" if result.command else None),
        ("started", result.started or "not recorded"),
        ("level", result.level),
        ("took", time(result.elapsed_seconds) if result.elapsed_seconds else None),
        ("load average at the start, at the end", _load(result)),
    ]
    facts += [("note", note) for note in result.notes]
    lines = table(["File", f"`{result.name}`"], ([name, str(value)] for name, value in facts if value))
    return lines.replace("| --- | --: |", "| --- | --- |")


def _load(result: Result) -> str:
    known = any(one is not None for one in result.load)
    return ", ".join(NONE if one is None else f"{one:.2f}" for one in result.load) if known else ""


def ceilings(machine: Machine) -> str:
    """What the machine can do, as measured on the spot."""
    return table(
        ["What", "Precision", "Threads", "Rate", "Measured"],
        (
            [{"gemm": "matrix product"}.get(c.what, c.what), c.precision or NONE, str(c.threads or NONE),
             rate(c.rate, c.unit), "in this run" if c.measured else "before it"]
            for c in machine.ceilings
        ),
    )  # fmt: skip


def steps(machine: Machine) -> str:
    """Ours beside the best peer, then everybody's times."""
    return _beside(machine, machine.at("steps")) + _everybody(machine, machine.at("steps"))


def runs(machine: Machine) -> str:
    """As steps; then the steps that training took to its loss, and images a second: a row's seconds are an image's."""
    groups = machine.at("runs")

    def each(what: str, figure: Callable[[Row], str]) -> list[list[str]]:
        rows = [row for group in groups for row in group.rows if row.what == what]
        return [[label(row, machine.common), row.contender, figure(row)] for row in rows]

    def images(row: Row) -> str:
        return "noisy" if row.noisy else figures(1 / row.median)

    reached = each("reach", lambda row: NONE if row.steps is None else str(row.steps))
    parts = (
        _beside(machine, groups) + _everybody(machine, groups),
        table(["Training", "Contender", "Steps to the loss"], reached),
        table(["Sampling", "Contender", "Images a second"], each("images", images)),
    )
    return "\n".join(one for one in parts if one)


def _beside(machine: Machine, groups: Sequence[Group]) -> str:
    """A line for each group: our best backend, the best peer, their ratio, the memory of both."""
    return table(
        ["What", "Ours", "Time", "Of the ceiling", "Memory", "Best peer", "Time", "Memory", "Ratio"],
        (
            [label(group.any, machine.common), group.ours.contender, quoted(group.ours), _fraction(group.ours),
             memory(group.ours),
             group.peer.contender if group.peer else NONE, quoted(group.peer), memory(group.peer), _ratio(group)]
            for group in groups
            if group.ours
        ),
    )  # fmt: skip


def _fraction(row: Row) -> str:
    return "noisy" if row.noisy and row.fraction else part(row.fraction)


def _ratio(group: Group) -> str:
    return NONE if group.ratio is None else "noisy" if group.noisy else times(group.ratio)


def _everybody(machine: Machine, groups: Sequence[Group]) -> str:
    """A column for each contender: its time, and that over our best backend's."""
    names = _names(groups)

    def cell(group: Group, name: str) -> str:
        row = group.by(name)
        if row is None or row.noisy or group.ours is None or group.ours.noisy or row is group.ours:
            return quoted(row)
        return f"{time(row.median)}, {standings.ratio(group.ours, row)[1]:.2f}×"

    lines = ([label(group.any, machine.common), *(cell(group, name) for name in names)] for group in groups)
    text = table(["Times, and over ours", *names], lines)
    return f"\n{text}" if text else ""


_NOBODY = Row("steps", "", "", False, 1.0)


def _names(groups: Iterable[Group]) -> list[str]:
    """Contenders, ours first."""
    rows = _all(groups)
    return list(dict.fromkeys(row.contender for ours in (True, False) for row in rows if row.ours == ours))


def _all(groups: Iterable[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


def loops(machine: Machine) -> str:
    """The rate of each loop, its fraction of the ceiling, and how many times NumPy and the best peer it is."""

    def cells(group: Group, row: Row) -> list[str]:
        reached = standings.rate(row, standings.limit(row, machine.ceilings))
        numpy = group.by("numpy")
        over = NONE
        if numpy and numpy is not row:
            over = "noisy" if numpy.noisy or row.noisy else times(standings.ratio(row, numpy))
        best = f"{_ratio(group)} {group.peer.contender}" if group.peer else NONE
        speed = NONE if reached is None else "noisy" if row.noisy else rate(*reached)
        return [label(row, machine.common), row.contender, quoted(row), speed, _fraction(row), over, best]

    return table(
        ["Loop", "Ours", "Time", "Rate", "Of the ceiling", "NumPy's time / ours", "Best peer's time / ours"],
        (cells(group, group.ours) for group in machine.at("loops") if group.ours),
    )


def scaling(machine: Machine) -> str:
    """The exponent of each curve with its standard error and its number of points, and where it stops scaling."""
    lines = [
        [curve(key, machine.common), key.axis, f"{rows[0].x:g} to {rows[-1].x:g}", name, _exponent(rows), *_reach(rows)]
        for key, curves in standings.curves(machine).items()
        for name, rows in curves.items()
    ]
    head = ["Case", "Axis", "From", "Contender", "Exponent of the time (points)", "Best rate at", "Stops scaling at"]
    return table(head, lines)


def _exponent(rows: list[Row]) -> str:
    found = standings.exponent(rows)
    if found is None:
        return NONE
    exponent, error = found
    return f"{exponent:.2f}{'' if error is None else f' ± {error:.2f}'} ({len(rows)})"


def _reach(rows: list[Row]) -> list[str]:
    found = standings.reach(rows) if len(rows) > 1 else None
    if found is None:
        return [NONE, NONE]
    best, fallen = found
    return [f"{best:g}", f"{fallen:g}" if fallen is not None else f"not up to {rows[-1].x:g}"]


def compiling(machine: Machine) -> str:
    """Seconds before the first timed call, compilation and warm-up, for rows that have them."""
    groups = [group for group in machine.groups if any(row.compile_seconds for row in group.rows)]
    names = [name for name in _names(groups) if any((group.by(name) or _NOBODY).compile_seconds for group in groups)]

    def cell(row: Row | None) -> str:
        return NONE if row is None or row.compile_seconds is None else f"{figures(row.compile_seconds)} s"

    lines = ([label(group.any, machine.common), *(cell(group.by(name)) for name in names)] for group in groups)
    return table(["What", *names], lines)


def left_out(machine: Machine) -> str:
    """Contenders that were not measured, and why."""
    lines = {name: why for result in machine.results for name, why in result.left_out.items()}
    return "".join(f"- {name}: {why}\n" for name, why in lines.items())


def noisy(machine: Machine) -> str:
    """Rows whose spread was over the bound, named without their figures."""
    return "".join(f"- {label(row, machine.common)}, {row.contender}\n" for row in _all(machine.groups) if row.noisy)

"""What the terminal shows: for each case a line per contender."""

from typing import Any

UNITS = ((1.0, "s "), (1e-3, "ms"), (1e-6, "µs"))
HEAD = f"  {'':20s} {'median':>11s}  {'quartiles':19s} {'ours is':>14s} {'ceiling':>8s} {'memory':>10s}"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of one case, the fastest of ours first to be compared with."""
    ours = min((row for row in rows if row["ours"]), key=lambda row: row["median"], default=None)
    return [line(row, ours) for row in rows]


def line(row: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """Median, quartiles, how many times as fast our fastest is, part of the ceiling, memory, whether it is noisy."""
    scale, unit = next(((s, u) for s, u in UNITS if row["median"] >= s), UNITS[-1])
    low, high = (f"{quartile / scale:.2f}" for quartile in row["quartiles"])
    over = ours["over"].get(row["contender"]) if ours else None
    text = f"  {row['contender']:20s} {row['median'] / scale:8.2f} {unit}  {f'{low} – {high}':19s}"
    text += f" {f'{over[1]:.2f} × faster' if over else '':>14s}"
    text += f" {row['fraction']:8.0%}" if row["fraction"] is not None else f" {'':8s}"
    text += f" {row['peak_memory_gib']:6.2f} GiB" if row["peak_memory_gib"] is not None else ""
    if row["noisy"]:
        text += "  noisy"
    return text.rstrip()


def ceiling_line(one: dict[str, Any]) -> str:
    """A ceiling."""
    what = f"matrix product, {one['precision']}" if one["what"] == "gemm" else "copy"
    return f"  {what}, {one['threads']} threads: {one['rate']:.0f} {one['unit']}"


def fit_line(one: dict[str, Any]) -> str:
    """A fitted exponent."""
    error = "" if one["stderr"] is None else f" ± {one['stderr']:.2f}"
    return f"  {one['case']}, {one['contender']}: grows as {one['axis']} to the power of {one['exponent']:.2f}{error}"

"""Figures and names as the report, its pictures and `compare` print them."""

from collections.abc import Iterable, Sequence

from benchmarks.standings import Curve
from benchmarks.stored import Row, Spread

NONE = "–"


def time(seconds: float) -> str:
    """Three figures in the unit that suits: 12.3 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{figures(seconds / scale)} {unit}"
    return f"{figures(seconds / 1e-6)} µs"


def figures(value: float) -> str:
    """Three significant figures, three decimals at most, never in powers of ten."""
    if value == 0:
        return "0"
    places = next((k for k, least in enumerate((99.95, 9.995, 0.9995)) if abs(value) >= least), 3)
    return f"{value:,.{places}f}"


def rate(value: float, unit: str) -> str:
    """GFLOP/s and GB/s, in thousands of them where there are many."""
    return (
        f"{figures(value / 1e3)} T{unit[1:]}" if value >= 1e4 and unit.startswith("G") else f"{figures(value)} {unit}"
    )


def times(spread: Spread) -> str:
    """A ratio with its quartiles: 1.42 (1.40–1.45)."""
    low, middle, high = spread
    quartiles = f" ({low:.2f}–{high:.2f})" if low and high else ""
    return f"{middle:.2f}{quartiles}"


def part(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}" if value >= 0.0995 else f"{100 * value:.2g}%"


def memory(row: Row | None) -> str:
    """The peak, and in brackets what was held before the network was made."""
    if row is None or row.peak_memory_gib is None:
        return NONE
    start = "" if row.start_memory_gib is None else f" ({row.start_memory_gib:.2f})"
    return f"{row.peak_memory_gib:.2f}{start}"


def quoted(row: Row | None) -> str:
    """The time of a row, unless it is noisy."""
    return NONE if row is None else "noisy" if row.noisy else time(row.median)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is words, the others figures."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    if not rows:
        return ""
    lines = [list(head), ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def label(row: Row, common: Sequence[str] = ()) -> str:
    """What a row did, in words, and its mark: train cifar10, batch 128, tf32.

    common: what goes without saying, of "precision" and "threads".
    """
    kind = None if "precision" in common else row.precision or row.dtype
    words = [row.case]
    if row.axis and row.x is not None:
        words.append(f"{row.axis} {row.x:g}")
    if row.batch is not None and row.axis != "batch":
        words.append(f"batch {row.batch}")
    words += [kind] if kind else []
    if row.threads is not None and row.axis != "threads" and "threads" not in common:
        words.append(f"{row.threads} thread{'s' if row.threads > 1 else ''}")
    words += [row.mark] if row.mark else []
    return ", ".join(words)


def curve(key: Curve, common: Sequence[str] = ()) -> str:
    """What the points of a curve have in common, in words, as `label`."""
    words = [key.case]
    words += [key.precision] if key.precision and "precision" not in common else []
    if key.threads and "threads" not in common:
        words.append(f"{key.threads} thread{'s' if key.threads > 1 else ''}")
    return ", ".join(words + ([key.mark] if key.mark else []))

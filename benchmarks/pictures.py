"""The pictures of RESULTS.md, PNG and SVG, from stored rows.

    steps-MACHINE       each step's time over the best peer's, a bar for each contender, whiskers at the quartiles
    roofline-MACHINE    rate against operations per byte, loops and steps, under the measured ceilings
    scaling-MACHINE     time along each axis, quotable points alone, with the exponents fitted to them

Of matplotlib only its classes are used, never pyplot. A contender has the same colour in every picture; colours are of
the palettes of Okabe and Ito and of Tol, told apart by the colour-blind, and in curves the marker says it again. The
SVG files hold no date and no random names, so the same rows give the same file.
"""

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import standings
from benchmarks.as_text import curve, label, rate
from benchmarks.standings import Group, Machine
from benchmarks.stored import Ceiling, Row
from ddpm_ref.extras import import_extra
from ddpm_ref.files.atomic import write_bytes

COLOURS = {
    "numba": "#0072B2", "cupy": "#009E73", "numpy": "#56B4E9", "cupy eager": "#66CDAA", "cupy windows": "#8DA0CB",
    "torch contiguous": "#DDCC77", "torch channels_last": "#E69F00", "torch eager": "#F0E442",
    "torch compile": "#D55E00", "torch graph": "#CC79A7", "torch autotune": "#A6761D", "torch cudnn": "#882255",
    "torch compiled graph": "#CC6677", "jax jit": "#555555",
}  # fmt: skip
"""Ours are blue and green, peers yellow to red, JAX grey."""
OTHERS = ("#AA4499", "#999933", "#332288", "#117733", "#000000", "#44AA99")
MARKERS = "osD^vP*X<>ph8d"
INK, GRID = "#333333", "#e6e6e6"
FARTHEST = 4.0
"""Where the axis of bars ends; a longer bar is cut there and says its length."""


def picture_names(machine: Machine) -> list[tuple[str, str]]:
    """Names without suffix, and what each shows, of the pictures that this machine has rows for."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine.name.lower()).strip("-")
    found = []
    if any(_bars(machine)):
        found.append((f"steps-{slug}", f"Steps on {machine.name}: each contender's time over the best peer's"))
    if _points(machine) and machine.ceilings:
        found.append((f"roofline-{slug}", f"Roofline of {machine.name}: rate against operations per byte"))
    if standings.curves(machine):
        found.append((f"scaling-{slug}", f"Scaling on {machine.name}: time along each axis, fitted exponents"))
    return found


def draw(machine: Machine, folder: Path) -> list[Path]:
    """Write every picture of `picture_names` as PNG and SVG; returns their paths."""
    drawn = {"steps": _draw_steps, "roofline": _draw_roofline, "scaling": _draw_scaling}
    colours, paths = palette(machine), []
    if picture_names(machine):
        folder.mkdir(parents=True, exist_ok=True)
    for name, title in picture_names(machine):
        matplotlib = import_extra("matplotlib", "a picture of benchmarks")
        with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 9, "text.color": INK, "axes.edgecolor": INK}):
            figure = drawn[name.split("-")[0]](machine, colours)
            figure.suptitle(title, fontsize=11)
            paths += [_save(figure, folder / f"{name}.{kind}") for kind in ("png", "svg")]
    return paths


def palette(machine: Machine) -> dict[str, str]:
    """Contender → colour, ours first; those that COLOURS does not know take the others in the order of their names."""
    rows = [row for group in machine.groups for row in group.rows]
    names = {row.contender: not row.ours for row in rows}
    unknown = sorted(name for name in names if name not in COLOURS)
    rest = {name: OTHERS[k % len(OTHERS)] for k, name in enumerate(unknown)}
    order = [*COLOURS, *unknown]
    return {name: (COLOURS | rest)[name] for name in sorted(names, key=lambda name: (names[name], order.index(name)))}


def _save(figure: Any, path: Path) -> Path:
    """One picture, whole or not at all, the same bytes for the same picture."""
    data = io.BytesIO()
    if path.suffix == ".svg":
        canvas = import_extra("matplotlib.backends.backend_svg", "a picture of benchmarks").FigureCanvasSVG(figure)
        canvas.print_svg(data, metadata={"Date": None, "Creator": None})
    else:
        canvas = import_extra("matplotlib.backends.backend_agg", "a picture of benchmarks").FigureCanvasAgg(figure)
        canvas.print_png(data, metadata={"Software": None})
    return write_bytes(path, data.getvalue())


def _figure(width: float, height: float) -> Any:
    Figure = import_extra("matplotlib.figure", "a picture of benchmarks").Figure
    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def _plain(axes: Any) -> None:
    axes.grid(which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, colours: dict[str, str], names: Iterable[str], markers: dict[str, str] | None = None) -> None:
    """Contenders along the bottom, as patches or as markers."""
    Line2D = import_extra("matplotlib.lines", "a picture of benchmarks").Line2D
    Patch = import_extra("matplotlib.patches", "a picture of benchmarks").Patch
    names = [name for name in colours if name in set(names)]
    if markers:
        handles: list[Any] = [Line2D([], [], color=colours[n], marker=markers[n], label=n, **_EDGE) for n in names]
    else:
        handles = [Patch(facecolor=colours[n], edgecolor=INK, linewidth=0.4, label=n) for n in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)


_EDGE = {"markeredgecolor": INK, "markeredgewidth": 0.4}


# --- steps: bars -----------------------------------------------------------------------------------------------------


def _bars(machine: Machine) -> list[list[Group]]:
    """Groups of the level steps whose best peer can be quoted, in panels by what is done."""
    groups = [group for group in machine.at("steps") if group.peer and group.ours and not group.peer.noisy]
    kinds = dict.fromkeys(group.any.what or group.any.case.split()[0] for group in groups)
    return [
        [g for g in groups if (g.any.what or g.any.case.split()[0]) == kind] for kind in sorted(kinds, reverse=True)
    ]


def _draw_steps(machine: Machine, colours: dict[str, str]) -> Any:
    panels = _bars(machine)
    tallest = max(sum(len(group.rows) + 1.6 for group in panel) for panel in panels)
    figure = _figure(5.2 * len(panels) if len(panels) > 1 else 7, 1.5 + 0.2 * tallest)
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _bar_panel(axes, panel, colours, machine.common)
        axes.set(xlim=(0, FARTHEST * 1.16), ylim=(tallest, -0.4), xlabel="time / best peer's time (shorter is faster)")
    _legend(figure, colours, [row.contender for panel in panels for group in panel for row in group.rows])
    return figure


def _bar_panel(axes: Any, groups: Sequence[Group], colours: dict[str, str], common: Sequence[str]) -> None:
    """Bars from the top down, each with its length at its end; the best peer's is 1, a noisy row has none."""
    order = list(colours)
    y = 0.0
    for group in groups:
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.02, y, label(group.any, common), va="center", fontweight="bold", fontsize=8.5, bbox=ground)
        for row in sorted(group.rows, key=lambda row: order.index(row.contender)):
            y += 1
            if row.noisy:
                axes.text(0.05, y, f"{row.contender}: noisy", va="center", ha="left", fontsize=7.5)
                continue
            low, middle, high = standings.ratio(group.peer or row, row)
            shown = min(middle, FARTHEST)
            axes.barh(y, shown, 0.86, color=colours[row.contender], edgecolor=INK, linewidth=0.4)
            end = shown
            if low and high and middle <= FARTHEST:
                end = min(high, FARTHEST * 1.02)
                axes.plot([low, end], [y, y], color="black", linewidth=1)
                axes.plot([low, end], [y, y], color="black", linestyle="none", marker="|", markersize=4)
            said = f"{middle:.2f}" if middle <= FARTHEST else f"→ {middle:.3g}"
            axes.text(end + 0.05, y, said, va="center", ha="left", fontsize=7.5)
        y += 1.6
    axes.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)
    axes.set_yticks([])
    _plain(axes)
    axes.spines["left"].set_visible(False)


# --- roofline --------------------------------------------------------------------------------------------------------


def _points(machine: Machine) -> list[Row]:
    """Quotable rows of loops and steps with operations and bytes: each contender that is ours, and the best peer."""
    groups = machine.at("loops", "steps")
    rows = [row for group in groups for row in group.rows if row.ours or row is group.peer]
    return [row for row in rows if row.flops and row.bytes and not row.noisy]


def _draw_roofline(machine: Machine, colours: dict[str, str]) -> Any:
    rows = _points(machine)
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    shapes = {kind: MARKERS[k % len(MARKERS)] for k, kind in enumerate(kinds)}
    figure = _figure(9, 6)
    axes = figure.subplots()
    for row in rows:
        x, y = (row.flops or 0) / (row.bytes or 1), (row.flops or 0) / row.median / 1e9
        size = 70 if row.level == "steps" else 34
        look = {"color": colours[row.contender], "marker": shapes[_kind(row)], "edgecolors": INK, "linewidths": 0.4}
        axes.scatter(x, y, size, alpha=0.85, **look)
    x = [(row.flops or 0) / (row.bytes or 1) for row in rows]
    _roofs(axes, machine, min(x) / 2, max(x) * 2)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    _plain(axes)
    Line2D = import_extra("matplotlib.lines", "a picture of benchmarks").Line2D
    handles = [Line2D([], [], linestyle="none", marker=m, color="white", label=k, **_EDGE) for k, m in shapes.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, title="what")
    _legend(figure, colours, {row.contender for row in rows})
    return figure


def _kind(row: Row) -> str:
    return f"step: {row.what or row.case}" if row.level == "steps" else row.what or row.case.split()[0]


def _roofs(axes: Any, machine: Machine, left: float, right: float) -> None:
    """min(products' rate, bandwidth × operations per byte) for each product measured, at the most threads of each."""
    copies = [c for c in machine.ceilings if c.what == "copy"]
    products = list({c.precision: c for c in sorted(machine.ceilings, key=_threads) if c.what == "gemm"}.values())
    if not copies or not products:
        return
    copy = max(copies, key=_threads)
    peak = max(c.rate for c in products)
    ridge = min(peak / copy.rate, right)
    left = min(left, ridge)
    axes.plot([left, ridge], [copy.rate * left, copy.rate * ridge], color=INK, linewidth=1.2, zorder=1)
    middle = math.sqrt(left * ridge)
    along = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True, "ha": "center"}
    text, at = f"copy {rate(copy.rate, copy.unit)}", (middle, copy.rate * middle)
    axes.annotate(text, at, (0, 6), textcoords="offset points", va="bottom", fontsize=8, **along)
    for c in products:
        start = min(c.rate / copy.rate, right)
        axes.plot([start, right], [c.rate, c.rate], color=INK, linewidth=1.2, zorder=1)
        threads = f", {c.threads} thread{'s' if c.threads > 1 else ''}" if c.threads else ""
        text = f"matrix product {c.precision or ''}{threads} {rate(c.rate, c.unit)}"
        axes.annotate(text, (right, c.rate), (0, 3), textcoords="offset points", ha="right", va="bottom", fontsize=8)


def _threads(ceiling: Ceiling) -> tuple[int, float]:
    return ceiling.threads or 0, ceiling.rate


# --- scaling ---------------------------------------------------------------------------------------------------------


def _draw_scaling(machine: Machine, colours: dict[str, str]) -> Any:
    curves = standings.curves(machine)
    markers = {name: MARKERS[k % len(MARKERS)] for k, name in enumerate(colours)}
    columns = min(3, len(curves))
    down = -(-len(curves) // columns)
    figure = _figure(max(4.2 * columns, 6), 0.9 + 3.3 * down)
    panels = figure.subplots(down, columns, squeeze=False).ravel()
    for axes, (key, lines) in zip(panels, curves.items(), strict=False):
        for name in [one for one in colours if one in lines]:
            fit = standings.exponent(lines[name])
            said = f"{name}: {key.axis}$^{{\\,{fit[0]:.2f}}}$" if fit else name
            x, y = [row.x for row in lines[name]], [row.median for row in lines[name]]
            axes.plot(x, y, color=colours[name], marker=markers[name], linewidth=1.6, label=said, markersize=5, **_EDGE)
        axes.set(xscale="log", yscale="log", title=curve(key, machine.common), xlabel=key.axis, ylabel="seconds")
        _ticks(axes, sorted({row.x or 0 for rows in lines.values() for row in rows}))
        axes.legend(fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")
        _plain(axes)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    _legend(figure, colours, {name for lines in curves.values() for name in lines}, markers)
    return figure


def _ticks(axes: Any, values: Sequence[float]) -> None:
    """The values of x themselves, at most eight of them, in place of powers of ten."""
    step = -(-len(values) // 8)
    axes.set_xticks(list(values)[::step], [f"{value:g}" for value in list(values)[::step]])
    axes.set_xticks([], minor=True)

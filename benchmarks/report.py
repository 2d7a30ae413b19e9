"""RESULTS.md and its pictures from the stored result files: python -m benchmarks report

Every number, name and verdict in it comes from the files below --results; nothing is typed by hand. --check writes
nothing and exits with 1 if --out is not what those files give, or if one of its pictures is missing.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import report_tables, standings
from benchmarks.pictures import draw, picture_names
from benchmarks.standings import NEAR_BEST, Machine
from benchmarks.stored import read_folder
from ddpm_ref.files.atomic import write_text

HEAD = """\
# Results

Written by `python -m benchmarks report` from the files in `{folder}/`; nothing in it is typed by hand. `README.md`
beside it says how they are measured.

A time is the median over rounds in which all contenders took turns, each in a process of its own. A ratio is the
peer's time over ours, **above 1 ours is faster**, with the quartiles of the ratios taken round by round; where no
quartiles stand, rounds were not paired and it is one of medians. Contenders are compared in the same precision only.
*Ours* is the fastest of our backends there, the best peer the fastest of the others. "noisy" stands in place of figures
whose spread was over the bound of the run, and of ratios where such a row was the fastest on its side: no slower one is
put in its place. Memory is the most that the process (on a GPU: the pool or device) has held, in GiB, in brackets what
it held before the network was made.

The fraction of the ceiling is the time that the row's operations, those of a direct sum, take at the rate of the
machine's matrix product, or its bytes at that of its copy, whichever is longer, over the time it took. It may be more
than 100 %: convolutions by Winograd make up to 4 times fewer products than a direct sum, and arrays that stay in the
cache move faster than those of the copy.

Of files with the same row, that of the level with more rounds speaks (full, default, quick), and of one level the
newest. A row of another commit than the newest of its machine names it; "dirty" had changes that were not committed.
"""


def main(argv: list[str] | None = None) -> int:
    """Write the report and its pictures, or check it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of result files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/RESULTS.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if --out is not up to date")
    args = parser.parse_args(argv)
    try:
        results, skipped = read_folder(args.results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for line in skipped:
        print(line, file=sys.stderr)
    machines = standings.machines(results)
    folder = args.results / "pictures"
    text = report(machines, _from(args.out, args.results))
    if args.check:
        return _check(args.out, text, [folder / file for machine in machines for file in _files(machine)])
    try:
        drawn = [path for machine in machines for path in draw(machine, folder)]
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    write_text(args.out, text)
    print("\n".join(map(str, [*drawn, args.out])))
    return 0


def _check(out: Path, text: str, pictures: Iterable[Path]) -> int:
    """0 if the report says what the files say and its pictures are there, else 1."""
    wrong = [f"{path} is missing" for path in pictures if not path.is_file()]
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        wrong.append(f"{out} is not what the stored files give")
    for line in wrong:
        print(f"{line}: run python -m benchmarks report", file=sys.stderr)
    return 1 if wrong else 0


def _files(machine: Machine) -> list[str]:
    return [f"{name}.{kind}" for name, _ in picture_names(machine) for kind in ("png", "svg")]


def _from(out: Path, folder: Path) -> str:
    """The folder as seen from where the report lies."""
    return Path(os.path.relpath(folder, out.parent)).as_posix()


def report(machines: list[Machine], folder: str = "results") -> str:
    """The whole of RESULTS.md. folder: the result files', as seen from it."""
    parts = [HEAD.format(folder=folder), "## Where we lose\n", report_tables.losses(machines)]
    for machine in machines:
        parts += [f"## {machine.name}\n", *_machine(machine, folder)]
    return "\n".join(part for part in parts if part)


def _machine(machine: Machine, folder: str) -> list[str]:
    """Everything of one machine, sections that would be empty left out."""
    tables = report_tables
    pictures = {
        name.split("-")[0]: f"![{title}]({folder}/pictures/{name}.png)\n" for name, title in picture_names(machine)
    }
    sections = [
        ("What ran", tables.provenance(machine) + tables.common(machine), ""),
        ("Ceilings", tables.ceilings(machine), ""),
        ("Steps", tables.steps(machine), "steps"),
        ("Runs", tables.runs(machine), ""),
        ("Loops", tables.loops(machine), "roofline"),
        ("Scaling", tables.scaling(machine), "scaling"),
        ("Compiling and first calls, apart from the times above", tables.compiling(machine), ""),
        ("Left out", tables.left_out(machine), ""),
        ("Noisy, and not quoted", tables.noisy(machine), ""),
    ]
    if any(title == "Scaling" and text for title, text, _ in sections):
        note = (
            "The rate is work a second, by threads a second and thread; a backend stops scaling at the first value "
            f"past its best rate where it does less than {NEAR_BEST:.0%} of that. Noisy points are left out; ± is the "
            "standard error of the exponent, from so few points as stand in brackets."
        )
        pictures["scaling"] = f"{note}\n\n{pictures.get('scaling', '')}"
    found: list[str] = []
    for title, text, picture in sections:
        if text:
            found += [f"### {title}\n", pictures.get(picture, ""), text]
    return found


if __name__ == "__main__":
    sys.exit(main())

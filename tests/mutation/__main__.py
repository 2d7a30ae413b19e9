"""How much of the mathematics the tests see: every line is changed in turn, and some test should fail.

    python tests/mutation MODULE ...   test the mutants of these modules (`schedule`, `nn/ops` …, or `all`)
    python tests/mutation              the table so far

A module's run takes minutes and can be interrupted: verdicts are kept in `mutants/`, and the next run tests what is
left, and again what survived. Remove `mutants/` to begin anew. Mutants inside functions are mutmut's, those outside
are made by `outside.py` with the same operators. What is mutated and what tests it stands in pyproject.toml.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import outside

os.environ.update(HYPOTHESIS_PROFILE="mutation", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

CONFIG = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
MODULES = {path.removeprefix("ddpm_ref/").removesuffix(".py"): Path(path) for path in CONFIG["only_mutate"]}
TESTS: list[str] = CONFIG["pytest_add_cli_args_test_selection"]
KILLED = (1, 3, 24, -24, 36, 152, 255)  # mutmut's codes: a test failed, or ran far too long


def main(arguments: list[str]) -> None:
    names = list(MODULES) if arguments == ["all"] else arguments
    if unknown := [name for name in names if name not in MODULES]:
        sys.exit(f"module: wanted {', '.join(MODULES)} or all, got {', '.join(unknown)}")
    for name in names:
        _run_mutmut(MODULES[name])
        outside.run(MODULES[name], sorted(TESTS, key=lambda test: name.rpartition("/")[2] not in test))
    _print_table()


def _run_mutmut(path: Path) -> None:
    """mutmut on the mutants of one module that no test has killed yet, on all of them the first time."""
    meta, stats = Path(f"mutants/{path}.meta"), Path("mutants/mutmut-stats.json")
    if not meta.exists():
        Path("mutants", path).unlink(missing_ok=True)  # a copy made before the module was listed
    changed = max(file.stat().st_mtime for file in [Path("pyproject.toml"), *Path("tests").glob("*.py")])
    if stats.exists() and stats.stat().st_mtime < changed:
        stats.unlink()  # which test calls which function is measured again
    mutmut = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(os.cpu_count() or 1)]
    pattern = ".".join(path.with_suffix("").parts) + ".x*"
    subprocess.run([*mutmut, *(_left(path) or [pattern])], check=True)


def _left(path: Path) -> list[str]:
    return [name for name, code in _verdicts(path).items() if code not in KILLED]


def _verdicts(path: Path) -> dict[str, int | None]:
    meta = Path(f"mutants/{path}.meta")
    return json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}


def _print_table() -> None:
    print(f"{'module':12} {'mutants':>7} {'killed':>7} {'left':>5} {'score':>7}")
    totals = [0, 0]
    for name, path in MODULES.items():
        verdicts = [code in KILLED for code in _verdicts(path).values()]
        verdicts += [verdict == "killed" for verdict in outside.results().get(str(path), {}).values()]
        if verdicts:
            totals = [totals[0] + len(verdicts), totals[1] + sum(verdicts)]
            _print_row(name, len(verdicts), sum(verdicts))
    if totals[0]:
        _print_row("all", *totals)


def _print_row(name: str, mutants: int, killed: int) -> None:
    print(f"{name:12} {mutants:7} {killed:7} {mutants - killed:5} {killed / mutants:7.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])

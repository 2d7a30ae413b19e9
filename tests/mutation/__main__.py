"""How much of the mathematics the tests see: every expression is changed in turn, and some test should fail.

    python tests/mutation MODULE ...   test the mutants of these modules (`schedule`, `nn/ops` …, or `all`)
    python tests/mutation              the table so far, and the survivors that SURVIVORS.md does not explain

A module takes minutes and can be interrupted: verdicts are kept in `mutants/`, and the next run tests what is left,
and again what survived without being explained. Remove `mutants/` to begin anew. Mutants inside functions are
mutmut's, those outside are made by `outside.py` with the same operators. What is mutated, and which tests it meets,
stands in pyproject.toml.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outside
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

os.environ.update(HYPOTHESIS_PROFILE="mutation", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

CONFIG = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
MODULES = {path.removeprefix("ddpm_ref/").removesuffix(".py"): Path(path) for path in CONFIG["only_mutate"]}
TESTS: list[str] = CONFIG["pytest_add_cli_args_test_selection"]
KILLED = (1, 3, 24, -24, 36, 152, 255)  # mutmut's codes: a test failed, or ran far too long
EXPLAINED = Path(__file__).with_name("SURVIVORS.md")


def main(arguments: list[str]) -> None:
    names = list(MODULES) if arguments == ["all"] else arguments
    if unknown := [name for name in names if name not in MODULES]:
        sys.exit(f"module: wanted {', '.join(MODULES)} or all, got {', '.join(unknown)}")
    for name in names:
        _run_mutmut(MODULES[name])
        tests = sorted(TESTS, key=lambda test: name.rpartition("/")[2] not in test)
        outside.run(MODULES[name], tests, _is_explained)
    _print_table()
    _print_unexplained()


def _run_mutmut(path: Path) -> None:
    """mutmut on the mutants of one module that are left.

    They are named one by one: mutmut then first runs their tests on the program as it is, and stops if one cannot be
    found (as when its name is made anew at each collection), which would else count as a kill.
    """
    copy, stats = Path("mutants", path), Path("mutants/mutmut-stats.json")
    if not copy.with_suffix(".py.meta").exists():
        copy.unlink(missing_ok=True)  # made before the module was listed
    changed = max(file.stat().st_mtime for file in [Path("pyproject.toml"), *Path("tests").glob("*.py")])
    if stats.exists() and stats.stat().st_mtime < changed:
        stats.unlink()  # which test calls which function is measured again
    if left := _left(path):
        mutmut = [
            str(Path(sys.executable).with_name("mutmut")),
            "run",
            "--max-children",
            str(len(os.sched_getaffinity(0))),
        ]
        subprocess.run([*mutmut, *left], check=True)


def _left(path: Path) -> list[str]:
    """The mutants not tested yet, those that survived and are not explained, and all of functions changed since."""
    now, before = mutate_file_contents(str(path), path.read_text()), _meta(path).get("hash_by_function_name", {})
    same = {function for function, h in now.hash_by_function_name.items() if before.get(function) == h}
    full_names = {get_mutant_name(path, name): name.partition("__mutmut_")[0] for name in now.mutant_names}
    done = {name for name, code in _verdicts(path).items() if full_names.get(name) in same and code is not None}
    done -= {name for name, line in _survivors(path) if not _is_explained(line)}
    return [name for name in full_names if name not in done]


def _meta(path: Path) -> dict[str, Any]:
    meta = Path(f"mutants/{path}.meta")
    return json.loads(meta.read_text()) if meta.exists() else {}


def _verdicts(path: Path) -> dict[str, int | None]:
    return _meta(path).get("exit_code_by_key", {})


def _print_table() -> None:
    print(f"{'module':15} {'mutants':>7} {'killed':>7} {'left':>5} {'score':>7}")
    totals = [0, 0]
    for name, path in MODULES.items():
        if set(_verdicts(path).values()) <= {None}:
            continue  # not tested yet
        verdicts = [code in KILLED for code in _verdicts(path).values()]
        verdicts += [verdict == "killed" for verdict in outside.results().get(str(path), {}).values()]
        totals = [totals[0] + len(verdicts), totals[1] + sum(verdicts)]
        _print_row(name, len(verdicts), sum(verdicts))
    if totals[0]:
        _print_row("all", *totals)


def _print_row(name: str, mutants: int, killed: int) -> None:
    print(f"{name:15} {mutants:7} {killed:7} {mutants - killed:5} {killed / mutants:7.1%}")


def _print_unexplained() -> None:
    for name, path in MODULES.items():
        for _, line in _survivors(path):
            if not _is_explained(line):
                print(f"not in {EXPLAINED.name}: {name}: {line}")


def _is_explained(line: str) -> bool:
    return f"`{line}`" in EXPLAINED.read_text()


def _survivors(path: Path) -> Iterator[tuple[str, str]]:
    """Each mutant that was tested and not killed: its name, and "what stood there -> what it became"."""
    for name, code in _verdicts(path).items():
        if code is not None and code not in KILLED:
            yield name, outside.as_one_line(get_diff_for_mutant(name, path=path))
    for name, verdict in outside.results().get(str(path), {}).items():
        if verdict == "survived":
            yield name, outside.as_one_line(name)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Mutants of what mutmut leaves alone: constants of a module, fields of a class, properties.

mutmut chooses its mutants while the program runs, by the function called; what is computed once at import, and
functions under a decorator other than classmethod and staticmethod, it skips. Here its own operators are applied to
those too, one at a time, each in a file of its own that a fresh pytest imports.
"""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import get_ignored_lines

RESULTS = Path("mutants/outside.json")
SECONDS = 300  # a mutant that takes longer counts as killed, as in mutmut


class _Outside(MutationVisitor):
    """mutmut's visitor, which also enters properties."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return False if _is_property(node) else super()._skip_node_and_children(node)


def _is_property(node: Any) -> bool:
    return isinstance(node, cst.FunctionDef) and [getattr(d.decorator, "value", "") for d in node.decorators] == [
        "property"
    ]


def mutants(path: Path) -> Iterator[tuple[str, str]]:
    """Every mutant outside mutmut's reach: its lines of difference, by which it is known, and the whole text."""
    source = path.read_text()
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = _Outside(mutation_operators, get_ignored_lines(str(path), source, wrapper))
    wrapper.visit(visitor)
    for mutation in visitor.mutations:
        inside = mutation.contained_by_top_level_function
        if isinstance(inside, cst.FunctionDef) and not _is_property(inside):
            continue
        text = deep_replace(wrapper.module, mutation.original_node, mutation.mutated_node).code  # type: ignore[union-attr]
        lines = list(difflib.unified_diff(source.splitlines(), text.splitlines(), lineterm="", n=0))[2:]
        yield "\n".join(lines), text


def results() -> dict[str, dict[str, str]]:
    """Path of the module -> mutant -> "killed" or "survived"."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def as_one_line(diff: str) -> str:
    """A difference as "what stood there -> what it became"."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    return " -> ".join(" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")


def run(path: Path, tests: list[str], is_explained: Callable[[str], bool]) -> None:
    """Test every mutant of the module that is neither killed nor explained, in a copy of the project.

    Each verdict is kept at once.
    """
    found = list(mutants(path))
    old = results().get(str(path), {})
    verdicts = {name: old.get(name, "not checked") for name, _ in found}
    with tempfile.TemporaryDirectory() as folder:
        for part in ("ddpm_ref", "tests"):
            shutil.copytree(part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy("pyproject.toml", folder)
        for name, text in found:
            if verdicts[name] == "not checked" or (
                verdicts[name] == "survived" and not is_explained(as_one_line(name))
            ):
                Path(folder, path).write_text(text)
                failed = _first_to_fail(tests, folder)
                tests = sorted(tests, key=lambda test: test != failed)  # it may well see the next one too
                verdicts[name] = "killed" if failed is not None else "survived"
                print(f"{verdicts[name]}: {path} {name}", flush=True)
            RESULTS.write_text(json.dumps({**results(), str(path): verdicts}, indent=1))


def _first_to_fail(tests: list[str], folder: str) -> str | None:
    """The file of the first test that fails, "" if none could even run or time ran out, None if all pass."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "."}
    for some in (tests[:1], tests[1:]):  # the likeliest alone: it takes time to collect them all
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *some]
        try:
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        if done.returncode != 0:
            found = re.search(r"^(?:FAILED|ERROR) ([\w/.]+)", done.stdout, re.MULTILINE)
            return found[1] if found else ""
    return None

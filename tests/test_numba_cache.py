"""Compiled kernels on disk: never stale, and a folder or a file that is damaged costs the compiling, not the run."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

import ddpm_ref_numba
from ddpm_ref_numba import launch

import ddpm_ref

DRAWS = """
import hashlib
from ddpm_ref import random
from ddpm_ref_numba import NumbaBackend, noise
draw = 3, random.Purpose.Z, 7, [0, 5], (1000,)
ours, numpys = (hashlib.sha256(on.normal(*draw)).hexdigest() for on in (NumbaBackend(1), random))
print("same" if ours == numpys else "different", bool(noise.normal_kernel._kept.cache_hits), numpys)
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program, with its cache filled."""
    copy = tmp_path_factory.mktemp("copy")
    for package in (ddpm_ref, ddpm_ref_numba):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    assert draws(copy)[:2] == ["same", "False"]
    return copy


def draws(folder: Path) -> list[str]:
    """Of the copy, in a process of its own: whether Numba's normals are NumPy's, came from the cache, NumPy's hash."""
    environment = {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRAWS], capture_output=True, text=True, timeout=120, cwd=folder,
        env=os.environ | environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_constant_that_changes_in_the_core_is_compiled_anew(copied: Path) -> None:
    same, loaded, before = draws(copied)
    assert (same, loaded) == ("same", "True")
    path = copied / "ddpm_ref" / "random.py"
    source = path.read_text()
    assert source.count("7.0376836292e-2") == 1
    path.write_text(source.replace("7.0376836292e-2", "7.1e-2"))
    same, loaded, after = draws(copied)
    assert (same, loaded) == ("same", "False") and after != before


def test_every_module_of_the_core_whose_constants_kernels_use_is_in_the_stamp() -> None:
    """Constants are what is imported in capitals."""
    frozen = {module.__name__ for module in launch.FROZEN}
    for path in Path(ddpm_ref_numba.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ddpm_ref":
                constants = {alias.name for alias in node.names if alias.name.isupper()} - {"FLOAT32"}
                assert not constants or node.module in frozen, f"{path.name} takes {constants} from {node.module}"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(b"no pickle at all" * 100)


@pytest.mark.parametrize("damage", [empty, garble])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_file_of_the_cache_is_written_anew(copied: Path, ending: str, damage: Callable[[Path], None]) -> None:
    files = list((copied / "cache").rglob(f"*normal_kernel*.{ending}"))
    assert files
    for path in files:
        damage(path)
    assert draws(copied)[:2] == ["same", "False"]
    assert draws(copied)[:2] == ["same", "True"]

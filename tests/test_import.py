"""What `import ddpm_ref` costs: NumPy, the package's own modules and a few small ones of the standard library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_ref

PROGRAM = """
import json, sys
import numpy
before = set(sys.modules)
import ddpm_ref
print(json.dumps(sorted(set(sys.modules) - before)))
"""

# Beyond what NumPy brings. Adding a name here is a decision about start-up time: measure it first.
STANDARD = {
    "__future__", "ast", "copy", "ctypes", "dataclasses", "dis", "importlib", "inspect", "keyword", "linecache",
    "opcode", "reprlib", "threading", "token", "tokenize",
}  # fmt: skip
# Of the package itself, what only some commands need.
LATER = {"backend_bounds", "backend_cases", "backend_check", "backend_command", "backend_manners", "backend_steps",
         "cli", "codebook", "coding", "commands", "entropy_coding", "experiments", "gallery", "gaussian_oracle",
         "minimal_random_coding", "oracles", "pictures"}  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """Every module that a fresh interpreter loads for `import ddpm_ref` after `import numpy`."""
    root = str(Path(ddpm_ref.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


def test_nothing_is_loaded_but_numpy_and_the_standard_library(loaded: list[str]) -> None:
    foreign = {name.partition(".")[0] for name in loaded} - {"ddpm_ref", "numpy"} - set(sys.stdlib_module_names)
    assert not foreign, f"import ddpm_ref loads {', '.join(sorted(foreign))}"


def test_no_more_of_the_standard_library_is_loaded_than_was_decided(loaded: list[str]) -> None:
    standard = {name for name in loaded if name.partition(".")[0] in sys.stdlib_module_names}
    new = {name for name in standard if name.partition(".")[0].lstrip("_") not in STANDARD and name not in STANDARD}
    assert not new, f"import ddpm_ref now also loads {', '.join(sorted(new))}"


def test_no_more_of_numpy_is_loaded_than_its_types(loaded: list[str]) -> None:
    new = {name for name in loaded if name.startswith("numpy.") and not name.startswith(("numpy._", "numpy.typing"))}
    assert new <= {"numpy.lib", "numpy.lib.stride_tricks"}, f"import ddpm_ref now also loads {', '.join(sorted(new))}"


def test_what_only_some_commands_need_is_left_for_them(loaded: list[str]) -> None:
    early = {name for name in loaded if name.startswith("ddpm_ref.") and name.split(".")[1] in LATER}
    assert not early, f"import ddpm_ref loads {', '.join(sorted(early))}"


def test_every_public_name_is_there() -> None:
    assert [name for name in ddpm_ref.__all__ if not hasattr(ddpm_ref, name) or name not in dir(ddpm_ref)] == []

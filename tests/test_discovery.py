"""Which backends are found, by name, by entry point and outright; and what is said of those that cannot be used."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import threadpoolctl

import ddpm_ref
from ddpm_ref import discovery
from ddpm_ref.backend import OPERATIONS, Backend, Description
from ddpm_ref.discovery import available_backends, get_backend, survey, why_not

ROOT = Path(ddpm_ref.__file__).parents[1]

MODULE = """
from ddpm_ref.backend import Backend

class Mine(Backend):
    name = "mine"
    version = "Mine 1.2"
    device = "an abacus"

    def dense(self, x, W, b, *, plus=None):
        return super().dense(x, W, b, plus=plus)

class Bare(Backend):
    def __init__(self):
        pass

class Unfit(Backend):
    def __init__(self, threads=None):
        raise ImportError("no abacus in this machine")

class Broken(Backend):
    def __init__(self, threads=None):
        raise RuntimeError("the abacus has\\nno beads")

class Forgetful(Backend):
    def __init__(self, threads=None):
        len(5)

class Leaving(Backend):
    def __init__(self, threads=None):
        raise SystemExit("no abacus, no program")

class Speechless(Backend):
    def describe(self):
        raise KeyError("beads")

class Vague(Backend):
    def describe(self):
        return "an abacus"

class Stranger:
    pass

class Outer:
    Inner = Mine

instance = Mine()
"""


@pytest.fixture
def module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with backends of somebody's own."""
    (tmp_path / "a_backend_of_ones_own.py").write_text(MODULE)
    (tmp_path / "a_module_that_refuses.py").write_text("raise ImportError('wanted an abacus\\nof ten rows')")
    (tmp_path / "a_module_that_breaks.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return "a_backend_of_ones_own"


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Numba were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("numba", "ddpm_ref_numba")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for the entry points of installed packages."""

    def points(**values: str) -> None:
        made = [importlib.metadata.EntryPoint(name, value, discovery.GROUP) for name, value in values.items()]
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: made if group == discovery.GROUP else [])

    return points


# ---- by name


def test_numpy_is_found_and_everything_listed_can_be_had() -> None:
    assert type(get_backend("numpy")) is Backend
    assert next(iter(available_backends())) == "numpy"
    for name, description in available_backends().items():
        assert get_backend(name).describe() == description
        assert description.name == name and description.version and description.threads >= 1
        assert {*description.own, *description.inherited} == set(OPERATIONS)
        assert not {*description.own} & {*description.inherited}


def test_numba_is_taken_unless_told_otherwise_where_it_can_be_used() -> None:
    pytest.importorskip("numba", reason="Numba is not installed here")
    assert get_backend().name == "numba" and get_backend(None, 1).describe().threads == 1
    assert why_not("numba") is None


def test_numpy_is_taken_where_numba_cannot_be_used_and_the_reason_names_the_extra(without_numba: None) -> None:
    assert type(get_backend()) is Backend
    reason = why_not("numba")
    assert reason and reason.endswith('pip install "ddpm-ref[numba]"') and "\n" not in reason
    assert str(survey()["numba"]) == reason and "numba" not in available_backends()
    with pytest.raises(ValueError, match=r"backend: cannot load 'numba': .*pip install.*; there is numpy( |,|$)"):
        get_backend("numba")


@pytest.mark.parametrize("name", ["cuda", "", "Numpy", "numpy:"])
def test_an_unknown_name_is_an_error_that_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"backend: wanted .*numpy.*'package\.module:Class'") as caught:
        get_backend(name)
    assert repr(name) in str(caught.value)


def test_an_unknown_name_is_told_why_a_known_backend_is_not_there(without_numba: None) -> None:
    with pytest.raises(ValueError, match=r"wanted numpy.* \(not available: numba: .*ddpm-ref\[numba\].*\) or"):
        get_backend("cuda")


def test_what_is_declared_here_is_what_the_package_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][discovery.GROUP] == discovery.OURS
    assert set(discovery.EXTRAS.values()) <= set(project["optional-dependencies"])


def test_a_checkout_that_was_not_installed_finds_ours(tmp_path: Path) -> None:
    """In a process of its own that sees no entry point of this distribution."""
    program = (
        "import importlib.metadata as m; m.entry_points = lambda group: []\n"
        "from ddpm_ref.discovery import survey; print(sorted(survey()))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "['cupy', 'numba', 'numpy']\n"


# ---- by entry point


def test_another_packages_backend_is_found_by_its_entry_point(module: str, declare: Any) -> None:
    declare(abacus=f"{module}:Mine", numpy="math:pi")
    mine = get_backend("abacus")
    assert type(mine).__name__ == "Mine" and type(get_backend("numpy")) is Backend, "nobody takes our names"
    described = available_backends()["abacus"]
    assert (described.version, described.device, described.own) == ("Mine 1.2", "an abacus", ("dense",))


def test_what_another_package_declares_and_cannot_be_used_is_listed_with_its_reason(module: str, declare: Any) -> None:
    declare(
        a=f"{module}:Unfit", b="a_module_that_refuses:X", c="a_module_that_breaks:X", d=f"{module}:Stranger", e="no:X"
    )
    reasons = {name: str(survey()[name]) for name in "abcde"}
    assert reasons == {
        "a": "no abacus in this machine",
        "b": "wanted an abacus of ten rows",
        "c": "division by zero",
        "d": "backend: 'd' is not a subclass of ddpm_ref.Backend",
        "e": "no is not installed",
    }
    assert not {*"abcde"} & set(available_backends())
    with pytest.raises(ValueError, match="backend: cannot load 'a': no abacus in this machine; there is numpy"):
        get_backend("a")


def test_whatever_a_constructor_or_a_description_raises_is_the_reason_in_the_list(module: str, declare: Any) -> None:
    classes = dict(a="Broken", b="Forgetful", c="Leaving", d="Speechless", e="Vague")
    declare(**{name: f"{module}:{what}" for name, what in classes.items()})
    assert {name: str(survey()[name]) for name in classes} == {
        "a": "the abacus has no beads",
        "b": "object of type 'int' has no len()",
        "c": "no abacus, no program",
        "d": "'beads'",
        "e": "its describe() returned str, no ddpm_ref.backend.Description",
    }
    with pytest.raises(ValueError, match=r"backend: wanted numpy, .*d: 'beads'; e: its describe.* got 'nunpy'"):
        get_backend("nunpy")
    for name in "abc":
        with pytest.raises(ValueError, match=f"backend: cannot load '{name}': .*; there is numpy"):
            get_backend(name)


def test_the_list_may_be_of_backends_with_so_many_threads(module: str, declare: Any) -> None:
    declare(mine=f"{module}:Mine", bare=f"{module}:Bare")
    with threadpoolctl.threadpool_limits(None):  # NumPy's are those of the whole process
        found = survey(1)
    assert isinstance(found["numpy"], Description) and isinstance(found["mine"], Description)
    assert (found["numpy"].threads, found["mine"].threads) == (1, 1)
    assert "cannot be made with threads=1" in str(found["bare"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("Numba needs NumPy 2.4 or less"), "Numba needs NumPy 2.4 or less"),
        (ModuleNotFoundError(name="numba"), 'numba is not installed: pip install "ddpm-ref[numba]"'),
        (ModuleNotFoundError(name="x.y"), 'x.y is not installed: pip install "ddpm-ref[numba]"'),
        (RuntimeError("no processor"), "no processor"),
    ],
)
def test_only_what_is_not_installed_is_to_be_installed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(module: str) -> None:
        raise error

    monkeypatch.setattr("ddpm_ref.discovery.importlib.import_module", fail)
    assert why_not("numba") == said


# ---- outright


def test_a_backend_is_loaded_from_module_and_class(module: str) -> None:
    mine = get_backend(f"{module}:Mine")
    assert isinstance(mine, Backend) and mine.name == "mine" and type(mine).__module__ == module
    assert type(get_backend(f"{module}:Outer.Inner")) is type(mine)


def test_a_backend_may_take_no_threads_and_is_then_not_given_any(module: str) -> None:
    assert get_backend(f"{module}:Bare").describe().threads >= 1
    with pytest.raises(ValueError, match=rf"backend: '{module}:Bare' cannot be made with threads=2: .*threads"):
        get_backend(f"{module}:Bare", 2)


@pytest.mark.parametrize("what", ["Stranger", "instance"])
def test_what_is_not_a_subclass_of_backend_is_refused(module: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"backend: '{module}:{what}' is not a subclass of ddpm_ref\.Backend"):
        get_backend(f"{module}:{what}")


def test_what_cannot_be_imported_is_refused_with_the_reason(module: str) -> None:
    reasons = {
        "no_such_module:X": "no_such_module is not installed$",
        "no_such_module.at.all:X": r"no_such_module\.at\.all is not installed$",
        "json.no_such_part:X": r"json\.no_such_part is not installed$",
        f"{module}:Absent": "Absent", ":X": "Empty module",
        f"{module}:Unfit": "no abacus in this machine$", "a_module_that_breaks:X": "division by zero$",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"backend: cannot load {name!r}: .*{reason}"):
            get_backend(name)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_a_whole_number_of_at_least_one(threads: Any) -> None:
    for name in available_backends():
        with pytest.raises(ValueError, match=r"threads: wanted an integer >= 1, got"):
            get_backend(name, threads)

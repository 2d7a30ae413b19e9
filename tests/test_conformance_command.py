"""`ddpm-ref check` and the plug-in for pytest: what they print, and their exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_ref.cli import main
from ddpm_ref.conformance import FUNCTIONS, PROPERTIES, load_adapter

BROKEN = """import numpy as np
b = np.linspace(1e-4, 0.02, 1000)
a = np.cumprod(1 - b)
conventions = {"t_first": 0, "precision": "float64"}

def betas():
    return b

def q_sample(x_0, t, eps):
    s = a[t].reshape(-1, 1, 1, 1)
    return np.sqrt(s) * x_0 + (1 - s) * eps
"""


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    return str(path)


def test_the_report_says_where_what_and_why(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", broken]) == 1
    out = capsys.readouterr().out
    assert "holds        beta                 §4               β_t is the declared schedule's\n" in out
    assert "broken       q-sample             Eq. 4            x_t from x_0 and ε\n" in out
    assert "\n             first at t = 1 (their 0), at all t: got " in out
    assert "— 1 - ᾱ_t where √(1 - ᾱ_t) is meant\n" in out
    assert f"broken: 3 hold, 1 broken, {len(PROPERTIES) - 4} not offered\n" in out


def test_json_holds_the_same_facts(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", broken, "--json", "--only", "q-sample", "beta"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == "broken" and facts["conventions"]["t_first"] == 0
    first, second = facts["results"]
    assert (first["id"], first["status"], first["t"], first["their_t"]) == ("q-sample", "broken", 1, 0)
    assert first["equation"] == "Eq. 4" and first["got"] != first["wanted"] and second["status"] == "holds"


def test_the_list_names_every_function_convention_and_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--list"]) == 0
    out = capsys.readouterr().out
    for word in (
        *FUNCTIONS,
        *load_adapter(type("Small", (), {"betas": [0.1]})).conventions.__dict__,
        *(p.id for p in PROPERTIES),
    ):
        assert f"  {word}" in out


def test_a_missing_adapter_or_an_unknown_property_is_an_error(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2 and "ADAPTER" in capsys.readouterr().err
    assert main(["check", broken, "--only", "q-sampel"]) == 2 and "'q-sample'" in capsys.readouterr().err


def test_every_property_says_what_it_holds_to() -> None:
    assert len({p.id for p in PROPERTIES}) == len(PROPERTIES)
    assert all(len(p.says) > 30 and set("|".join(p.needs).split("|")) <= set(FUNCTIONS) for p in PROPERTIES)


# --- the plug-in -----------------------------------------------------------------------------------------------------


def pytest_run(folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """A run of pytest inside this one, in a folder of its own."""
    monkeypatch.chdir(folder)
    common = ["-p", "ddpm_ref.conformance.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    return int(pytest.main([*common, "--ddpm-adapter", *args]))


def test_the_plug_in_makes_each_property_a_test(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = pytest_run(tmp_path, monkeypatch, broken, "-rs"), capsys.readouterr().out
    assert status == 1 and f"1 failed, 3 passed, {len(PROPERTIES) - 4} skipped" in out
    assert "1 - ᾱ_t where √(1 - ᾱ_t) is meant" in out and "not offered: needs loss" in out and "Traceback" not in out
    status, out = pytest_run(tmp_path, monkeypatch, broken, "-k", "beta and not tilde"), capsys.readouterr().out
    assert status == 0 and "2 passed" in out


def test_the_plug_in_says_why_an_adapter_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pytest_run(tmp_path, monkeypatch, "none.py") == 4
    assert "none.py: no such file" in capsys.readouterr().err


def test_the_core_does_not_load_the_checker() -> None:
    program = "import sys, ddpm_ref; sys.exit(any(name.startswith('ddpm_ref.conformance') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0

"""The backend on the command line: which is taken and said, the list of them, the check, threads, and resuming."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl
from small_run import TRAIN, Run, call, one_step

from ddpm_ref import commands
from ddpm_ref.backend import OPERATIONS, Backend
from ddpm_ref.discovery import available_backends, get_backend

FAULTY = """
from ddpm_ref.backend import Backend

class Halves(Backend):
    name = "halves"

    def attention(self, q, k, v):
        y, backward = super().attention(q, k, v)
        return y / 2, backward
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own; BLAS is left with the threads it had."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "a_faulty_backend.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    with threadpoolctl.threadpool_limits(None):
        yield


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Numba were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("numba", "ddpm_ref_numba")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)


@pytest.fixture
def ready(tmp_path: Path) -> Run:
    """One step of training."""
    return one_step(tmp_path)


# ---- what is taken


def test_every_command_that_computes_says_first_on_what(ready: Run) -> None:
    line = f"backend: {get_backend().describe()}"
    assert ready.done.out.splitlines()[0] == line and "\n" not in line
    for command in ("sample", "evaluate"):
        for name in ("numpy", "a_faulty_backend:Halves"):
            out = call(command, ready.folder, "--draw-batch", 4, "--backend", name, "--threads", 1).out.splitlines()
            assert (
                out[0] == f"backend: {get_backend(name, 1).describe()}"
                and "(NumPy " in out[0]
                and "; 1 thread on" in out[0]
            )
            assert not any(line.startswith("backend") for line in out[1:])


def test_where_numba_is_missing_numpy_is_taken_and_the_line_says_why(ready: Run, without_numba: None) -> None:
    done = call("sample", ready.folder, "--count", 1)
    first = done.out.splitlines()[0]
    assert (done.status, done.err) == (0, "")
    assert first.startswith(f"backend: {Backend().describe()}; numba is faster, but ")
    assert first.endswith('pip install "ddpm-ref[numba]"')
    asked = call("sample", ready.folder, "--count", 1, "--backend", "numpy").out.splitlines()[0]
    assert asked == f"backend: {Backend().describe()}", "nobody who asked for NumPy is told of Numba"
    refused = call("sample", ready.folder, "--backend", "numba").error
    assert refused.startswith("backend: cannot load 'numba': ") and "; there is numpy" in refused


def test_what_ran_is_written_beside_its_results(ready: Run) -> None:
    facts = json.loads((ready.folder / "run.json").read_text())["backend"]
    described = get_backend().describe()
    assert (facts["name"], facts["version"], facts["threads"]) == described[:3] and facts["own"] == list(described.own)
    call("sample", ready.folder, "--count", 1, "--backend", "numpy", "--threads", 1, "--out", "drawn")
    facts = json.loads(Path("drawn/sampling.json").read_text())["backend"]
    assert (facts["name"], facts["threads"], facts["own"]) == ("numpy", 1, [])


# ---- resuming


def test_a_run_may_go_on_on_another_backend_with_other_threads(ready: Run) -> None:
    arguments = ("train", "--resume", ready.folder, "--steps", 2, "--backend", "numpy", "--threads", 1)
    done = call(*arguments)
    assert done.status == 0 and done.out.splitlines()[0].startswith("backend: numpy (")
    assert json.loads((ready.folder / "run-from-00000001.json").read_text())["backend"]["name"] == "numpy"


@pytest.mark.parametrize(
    ("backend", "threads", "precision", "words"),
    [
        (None, None, None, ""),
        ("numpy", None, None, " --backend numpy"),
        (None, 3, None, " --threads 3"),
        ("a_module:Class", 1, None, " --backend a_module:Class --threads 1"),
        ("cupy", None, "bf16", " --backend cupy --precision bf16"),
    ],
)
def test_the_command_to_go_on_repeats_what_was_given(
    backend: str | None, threads: int | None, precision: str | None, words: str
) -> None:
    args = argparse.Namespace(command="train", backend=backend, threads=threads, precision=precision)
    assert commands.go_on(args, Path("a run")) == f"ddpm-ref train --resume 'a run'{words}"


# ---- ddpm-ref backends


def test_the_list_says_of_each_backend_what_is_its_own_and_what_is_numpys() -> None:
    done = call("backends")
    assert (done.status, done.err) == (0, "")
    blocks = {block.split()[0]: block for block in done.out.split("\n\n")[0].replace("\n ", " ").splitlines()}
    assert "all operations" in blocks["numpy"] and Backend.version in blocks["numpy"]
    for name, block in blocks.items():
        if "not available: " in block:
            assert name not in available_backends()
            continue
        described = get_backend(name).describe()
        assert f"threads: {described.threads}" in block and described.device in block and described.version in block
        assert [operation for operation in described.own if operation not in block.split("NumPy's:")[0]] == []
        assert described.own == () or [op for op in OPERATIONS if op not in block] == []
    assert done.out.splitlines()[-1] == f"Taken unless --backend says otherwise: {get_backend().name}"


def test_the_list_is_of_backends_with_the_threads_that_were_given() -> None:
    done = call("backends", "--threads", 3)
    assert (done.status, done.err) == (0, "") and "threads: 3;" in done.out
    assert done.out.count("threads: ") == done.out.count("threads: 3;")


def test_the_list_says_why_a_backend_is_not_available_and_which_extra_installs_it(without_numba: None) -> None:
    done = call("backends")
    (line,) = [line for line in done.out.splitlines() if line.startswith("numba ")]
    assert "not available: " in line and line.endswith('pip install "ddpm-ref[numba]"')
    assert done.out.splitlines()[-1].endswith(": numpy")


def test_a_backend_is_checked_by_name_and_the_status_is_the_verdict() -> None:
    done = call("backends", "--check", "numpy", "--threads", 1)
    assert (done.status, done.err) == (0, "") and done.out.startswith("checking numpy (NumPy ")
    assert "attention" in done.out and done.out.endswith("numpy does what NumPy does\n")
    done = call("backends", "--check", "a_faulty_backend:Halves")
    assert (done.status, done.err) == (1, "") and "\nattention 1x1x1 1x1x1 1x1x1 float32: y: off by " in done.out
    assert "backend: wanted " in call("backends", "--check", "abacus").error
    assert call("backends", "--check", "numpy", "--threads", 0).error == "--threads: wanted an integer >= 1, got 0"


def test_threads_that_cannot_be_set_are_an_error_that_names_the_variable(
    ready: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    for command in (("sample", ready.folder), (*TRAIN, "--data", ready.data, "--steps", 1, "--out", "new")):
        assert "set OPENBLAS_NUM_THREADS=2" in call(*command, "--backend", "numpy", "--threads", 2).error
    assert not Path("new").exists()


def test_a_precision_is_refused_by_a_backend_that_has_but_one(ready: Run) -> None:
    refused = call("sample", ready.folder, "--backend", "numpy", "--precision", "bf16").error
    assert refused.startswith("backend: 'numpy' cannot be made with precision=bf16: ")

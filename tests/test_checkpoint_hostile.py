"""Checkpoints that are damaged, forged or of another kind: each is an error that names the file, at no cost."""

import ast
import json
import math
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as plain
from safetensors import safe_open
from small_run import after, checkpoint, trainer

import ddpm_ref
from ddpm_ref.checks import Array
from ddpm_ref.files.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint

Change = Callable[[dict[str, Array], dict[str, str], dict[str, Any]], object]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good checkpoint after two steps."""
    return save_checkpoint(checkpoint_path(tmp_path, 2), checkpoint(after(2, trainer())))


def rewritten(path: Path, change: Change) -> Path:
    """The checkpoint with its arrays, metadata and run changed in place by a function of all three."""
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    arrays, run = plain.load_file(path), json.loads(metadata["run"])
    change(arrays, metadata, run)
    if metadata.get("run", "").startswith("{"):
        metadata["run"] = json.dumps(run)
    plain.save_file(arrays, path, metadata=metadata)
    return path


def poison(arrays: dict[str, Array], name: str, value: float) -> None:
    arrays[name] = arrays[name].copy()
    arrays[name].ravel()[0] = value


DAMAGE: dict[str, tuple[Change, str]] = {
    "a newer format": (lambda a, m, r: m.update(format_version="2"), r"format version '2' is unknown; .* reads '1'"),
    "no format": (lambda a, m, r: m.pop("format_version"), "format version None"),
    "no run": (lambda a, m, r: m.pop("run"), "run"),
    "bad json": (lambda a, m, r: m.update(run="nonsense"), "Expecting value"),
    "json of another kind": (lambda a, m, r: m.update(run="[1, 2]"), "TypeError"),
    "no step": (lambda a, m, r: r.pop("step"), "step"),
    "a negative step": (lambda a, m, r: r.update(step=-1), "step: wanted an integer >= 0, got -1"),
    "a step of text": (lambda a, m, r: r.update(step="3"), "step: wanted an integer"),
    "an unknown setting": (lambda a, m, r: r["settings"].update(momentum=1), "momentum"),
    "a bad setting": (lambda a, m, r: r["settings"].update(batch=0), "batch: wanted"),
    "a bad objective": (lambda a, m, r: r["settings"]["objective"].update(predicts="z"), "predicts: wanted one of"),
    "a NaN for a learning rate": (lambda a, m, r: r["settings"]["adam"].update(lr=math.nan), "lr: wanted"),
    "a bad network": (lambda a, m, r: r["config"].update(groups=3), "groups: wanted a divisor"),
    "another network": (
        lambda a, m, r: r["config"].update(base=8),
        r"temb/dense0/W: wanted .*\(8, 32\)",
    ),
    "a deeper network": (lambda a, m, r: r["config"].update(blocks=2), "arrays are missing or not of this network"),
    "an array missing": (lambda a, m, r: a.pop("ema/conv_in/b"), "1 arrays .*'ema/conv_in/b'"),
    "an array too many": (lambda a, m, r: a.update(extra=np.zeros(3)), "1 arrays .*'extra'"),
    "an array of another shape": (
        lambda a, m, r: a.update({"ema/conv_in/b": np.zeros(5, np.float32)}),
        r"ema/conv_in/b: wanted .*\(4,\)",
    ),
    "an array of another dtype": (lambda a, m, r: a.update({"adam_v/conv_in/b": np.zeros(4)}), "got float64"),
    "integers": (lambda a, m, r: [a.update({k: v.astype(int)}) for k, v in a.items() if k[0] != "s"], "int64"),
    "a schedule in float32": (lambda a, m, r: a.update({"schedule/beta": np.zeros(3, np.float32)}), "schedule/beta"),
    "a schedule out of range": (lambda a, m, r: poison(a, "schedule/beta", 0.5), "beta: wanted a table"),
    "NaN in the parameters": (lambda a, m, r: poison(a, "params/conv_in/b", math.nan), "params: 1 of 11621 .* NaN"),
    "infinity in a moment": (lambda a, m, r: poison(a, "adam_v/conv_in/b", math.inf), "adam_v: 1 of 11621"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_does_not_fit_itself_is_an_error_that_names_it_and_the_reason(name, saved):
    change, message = DAMAGE[name]
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(rewritten(saved, change))
    assert str(saved) in str(error.value)


class Bomb:
    """Removes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.remove, (str(self.victim),)


def test_what_is_not_a_checkpoint_is_an_error_that_names_it(saved, tmp_path):
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1]
    huge = [n.to_bytes(8, "little") + whole[8:] for n in (2**63, 2**40, len(whole), header - 7, 0)]
    bomb = pickle.dumps(Bomb(saved))
    for bad in [*(whole[:n] for n in cuts), *huge, whole + b"more", b"PK\x03\x04" * 30, bomb, b"\x00" * 4096]:
        path = tmp_path / "bad.safetensors"
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad\.safetensors: not a checkpoint that can be read: .+"):
            load_checkpoint(path)
    assert saved.read_bytes() == whole


CLAIMS: dict[str, dict[str, Any]] = {
    "wide": dict(base=4000, groups=2),
    "wider than memory": dict(base=10**9),
    "deep": dict(blocks=1000),
    "many levels": dict(mult=[1] * 1000),
    "immense": dict(mult=[10**12, 10**12]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_small_file_that_claims_a_large_network_costs_no_memory(claim, saved):
    """A quarter of a MB that says it is gigabytes must not be believed before its arrays are looked at."""
    rewritten(saved, lambda a, m, r: r["config"].update(CLAIMS[claim]))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=saved.name):
            load_checkpoint(saved)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_nothing_here_unpickles():
    """No source imports a library that runs what it reads, and none switches NumPy's own guard off."""
    for path in Path(ddpm_ref.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
            assert not bad & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path

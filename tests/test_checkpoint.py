"""Checkpoints: every bit comes back, nothing half-written stays, and the newest is the one that is found."""

import errno
import json
import math
import os
import resource
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy as plain
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from small_run import (
    CONFIG,
    SETTINGS,
    SOURCE,
    VARIANTS,
    VECTORS,
    after,
    checkpoint,
    differences,
    small_disk,
    trainer,
    variant,
)
from strategies import betas, schedule_of

from ddpm_ref import AdamSettings, Objective, UNet, UNetConfig
from ddpm_ref.files.checkpoint import (
    KEPT,
    Checkpoint,
    DataSource,
    checkpoint_path,
    keep_last,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from ddpm_ref.train import TrainSettings, TrainState, run_shapes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good checkpoint after two steps."""
    return save_checkpoint(checkpoint_path(tmp_path, 2), checkpoint(after(2, trainer())))


def assert_equal(found: Checkpoint, wanted: Checkpoint) -> None:
    for name in ("config", "schedule", "settings", "data", "made_by"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.schedule.name == wanted.schedule.name
    assert differences(found.state, wanted.state) == []
    assert {getattr(found.state, name).dtype for name in VECTORS} == {wanted.state.params.dtype}


# ---- there and back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_bit_and_every_setting_comes_back(name, dtype, tmp_path):
    written = checkpoint(after(1, variant(name, dtype=dtype)))
    assert_equal(load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", written)), written)


numbers = st.floats(0, 0.999)
objectives = st.builds(
    Objective,
    predicts=st.sampled_from(["eps", "x_0", "mu", "v"]),
    error=st.sampled_from(["squared", "l1", "huber"]),
    w_simple=st.floats(0.1, 10),
    w_elbo=numbers,
    learned_weights=st.booleans(),
)
adams = st.builds(
    AdamSettings, numbers, st.integers(0, 10**6), numbers, numbers, st.floats(1e-12, 1), st.none() | st.floats(0.1, 9)
)
trainings = st.builds(
    TrainSettings, st.integers(9, 512), st.none() | st.integers(1, 9), st.booleans(), st.integers(0, 2**64 - 1),
    objectives, adams,
)  # fmt: skip
sides = st.integers(1, 64)
sources = st.builds(
    DataSource, st.text(), st.tuples(sides, sides, sides), st.integers(2, 256), sides, sides, st.text(),
    st.none() | sides, st.none() | sides,
)  # fmt: skip
configs = st.builds(
    UNetConfig,
    channels=st.integers(1, 3),
    base=st.sampled_from([2, 4]),
    mult=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    blocks=st.just(1),
    attention_levels=st.sampled_from([(), (0,)]),
    groups=st.sampled_from([1, 2]),
    dropout=numbers,
    learned_variance=st.booleans(),
    image_size=sides,
)


@given(configs, betas, trainings, sources, st.text(), st.integers(0, 2**31), st.integers(0, 99))
@settings(max_examples=20)
def test_any_configuration_comes_back(tmp_path_factory, config, beta, training, source, text, step, seed):
    schedule = schedule_of(beta)
    size = UNet(config).size + (schedule.T + 1 if training.objective.learned_weights else 0)
    vectors = np.random.default_rng(seed).standard_normal((4, size)).astype(np.float32)
    written = Checkpoint(config, schedule, training, source, TrainState(step, *vectors), text)
    path = save_checkpoint(tmp_path_factory.mktemp("any") / "a.safetensors", written)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so few steps leave x_T far from N(0, I)
        assert_equal(load_checkpoint(path), written)


def test_integers_and_floats_of_numpy_are_settings_like_any_others(tmp_path):
    training = replace(SETTINGS, batch=np.int64(4), adam=AdamSettings(lr=np.float32(0.5), warmup=np.int32(0)))
    written = replace(checkpoint(trainer()), settings=training)
    assert load_checkpoint(save_checkpoint(tmp_path / "a.safetensors", written)).settings == training


@pytest.mark.parametrize("name", ["as in the paper", "learned weights", "dropout"])
def test_a_run_goes_on_from_a_loaded_checkpoint_bit_for_bit(name, tmp_path):
    straight = after(3, variant(name))
    path = save_checkpoint(tmp_path / "a.safetensors", checkpoint(after(2, variant(name))))
    assert differences(after(1, variant(name, state=load_checkpoint(path).state)).state, straight.state) == []


def test_the_file_is_plain_safetensors_under_the_released_codes_names(saved):
    arrays, loaded = plain.load_file(saved), load_checkpoint(saved)
    names = {f"{vector}/{name}" for vector in VECTORS for name in loaded.net.shapes}
    assert set(arrays) == names | {"schedule/beta"}
    assert {"params/temb/dense0/W", "ema/down_0/block_0/conv1/W", "adam_v/mid/attn_1/q/b"} <= names
    np.testing.assert_array_equal(arrays["schedule/beta"], loaded.schedule.beta)
    for weights, vector in (("raw", "params"), ("ema", "ema")):
        for name, array in loaded.params(weights).views.items():
            np.testing.assert_array_equal(array, arrays[f"{vector}/{name}"])
    with safe_open(saved, framework="numpy") as file:
        assert file.metadata()["format_version"] == "1"
        assert json.loads(file.metadata()["run"])["step"] == 2


def test_the_table_of_learned_weights_has_a_name_of_its_own(tmp_path):
    one = after(1, variant("learned weights"))
    path = save_checkpoint(tmp_path / "a.safetensors", checkpoint(one))
    np.testing.assert_array_equal(plain.load_file(path)["params/objective/log_variance"], one.state.params[-21:])
    assert load_checkpoint(path).params("raw").vector.shape == (one.net.size,)


# ---- writing that fails


@pytest.mark.parametrize("vector", VECTORS)
def test_a_state_that_is_not_finite_is_not_saved(vector, saved):
    before, one = saved.read_bytes(), after(1, trainer())
    getattr(one.state, vector)[5] = math.nan
    with pytest.raises(ValueError, match=f"{vector}: 1 of 11621 values are NaN or infinite, first at"):
        save_checkpoint(saved, checkpoint(one))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(_arrays: object, path: Path, **_: object) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(_arrays: object, path: Path, **_: object) -> None:
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


def test_the_file_is_flushed_before_it_gets_its_name_and_its_folder_after(saved, monkeypatch):
    order: list[str] = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("folder" if os.path.isdir(fd) else "file") or flush(fd))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("name") or rename(*names))
    save_checkpoint(saved, checkpoint(trainer()))
    assert order == ["file", "name", "folder"]


FAILURES = {
    "no file": ("safetensors.numpy.save_file", full, OSError),
    "half a file": ("safetensors.numpy.save_file", half_written, OSError),
    "Ctrl-C": ("safetensors.numpy.save_file", interrupted, KeyboardInterrupt),
    "no flush": ("os.fsync", full, OSError),
    "no rename": ("os.replace", full, OSError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(name, saved, monkeypatch):
    function, failure, error = FAILURES[name]
    before, newer = saved.read_bytes(), checkpoint(after(3, trainer()))
    monkeypatch.setattr(function, failure)
    with pytest.raises(error) as caught:
        save_checkpoint(saved, newer)
    monkeypatch.undo()
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    if error is OSError:
        assert "No space left on device" in str(caught.value) and saved.name in str(caught.value)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB, on which two checkpoints fit."""
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


def test_a_disk_that_is_really_full_keeps_what_it_had(disk):
    one = trainer()
    first, second = (save_checkpoint(checkpoint_path(disk, k), checkpoint(after(1, one))) for k in (1, 2))
    before = [first.read_bytes(), second.read_bytes()]
    with pytest.raises(OSError, match=r"00000003\.safetensors: could not be written: .*No space left"):
        save_checkpoint(checkpoint_path(disk, 3), checkpoint(after(1, one)))
    assert [first.read_bytes(), second.read_bytes()] == before
    assert sorted(os.listdir(disk)) == [first.name, second.name]
    first.unlink()
    third = save_checkpoint(checkpoint_path(disk, 3), checkpoint(one))
    assert differences(load_checkpoint(third).state, one.state) == []


def test_a_file_size_limit_reached_half_way_keeps_what_was_there(saved):
    """The refusal of a real disk that needs no root: the kernel cuts the write off at 100 kB."""
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    one = checkpoint(after(3, trainer()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{saved.name}: could not be written"):
            save_checkpoint(saved, one)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


# ---- a folder of them


def test_a_checkpoint_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.safetensors: no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="no checkpoint in this folder"):
        load_checkpoint(tmp_path)


def test_the_latest_is_the_one_of_the_highest_step(tmp_path):
    """Not the last by name (nine digits sort before eight), nor the one written last."""
    for step in (100_000_000, 99_999_999, 5):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    for name in ("checkpoint-best.safetensors", "checkpoint-7.txt", ".checkpoint-00000009.safetensors.1.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert [int(p.stem[11:]) for p in list_checkpoints(tmp_path)] == [5, 99_999_999, 100_000_000]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100000000.safetensors"


def test_the_last_two_are_kept_and_nothing_else_is_touched(tmp_path):
    (tmp_path / "checkpoint-best.safetensors").write_bytes(b"")
    for step in (9, 10, 8, 100):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    keep_last(tmp_path)
    kept = ["checkpoint-00000010.safetensors", "checkpoint-00000100.safetensors", "checkpoint-best.safetensors"]
    assert KEPT == 2 and sorted(os.listdir(tmp_path)) == kept


def test_a_folder_stands_for_its_newest_checkpoint(saved):
    newer = checkpoint(after(3, trainer()), replace(SOURCE, levels=3))
    save_checkpoint(checkpoint_path(saved.parent, 3), newer)
    assert_equal(load_checkpoint(saved.parent), newer)
    assert load_checkpoint(saved).state.step == 2


def test_shapes_of_a_run_are_the_networks_and_the_learned_table_behind_them():
    shapes = run_shapes(UNet(CONFIG), schedule_of([0.1, 0.2]), Objective(learned_weights=True))
    assert list(shapes)[-1] == "objective/log_variance" and shapes["objective/log_variance"] == (3,)
    assert list(shapes)[:-1] == list(run_shapes(UNet(CONFIG), schedule_of([0.1]), Objective()))

"""Mistakes at the command line: one line that names the cause, before any work and without a trace on the disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import TRAIN, Run, call, environment, one_step, pictures

from ddpm_ref import commands


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One step of training."""
    return one_step(tmp_path_factory.mktemp("ready"))


def test_a_schedule_cut_short_without_rescaling_is_noted_with_its_number(ready):
    arguments = [*TRAIN, "--data", ready.data, "--steps", 1, "--schedule", "linear", "--T"]
    done = call(*arguments, 100, "--out", "cut")
    assert done.status == 0 and done.err.startswith("ddpm-ref: note: schedule 'linear' with T = 100: L_T is 0.326 bits")
    assert "rescale beta" in done.err and done.err.count("\n") == 1
    assert call(*arguments, 100, "--beta-1", 0.001, "--beta-T", 0.2, "--out", "rescaled").err == ""


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "no steps": (("--steps", 0), "--steps: wanted an integer >= 1, got 0"),
    "negative steps": (("--steps", -3), "--steps: wanted an integer >= 1, got -3"),
    "an empty batch": (("--batch", 0), "--batch: wanted an integer >= 1, got 0"),
    "no threads": (("--threads", 0), "--threads: wanted an integer >= 1, got 0"),
    "no log": (("--log-every", 0), "--log-every: wanted"),
    "no checkpoints": (("--save-every", 0), "--save-every: wanted"),
    "no diffusion": (("--T", 0), "--T: wanted"),
    "a negative seed": (("--seed", -1), "--seed: wanted an integer in 0..18446744073709551615, got -1"),
    "a seed of 65 bits": (("--seed", 2**64), "--seed: wanted"),
    "a backend": (("--backend", "abacus"), "or 'package.module:Class', got 'abacus'"),
    "a class that is none": (("--backend", "math:pi"), "backend: 'math:pi' is not a subclass"),
    "groups": (("--groups", 3), "groups: wanted a divisor of every width"),
    "micro-batch": (("--micro-batch", 5), "micro_batch: wanted an integer in 1..4, got 5"),
    "a learning rate": (("--lr", "nan"), "lr: wanted a finite number"),
    "eps of jsd": (("--schedule", "jsd"), "predict 'x_0' or 'v'"),
    "ends of cosine": (("--beta-1", 0.1), "beta_1: the schedule 'cosine' has no such end"),
    "no training data": (("--held-out", 24), "held_out: wanted an integer in 1..23, got 24"),
    "missing data": (("--data", "nowhere.npz"), "nowhere.npz: does not exist"),
    "a folder that cannot be": (("--out", "/proc/nowhere"), "out: cannot write to /proc/nowhere: "),
    "learned variances alone": (("--var", "learned"), '"learned" wants w_elbo > 0'),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_folder(name, ready):
    arguments, message = MISTAKES[name]
    done = call(*TRAIN, "--data", ready.data, "--steps", 1, "--out", "new", *arguments)
    assert message in done.error and done.out == "" and list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("--preset", "imagenet"), ("--schedule", "steep"), ("--seed", "one"), ("--oops",)]
)
def test_an_argument_that_is_no_choice_is_an_error_with_the_usage(arguments):
    done = call("train", *arguments)
    assert done.status == 2 and done.err.startswith("usage: ddpm-ref") and arguments[-1] in done.err.splitlines()[-1]


@pytest.mark.parametrize("command", ["sample", "evaluate", "info"])
def test_a_checkpoint_that_is_missing_or_bad_is_an_error_that_names_it(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").write_bytes(b"no checkpoint")
    assert call(command, "nowhere").error == "nowhere: no such checkpoint"
    assert call(command, "empty").error == "empty: no checkpoint in this folder"
    assert call(command, "bad").error.startswith("bad: not a checkpoint that can be read: ")
    assert call("train", "--resume", "nowhere").error.startswith("nowhere: no checkpoint")
    assert "no checkpoint" in call("train", "--resume", "", "--steps", 1).error, "an unset variable of a script"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "empty"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", 0), "--count: wanted an integer >= 1, got 0"),
        (("--draw-batch", -1), "--draw-batch: wanted an integer >= 1, got -1"),
        (("--var", "learned"), "var: this checkpoint's network was trained without log-variance channels"),
        (("--temperature", "nan"), "temperature: wanted a finite number"),
    ],
)
def test_samples_that_cannot_be_drawn_are_an_error_before_any_work(ready, arguments, message):
    done = call("sample", ready.folder, "--out", "new", *arguments)
    assert message in done.error and not Path("new").exists()


def test_evaluate_wants_labels_and_says_so(tmp_path):
    np.save("bare.npy", pictures(24, 8).pixels)
    assert call(*TRAIN, "--data", "bare.npy", "--steps", 1, "--out", "run").status == 0
    assert call("evaluate", "run").error.startswith(f"{tmp_path}/bare.npy: this run has no labels")


def test_training_that_diverges_is_one_line_and_status_1(ready):
    done = call(*TRAIN, "--data", ready.data, "--steps", 9, "--lr", 1e30, "--warmup", 0, "--out", "new")
    assert done.status == 1 and done.err.count("\n") == 1
    assert done.err.startswith("ddpm-ref: training stopped: step 2: loss nan") and "lower --lr" in done.err


MISSING = ("tqdm", "safetensors", "matplotlib", "PIL")
PAIRS = [("sample", "PIL"), *((command, name) for command in ("train", "sample") for name in MISSING if name != "PIL")]


@pytest.mark.parametrize(("command", "module"), PAIRS)
def test_a_missing_extra_is_named_before_any_work(command, module, ready, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    arguments = {"train": (*TRAIN, "--data", ready.data, "--steps", 1), "sample": ("sample", ready.folder)}
    error = call(*arguments[command], "--out", "new").error
    assert error.endswith(f' needs {module}: pip install "ddpm_ref[demo]"')
    assert not Path("new").exists()


ENDS = [(KeyboardInterrupt(), 130, "interrupted"), (MemoryError("4 TiB"), 1, "out of memory (4 TiB)")]


@pytest.mark.parametrize(("raised", "status", "text"), ENDS)
def test_an_interrupt_and_a_lack_of_memory_are_one_line(raised, status, text, monkeypatch):
    def stop(_: Any) -> int:
        raise raised

    monkeypatch.setattr(commands, "info", stop)
    done = call("info", "anything")
    assert done.status == status and done.err.startswith(f"ddpm-ref: {text}") and done.err.count("\n") == 1


def test_help_is_printed_where_the_terminal_has_no_greek(ready):
    for command in ("demo", "train", "sample", "evaluate"):
        environ = environment() | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            [sys.executable, "-m", "ddpm_ref", command, "--help"], env=environ, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"") and b"--seed" in done.stdout


def test_images_of_two_channels_are_drawn_by_their_first(tmp_path):
    np.save("two.npy", pictures(24, 8, channels=2).pixels)
    assert call(*TRAIN, "--data", "two.npy", "--steps", 1, "--out", "run").status == 0
    done = call("sample", "run", "--count", 2)
    assert (done.status, done.err) == (0, "") and done.out.count("\nwrote ") == 4


def test_a_run_without_held_out_images_trains_and_draws_but_is_not_judged(ready):
    assert call(*TRAIN, "--data", ready.data, "--held-out", 0, "--steps", 1, "--out", "all").status == 0
    assert "this run has no held-out images" in call("evaluate", "all", "--out", "judged").error
    assert not Path("judged").exists()


def test_data_that_cannot_be_judged_are_found_before_anything_is_drawn(tmp_path, monkeypatch):
    np.savez("few.npz", images=pictures(24, 8).pixels, labels=np.arange(24))
    assert call(*TRAIN, "--data", "few.npz", "--steps", 1, "--out", "run").status == 0
    monkeypatch.setattr(commands, "draw", None)
    assert "labels: wanted 2 classes or more" in call("evaluate", "run", "--out", "judged").error
    assert not Path("judged").exists()


def test_a_second_drawing_leaves_the_first_alone(ready):
    for folder in ("samples-4", "samples-4-2"):
        assert call("sample", ready.folder, "--count", 1, "--seed", 4).status == 0
        assert json.loads((ready.folder / folder / "sampling.json").read_text())["seed"] == 4


def test_data_behind_a_link_are_found_again_by_the_name_that_was_given(tmp_path, ready):
    rows = np.random.default_rng(0).integers(0, 10, (20, 3073)).astype(np.uint8)
    (tmp_path / "blob").write_bytes(rows.tobytes())
    (tmp_path / "data.bin").symlink_to("blob")
    assert call(*TRAIN, "--data", "data.bin", "--steps", 1, "--out", "run").status == 0
    assert call("train", "--resume", "run", "--steps", 2).status == 0


def test_a_resumed_run_keeps_its_first_command_and_how_often_it_writes(ready):
    assert call("train", "--resume", ready.folder, "--steps", 2, "--save-every", 7).status == 0
    facts = json.loads((ready.folder / "run.json").read_text())
    assert (facts["steps"], facts["save_every"]) == (2, 7) and "--base 4" in facts["command"]
    assert call("train", "--resume", ready.folder, "--steps", 3).status == 0
    assert json.loads((ready.folder / "run.json").read_text())["save_every"] == 7
    assert json.loads((ready.folder / "run-from-00000002.json").read_text())["resumed_at"] == 2

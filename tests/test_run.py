"""A run in a folder: its log, and that it can be stopped, killed or starved at any moment and go on bit for bit."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import (
    SETTINGS,
    SOURCE,
    after,
    checkpoint,
    differences,
    environment,
    trainer,
    variant,
)

from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from ddpm_ref.files.run import COLUMNS, Log, RunSettings, loss_curve, open_folder, read_log, run_training, stop_signals
from ddpm_ref.train import Diverged, StepReport, Trainer

# ---- the log


def report(step: int, loss: float, quarter: int | None = None) -> StepReport:
    """A step with four images, all in one quarter of t or one in each."""
    counts = np.ones(4) if quarter is None else 4.0 * (np.arange(4) == quarter)
    return StepReport(step, loss, 0.25, np.stack([loss * counts, counts]))


def test_a_row_is_the_mean_of_the_steps_since_the_last(tmp_path):
    log = Log(tmp_path / "log.csv")
    for step, loss in enumerate([1.0, 2.0, 6.0, 5.0], start=1):
        log.add(report(step, loss))
        if step in (3, 4):
            log.write(report(step, loss), 0.125)
    log.write(report(4, 5.0), 0.125)  # nothing since the last row: no row
    first, second = read_log(tmp_path / "log.csv")
    assert [first[c] for c in COLUMNS[:-1]] == [3, 3, 3, 3, 3, 3, 0.25, 0.125]
    assert [second[c] for c in COLUMNS[:-1]] == [4, 5, 5, 5, 5, 5, 0.25, 0.125]
    assert 0 <= first["seconds"] <= second["seconds"]


def test_quarters_are_means_over_images_and_nan_where_there_were_none(tmp_path):
    log = Log(tmp_path / "log.csv")
    for one in (report(1, 1.0, 0), report(2, 4.0, 0), report(3, 2.0, 2)):
        log.add(one)
    log.write(one, 0.1)
    (row,) = read_log(tmp_path / "log.csv")
    assert (row["loss"], row["loss_q1"], row["loss_q3"]) == (pytest.approx(7 / 3, rel=1e-5), 2.5, 2.0)
    assert math.isnan(row["loss_q2"]) and math.isnan(row["loss_q4"])
    assert [len(part) for part in loss_curve(tmp_path)] == [0, 0, 0], "a curve has no gaps"


def write_log(path: Path, steps: range) -> None:
    log = Log(path)
    for step in steps:
        log.add(report(step, 1 / step))
        log.write(report(step, 1 / step), 0.1)


def test_the_loss_curve_is_the_log(tmp_path):
    write_log(tmp_path / "log.csv", range(1, 4))
    steps, loss, quarters = loss_curve(tmp_path)
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_allclose(loss, [1, 1 / 2, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(quarters, np.repeat(loss[:, None], 4, axis=1))


def test_a_resumed_log_drops_the_rows_that_will_be_written_again(tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, range(1, 6))
    kept = path.read_text().splitlines()[:4]
    log = Log(path, step=3)
    assert path.read_text().splitlines() == kept
    log.add(report(4, 9.0))
    log.write(report(4, 9.0), 0.1)
    assert [row["loss"] for row in read_log(path)][2:] == [pytest.approx(1 / 3, rel=1e-5), 9.0]
    assert read_log(path)[3]["seconds"] >= read_log(path)[2]["seconds"]


@pytest.mark.parametrize("rubbish", [b"", b"\x00\x00\x00", b"\xff\xfe,\n", b"3,abc,,\n"])
def test_a_line_cut_short_by_a_kill_is_left_out(rubbish, tmp_path):
    path = tmp_path / "log.csv"
    write_log(path, range(1, 4))
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\n")) - whole.rstrip(b"\n").rfind(b"\n")
    for cut in range(1, last + 1) if not rubbish else [last]:
        path.write_bytes(whole[: len(whole) - cut] + rubbish)
        Log(path, step=3)
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3]), f"{cut} bytes cut off"


# ---- the loop


def ignore(_: StepReport) -> None:
    """Progress that nobody watches."""


def train(one: Trainer, folder: Path, steps: int, progress: Callable[[StepReport], None] = ignore) -> str | None:
    """To step `steps` in a folder, a row every second step and a checkpoint every third."""
    folder.mkdir(exist_ok=True)
    return run_training(one, SOURCE, folder, RunSettings(steps, 3, 2), progress=progress)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_and_checkpoints_come_when_asked_and_at_the_end(tmp_path):
    one = trainer()
    seen: list[StepReport] = []
    assert train(one, tmp_path, 7, seen.append) is None
    assert [r.step for r in seen] == list(range(1, 8)) and one.state.step == 7
    assert names(tmp_path) == ["checkpoint-00000006.safetensors", "checkpoint-00000007.safetensors", "log.csv"]
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    means = [np.mean([r.loss for r in seen if a < r.step <= b]) for a, b in ((0, 2), (2, 4), (4, 6), (6, 7))]
    np.testing.assert_allclose([row["loss"] for row in rows], means, rtol=1e-5)
    norms = [seen[step - 1].gradient_norm for step in (2, 4, 6, 7)]
    np.testing.assert_allclose([row["gradient_norm"] for row in rows], norms, rtol=1e-5)
    last = load_checkpoint(tmp_path)
    assert differences(last.state, one.state) == [] and last.data == SOURCE and last.made_by.startswith("ddpm-ref")


def test_the_learning_rate_of_the_log_is_that_of_its_step(tmp_path):
    one = trainer(settings=replace(SETTINGS, adam=replace(SETTINGS.adam, lr=1.0, warmup=8)))
    train(one, tmp_path, 3)
    assert [row["learning_rate"] for row in read_log(tmp_path / "log.csv")] == [2 / 8, 3 / 8]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["as in the paper", "micro-batches"])
def test_a_signal_lets_the_step_finish_saves_and_the_run_goes_on_bit_for_bit(stop, name, tmp_path):
    def interrupt(r: StepReport) -> None:
        if r.step == 4:
            os.kill(os.getpid(), stop)

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert train(variant(name), tmp_path / "run", 7, interrupt) == stop.name
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    state = load_checkpoint(tmp_path / "run").state
    assert state.step == 4 and [row["step"] for row in read_log(tmp_path / "run/log.csv")] == [2, 4]
    assert train(variant(name, state=state), tmp_path / "run", 7) is None
    whole = variant(name)
    train(whole, tmp_path / "whole", 7)
    assert differences(load_checkpoint(tmp_path / "run").state, whole.state) == []
    assert names(tmp_path / "run") == names(tmp_path / "whole")


def test_a_second_signal_acts_as_usual():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    with pytest.raises(KeyboardInterrupt), stop_signals() as stopped:
        assert stopped() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped() == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    program = (
        "import os, signal\nfrom ddpm_ref.files.run import stop_signals\n"
        "with stop_signals() as stopped:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print(stopped(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM\n")


def test_a_run_that_diverges_keeps_its_last_checkpoint_and_logs_no_nan(tmp_path):
    one = trainer()

    def poison(r: StepReport) -> None:
        if r.step == 5:
            one.state.params[0] = math.nan

    with np.errstate(all="ignore"), pytest.raises(Diverged, match="step 6"):
        train(one, tmp_path, 9, poison)
    assert names(tmp_path) == ["checkpoint-00000000.safetensors", "checkpoint-00000003.safetensors", "log.csv"]
    assert differences(load_checkpoint(tmp_path).state, after(3, trainer()).state) == []
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [2, 4]


@pytest.mark.parametrize("wrong", ["steps", "save_every", "log_every"])
def test_counts_of_a_run_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{wrong}: wanted an integer >= 1, got 0"):
        RunSettings(**{"steps": 1, wrong: 0})


# ---- the folder


def test_a_folder_that_cannot_be_written_to_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere"), Path("/proc")):
        with pytest.raises(ValueError, match=f"out: cannot write to {folder}: "):
            open_folder(folder, resume=folder.name == "proc")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_an_error_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="out: cannot write to"):
        open_folder(tmp_path, resume=True)


def test_a_fresh_run_does_not_mix_with_another(tmp_path):
    assert open_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert open_folder(tmp_path / "a" / "b").is_dir(), "an empty folder is as good as none"
    (tmp_path / "a" / "b" / "log.csv").write_text("")
    with pytest.raises(ValueError, match=r"is not empty; it has no checkpoint.* choose another folder"):
        open_folder(tmp_path / "a" / "b")
    save_checkpoint(tmp_path / "a" / "b" / "checkpoint-00000000.safetensors", checkpoint(trainer()))
    with pytest.raises(ValueError, match=r"is not empty; go on with it by --resume .*, or choose another folder"):
        open_folder(tmp_path / "a" / "b")
    assert len(names(open_folder(tmp_path / "a" / "b", resume=True))) == 2


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    others = [".hidden", ".notes.tmp", "notes.tmp", "checkpoint-00000003.safetensors"]
    for name in [*others, ".checkpoint-00000006.safetensors.4711.tmp", ".log.csv.12.tmp"]:
        (tmp_path / name).write_text("")
    assert names(open_folder(tmp_path, resume=True)) == sorted(others)


def test_the_facts_of_a_run_say_what_made_it():
    one = trainer()
    facts = runs.describe(**runs.run_facts(one, SOURCE, RunSettings(7)))
    facts = json.loads(json.dumps(facts))
    assert {"ddpm_ref", "python", "numpy", "platform", "started", "threads", "network", "training", "schedule"} <= set(
        facts
    )
    assert (facts["steps"], facts["seed"], facts["backend"]["name"]) == (7, 5, "numpy") and facts["command"].startswith(
        "ddpm-ref"
    )
    assert (facts["parameters"], facts["data"]["fingerprint"]) == (11_621, SOURCE.fingerprint)


def test_a_checkpoint_saved_by_hand_is_one_to_go_on_from(tmp_path):
    save_checkpoint(tmp_path / "mine.safetensors", checkpoint(after(2, trainer())))
    again = trainer(state=load_checkpoint(tmp_path / "mine.safetensors").state)
    assert differences(after(2, again).state, after(4, trainer()).state) == []


def test_a_run_in_a_thread_trains_without_handling_signals(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train(trainer(), tmp_path, 2)))
    thread.start()
    thread.join(30)
    assert ended == [None] and load_checkpoint(tmp_path).state.step == 2


def test_a_run_killed_before_its_first_step_can_be_gone_on_with(tmp_path):
    one = trainer()

    def killed(_: StepReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path, 9, killed)
    assert load_checkpoint(tmp_path).state.step == 0


def test_a_slow_run_saves_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_SECONDS", -1.0)
    seen: list[int] = []
    train(trainer(), tmp_path, 3, lambda report: seen.append(len(list_checkpoints(tmp_path))))
    assert seen == [1, 2, 2], "saved after every step, of which two are kept"

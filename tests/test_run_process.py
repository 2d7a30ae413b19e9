"""A training run as a process of its own: signals, kill -9, a full disk."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import (
    TRAIN,
    differences,
    run,
    save_pictures,
    small_disk,
    start,
)

from ddpm_ref.files.checkpoint import list_checkpoints, load_checkpoint
from ddpm_ref.train import TrainState


def state_in(folder: Path) -> TrainState:
    """The state of a folder's newest checkpoint; no half-written file may lie beside it."""
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []
    return load_checkpoint(folder).state


def rows_in(folder: Path) -> list[str]:
    """The lines of the log without the last column, the seconds."""
    return [line.rpartition(",")[0] for line in (folder / "log.csv").read_text().splitlines()]


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Until the condition holds or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_on_a_signal_with_a_checkpoint_and_says_how_to_go_on(stop, tmp_path):
    common = (*TRAIN, "--data", save_pictures(tmp_path / "data.npz"), "--log-every", 1)
    process = start([*common, "--steps", 100_000, "--out", "stopped"], tmp_path)
    log = tmp_path / "stopped" / "log.csv"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, process)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"stopped by {stop.name} and saved; go on with: ddpm-ref train --resume stopped"
    steps = state_in(tmp_path / "stopped").step + 3
    assert len(list_checkpoints(tmp_path / "stopped")) == 2 and steps >= 6

    assert run(["train", "--resume", "stopped", "--steps", steps, "--log-every", 1], tmp_path).returncode == 0
    assert run([*common, "--steps", steps, "--out", "whole"], tmp_path).returncode == 0
    assert differences(state_in(tmp_path / "stopped"), state_in(tmp_path / "whole")) == []
    assert rows_in(tmp_path / "stopped") == rows_in(tmp_path / "whole")


def test_a_run_killed_again_and_again_ends_where_an_unbroken_one_does(tmp_path):
    """kill -9 at four moments after a new checkpoint, drawn from a fixed seed; each time --resume."""
    steps, often = 60, ("--save-every", 1, "--log-every", 1)
    common = (*TRAIN, "--data", save_pictures(tmp_path / "data.npz"), "--steps", steps, *often)
    whole = start([*common, "--out", "whole"], tmp_path)
    moments, killed = random.Random(0), 0
    arguments = [*common, "--out", "killed"]
    for _ in range(4):
        before = list_checkpoints(tmp_path / "killed")
        process = start(arguments, tmp_path)
        wait_for(lambda before=before: list_checkpoints(tmp_path / "killed") not in ([], before), process)
        time.sleep(moments.uniform(0, 0.12))
        process.kill()
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
        arguments = ["train", "--resume", tmp_path / "killed", *often]
    assert killed >= 2, "the run ended before it could be killed; give it more steps"
    (tmp_path / "killed" / f".checkpoint-{steps:08d}.safetensors.1.tmp").write_bytes(b"of a kill in mid-write")
    done = run(arguments, Path("/"))
    assert (done.returncode, done.stderr) == (0, ""), "and from any folder"
    assert whole.communicate(timeout=60) and whole.returncode == 0
    assert differences(state_in(tmp_path / "killed"), state_in(tmp_path / "whole")) == []
    assert rows_in(tmp_path / "killed") == rows_in(tmp_path / "whole")
    assert [load_checkpoint(p).state.step for p in list_checkpoints(tmp_path / "killed")] == [steps - 1, steps]


def test_a_full_disk_stops_the_run_with_an_error_and_two_good_checkpoints(tmp_path):
    common = (*TRAIN, "--data", save_pictures(tmp_path / "data.npz"), "--steps", 5, "--save-every", 1, "--log-every", 1)
    with small_disk(tmp_path / "disk") as disk:
        done = run([*common, "--out", disk / "run"], tmp_path)
        assert done.returncode == 2 and "No space left on device" in done.stderr
        assert done.stderr.startswith(f"ddpm-ref: {disk}/run/checkpoint-00000002") and done.stderr.count("\n") == 1
        assert [load_checkpoint(path).state.step for path in list_checkpoints(disk / "run")] == [0, 1]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True, timeout=20)
        assert run(["train", "--resume", disk / "run", "--save-every", 1, "--log-every", 1], tmp_path).returncode == 0
        assert run([*common, "--out", "whole"], tmp_path).returncode == 0
        assert differences(state_in(disk / "run"), state_in(tmp_path / "whole")) == []
        assert rows_in(disk / "run") == rows_in(tmp_path / "whole")

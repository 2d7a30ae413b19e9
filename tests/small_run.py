"""A run small enough to train in every test: 11,621 parameters, pictures of 4x4, twenty steps of noise."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from strategies import short

import ddpm_ref
from ddpm_ref import AdamSettings, Objective, Schedule, UNet, UNetConfig
from ddpm_ref.cli import main
from ddpm_ref.files.checkpoint import Checkpoint, DataSource
from ddpm_ref.files.data import ImageData
from ddpm_ref.train import Trainer, TrainSettings, TrainState

CONFIG = UNetConfig(1, 4, (1, 2), 1, (1,), groups=2, dropout=0.0, image_size=4)
SCHEDULE = short(20)
ADAM = AdamSettings(lr=2e-3, warmup=0, ema=0.9)
SETTINGS = TrainSettings(batch=4, seed=5, adam=ADAM)
VECTORS = ("params", "ema", "adam_m", "adam_v")

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as in the paper": ({}, {}),
    "dropout": (dict(dropout=0.4), {}),
    "flips": ({}, dict(flips=True)),
    "micro-batches": (dict(dropout=0.4), dict(flips=True, micro_batch=3)),
    "learned weights": ({}, dict(objective=Objective(learned_weights=True))),
    "learned variance": (
        dict(learned_variance=True),
        dict(objective=Objective(var="learned", w_simple=1.0, w_elbo=0.001)),
    ),
    "the bound alone": (dict(learned_variance=True), dict(objective=Objective("x_0", "learned", w_simple=0, w_elbo=1))),
}
"""Ways to train, by name: changes of CONFIG, changes of SETTINGS."""


def pictures(count: int = 24, size: int = 4, channels: int = 1, levels: int = 17, seed: int = 0) -> ImageData:
    """Random grey levels, with labels 0, 1, 2."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, levels, (count, size, size, channels)).astype(np.uint8)
    return ImageData(pixels, levels, "noise", np.arange(count) % 3)


def trainer(
    config: UNetConfig = CONFIG,
    settings: TrainSettings = SETTINGS,
    data: ImageData | None = None,
    schedule: Schedule = SCHEDULE,
    **more: Any,
) -> Trainer:
    """A trainer of the small network on the small pictures."""
    return Trainer(UNet(config), schedule, data or pictures(channels=config.channels), settings, **more)


def variant(name: str, **more: Any) -> Trainer:
    """A trainer of one of the VARIANTS."""
    config, settings = VARIANTS[name]
    return trainer(replace(CONFIG, **config), replace(SETTINGS, **settings), **more)


def after(steps: int, one: Trainer) -> Trainer:
    """The trainer after some more steps."""
    for _ in range(steps):
        one.step()
    return one


def copied(state: TrainState) -> TrainState:
    """The state as it is now: a trainer changes its own in place."""
    return TrainState(state.step, *(getattr(state, name).copy() for name in VECTORS))


def differences(one: TrainState, other: TrainState) -> list[str]:
    """Which parts of two states differ in any bit."""
    parts = [name for name in VECTORS if getattr(one, name).tobytes() != getattr(other, name).tobytes()]
    return ["step", *parts] if one.step != other.step else parts


def scattered(one: Trainer, size: float = 0.3, seed: int = 0) -> Trainer:
    """The trainer with parameters away from their start, where most of the network gives nothing yet."""
    rng = np.random.default_rng(seed)
    one.state.params += (size * rng.standard_normal(one.state.params.shape)).astype(one.dtype)
    return one


SOURCE = DataSource("digits", (4, 4, 1), 17, 3, 3, "0" * 64)


def checkpoint(one: Trainer, source: DataSource = SOURCE, made_by: str = "a test") -> Checkpoint:
    """A checkpoint of what the trainer holds."""
    return Checkpoint(one.net.config, one.schedule, one.settings, source, one.state, made_by)


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int = 600) -> Iterator[Path]:
    """A disk of its own mounted on a new folder; skips the test, saying why, where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"no small disk, which only `mount` can give: {error}")
    if done.returncode:
        pytest.skip(f"no small disk, which only root may mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


# --- the command line in a process of its own ------------------------------------------------------------------------

ROOT = str(Path(ddpm_ref.__file__).parents[1])
TRAIN = (
    "train", "--base", "4", "--mult", "1", "2", "--groups", "2", "--batch", "4", "--schedule", "cosine", "--T", "10",
)  # fmt: skip
"""A training command that lacks only --data, --steps and --out."""


def environment() -> dict[str, str]:
    """The environment in which `python -m ddpm_ref` finds this package, with a wide terminal."""
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "MPLBACKEND": "Agg"}


def start(arguments: Iterable[object], folder: Path) -> "subprocess.Popen[str]":
    """`python -m ddpm_ref` with these arguments, begun in a folder."""
    command = [sys.executable, "-m", "ddpm_ref", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True)


def run(arguments: Iterable[object], folder: Path) -> "subprocess.CompletedProcess[str]":
    """The same, run to its end."""
    process = start(arguments, folder)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def save_pictures(path: Path, data: ImageData | None = None) -> Path:
    """A .npz of 8x8 pictures and their labels to train on; or of these."""
    data = data or pictures(24, 8, levels=256)
    np.savez(path, images=data.pixels, labels=data.labels)
    return path


# --- and in this one


class Done(NamedTuple):
    """How a command ended."""

    status: object
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error of a command that refused."""
        assert self.status == 2 and self.err.count("\n") == 1 and self.err.startswith("ddpm-ref: "), self
        return self.err.removeprefix("ddpm-ref: ").rstrip("\n")


def call(*arguments: object) -> Done:
    """A command in this process, as the installed script would run it."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["ddpm-ref", *map(str, arguments)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("always")
            try:
                status: object = main()
            except SystemExit as error:
                status = error.code
    finally:
        sys.argv = before
    return Done(status, out.getvalue(), err.getvalue())


class Run(NamedTuple):
    """A finished run: its folder, its data, and how the command ended."""

    folder: Path
    data: Path
    done: Done


def one_step(folder: Path) -> Run:
    """One step of training by the command line, in a folder whose name has a space in it."""
    data, out = save_pictures(folder / "data.npz"), folder / "a run"
    return Run(out, data, call(*TRAIN, "--data", data, "--steps", 1, "--out", out))

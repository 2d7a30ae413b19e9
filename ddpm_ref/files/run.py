"""A training run in a folder: what made it, its log, its checkpoints, and how it stops.

run.json      command, versions, seed, configuration        log.csv      one row every `log_every` steps
checkpoint-NNNNNNNN.safetensors                             the last two
"""

import csv
import json
import math
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ddpm_ref
from ddpm_ref.checks import Array, check_int
from ddpm_ref.files.atomic import leftovers, sweep, write_text
from ddpm_ref.files.checkpoint import (
    Checkpoint,
    checkpoint_path,
    keep_last,
    list_checkpoints,
    save_checkpoint,
)
from ddpm_ref.files.source import DataSource
from ddpm_ref.train import StepReport, Trainer

SAVE_SECONDS = 600  # at most so much work is lost, however slow a step
COLUMNS = ("step", "loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4", "gradient_norm", "learning_rate", "seconds")


def command_line() -> str:
    """The command being run, as it can be pasted into a shell."""
    return shlex.join(["ddpm-ref", *sys.argv[1:]])


def describe(**facts: Any) -> dict[str, Any]:
    """How a run was made: the command, what ran it (bits repeat on equal ones only), and any facts of the caller's."""
    threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    return {
        "command": command_line(),
        "ddpm_ref": ddpm_ref.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": threads,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **facts,
    }


def open_folder(folder: Path, *, resume: bool = False) -> Path:
    """Make a run's folder and prove that it can be written to.

    Raises ValueError if it cannot, or if a new run would mix with what is there.
    """
    if not resume and folder.is_dir() and any(folder.iterdir()):
        has = list_checkpoints(folder)
        way = (
            f"go on with it by --resume {shlex.quote(str(folder))}, or"
            if has
            else "it has no checkpoint to go on from;"
        )
        raise ValueError(f"out: {folder} is not empty; {way} choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resume:  # what this run left if it was killed while it wrote
            for pattern in (".checkpoint-*.safetensors.*.tmp", ".log.csv.*.tmp", ".run*.json.*.tmp"):
                for leftover in folder.glob(pattern):
                    leftover.unlink()
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error}") from error
    return folder


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """A JSON file, replaced as a whole."""
    write_text(path, json.dumps(facts, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A file of this folder; ValueError naming it if it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it to have it made again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: cannot be read (wanted an object); remove it to have it made again")
    return found


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Which settings are others than before, as "steps = 4000 before, 2000 now"."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} = {old!r} before, {new!r} now"


def is_new(folder: Path, name: str, settings: dict[str, Any], *, added: Collection[str] = ()) -> bool:
    """Whether work with these settings, to be kept in the folder's file of this name, is yet to begin there.

    False if it was begun with the same; ValueError naming the differences if with others. Leftovers of a process that
    was killed here are removed.  added: settings that a folder may not have yet, which then agrees with any.
    """
    path = folder / name
    if not path.exists():
        if folder.is_dir() and not set(folder.iterdir()) - {*leftovers(folder), folder / ".writable"}:
            sweep(folder)  # it was killed before it had written anything
            (folder / ".writable").unlink(missing_ok=True)
        return True
    before = {word: settings[word] for word in added} | read_json(path)
    if other := list(differences(before, settings)):
        raise ValueError(f"out: {folder} was begun with other settings: {'; '.join(other)}; choose another folder")
    sweep(folder)
    return False


# --- the log ---------------------------------------------------------------------------------------------------------


@dataclass
class Log:
    """log.csv: the mean loss since the last row, over all images and by quarter of t.

    Opened on an existing file it keeps the rows up to `step` and drops those of steps that will be run again.
    """

    path: Path
    step: int = 0
    _loss: list[float] = field(default_factory=list)
    _quarters: Array = field(default_factory=lambda: np.zeros((2, 4)))
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        rows = read_log(self.path) if self.path.exists() else []
        kept = [row for row in rows if row["step"] <= self.step]
        self._before = kept[-1]["seconds"] if kept else 0.0
        lines = [",".join(COLUMNS), *(",".join(_format(row[c]) for c in COLUMNS) for row in kept)]
        write_text(self.path, "\n".join(lines) + "\n")

    def add(self, report: StepReport) -> None:
        """Count one step in."""
        self._loss.append(report.loss)
        self._quarters += report.quarters

    def write(self, report: StepReport, learning_rate: float) -> None:
        """Append a row for the steps counted since the last one."""
        if not self._loss:
            return
        with np.errstate(invalid="ignore"):
            quarters = self._quarters[0] / self._quarters[1]
        seconds = self._before + time.monotonic() - self._started
        row = [report.step, np.mean(self._loss), *quarters, report.gradient_norm, learning_rate, seconds]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(",".join(map(_format, row)) + "\n")
        self._loss, self._quarters = [], np.zeros((2, 4))


def _format(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log.csv; a last line cut short by a kill is left out."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    rows = list(csv.DictReader(lines))
    good = []
    for row in rows:
        try:
            good.append({c: float(row[c]) for c in COLUMNS})
        except (TypeError, ValueError, KeyError):
            break
    return good


# --- the loop --------------------------------------------------------------------------------------------------------


@contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """Within, SIGINT and SIGTERM only make the yielded function answer their name; a second one acts as usual."""
    caught: list[str] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _frame: object) -> None:
        caught.append(signal.Signals(number).name)
        for one, handler in before.items():
            signal.signal(one, handler)

    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
        yield lambda: None
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class RunSettings:
    """How long a run goes and how often it writes."""

    steps: int
    save_every: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "log_every"):
            check_int(name, getattr(self, name), 1)


def run_training(
    trainer: Trainer,
    data: DataSource,
    folder: Path,
    settings: RunSettings,
    *,
    progress: Callable[[StepReport], None] = lambda report: None,
) -> str | None:
    """Train to step `settings.steps`, logging and saving; returns the name of the signal that stopped it, or None.

    Saves at the beginning of a new run, every `save_every` steps or ten minutes, and at the end. A signal lets the step
    finish, saves and returns. A loss or gradient that is not finite raises `Diverged` and leaves the checkpoints.
    """
    log = Log(folder / "log.csv", trainer.state.step)
    adam = trainer.settings.adam
    report = None
    if trainer.state.step == 0 and not list_checkpoints(folder):
        save(trainer, data, folder)
    saved = time.monotonic()
    with stop_signals() as stopped:
        while trainer.state.step < settings.steps and not stopped():
            for report in trainer.steps(_undisturbed(trainer.state.step, settings)):
                log.add(report)
                progress(report)
            assert report is not None
            if report.step % settings.log_every == 0:
                log.write(report, adam.learning_rate(report.step))
            due = report.step % settings.save_every == 0 or time.monotonic() - saved > SAVE_SECONDS
            if due and report.step < settings.steps:
                save(trainer, data, folder)
                saved = time.monotonic()
        if report is not None:
            log.write(report, adam.learning_rate(report.step))
            save(trainer, data, folder)
        return stopped()


def _undisturbed(step: int, settings: RunSettings) -> int:
    """How many steps there are to the next one after which something is written, or the last."""
    every = (settings.log_every, settings.save_every)
    return min(settings.steps - step, *(n - step % n for n in every))


def save(trainer: Trainer, data: DataSource, folder: Path) -> Path:
    """Write the checkpoint of the trainer's step into the folder and keep the last two."""
    state = trainer.host_state()
    checkpoint = Checkpoint(trainer.net.config, trainer.schedule, trainer.settings, data, state, command_line())
    path = save_checkpoint(checkpoint_path(folder, trainer.state.step), checkpoint)
    keep_last(folder)
    return path


def loss_curve(folder: Path) -> tuple[Array, Array, Array]:
    """Steps (K,), loss (K,) and loss by quarter of t (K, 4) of a run's log, without rows that lack a quarter."""
    rows = [row for row in read_log(folder / "log.csv") if all(math.isfinite(row[c]) for c in COLUMNS)]
    table = np.array([[row[c] for c in COLUMNS] for row in rows]).reshape(-1, len(COLUMNS))
    return table[:, 0], table[:, 1], table[:, 2:6]


def run_facts(trainer: Trainer, data: DataSource, settings: RunSettings) -> dict[str, Any]:
    """What run.json says of a training run beside `describe`."""
    return {
        **asdict(settings),
        "seed": trainer.settings.seed,
        "backend": trainer.backend.describe()._asdict(),
        "network": asdict(trainer.net.config),
        "parameters": trainer.net.size,
        "schedule": {"name": trainer.schedule.name, "T": trainer.schedule.T},
        "training": asdict(trainer.settings),
        "data": asdict(data),
    }

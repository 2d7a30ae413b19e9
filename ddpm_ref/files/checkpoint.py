"""Checkpoints: a whole training run in one safetensors file, written whole or not at all. No pickle.

Tensors: params/NAME, ema/NAME, adam_m/NAME, adam_v/NAME for every parameter under the released code's names, and
schedule/beta, the table (float64). Metadata: format_version, and "run", a JSON text with everything else.
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_finite
from ddpm_ref.extras import import_extra
from ddpm_ref.files.atomic import replacing
from ddpm_ref.files.source import DataSource
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.params import Params, count
from ddpm_ref.nn.plan import UNetConfig, make_plan
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import Objective
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import TrainSettings, TrainState, run_shapes

FORMAT_VERSION = "1"
KEPT = 2
_NAME = "checkpoint-{:08d}.safetensors"
_VECTORS = ("params", "ema", "adam_m", "adam_v")


@dataclass(frozen=True)
class Checkpoint:
    """A training run after some step: enough to sample from, and to go on bit for bit."""

    config: UNetConfig
    schedule: Schedule
    settings: TrainSettings
    data: DataSource
    state: TrainState
    made_by: str = ""

    @property
    def net(self) -> UNet:
        """The network."""
        return UNet(self.config)

    def params(self, weights: str = "ema") -> Params:
        """Its parameters, "raw" or their "ema"."""
        return self.state.network(self.net, weights)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under a temporary name, flush it to disk and rename it.

    Raises ValueError if a vector holds NaN or infinity, OSError if the disk refuses; an older file stays as it was.
    """
    save_file = import_extra("safetensors.numpy", "a checkpoint").save_file
    c = checkpoint
    shapes = run_shapes(c.net, c.schedule, c.settings.objective)
    tensors: dict[str, Array] = {"schedule/beta": np.ascontiguousarray(c.schedule.beta)}
    for name in _VECTORS:
        vector = getattr(c.state, name)
        check_finite(**{name: vector})
        tensors |= {f"{name}/{key}": view for key, view in Params(vector, shapes).views.items()}
    run = {
        "step": c.state.step, "seed": c.settings.seed, "schedule": c.schedule.name, "config": asdict(c.config),
        "settings": asdict(c.settings), "data": asdict(c.data), "made_by": c.made_by,
    }  # fmt: skip
    metadata = {"format_version": FORMAT_VERSION, "run": json.dumps(run, default=lambda number: number.item())}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except Exception as error:  # safetensors wraps a full disk in an exception of its own
        raise OSError(f"{path}: could not be written: {error}") from error
    return Path(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or the newest one of a folder.

    Raises ValueError naming the file and the reason: not a checkpoint, truncated, an unknown format version, arrays
    that do not fit its own configuration, NaN or infinity.
    """
    path = Path(path)
    path = latest_checkpoint(path) if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    safe_open = import_extra("safetensors", "a checkpoint").safe_open
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            version = metadata.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version!r} is unknown; this ddpm_ref reads {FORMAT_VERSION!r}")
            return _parse(json.loads(metadata["run"]), file)
    except OSError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise ValueError(f"{path}: not a checkpoint that can be read: {reason}") from error


def _parse(run: dict[str, Any], file: Any) -> Checkpoint:
    """The checkpoint that a file's JSON and tensors describe."""
    config = UNetConfig(**run["config"])
    # Before anything is built after it: a small file may claim a network that fits no memory.
    if len(list(islice(make_plan(config), len(file.keys())))) == len(file.keys()):
        raise ValueError("its configuration has more layers than the file has arrays")
    settings = dict(run["settings"])
    settings |= {"objective": Objective(**settings["objective"]), "adam": AdamSettings(**settings["adam"])}
    schedule = Schedule(_tensor(file, "schedule/beta", np.dtype(np.float64)), run["schedule"])
    train_settings = TrainSettings(**settings)
    shapes = run_shapes(UNet(config), schedule, train_settings.objective)
    names = {f"{name}/{key}" for name in _VECTORS for key in shapes} | {"schedule/beta"}
    if names != set(file.keys()):
        odd = sorted(names ^ set(file.keys()))
        raise ValueError(f"{len(odd)} arrays are missing or not of this network, such as {odd[0]!r}")
    for name in _VECTORS:
        for key, shape in shapes.items():
            if (got := tuple(file.get_slice(f"{name}/{key}").get_shape())) != shape:
                raise ValueError(f"{name}/{key}: wanted shape {shape} for this network, got {got}")
    dtype = file.get_tensor(f"params/{next(iter(shapes))}").dtype
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"wanted float32 or float64 parameters, got {dtype}")
    vectors = {}
    for name in _VECTORS:
        params = Params(np.empty(count(shapes), dtype), shapes)
        for key in shapes:
            params[key] = _tensor(file, f"{name}/{key}", dtype)
        check_finite(**{name: params.vector})
        vectors[name] = params.vector
    step = run["step"]
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"step: wanted an integer >= 0, got {step!r}")
    data = dict(run["data"], shape=tuple(run["data"]["shape"]))
    return Checkpoint(config, schedule, train_settings, DataSource(**data), TrainState(step, **vectors), run["made_by"])


def _tensor(file: Any, name: str, dtype: Any) -> Array:
    x = file.get_tensor(name)
    if x.dtype != dtype:
        raise ValueError(f"{name}: wanted {dtype}, got {x.dtype}")
    return x


# --- a folder of them ------------------------------------------------------------------------------------------------


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step belongs in a run's folder."""
    return Path(folder) / _NAME.format(step)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    found = [p for p in Path(folder).glob("checkpoint-*.safetensors") if re.fullmatch(r"checkpoint-\d+", p.stem)]
    return sorted(found, key=lambda p: int(p.stem.partition("-")[2]))


def latest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint of the highest step in a folder; ValueError if it has none."""
    found = list_checkpoints(folder)
    if not found:
        raise ValueError(f"{folder}: no checkpoint in this folder")
    return found[-1]


def keep_last(folder: str | Path, count: int = KEPT) -> None:
    """Remove all but the newest checkpoints of a folder."""
    for path in list_checkpoints(folder)[:-count]:
        with contextlib.suppress(PermissionError):  # on Windows, while somebody reads it
            path.unlink(missing_ok=True)

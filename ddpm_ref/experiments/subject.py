"""What an experiment is made on: a trained network, the data it was trained on, and how it is to be run."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, Steps
from ddpm_ref.discovery import get_backend
from ddpm_ref.drawing import sampler_settings
from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import Checkpoint, load_checkpoint
from ddpm_ref.files.data import ImageData
from ddpm_ref.files.source import reopen_source
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.unet import UNet
from ddpm_ref.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint with its data and a backend.

    how: `predicts`, `var`, `clip` and `temperature`, as the samplers of `ddpm_ref.sampling` take them.
    train, held_out: as the run split them; held_out is None where nothing was kept from training.
    """

    checkpoint: Checkpoint
    backend: Backend
    train: ImageData
    held_out: ImageData | None
    weights: str
    how: dict[str, Any]

    @property
    def schedule(self) -> Schedule:
        """β_t, as trained."""
        return self.checkpoint.schedule

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.checkpoint.data.shape

    @cached_property
    def params(self) -> Params:
        """The averaged or the last parameters."""
        return self.checkpoint.params(self.weights)

    @cached_property
    def model(self) -> "HostModel":
        """The network's output for arrays of the host, by the backend."""
        return HostModel(self.checkpoint.net, self.params, self.backend)

    def facts(self, **more: Any) -> dict[str, Any]:
        """How the result was made, for its JSON file."""
        return runs.describe(
            step=self.checkpoint.state.step,
            weights=self.weights,
            data=self.checkpoint.data.source,
            backend=self.backend.describe()._asdict(),
            schedule={"name": self.schedule.name, "T": self.schedule.T},
            **self.how,
            **more,
        )


class HostModel:
    """output = model(x_t, t) on NumPy arrays, whatever the backend; x_t is taken in the parameters' dtype."""

    def __init__(self, net: UNet, params: Params, backend: Backend) -> None:
        self.backend, self.dtype = backend, params.vector.dtype
        self.bound = net.bind(params.like(backend.to_device(params.vector)), backend)

    def __call__(self, x_t: Array, t: Steps) -> Array:
        x_t = self.backend.to_device(np.ascontiguousarray(x_t, dtype=self.dtype))
        return self.backend.to_host(self.bound(x_t, t))


def open_subject(args: argparse.Namespace, checkpoint: Checkpoint | None = None) -> Subject:
    """The subject that the options of `options.shared` and `options.drawing` name; `checkpoint` in place of theirs.

    Raises ValueError for what cannot be opened, for options that the checkpoint contradicts, for changed data.
    """
    keep_freed_memory()
    checkpoint = checkpoint or load_checkpoint(args.checkpoint)
    backend = get_backend(args.backend, args.threads, args.precision)
    settings = sampler_settings(checkpoint, args, backend)
    how = {name: settings[name] for name in ("predicts", "var", "clip", "temperature")}
    _, train, held_out = reopen_source(checkpoint.data)
    return Subject(checkpoint, backend, train, held_out, args.weights, how)

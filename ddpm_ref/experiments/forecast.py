"""How long `ddpm-ref paper` will take here: a few steps of each kind are timed before it begins."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.dataset_likelihood import dataset_bound, evaluations
from ddpm_ref.experiments.ablation_cells import CELLS, Cell, Setup
from ddpm_ref.experiments.subject import HostModel
from ddpm_ref.sampling import generate_steps
from ddpm_ref.train import Trainer

TIMED = 0.4  # seconds that each kind of step is timed for
IMAGES = 200  # of the likelihood that are timed at a time


class Pace(NamedTuple):
    """Seconds that one thing takes: a training step of each kind of cell, a reverse step of a batch, one image's L_t."""

    train: dict[str, float]
    draw: float
    rate: float


def pace(setup: Setup, cells: Sequence[Cell], backend: Backend, batch: int) -> Pace:
    """Timed on this machine, compilation left out."""
    train = {cell.name: _train_step(setup, cell, backend) for cell in cells}
    simple = CELLS["eps-simple"]
    net = setup.net(simple)
    params = net.init(0)
    how = dict(setup.how(simple), seed=0, backend=backend)
    steps = generate_steps(net, params, setup.schedule, np.arange(batch), setup.source.shape, **how)  # type: ignore[arg-type]
    draw = seconds_of(lambda: next(steps))
    model = HostModel(net, params, backend)
    images = setup.train.take(slice(IMAGES))
    T, every = setup.schedule.T, len(images)
    rated = evaluations(T, len(images), every, seed=0)
    rate = seconds_of(lambda: dataset_bound(setup.schedule, model, images, seed=0, every=every, batch=IMAGES))
    return Pace(train, draw, rate / rated)


def _train_step(setup: Setup, cell: Cell, backend: Backend) -> float:
    trainer = Trainer(setup.net(cell), setup.schedule, setup.train, setup.settings(cell, 0), backend)
    return seconds_of(trainer.step)


def seconds_of(step: Callable[[], object]) -> float:
    """The mean of as many steps as fit TIMED, after two that warm up."""
    step()
    step()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < TIMED:
        step()
        count += 1
    return (time.perf_counter() - begun) / count

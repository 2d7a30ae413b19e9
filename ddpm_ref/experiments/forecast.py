"""How long `ddpm-ref paper` will take here: a few steps of each kind are timed before it begins."""

import time
from collections.abc import Callable, Sequence
from itertools import chain, count
from typing import NamedTuple

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.experiments import ablation, ablation_runs, generation, interpolation
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2, Cell, Setup
from ddpm_ref.experiments.paper_parts import ALONE, PAIRS, Part, Work, generation_how
from ddpm_ref.experiments.subject import HostModel
from ddpm_ref.forward import q_sample
from ddpm_ref.objective import bound_term
from ddpm_ref.random import Purpose, normal
from ddpm_ref.sampling import generate_steps
from ddpm_ref.train import Trainer

TIMED = 0.4  # seconds that each kind of step is timed for


class Pace(NamedTuple):
    """Seconds of one thing: a training step of each cell, by name, a reverse step of a batch, an image's L_t."""

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
    samples, shape = np.arange(batch), setup.source.shape
    steps = chain.from_iterable(generate_steps(net, params, setup.schedule, samples, shape, **how) for _ in count())
    draw = seconds_of(lambda: backend.to_host(next(steps)[1]))  # which a GPU must finish
    model = HostModel(net, params, backend)
    x_0 = setup.train.x_0(slice(batch))

    t, levels = setup.schedule.T // 2, setup.train.levels

    def term() -> None:
        x_t = q_sample(setup.schedule, x_0, t, normal(0, Purpose.EVALUATE, t, np.arange(len(x_0)), shape))
        bound_term(setup.schedule, x_0, x_t, t, model(x_t, t), levels=levels)

    return Pace(train, draw, seconds_of(term) / len(x_0))


def _train_step(setup: Setup, cell: Cell, backend: Backend) -> float:
    trainer = Trainer(setup.net(cell), setup.schedule, setup.train, setup.settings(cell, 0), backend)
    return seconds_of(trainer.step)


def seconds_of(step: Callable[[], object]) -> float:
    """The mean of as many steps as fit TIMED, after two that warm up."""
    step()
    step()
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < TIMED:
        step()
        steps += 1
    return (time.perf_counter() - begun) / steps


def forecast(work: Work, parts: Sequence[Part], one: Pace) -> dict[str, float]:
    """Seconds that each part will take which is not done, from the pace of single steps."""
    T, plan = work.setup.schedule.T, work.plan
    passes = [ablation_runs.work(work.setup, seed) for seed in work.seeds]
    batches = -(-len(work.setup.held_out) // plan.batch)
    of_each = len(work.seeds) * T * batches * one.draw + sum(p["rate"] for p in passes) * one.rate
    total, behind = ablation.total_steps(work.setup, TABLE_2, work.seeds, work.folder / "ablation")
    training = sum(one.train.values()) * plan.steps * len(work.seeds)
    by_draws = {"generation": generation.work(T, **generation_how(work)),
                "interpolation": interpolation.work(T, pairs=PAIRS, batch=plan.batch)}  # fmt: skip
    seconds = {
        "ablation": (training + len(TABLE_2) * of_each) * (1 - behind / total),
        "likelihood": passes[0]["rate"] * one.rate,
        **{name: steps * one.draw for name, steps in by_draws.items()},
        **ALONE,
    }
    return {part.name: seconds.get(part.name, 1.0) for part in parts if not part.done(work)}

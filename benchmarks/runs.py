"""Level runs: seconds until `digits` is learned to a stated loss, and seconds for each picture of a 1000-step chain.

reach     training on the digits by the preset's recipe (batch 64, Adam, warm-up, clipping, EMA) from the seed's
          weights, until the smoothed loss is TARGET. Smoothed: the mean over steps with weights 0.98^age. A round
          is a whole run; all rounds have the same seed, so they differ in time alone. Peers are given the very same
          pictures, t and ε, made beforehand (and draw as much noise again, so that they too pay for it): each is
          held to our first losses, and left out if it gets there in over 5 % more or fewer steps than ours.
images    real consecutive reverse steps, each from the x_t of the one before, from a new x_T each round. Of `digits`
          (WHOLE) a round is one whole chain of T = 1000 steps, over the batch; of larger networks as many steps as fit
          a second, from t = T down, and what is given is T times their mean, over the batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cases import CASES, Job, T
from benchmarks.contestant import Clock, Contestant
from benchmarks.work import Work, step_work
from ddpm_ref.files.source import open_source
from ddpm_ref.nn.unet import UNet
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import RECIPES, Trainer, TrainSettings

TARGET = 0.11
SMOOTHING = 0.98
LIMIT = 1500
"""Steps after which a run has failed."""
PEERS = ("torch contiguous", "torch channels_last", "torch compile", "torch eager", "torch graph", "jax jit")
WHOLE = ("digits",)
FIRST = 10
"""Losses that peers are held to."""


class Smoothed:
    """The mean of the losses so far with weights SMOOTHING^age."""

    def __init__(self) -> None:
        self._sum = self._weights = 0.0

    def add(self, loss: float) -> float:
        """The mean with this one."""
        self._sum = SMOOTHING * self._sum + loss
        self._weights = SMOOTHING * self._weights + 1
        return self._sum / self._weights


def jobs(options: Any) -> list[Job]:
    """To a loss on digits, then pictures of each preset."""
    made = [_reach(options)] if "digits" in options.presets and not options.batch else []
    batches = {preset: options.batch or (CASES[preset].sample,) for preset in options.presets}
    return made + [_images(preset, batch, options) for preset in options.presets for batch in batches[preset]]


def _shared(options: Any) -> dict[str, Any]:
    names = ("threads", "dtype", "precision")
    return {name: getattr(options, name) for name in names} | {"rounds": options.rounds_of("runs")}


def _reach(options: Any) -> Job:
    # Compiling and capturing are in no time, as everywhere; the other compiled graphs are the other level's.
    # `steps` has compiled for minutes already, hence small=False.
    peers = [peer for peer in options.peers_for(small=False) if peer in PEERS]
    batch = RECIPES["digits"][1].batch
    return Job(
        "runs", f"train digits to loss {TARGET}", "reach", "digits", CASES["digits"].config, batch,
        (("", Work(0, 0)),), (*options.backends, *peers), warm_up=False, **_shared(options),
    )  # fmt: skip


def _images(preset: str, batch: int, options: Any) -> Job:
    config, whole = CASES[preset].config, preset in WHOLE
    step = step_work(config, batch, "sample", itemsize=np.dtype(options.dtype).itemsize)
    image = Work(*(T / batch * part for part in step))
    return Job(
        "runs", f"image {preset}", "images", preset, config, batch, (("", image),),
        (*options.backends, *options.peers_for(small=False)), seconds=1.0, scale=(1 if whole else T) / batch,
        whole=whole, warm_up=not whole, **_shared(options),
    )  # fmt: skip


# --- in a contender's own process ------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """What one step is trained on: NumPy arrays."""

    x_0: np.ndarray
    t: np.ndarray
    eps: np.ndarray


class Lesson(NamedTuple):
    """What a peer trains on: network, its first weights, settings, and the draws of every step."""

    net: UNet
    settings: TrainSettings
    schedule: Schedule
    draws: list[Draw]


def make_trainer(job: Job, backend: Any = None) -> Trainer:
    """The digits, by their recipe."""
    dtype = np.float64 if job.dtype == "float64" else np.float32
    images = open_source("digits")[1]
    return Trainer(UNet(job.config), Schedule.linear(), images, RECIPES["digits"][1], backend, dtype=dtype)


def make_lesson(job: Job) -> Lesson:
    """For a peer: the draws that `Trainer` makes."""
    trainer = make_trainer(job)
    samples = np.arange(job.batch)
    drawn = (trainer.draw(step, samples) for step in range(1, LIMIT + 1))
    draws = [Draw(one.x_0, one.t, one.eps) for one in drawn]
    return Lesson(trainer.net, trainer.settings, trainer.schedule, draws)


def contest(job: Job, version: str, losses: Callable[[], Iterator[float]], clock: Clock) -> Contestant:
    """A run as something to time. losses: begins anew, and yields the loss of step after step."""
    facts: dict[str, Any] = {}

    def run() -> None:
        smoothed = Smoothed()
        for step, loss in enumerate(losses(), 1):
            if smoothed.add(loss) <= TARGET and step >= FIRST:
                facts["steps"] = step
                return
        raise RuntimeError(f"the smoothed loss was not {TARGET} within {LIMIT} steps")

    first = [loss for loss, _ in zip(losses(), range(FIRST), strict=False)]
    return Contestant(
        version, {"": run}, {"output": [np.array(first, job.dtype)]}, lambda _round: None, clock, facts=facts
    )


def reach(job: Job, backend: Any, clock: Clock) -> Contestant:
    """Ours."""

    def losses() -> Iterator[float]:
        trainer = make_trainer(job, backend)
        while trainer.state.step < LIMIT:
            yield from (report.loss for report in trainer.steps(LIMIT - trainer.state.step))

    return contest(job, str(backend.describe()), losses, clock)

"""What every side is given before anything is timed: a network none of whose layers is near 0, and a batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.agreement import compared
from benchmarks.cases import Job
from ddpm_ref.files.data import ImageData
from ddpm_ref.forward import posterior_coefficients
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import Batch, Trainer, TrainSettings, TrainState

STEP = 500
"""The t of a sampling step."""
IMAGES = 512
"""Of random pixels to train on."""
SAMPLING = ("sample", "images", "chain")
"""Kinds of job that draw pictures."""


class Problem(NamedTuple):
    """The same on every side. x, eps: (N, H, W, C) of the job's dtype   t: (N,)"""

    net: UNet
    params: Params
    x: np.ndarray
    t: np.ndarray
    eps: np.ndarray

    def ordered(self, gradients: dict[str, Any]) -> Iterator[np.ndarray]:
        """Gradients by our names, one at a time, in the order of our flat vector."""
        return (np.ascontiguousarray(gradients[name], self.x.dtype) for name in self.net.shapes)

    def moved(self, after: Any) -> Iterator[np.ndarray]:
        """θ after a step - θ before by our names, one at a time, of those whose gradient says anything."""
        return (after[name] - self.params[name] for name in self.net.shapes if compared(name))


def make_problem(job: Job, seed: int = 0) -> Problem:
    """That of a job; one that draws pictures has t = STEP."""
    problem = random_problem(job.config, job.batch, np.float64 if job.dtype == "float64" else np.float32, seed)
    return problem._replace(t=np.full(job.batch, STEP)) if job.what in SAMPLING else problem


def random_problem(config: UNetConfig, batch: int, dtype: Any = np.float32, seed: int = 0) -> Problem:
    """Random weights and a batch of them. Fresh networks have layers of 1e-5 times the usual size: these are scaled up,
    so that a mistake in front of them shows."""
    net, rng = UNet(config), np.random.default_rng(seed)
    params = net.init(seed, dtype)
    for name in params:
        if name.endswith(("conv2/W", "proj_out/W", "conv_out/W")):
            params[name] = params[name] * 1e5
    cfg = net.config
    x = rng.standard_normal((batch, cfg.image_size, cfg.image_size, cfg.channels), dtype=dtype)
    eps = rng.standard_normal(x.shape, dtype=dtype)
    return Problem(net, params, x, rng.integers(1, 1001, batch), eps)


def random_images(job: Job) -> ImageData:
    """Pictures of noise."""
    cfg = job.config
    shape = IMAGES, cfg.image_size, cfg.image_size, cfg.channels
    return ImageData(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8), 256, "noise")


def reverse_table(schedule: Schedule) -> np.ndarray:
    """Of each t = 0 … T: x̂_0 = a x_t - b ε, and c_0, c_t, σ of the step from it, (T + 1, 5); t = 0 has zeros."""
    t = np.arange(1, schedule.T + 1)
    abar, (c_0, c_t) = schedule.alpha_bar[1:], posterior_coefficients(schedule, t)
    sigma = np.sqrt(schedule.beta[1:]) * (t > 1)
    rows = np.stack([1 / np.sqrt(abar), np.sqrt(1 / abar - 1), c_0, c_t, sigma], axis=1)
    return np.concatenate([np.zeros((1, 5)), rows])


def train_settings(job: Job) -> TrainSettings:
    """Of a timed training step, on every side: the paper's, without warm-up, so that its first step can be seen."""
    return TrainSettings(batch=job.batch, adam=AdamSettings(warmup=0))


def first_draw(job: Job, problem: Problem) -> Batch:
    """The x_0, t, ε that `Trainer` draws for its first step of such a job, for peers to take that step too."""
    state = TrainState(0, *[problem.params.vector] * 4)
    dtype = problem.x.dtype.type
    trainer = Trainer(problem.net, Schedule.linear(), random_images(job), train_settings(job), dtype=dtype, state=state)
    return trainer.draw(1, np.arange(job.batch))

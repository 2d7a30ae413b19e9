"""Algorithm 2 with a network and a seed: any number of images, a batch at a time (§3.2, §4.1)."""

from collections.abc import Iterator

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, check_int
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.unet import UNet
from ddpm_ref.random import Purpose
from ddpm_ref.reverse import check_sampler, reverse_chain
from ddpm_ref.schedule import Schedule, Table


def generate_steps(
    net: UNet,
    params: Params,
    schedule: Schedule,
    samples: Array,
    shape: tuple[int, int, int],
    *,
    seed: int,
    backend: Backend | None = None,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = True,
    temperature: float = 1.0,
    every: int = 1,
) -> Iterator[tuple[int, Array, Array]]:
    """The images numbered `samples` of this seed, as a generator of (t, x_t, x̂_0) like `sample_steps`.

    x̂_0 is clipped unless told otherwise, as in the released code; the printed algorithm does not.

    x_T and every z are the counter-based stream's for (seed, image number, t), so image 7 comes out the same, up to the
    network's rounding, whatever is drawn beside it and on whatever backend.
    shape: (H, W, C) of one image.  Yields arrays (N, H, W, C) of the parameters' dtype, the backend's own:
    `backend.to_host` makes NumPy arrays of those that are wanted.
    """
    run = backend or Backend()
    samples = np.asarray(samples)
    params = params.like(run.to_device(params.vector))
    x_T = run.normal(seed, Purpose.X_T, 0, samples, shape).astype(params.vector.dtype, copy=False)
    table = check_sampler(schedule, x_T, schedule.T, every, predicts=predicts, var=var, temperature=temperature)

    how = dict(predicts=predicts, var=table, clip=clip, temperature=temperature)
    model = net.bind(params, run)
    if (own := run.reverse_steps(model, schedule, x_T, samples, seed, every, **how)) is not None:
        return own

    def move(x_t: Array, t: int, output: Array) -> tuple[Array, Array]:
        return run.p_sample(
            schedule, x_t, t, output, seed, samples, predicts=predicts, var=table, clip=clip, temperature=temperature
        )

    return reverse_chain(model, x_T, move, schedule.T, every)


def batches(count: int, batch: int) -> Iterator[Array]:
    """Image numbers 0 … count-1, batch at a time."""
    check_int("count", count, 1)
    check_int("batch", batch, 1)
    return (np.arange(first, min(first + batch, count)) for first in range(0, count, batch))

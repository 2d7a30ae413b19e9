"""Algorithm 2 with a network and a seed: any number of images, a batch at a time (§3.2, §4.1)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, check_finite, check_int
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
    x_start: Array | None = None,
    start: int | None = None,
) -> Iterator[tuple[int, Array, Array]]:
    """The images numbered `samples` of this seed, as a generator of (t, x_t, x̂_0) like `sample_steps`.

    x̂_0 is clipped unless told otherwise, as in the released code; the printed algorithm does not.

    x_T and every z are the counter-based stream's for (seed, image number, t), so image 7 comes out the same, up to the
    network's rounding, whatever is drawn beside it and on whatever backend.
    x_start, start: go on from these x_t (N, H, W, C), the host's or this backend's, at step `start` (T unless given)
    instead of x_T. With the seed and numbers that they were drawn with, the pictures are the same bit for bit; with
    others, new ones from the same x_t (Figure 7). Numbers may repeat: equal ones have equal noise.
    shape: (H, W, C) of one image.  Yields arrays (N, H, W, C) of the parameters' dtype, the backend's own:
    `backend.to_host` makes NumPy arrays of those that are wanted.
    """
    run = backend or Backend()
    samples = np.asarray(samples)
    params = params.like(run.to_device(params.vector))
    if x_start is None and start is not None:
        raise ValueError(f"start: wanted x_start with it, got {start} alone")
    if x_start is None:
        x_T = run.normal(seed, Purpose.X_T, 0, samples, shape).astype(params.vector.dtype, copy=False)
    else:
        x_T = _checked_start(x_start, (len(samples), *shape), params.vector.dtype, run)
    start = schedule.T if start is None else start
    table = check_sampler(schedule, x_T, start, every, predicts=predicts, var=var, temperature=temperature)

    how = dict(predicts=predicts, var=table, clip=clip, temperature=temperature)
    model = net.bind(params, run)
    own = run.reverse_steps(model, schedule, x_T, samples, seed, every, start=start, **how)
    if own is not None:
        return own

    def move(x_t: Array, t: int, output: Array) -> tuple[Array, Array]:
        return run.p_sample(
            schedule, x_t, t, output, seed, samples, predicts=predicts, var=table, clip=clip, temperature=temperature
        )

    return reverse_chain(model, x_T, move, start, every)


def _checked_start(x_start: Array, shape: tuple[int, ...], dtype: np.dtype[Any], run: Backend) -> Array:
    """x_start as the backend's array; ValueError unless finite and of this shape and dtype."""
    is_array = hasattr(x_start, "dtype") and hasattr(x_start, "shape")
    if not is_array or x_start.dtype != dtype or x_start.shape != shape:
        what = f"{x_start.dtype} {x_start.shape}" if is_array else type(x_start).__name__
        raise ValueError(f"x_start: wanted {dtype} {shape}, the parameters' dtype and an image per number, got {what}")
    check_finite(x_start=x_start)
    return run.to_device(x_start)


def batches(count: int, batch: int) -> Iterator[Array]:
    """Image numbers 0 … count-1, batch at a time."""
    check_int("count", count, 1)
    check_int("batch", batch, 1)
    return (np.arange(first, min(first + batch, count)) for first in range(0, count, batch))

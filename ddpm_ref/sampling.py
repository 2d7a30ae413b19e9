"""Algorithm 2 with a network and a seed: any number of images, a batch at a time (§3.2, §4.1)."""

from collections.abc import Iterator

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, check_int
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.unet import UNet
from ddpm_ref.random import Purpose
from ddpm_ref.reverse import sample_steps
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
    shape: (H, W, C) of one image.  Returns arrays (N, H, W, C) of the parameters' dtype.
    """
    run = backend or Backend()
    samples = np.asarray(samples)
    dtype = params.vector.dtype

    def draw(purpose: Purpose, step: int) -> Array:
        return run.normal(seed, purpose, step, samples, shape).astype(dtype, copy=False)

    return sample_steps(
        schedule,
        net.bind(params, run),
        draw(Purpose.X_T, 0),
        lambda t: draw(Purpose.Z, t),
        predicts=predicts,
        var=var,
        clip=clip,
        temperature=temperature,
        every=every,
    )


def batches(count: int, batch: int) -> Iterator[Array]:
    """Image numbers 0 … count-1, batch at a time."""
    check_int("count", count, 1)
    check_int("batch", batch, 1)
    return (np.arange(first, min(first + batch, count)) for first in range(0, count, batch))

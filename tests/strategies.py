"""What the tests draw at random, and how they differentiate."""

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddpm_ref import PARAMETRISATIONS, Schedule, output_from_x_0, q_sample
from ddpm_ref.checks import Array


def schedule_of(beta: Sequence[float] | Array) -> Schedule:
    """The schedule of any β_1 … β_T, without the warning that so few steps leave x_T far from N(0, I)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Schedule.from_beta(beta)


def short(T: int) -> Schedule:
    """The default schedule's total noise in T steps: its end points scaled by 1000 / T."""
    return schedule_of(np.minimum(np.linspace(0.1 / T, 20 / T, T), 0.999))


every_parametrisation = pytest.mark.parametrize("predicts", PARAMETRISATIONS)
every_weight = pytest.mark.parametrize("weight", ["simple", "bound"])
every_variance = pytest.mark.parametrize("var", ["beta", "beta_tilde"])

betas = st.lists(st.floats(0.01, 0.9), min_size=1, max_size=6)
schedules = betas.map(schedule_of)
long = schedules.filter(lambda schedule: schedule.T > 1)
seeds = st.integers(0, 2**32 - 1)


Case = tuple[Schedule, Array, Array, Array]


@st.composite
def noised(draw: Any) -> Case:
    """A schedule, a batch x_0, its own step t for each image, and ε."""
    schedule = draw(schedules)
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
    x_0, eps = (draw(hnp.arrays(np.float64, shape, elements=st.floats(-3, 3, width=16))) for _ in range(2))
    t = draw(hnp.arrays(np.int64, shape[:1], elements=st.integers(1, schedule.T)))
    return schedule, x_0, t, eps


SIX = schedule_of([0.05, 0.1, 0.2, 0.3, 0.5, 0.7])
batch_shapes = st.sampled_from([(1, 1), (3, 2), (2, 1, 2, 1), (4, 2, 1, 2), (2, 5)])
grey_levels = st.sampled_from([2, 3, 17, 256])


def training_batch(
    seed: int, shape: tuple[int, ...], predicts: str = "eps", var: Any = "beta", levels: int = 17
) -> Any:
    """Data on the grid, a step of `SIX` for each image (the first at t = 1, the last at T), and outputs not far off."""
    rng = np.random.default_rng(seed)
    x_0 = 2 * rng.integers(0, levels, shape) / (levels - 1) - 1
    t = rng.integers(1, SIX.T + 1, shape[0])
    t[-1], t[0] = SIX.T, 1
    eps = rng.standard_normal(shape)
    x_t = q_sample(SIX, x_0, t, eps)
    # Residuals of 0.05 to 0.9 or 1.1 to 1.5: away from the kinks of |r| at 0 and of the Huber loss at 1.
    size = np.where(rng.random(shape) < 0.7, rng.uniform(0.05, 0.9, shape), rng.uniform(1.1, 1.5, shape))
    output = output_from_x_0(SIX, x_t, t, x_0, predicts) + size * rng.choice([-1, 1], shape)
    if isinstance(var, str) and var == "learned":
        output = np.concatenate([output, rng.uniform(-4, 1, shape)], axis=-1)
    return SimpleNamespace(x_0=x_0, x_t=x_t, t=t, eps=eps, output=output, levels=levels)


def expand(table: Array, t: Array, x: Array) -> Array:
    """table[t], one value per image, shaped to multiply x."""
    values = np.broadcast_to(table[t], x.shape[:1])
    return values.reshape(-1, *[1] * (x.ndim - 1))


def derivative(f: Callable[[Any], Array], x: Any, h: Any) -> Array:
    """f'(x) by central differences, exact for polynomials of degree 4."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def gradient_per_image(loss: Callable[[Array], Array], output: Array, h: float = 5e-4) -> Array:
    """d loss_n / d output_n by differences: one place of every image is moved at a time."""
    gradient = np.empty(output.shape)
    for place in np.ndindex(output.shape[1:]):
        unit = np.zeros(output.shape[1:])
        unit[place] = 1

        def moved(s: float, unit: Array = unit) -> Array:
            return loss(output + s * unit)

        gradient[(slice(None), *place)] = derivative(moved, 0.0, h)
    return gradient


def assert_gradient(found: Array, by_differences: Array) -> None:
    np.testing.assert_allclose(found, by_differences, rtol=1e-6, atol=1e-6)

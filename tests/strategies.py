"""What the tests draw at random, and how they differentiate."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddpm_ref import Schedule

Array = Any


def schedule_of(beta: Sequence[float] | Array) -> Schedule:
    """The schedule of any β_1 … β_T, without the warning that so few steps leave x_T far from N(0, I)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Schedule.from_beta(beta)


def short(T: int) -> Schedule:
    """The default schedule's total noise in T steps: its end points scaled by 1000 / T."""
    return schedule_of(np.minimum(np.linspace(0.1 / T, 20 / T, T), 0.999))


betas = st.lists(st.floats(0.01, 0.9), min_size=1, max_size=6)
schedules = betas.map(schedule_of)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def noised(draw: Any) -> tuple[Schedule, Array, Array, Array]:
    """A schedule, a batch x_0, its own step t for each image, and ε."""
    schedule = draw(schedules)
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3))
    x_0, eps = (draw(hnp.arrays(np.float64, shape, elements=st.floats(-3, 3))) for _ in range(2))
    t = draw(hnp.arrays(np.int64, shape[:1], elements=st.integers(1, schedule.T)))
    return schedule, x_0, t, eps


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
        gradient[(slice(None), *place)] = derivative(lambda s, unit=unit: loss(output + s * unit), 0.0, h)
    return gradient

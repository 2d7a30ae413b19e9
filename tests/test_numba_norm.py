"""GroupNorm (+ SiLU) in Numba against NumPy's in float64."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba_checks import NUMPY, RUNS, Call, agrees, check_manners, is_gradient, normals, results

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

# Rounding: sums of up to 8 numbers a vector and 16 lanes, mean and r once more, sigmoid 3 units: some 20 units of 6e-8.
TOLERANCE = 5e-6

seeds = st.integers(0, 2**32 - 1)
runs = st.sampled_from(list(RUNS.values()))


def _call(groups: int, silu: bool, run: Backend, arrays: list[Array]) -> Any:
    x, gamma, beta = arrays
    return run.group_norm(x, gamma, beta, groups, silu=silu)


CHANNELS = st.integers(1, 12).map(lambda k: 8 * k)


@st.composite
def cases(draw: Any, channels: Any = CHANNELS) -> tuple[Call, list[Array]]:
    """Odd and tiny images, channels in vectors or not, any number of groups; x far from 0 and of any scale."""
    n, h, w, c = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(channels)
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0 and c // g * h * w >= 4]))
    x, gamma, beta, dy = normals(draw(seeds), (n, h, w, c), (c,), (c,), (n, h, w, c))
    x = x * np.float32(draw(st.sampled_from([0.1, 1, 50])))
    return partial(_call, groups, draw(st.booleans())), [x, gamma, beta, dy]


@settings(deadline=None)
@given(cases(), runs)
def test_values_and_gradients_are_those_of_numpy(case: tuple[Call, list[Array]], run: Any) -> None:
    call, arrays = case
    assert agrees(call, run, arrays, TOLERANCE * 4)


@settings(deadline=None)
@given(cases(), runs, seeds)
def test_the_adjoint_is_the_derivative(case: tuple[Call, list[Array]], run: Any, seed: int) -> None:
    call, arrays = case
    assert is_gradient(call, run, arrays, 1e-5, seed)


@settings(deadline=None, max_examples=30)
@given(cases(), runs)
def test_manners(case: tuple[Call, list[Array]], run: Any) -> None:
    call, arrays = case
    check_manners(call, run, arrays)


@pytest.mark.parametrize("shape", [(1, 16, 16, 64), (1, 9, 9, 256), (5, 8, 8, 48), (2, 32, 32, 96), (2, 4, 4, 512)])
def test_shapes_shared_by_threads_give_the_bits_of_one_thread(shape: tuple[int, ...]) -> None:
    c = shape[-1]
    call = partial(_call, 8, True)
    arrays = normals(1, shape, (c,), (c,), shape)
    one = results(call, RUNS[1], arrays)
    assert agrees(call, RUNS[1], arrays, TOLERANCE)
    for run in RUNS.values():
        assert all(np.array_equal(a, b) for a, b in zip(one, results(call, run, arrays), strict=True))


@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e5])
def test_a_mean_far_from_zero_costs_no_more_than_it_costs_numpy_in_float32(far: float) -> None:
    """The mean is rounded to far · 6e-8 on both sides; a variance that cancels would lose its square."""
    arrays = normals(2, (2, 16, 16, 32), (32,), (32,), (2, 16, 16, 32))
    arrays[0] += np.float32(far) * np.sign(normals(3, (32,))[0])
    call = partial(_call, 32, True)
    wanted = results(call, NUMPY, [a.astype(np.float64) for a in arrays])
    for a, b, exact in zip(results(call, RUNS[2], arrays), results(call, NUMPY, arrays), wanted, strict=True):
        assert np.abs(a - exact).max() <= 1.2 * np.abs(b - exact).max()


def test_dx_does_not_move_mean_or_scale_of_any_group() -> None:
    """GroupNorm is blind to both, so that ⟨dx, 1⟩ = ⟨dx, x - mean⟩ = 0 in each group."""
    x, gamma, beta, dy = normals(4, (3, 8, 8, 32), (32,), (32,), (3, 8, 8, 32))
    dx = results(partial(_call, 4, True), RUNS[2], [x, gamma, beta, dy])[1]
    d, v = (a.reshape(3, 64, 4, 8).astype(np.float64) for a in (dx, x))
    v = v - v.mean(axis=(1, 3), keepdims=True)
    assert np.abs(d.sum(axis=(1, 3))).max() < 1e-4
    assert np.abs((d * v).sum(axis=(1, 3))).max() < 2e-4


def test_nan_stays_nan() -> None:
    x, gamma, beta, dy = normals(5, (1, 4, 4, 32), (32,), (32,), (1, 4, 4, 32))
    x[0, 1, 2, 3] = np.nan
    y, dx, _, _ = results(partial(_call, 1, True), RUNS[1], [x, gamma, beta, dy])
    assert np.isnan(y).all() and np.isnan(dx).all()

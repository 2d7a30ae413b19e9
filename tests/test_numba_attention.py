"""Attention in Numba against NumPy's in float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba_checks import RUNS, agrees, check_manners, is_gradient, normals, results

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

# Scores of size √C rounded to C 2⁻²⁴ by their sums, which exp takes over as relative errors of P; exp itself 2 units.
TOLERANCE = 1e-5

seeds = st.integers(0, 2**32 - 1)
runs = st.sampled_from(list(RUNS.values()))
batches = st.integers(1, 5)
positions = st.one_of(st.sampled_from([1, 4, 16, 64]), st.integers(1, 90))
channels = st.one_of(st.sampled_from([16, 32, 48, 64]), st.integers(1, 40))


def _call(run: Backend, arrays: list[Array]) -> Any:
    return run.attention(*arrays)


def _arrays(seed: int, n: int, s: int, c: int) -> list[Array]:
    return normals(seed, *[(n, s, c)] * 4)


@given(batches, positions, channels, runs, seeds)
def test_values_and_gradients_are_those_of_numpy(n: int, s: int, c: int, run: Any, seed: int) -> None:
    arrays = _arrays(seed, n, s, c)
    if s == 1:  # one probability, 1: its gradient is exactly 0 in NumPy, a rounding here
        assert np.array_equal(run.attention(*arrays[:3])[0], arrays[2])
    else:
        assert agrees(_call, run, arrays, TOLERANCE)


@given(batches, positions, channels, runs, seeds)
def test_the_adjoint_is_the_derivative(n: int, s: int, c: int, run: Any, seed: int) -> None:
    assert is_gradient(_call, run, _arrays(seed, n, s, c), 1e-5, seed)


@given(batches, positions, channels, runs, seeds)
def test_manners(n: int, s: int, c: int, run: Any, seed: int) -> None:
    check_manners(_call, run, _arrays(seed, n, s, c))


@pytest.mark.parametrize(("n", "s", "c"), [(1, 256, 64), (2, 225, 32), (3, 64, 128), (1, 64, 48), (64, 16, 32)])
def test_images_and_rows_shared_by_threads_give_the_bits_of_one_thread(n: int, s: int, c: int) -> None:
    arrays = _arrays(1, n, s, c)
    one = results(_call, RUNS[1], arrays)
    assert agrees(_call, RUNS[1], arrays, TOLERANCE)
    for run in RUNS.values():
        assert all(np.array_equal(a, b) for a, b in zip(one, results(_call, run, arrays), strict=True))


def test_scores_of_any_size_do_not_overflow() -> None:
    """The largest score then takes all of P, and what moves q and k moves nothing."""
    q, k, v, dy = _arrays(2, 2, 21, 16)
    chosen = (q.astype(np.float64) @ k.astype(np.float64).swapaxes(1, 2)).argmax(axis=2)
    y, dq, dk, _ = results(_call, RUNS[2], [q * np.float32(1e10), k * np.float32(1e10), v, dy])
    assert np.array_equal(y, np.take_along_axis(v, chosen[:, :, None], axis=1))
    assert np.abs(dq).max() < 1e-20 and np.abs(dk).max() < 1e-20


def test_a_nan_spreads_to_every_position_that_sees_it() -> None:
    q, k, v, dy = _arrays(3, 2, 21, 16)
    k[0, 5, 3] = np.nan
    y, dq, dk, dv = results(_call, RUNS[1], [q, k, v, dy])
    assert all(np.isnan(a[0]).all() and not np.isnan(a[1]).any() for a in (y, dq, dk, dv))

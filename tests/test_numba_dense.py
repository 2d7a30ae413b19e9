"""The dense layer in Numba against NumPy's in float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba_checks import RUNS, agrees, check_manners, normals, results

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

# A sum of K products in one order, in float32: an error of at most K 2⁻²⁴ of the sum of their sizes, √K 2⁻²⁴ by chance.
TOLERANCE = 5e-6

seeds = st.integers(0, 2**32 - 1)
runs = st.sampled_from(list(RUNS.values()))
channels = st.one_of(st.integers(1, 70), st.sampled_from([16, 32, 48, 64, 96]))
rows = st.one_of(st.lists(st.integers(1, 7), max_size=3), st.integers(1, 600).map(lambda m: [m]))


def _call(run: Backend, arrays: list[Array]) -> Any:
    return run.dense(*arrays)


def _arrays(seed: int, shape: list[int], c: int, d: int) -> list[Array]:
    return normals(seed, (*shape, c), (c, d), (d,), (*shape, d))


@given(rows, channels, channels, runs, seeds)
def test_values_and_gradients_are_those_of_numpy(shape: list[int], c: int, d: int, run: Any, seed: int) -> None:
    assert agrees(_call, run, _arrays(seed, shape, c, d), TOLERANCE)


@given(rows, channels, channels, runs, seeds)
def test_the_adjoints_satisfy_their_identity(shape: list[int], c: int, d: int, run: Any, seed: int) -> None:
    """⟨x W, dy⟩ = ⟨x, dx⟩ = ⟨W, dW⟩ and ⟨b, db⟩ = ⟨1 b, dy⟩, all by the backend itself."""
    x, W, b, dy = _arrays(seed, shape, c, d)
    y, dx, dW, db = (a.astype(np.float64) for a in results(_call, run, [x, W, np.zeros_like(b), dy]))
    size = np.linalg.norm(x) * np.linalg.norm(W) * np.linalg.norm(dy) + 1
    assert abs(np.sum(y * dy) - np.sum(x * dx)) <= 1e-6 * size
    assert abs(np.sum(y * dy) - np.sum(W * dW)) <= 1e-6 * size
    assert abs(np.sum(b * db) - np.sum(b * dy)) <= 1e-6 * size


@given(rows, channels, channels, runs, seeds)
def test_manners(shape: list[int], c: int, d: int, run: Any, seed: int) -> None:
    check_manners(_call, run, _arrays(seed, shape, c, d))


@pytest.mark.parametrize(
    ("m", "c", "d"), [(8192, 16, 16), (2000, 48, 32), (8, 512, 256), (1, 512, 128), (700, 256, 96), (1030, 128, 144)]
)
def test_rows_and_channels_shared_by_threads_give_the_bits_of_one_thread(m: int, c: int, d: int) -> None:
    arrays = _arrays(1, [m], c, d)
    one = results(_call, RUNS[1], arrays)
    # Sums over up to 8192 rows of numbers of either sign.
    assert agrees(_call, RUNS[1], arrays, TOLERANCE * 2)
    for run in RUNS.values():
        assert all(np.array_equal(a, b) for a, b in zip(one, results(_call, run, arrays), strict=True))


def test_no_rows_at_all_are_numpys() -> None:
    y, dx, dW, db = results(_call, RUNS[2], _arrays(1, [0], 16, 32))
    assert y.shape == (0, 32) and dx.shape == (0, 16) and not dW.any() and not db.any()

"""Numba's dropout, up-sampling and concatenation and their adjoints: NumPy's bits, and nothing written outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend, launch, pointwise
from ddpm_ref_numba.simd import WIDTH

from ddpm_ref.checks import Array
from ddpm_ref.nn import ops

sides, widths = st.integers(0, 6), st.sampled_from([1, 3, WIDTH, WIDTH + 1, 2 * WIDTH, 48])
seeds, threads = st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3])
shapes = st.tuples(st.integers(0, 3), sides, sides, widths) | st.just((4, 17, 16, 32))


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(
        np.ascontiguousarray(found).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32)
    )


@given(shapes, st.sampled_from([0.0, 0.1, 0.5, 0.999]), seeds, threads)
def test_dropout_and_its_adjoint_have_numpys_bits(shape: tuple[int, ...], rate: float, seed: int, count: int) -> None:
    x, dy, u = draw(seed, *shape), draw(seed + 1, *shape), np.random.default_rng(seed).random(shape, np.float32)
    u.reshape(-1)[:3] = np.float32(rate)  # on the boundary: kept
    with launch.guard():
        y, backward = NumbaBackend(count).dropout(x, u, rate)
        expected, expected_backward = ops.dropout(x, u.copy(), rate)
        u[...] = 0  # the adjoint must not look at them again
        dx = backward(dy)
    same(y, expected)
    same(dx, expected_backward(dy))


def test_dropped_numbers_keep_numpys_sign_of_zero_and_nan() -> None:
    x, u = np.array([-1, 2, np.nan, np.inf, -0.0] * 4, np.float32), np.zeros(20, np.float32)
    with np.errstate(invalid="ignore"):
        expected, _ = ops.dropout(x, u, 0.5)
    y, _ = NumbaBackend(1).dropout(x, u, 0.5)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(expected[~np.isnan(y)]))


@given(shapes, seeds, threads)
def test_upsampling_and_its_adjoint_have_numpys_bits(shape: tuple[int, ...], seed: int, count: int) -> None:
    x = draw(seed, *shape)
    with launch.guard():
        y, backward = NumbaBackend(count).upsample(x)
        expected, expected_backward = ops.upsample(x)
        dy = draw(seed + 1, *expected.shape)
        dx = backward(dy)
    same(y, expected)
    same(dx, expected_backward(dy))


@given(shapes, widths, seeds, threads)
def test_concatenation_puts_b_behind_a_and_its_adjoint_takes_them_apart(
    shape: tuple[int, ...], d: int, seed: int, count: int
) -> None:
    a, b = draw(seed, *shape), draw(seed + 1, *shape[:-1], d)
    with launch.guard():
        y, backward = NumbaBackend(count).concat(a, b)
        da, db = backward(y)
    same(y, np.concatenate([a, b], axis=-1))
    same(da, a)
    same(db, b)
    assert da.flags.c_contiguous and db.flags.c_contiguous


def test_views_give_what_copies_give() -> None:
    x, u = draw(1, 3, 4, 5, 32).transpose(0, 2, 1, 3), draw(2, 3, 4, 5, 32).transpose(0, 2, 1, 3)
    run = NumbaBackend(2)
    for found, expected in [
        (run.dropout(x, u, 0.3), ops.dropout(x, u, 0.3)),
        (run.upsample(x), ops.upsample(x)),
        (run.concat(x, u), (np.concatenate([x, u], -1), lambda dy: np.split(dy, 2, -1))),
    ]:
        same(found[0], expected[0])
        dy = draw(3, *(found[0].shape[i] for i in (0, 2, 1, 3))).transpose(0, 2, 1, 3)
        parts = found[1](dy), expected[1](dy)
        for a, b in zip(*(p if isinstance(p, (tuple, list)) else [p] for p in parts), strict=True):
            same(a, b)


def test_float64_runs_numpys_bodies() -> None:
    x = draw(1, 2, 3, 3, 16).astype(np.float64)
    run = NumbaBackend(2)
    for y, backward in (run.dropout(x, x, 0.3), run.upsample(x), run.concat(x, x)):
        assert y.dtype == np.float64
        dx = backward(y)
        assert (dx[0] if isinstance(dx, tuple) else dx).shape == x.shape


def test_concatenation_of_different_pixels_is_refused() -> None:
    with pytest.raises(ValueError):
        NumbaBackend(1).concat(draw(1, 2, 3, 3, 16), draw(1, 2, 3, 4, 16))


def test_the_guard_finds_a_copy_of_one_pixel_too_many() -> None:
    a, b, y = draw(1, 4, 5), draw(2, 4, 3), np.zeros((4, 8), np.float32)
    with launch.guard(), pytest.raises(AssertionError, match="wrote outside"):
        pointwise.joined(1, a, b, y, 5, 5, 3)

"""The operations: values against naive references, adjoints against differences and inner products, manners."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.nn import ops

Op = Callable[..., tuple[Array, Callable[..., Any]]]

seeds = st.integers(0, 2**32 - 1)
batches = st.integers(1, 3)
sizes = st.integers(1, 7)
channels = st.integers(1, 5)


def normals(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[Array]:
    return [rng.standard_normal(shape) for shape in shapes]


def close(a: Array, b: Array, tolerance: float = 1e-12) -> bool:
    """Equal to rounding, measured against the largest element: sums of either sign may cancel in single ones."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerance * (1 + np.abs(b).max()))


def is_adjoint(Ax: Array, y: Array, x: Array, At_y: Array) -> bool:
    """⟨Ax, y⟩ = ⟨x, A*y⟩ to 1e-12 of what the two factors could make."""
    return bool(abs(np.sum(Ax * y) - np.sum(x * At_y)) <= 1e-12 * np.linalg.norm(Ax) * np.linalg.norm(y))


# ---- convolution


def same_padding(size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's rule: as many zeros as ⌈size / stride⌉ windows of 3 need, the odd one at the end."""
    total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


def naive_conv3x3(x: Array, W: Array, b: Array, stride: int) -> Array:
    """One output pixel at a time, one tap at a time; b: (N, D)."""
    (n, h, w, _), d = x.shape, W.shape[3]
    y = np.zeros((n, -(-h // stride), -(-w // stride), d))
    for k, p, q in np.ndindex(y.shape[:3]):
        y[k, p, q] = b[k]
        for i, j in np.ndindex(3, 3):
            row = stride * p + i - same_padding(h, stride)[0]
            column = stride * q + j - same_padding(w, stride)[0]
            if 0 <= row < h and 0 <= column < w:
                y[k, p, q] += x[k, row, column] @ W[i, j]
    return y


@pytest.mark.parametrize(
    ("stride", "size", "expected"),
    [(1, 1, (1, 1)), (1, 4, (1, 1)), (1, 5, (1, 1)), (2, 1, (1, 1)), (2, 5, (1, 1)), (2, 2, (0, 1)), (2, 8, (0, 1))],
)
def test_conv_pads_as_tensorflow_does_zero_one_where_stride_2_meets_an_even_size(
    stride: int, size: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, stride) == expected
    ones, taps = np.ones((1, size, size, 1)), np.zeros((3, 3, 1, 1))
    for tap, side in ((0, 0), (2, -1)):  # with the first or last tap alone, the border is 0 where it reads padding
        taps[:] = 0
        taps[tap, 1] = 1
        rows = ops.conv3x3(ones, taps, np.zeros(1), stride=stride)[0][0, :, 0, 0]
        columns = ops.conv3x3(ones, taps.swapaxes(0, 1), np.zeros(1), stride=stride)[0][0, 0, :, 0]
        assert rows[side] == columns[side] == (0 if expected[side] else 1)


@given(seeds, batches, sizes, sizes, channels, channels, st.sampled_from([1, 2]), st.booleans())
def test_conv_is_the_naive_loop_over_pixels_and_taps(
    seed: int, n: int, h: int, w: int, c: int, d: int, stride: int, per_image: bool
) -> None:
    bias = (n, d) if per_image else (d,)
    x, W, b = normals(np.random.default_rng(seed), (n, h, w, c), (3, 3, c, d), bias)
    y, _ = ops.conv3x3(x, W, b, stride=stride) if stride > 1 else ops.conv3x3(x, W, b)
    assert close(y, naive_conv3x3(x, W, np.broadcast_to(b, (n, d)), stride))


@given(seeds, batches, sizes, sizes, channels, channels, st.sampled_from([1, 2]), st.booleans())
def test_conv_backward_is_the_adjoint_in_x_in_W_and_in_b(
    seed: int, n: int, h: int, w: int, c: int, d: int, stride: int, per_image: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, W, b = normals(rng, (n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,))
    y, backward = ops.conv3x3(x, W, np.zeros_like(b), stride=stride)
    dy = rng.standard_normal(y.shape)
    dx, dW, db = backward(dy)
    bias_only, _ = ops.conv3x3(np.zeros_like(x), W, b, stride=stride)
    assert is_adjoint(y, dy, x, dx), "in x"
    assert is_adjoint(y, dy, W, dW), "in W"
    assert is_adjoint(bias_only, dy, b, db), "in b"


@given(seeds, batches, sizes, sizes, channels, channels, st.sampled_from([1, 2]), st.booleans())
def test_conv_gradients_are_central_differences(
    gradient_errors: Any, seed: int, n: int, h: int, w: int, c: int, d: int, stride: int, per_image: bool
) -> None:
    rng = np.random.default_rng(seed)
    args = normals(rng, (n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,))
    assert max(gradient_errors(partial(ops.conv3x3, stride=stride), args, rng)) < 1e-8


# ---- dense, upsample, dropout


@given(seeds, st.lists(sizes, min_size=1, max_size=3), channels, channels)
def test_dense_is_a_matrix_product_over_the_last_axis_and_its_adjoint(
    gradient_errors: Any, seed: int, leading: list[int], c: int, d: int
) -> None:
    rng = np.random.default_rng(seed)
    x, W, b = normals(rng, (*leading, c), (c, d), (d,))
    assert close(ops.dense(x, W, b)[0], np.einsum("...c,cd->...d", x, W) + b)
    y, backward = ops.dense(x, W, np.zeros(d))
    dy = rng.standard_normal(y.shape)
    dx, dW, db = backward(dy)
    assert is_adjoint(y, dy, x, dx) and is_adjoint(y, dy, W, dW)
    assert is_adjoint(np.broadcast_to(b, y.shape), dy, b, db)
    assert max(gradient_errors(ops.dense, [x, W, b], rng)) < 1e-8


@given(seeds, batches, sizes, sizes, channels)
def test_upsample_makes_every_pixel_a_square_and_its_adjoint_sums_the_square(
    gradient_errors: Any, seed: int, n: int, h: int, w: int, c: int
) -> None:
    rng = np.random.default_rng(seed)
    (x,) = normals(rng, (n, h, w, c))
    y, backward = ops.upsample(x)
    np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))
    dy = rng.standard_normal(y.shape)
    assert is_adjoint(y, dy, x, backward(dy))
    assert max(gradient_errors(ops.upsample, [x], rng)) < 1e-8


@given(seeds, batches, sizes, channels, st.floats(0, 0.9))
def test_dropout_zeroes_below_the_rate_and_scales_the_rest_and_is_self_adjoint(
    gradient_errors: Any, seed: int, n: int, h: int, c: int, rate: float
) -> None:
    rng = np.random.default_rng(seed)
    (x,) = normals(rng, (n, h, h, c))
    u = rng.random(x.shape, dtype=np.float32)
    y, backward = ops.dropout(x, u, rate)
    assert close(y, np.where(u < np.float32(rate), 0, x / (1 - rate)))
    dy = rng.standard_normal(y.shape)
    assert is_adjoint(y, dy, x, backward(dy))
    assert max(gradient_errors(lambda x: ops.dropout(x, u, rate), [x], rng)) < 1e-8


def test_dropout_keeps_a_uniform_equal_to_the_rate() -> None:
    u = np.array([0.0, 0.3, 0.30000004, 0.99999994], np.float32)  # neighbours in float32
    y, _ = ops.dropout(np.ones(4, np.float32), u, 0.3)
    assert list(y > 0) == [False, True, True, True]


# ---- SiLU and the logistic function


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_is_right_everywhere_and_silent_at_the_ends(dtype: type) -> None:
    x: Array = np.array([-1e4, -30, -1, 0, 1, 30, 1e4], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        s = ops.sigmoid(x)
    assert s.dtype == dtype
    assert s[0] == 0 and s[3] == 0.5 and s[-1] == 1
    rounding = float(np.finfo(s.dtype).eps)
    np.testing.assert_allclose(s[1:-1], 1 / (1 + np.exp(-x[1:-1].astype(np.float64))), rtol=8 * rounding)
    np.testing.assert_allclose(s, (1 + np.tanh(x / 2)) / 2, atol=rounding)


def test_silu_and_its_slope_have_their_limits_at_the_ends() -> None:
    y, backward = ops.silu(np.array([-1e4, 0.0, 1e4]))
    np.testing.assert_array_equal(y, [0, 0, 1e4])
    np.testing.assert_array_equal(backward(np.ones(3)), [0, 0.5, 1])


@given(seeds, batches, sizes)
def test_silu_is_x_times_sigmoid_and_its_gradient_a_central_difference(
    gradient_errors: Any, seed: int, n: int, c: int
) -> None:
    rng = np.random.default_rng(seed)
    x = 3 * rng.standard_normal((n, c))
    assert close(ops.silu(x)[0], x / (1 + np.exp(-x)))
    assert max(gradient_errors(ops.silu, [x], rng)) < 1e-8


# ---- group normalisation


def naive_group_norm(x: Array, gamma: Array, beta: Array, groups: int) -> Array:
    n, h, w, c = x.shape
    z = x.astype(np.float64).reshape(n, h, w, groups, c // groups)
    mean, var = z.mean(axis=(1, 2, 4), keepdims=True), z.var(axis=(1, 2, 4), keepdims=True)
    return ((z - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * gamma + beta


group_shapes = st.tuples(batches, sizes, sizes, st.integers(1, 3), st.integers(1, 3))


def group_norm_args(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[list[Array], int]:
    """x, γ, β and the number of groups: each group spread, so that none has a variance near ε, and no β near 0.

    The output of a group of one value is β alone, against which errors are measured."""
    n, h, w, groups, width = shape
    spread = np.tile(np.linspace(-2, 2, h * w * width), (n, groups, 1)) + 0.1 * rng.random((n, groups, h * w * width))
    x = rng.permuted(spread, axis=2).reshape(n, groups, h, w, width).transpose(0, 2, 3, 1, 4)
    c = groups * width
    return [x.reshape(n, h, w, c) + 0.5, 1 + rng.random(c), rng.choice([-1, 1], c) * (0.5 + rng.random(c))], groups


@given(seeds, group_shapes)
def test_group_norm_is_the_formula_and_fused_silu_is_silu_after_it(seed: int, shape: tuple[int, ...]) -> None:
    (x, gamma, beta), groups = group_norm_args(np.random.default_rng(seed), shape)
    expected = naive_group_norm(x, gamma, beta, groups)
    assert close(ops.group_norm(x, gamma, beta, groups)[0], expected)
    assert close(ops.group_norm(x, gamma, beta, groups, silu=True)[0], ops.silu(expected)[0])


@given(seeds, group_shapes, st.booleans())
def test_group_norm_gradients_are_central_differences(
    gradient_errors: Any, seed: int, shape: tuple[int, ...], silu: bool
) -> None:
    rng = np.random.default_rng(seed)
    args, groups = group_norm_args(rng, shape)
    errors = gradient_errors(lambda x, gamma, beta: ops.group_norm(x, gamma, beta, groups, silu=silu), args, rng)
    assert max(errors) < 1e-8, dict(zip(("x", "gamma", "beta"), errors, strict=True))


@given(seeds, batches, st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.floats(1, 100), st.floats(-50, 50))
def test_group_norm_gives_each_group_mean_0_and_variance_1_whatever_its_scale_and_shift(
    seed: int, n: int, h: int, groups: int, width: int, scale: float, shift: float
) -> None:
    (x, _, _), _ = group_norm_args(np.random.default_rng(seed), (n, h, h, groups, width))
    one, zero = np.ones(groups * width), np.zeros(groups * width)
    y, _ = ops.group_norm(x, one, zero, groups)
    by_group = y.reshape(n, h * h, groups, width)
    np.testing.assert_allclose(by_group.mean(axis=(1, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(by_group.var(axis=(1, 3)), 1, atol=2e-6)  # var / (var + ε), var > 1/2
    moved = x.copy()
    moved[..., -width:] = scale * moved[..., -width:] + shift  # the last group only
    np.testing.assert_allclose(ops.group_norm(moved, one, zero, groups)[0], y, atol=1e-5)


def test_group_norm_in_float32_keeps_its_accuracy_far_from_zero() -> None:
    """At mean 1e3 and deviation 1 the input itself is rounded to 6e-5. Values and gradients may lose ten times that:
    variance as E[x²] - E[x]² would lose everything, being off by 0.1 or negative."""
    rng = np.random.default_rng(0)
    x = (1e3 + rng.standard_normal((2, 16, 16, 8))).astype(np.float32)
    gamma, beta = (1 + rng.random(8)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, backward = ops.group_norm(x, gamma, beta, 4, silu=True)
    x_64, gamma_64, beta_64 = (a.astype(np.float64) for a in (x, gamma, beta))
    y_64, backward_64 = ops.group_norm(x_64, gamma_64, beta_64, 4, silu=True)
    np.testing.assert_allclose(y, y_64, atol=1e-3)
    for found, expected in zip(backward(dy), backward_64(dy.astype(np.float64)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


# ---- attention


@given(seeds, batches, st.integers(1, 9), channels)
def test_attention_is_softmax_of_scaled_scores_times_values(
    gradient_errors: Any, seed: int, n: int, s: int, c: int
) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = normals(rng, *[(n, s, c)] * 3)
    weights = np.exp(np.einsum("nsc,ntc->nst", q, k) / math.sqrt(c))
    expected = np.einsum("nst,ntc->nsc", weights / weights.sum(axis=2, keepdims=True), v)
    assert close(ops.attention(q, k, v)[0], expected)
    errors = gradient_errors(ops.attention, [q, k, v], rng)
    assert max(errors) < 1e-8, dict(zip("qkv", errors, strict=True))


@given(seeds, batches, st.integers(1, 9))
def test_attention_mixes_values_convexly_and_follows_a_permutation_of_positions(seed: int, n: int, s: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = normals(rng, *[(n, s, s)] * 3)
    P, _ = ops.attention(q, k, np.broadcast_to(np.eye(s), (n, s, s)))  # with the identity for values, the weights
    assert np.all(P >= 0)
    np.testing.assert_allclose(P.sum(axis=2), 1, rtol=1e-12)
    order = rng.permutation(s)
    assert close(ops.attention(q[:, order], k[:, order], v[:, order])[0], ops.attention(q, k, v)[0][:, order])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_takes_scores_of_ten_thousand_and_picks_the_largest(dtype: type) -> None:
    pairs: Array = np.array([[100, -100], [100, 50], [3, 7]], dtype)
    q, k, v = pairs[:, None, :, None]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, backward = ops.attention(q, k, v)
        gradients = backward(np.ones_like(y))
    np.testing.assert_array_equal(y, [[[3], [7]]])
    assert all(np.isfinite(g).all() for g in gradients)


# ---- dtypes


def test_every_result_has_the_dtype_of_the_inputs() -> None:
    rng = np.random.default_rng(0)
    x, W, b, M = (a.astype(np.float32) for a in normals(rng, (2, 4, 4, 4), (3, 3, 4, 4), (4,), (4, 4)))
    s = x.reshape(2, 16, 4)
    for name, (y, backward) in {
        "conv3x3": ops.conv3x3(x, W, b, stride=2),
        "dense": ops.dense(x, M, b),
        "silu": ops.silu(x),
        "group_norm": ops.group_norm(x, b, b, 2),
        "group_norm silu": ops.group_norm(x, b, b, 2, silu=True),
        "attention": ops.attention(s, s, s),
        "upsample": ops.upsample(x),
        "dropout": ops.dropout(x, rng.random(x.shape, dtype=np.float32), 0.3),
    }.items():
        gradients = backward(y)
        for a in (y, *(gradients if isinstance(gradients, tuple) else (gradients,))):
            assert a.dtype == np.float32, name


# ---- blocks of images


@given(seeds, st.sampled_from([1, 5000, 1 << 40]), st.sampled_from([1, 2]))
def test_results_do_not_depend_on_how_many_images_are_walked_at_a_time(seed: int, block: int, stride: int) -> None:
    rng = np.random.default_rng(seed)
    x, W, gamma, beta = normals(rng, (5, 6, 5, 4), (3, 3, 4, 4), (4,), (4,))
    operations: list[Op] = [
        lambda: ops.conv3x3(x, W, beta, stride=stride),
        lambda: ops.group_norm(x, gamma, beta, 2),
        lambda: ops.group_norm(x, gamma, beta, 2, silu=True),
    ]

    def everything() -> list[Array]:
        results = []
        for op in operations:
            y, backward = op()
            results += [y, *backward(np.cos(np.arange(y.size)).reshape(y.shape))]
        return results

    expected = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_BLOCK_BYTES", block)
        found = everything()
    assert all(close(a, b) for a, b in zip(found, expected, strict=True))

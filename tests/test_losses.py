"""Errors, weights and conversions: each loss of the paper with its gradient (Eqs. 8, 12, 14)."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from strategies import assert_gradient, batch_shapes, gradient_per_image, seeds, training_batch

from ddpm_ref import (
    PARAMETRISATIONS,
    Losses,
    Schedule,
    absolute_error,
    batch_mean,
    bound_weights,
    combine,
    huber_error,
    log_variance_weighted,
    mean_slope,
    reverse_variance,
    simple_loss,
    squared_error,
    weighted,
)

ERRORS = {"squared": squared_error, "l1": absolute_error, "huber": huber_error}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


# --- errors ----------------------------------------------------------------------------------------------------------


@given(batch_shapes, seeds)
def test_simple_loss_is_the_mean_over_all_elements_with_gradient_2r_over_their_number(shape: Any, seed: int) -> None:
    b = training_batch(seed, shape)
    loss, gradient = simple_loss(b.output, b.eps)
    assert type(loss) is float
    np.testing.assert_allclose(loss, ((b.eps - b.output) ** 2).sum() / b.eps.size, rtol=1e-14)
    np.testing.assert_allclose(gradient, 2 * (b.output - b.eps) / b.eps.size, rtol=1e-14)


@every_error
@given(shape=batch_shapes, seed=seeds)
def test_an_errors_gradient_is_that_of_its_value(error: Any, shape: Any, seed: int) -> None:
    b = training_batch(seed, shape)
    losses = error(b.output, b.eps)
    assert losses.per_image.shape == shape[:1]
    assert_gradient(losses.d_output, gradient_per_image(lambda y: error(y, b.eps).per_image, b.output))


def test_errors_are_means_over_each_image_of_r2_abs_r_and_the_huber_form() -> None:
    r = np.array([[0.0, 3.0], [-0.5, -2.0]])
    zero = np.zeros((2, 2))
    np.testing.assert_allclose(squared_error(r, zero).per_image, [4.5, 2.125])
    np.testing.assert_allclose(absolute_error(r, zero).per_image, [1.5, 1.25])
    np.testing.assert_allclose(huber_error(r, zero).per_image, [1.25, (0.125 + 1.5) / 2])
    np.testing.assert_allclose(absolute_error(r, zero).d_output, [[0, 0.5], [-0.5, -0.5]])
    np.testing.assert_allclose(huber_error(r, zero, delta=0.5).per_image, [0.5 * 2.75 / 2, (0.125 + 0.5 * 1.75) / 2])


@given(batch_shapes, seeds)
def test_huber_tends_to_half_the_square_for_large_delta_and_to_delta_abs_r_for_small(shape: Any, seed: int) -> None:
    b = training_batch(seed, shape)
    for delta, error, factor in [(1e3, squared_error, 0.5), (1e-6, absolute_error, 1e-6)]:
        got, limit = huber_error(b.output, b.eps, delta), error(b.output, b.eps)
        np.testing.assert_allclose(got.per_image, factor * limit.per_image, rtol=2e-5)
        np.testing.assert_allclose(got.d_output, factor * limit.d_output, rtol=1e-12)


@pytest.mark.parametrize("delta", [0, -1.0, float("nan")])
def test_huber_wants_a_positive_delta(delta: float) -> None:
    with pytest.raises(ValueError, match=f"delta: wanted a number > 0, got {delta}"):
        huber_error(np.zeros((2, 2)), np.zeros((2, 2)), delta)


@every_error
def test_errors_want_two_floating_arrays_of_one_shape(error: Any) -> None:
    with pytest.raises(ValueError, match=r"target: wanted the shape of output, \(3, 2\), got \(3, 1\)"):
        error(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="target: wanted a floating array"):
        error(np.zeros((3, 2)), np.zeros((3, 2), int))


# --- weights and conversions -----------------------------------------------------------------------------------------


def test_eq_12_is_eq_8_times_the_slope_squared_and_its_own_formula() -> None:
    s = Schedule.linear()
    for var in ("beta", "beta_tilde"):
        sigma2 = reverse_variance(s, var)[1:]
        eq_12 = s.beta[1:] ** 2 / (2 * sigma2 * s.alpha[1:] * (1 - s.alpha_bar[1:]))
        weights = {p: bound_weights(s, p, var) for p in PARAMETRISATIONS}
        np.testing.assert_allclose(weights["mu"][1:], 1 / (2 * sigma2), rtol=1e-15)
        np.testing.assert_allclose(weights["eps"][1:], eq_12, rtol=1e-12)
        for predicts in PARAMETRISATIONS:
            slope = mean_slope(s, np.arange(1, 1001), predicts)
            np.testing.assert_allclose(weights[predicts][1:], weights["mu"][1:] * slope**2, rtol=1e-12)
            assert weights[predicts].shape == (1001,) and weights[predicts][0] == 0


def test_the_papers_loss_weighs_small_t_less_than_the_bound_does() -> None:
    weights = bound_weights(Schedule.linear())
    assert weights[2] > 5 * weights[100] > 5 * weights[500]


def test_weighted_combine_and_batch_mean_act_on_value_and_gradient_alike() -> None:
    rng = np.random.default_rng(0)
    a, b = (Losses(rng.random(3), rng.random((3, 2, 2))) for _ in range(2))
    w = np.array([1.0, 0.5, 3.0])
    each = weighted(a, w)
    np.testing.assert_allclose(each.per_image, w * a.per_image)
    np.testing.assert_allclose(each.d_output, w[:, None, None] * a.d_output)
    np.testing.assert_allclose(weighted(a, 2.0).d_output, 2 * a.d_output)
    both = combine((2.0, a), (0.5, b))
    for got, x, y in zip(both, a, b, strict=True):
        np.testing.assert_allclose(got, 2 * x + 0.5 * y)
    loss, gradient = batch_mean(a)
    np.testing.assert_allclose(loss, a.per_image.sum() / 3)
    np.testing.assert_allclose(gradient, a.d_output / 3)


def test_log_variance_weighting_is_optimal_where_s_is_the_log_of_the_loss() -> None:
    losses = Losses(np.array([0.5, 2.0, 2.0]), np.ones((3, 2)))
    t = np.array([1, 4, 4])
    s = np.zeros(7)
    s[[1, 4]] = np.log([0.5, 2.0])
    scaled, d_s = log_variance_weighted(losses, s, t)
    np.testing.assert_allclose(d_s, 0, atol=1e-15)
    np.testing.assert_allclose(scaled.per_image, 1 + s[t])
    np.testing.assert_allclose(scaled.d_output[:, 0], [2, 0.5, 0.5])
    # Any s: the loss goes as ℓ e^{-s} + s.
    value = [log_variance_weighted(losses, s + d, t)[0].per_image for d in (-1e-4, 1e-4)]
    np.testing.assert_allclose((value[1] - value[0]) / 2e-4, d_s, atol=1e-7)


def test_log_variance_weighting_computes_in_float64_and_refuses_a_step_beyond_its_table() -> None:
    losses, s = Losses(np.array([0.5, 2.0]), np.ones((2, 3))), np.linspace(-1, 1, 7, dtype=np.float32)
    narrow, wide = (log_variance_weighted(losses, table, np.array([2, 6])) for table in (s, s.astype(np.float64)))
    np.testing.assert_array_equal(narrow[0].per_image, wide[0].per_image)
    np.testing.assert_array_equal(narrow[1], wide[1])
    for t in (0, 7):
        with pytest.raises(ValueError, match=rf"t: wanted steps in 1\.\.6, got {t}"):
            log_variance_weighted(losses, s, t)

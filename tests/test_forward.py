"""The forward process and its posterior: Eqs. 2, 4, 6, 7, 15 against each other and against Bayes' rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, expand, noised, schedule_of, schedules, seeds, short

from ddpm_ref import SCHEDULES, Schedule, predict_eps, predict_x_0, q_mean_var, q_posterior, q_sample, q_step
from ddpm_ref.checks import Array

ROUNDING = np.finfo(np.float64).eps
LINEAR = schedule_of(np.linspace(1e-4, 0.02, 1000))


def rng_normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def responses(schedule: Schedule, T: int) -> Array:
    """How x_0 … x_T each depend on (x_0, ε_1, …, ε_T), by Eq. 2 alone: rows of a (T+1, T+1) matrix."""
    units = np.eye(T + 1)
    rows = [units[0]]
    for t in range(1, T + 1):
        rows.append(q_step(schedule, rows[-1], t, units[t]))
    return np.array(rows)


# --- Eq. 4 from Eq. 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_t_single_steps_have_the_moments_of_one_jump(name: str) -> None:
    schedule = schedule_of(SCHEDULES[name](1000).beta[1:][::40])
    rows = responses(schedule, schedule.T)
    for t in range(1, schedule.T + 1):
        mean, var = q_mean_var(schedule, np.ones(1), t)
        np.testing.assert_allclose(rows[t, 0], mean[0], rtol=1e-13)
        np.testing.assert_allclose((rows[t, 1:] ** 2).sum(), var, rtol=1e-12)


@given(schedules, seeds)
def test_q_sample_is_q_step_t_times_with_the_composed_noise(schedule: Schedule, seed: int) -> None:
    x_0, *eps = rng_normal(seed, schedule.T + 1, 3, 2)
    rows = responses(schedule, schedule.T)
    x_t = x_0
    for t in range(1, schedule.T + 1):
        x_t = q_step(schedule, x_t, t, eps[t - 1])
        composed = np.tensordot(rows[t, 1:], eps, axes=1) / np.linalg.norm(rows[t, 1:])
        np.testing.assert_allclose(q_sample(schedule, x_0, t, composed), x_t, rtol=1e-12, atol=1e-13)


@given(noised())
def test_q_step_is_eq_2(case: Case) -> None:
    schedule, x_prev, t, eps = case
    beta = expand(schedule.beta, t, x_prev)
    expected = np.sqrt(1 - beta) * x_prev + np.sqrt(beta) * eps
    np.testing.assert_allclose(q_step(schedule, x_prev, t, eps), expected, rtol=1e-14, atol=1e-14)


@given(noised())
def test_q_sample_is_the_mean_plus_the_deviation_times_eps(case: Case) -> None:
    schedule, x_0, t, eps = case
    mean, var = q_mean_var(schedule, x_0, t)
    assert var.shape == (len(x_0),) + (1,) * (x_0.ndim - 1)
    np.testing.assert_allclose(q_sample(schedule, x_0, t, eps), mean + np.sqrt(var) * eps, rtol=1e-14, atol=1e-14)


def test_unit_variance_data_keep_unit_variance() -> None:
    abar = LINEAR.alpha_bar[1:]
    t = np.arange(1, 1001)
    signal, noise = (
        q_sample(LINEAR, x, t, e) for x, e in [(np.ones(1000), np.zeros(1000)), (np.zeros(1000), np.ones(1000))]
    )
    np.testing.assert_allclose(signal**2, abar, rtol=1e-13)
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-13)


# --- Eqs. 6 and 7 ----------------------------------------------------------------------------------------------------


@given(schedules, st.floats(-2, 2), st.floats(-3, 3))
def test_q_posterior_is_bayes_rule_on_the_joint_gaussian(schedule: Schedule, x_0: Any, x_t: Any) -> None:
    rows = responses(schedule, schedule.T)
    for t in range(1, schedule.T + 1):
        pair = rows[[t - 1, t]]
        mean, cov = pair[:, 0] * x_0, pair[:, 1:] @ pair[:, 1:].T
        gain = cov[0, 1] / cov[1, 1]
        got_mean, got_var = q_posterior(schedule, np.full(1, x_0), np.full(1, x_t), t)
        np.testing.assert_allclose(got_mean[0], mean[0] + gain * (x_t - mean[1]), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(got_var, cov[0, 0] - gain * cov[0, 1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_last_step_the_posterior_is_x_0_itself(dtype: Any) -> None:
    for schedule in (LINEAR, short(10), Schedule.jsd(1)):
        x_0, x_t = rng_normal(0, 2, 4, 3).astype(dtype)
        mean, var = q_posterior(schedule, x_0, x_t, 1)
        # c_0 = β_1 / (1 - ᾱ_1) is 1 up to the rounding of 1 - ᾱ_1.
        np.testing.assert_allclose(mean, x_0, rtol=np.finfo(dtype).eps + ROUNDING / schedule.beta[1])
        assert var == 0


@given(noised())
def test_the_posterior_of_x_t_averages_to_the_marginal_of_x_prev(case: Case) -> None:
    """With x_t ~ q(x_t | x_0): mean √ᾱ_{t-1} x_0 and variance 1 - ᾱ_{t-1}."""
    schedule, x_0, t, _ = case
    x_t, var_t = q_mean_var(schedule, x_0, t)
    mean, var = q_posterior(schedule, x_0, x_t, t)
    slope = q_posterior(schedule, np.zeros_like(x_0), np.ones_like(x_0), t)[0]
    abar_prev = expand(schedule.alpha_bar, t - 1, x_0)
    np.testing.assert_allclose(mean, np.sqrt(abar_prev) * x_0, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        np.broadcast_to(slope**2 * var_t + var, x_0.shape),
        np.broadcast_to(1 - abar_prev, x_0.shape),
        rtol=1e-11,
        atol=1e-14,
    )


# --- Eq. 4 inverted --------------------------------------------------------------------------------------------------


@given(noised())
def test_predict_x_0_inverts_q_sample(case: Case) -> None:
    schedule, x_0, t, eps = case
    x_t = q_sample(schedule, x_0, t, eps)
    # Rounding of x_t and of both products, divided by √ᾱ_t.
    bound = 8 * ROUNDING * (np.abs(x_t) + np.abs(x_0) + np.abs(eps)) / np.sqrt(expand(schedule.alpha_bar, t, x_0))
    assert (np.abs(predict_x_0(schedule, x_t, t, eps) - x_0) <= bound).all()


@given(noised())
def test_predict_eps_inverts_q_sample(case: Case) -> None:
    schedule, x_0, t, eps = case
    x_t = q_sample(schedule, x_0, t, eps)
    bound = 8 * ROUNDING * (np.abs(x_t) + np.abs(x_0) + np.abs(eps)) / np.sqrt(1 - expand(schedule.alpha_bar, t, x_0))
    assert (np.abs(predict_eps(schedule, x_t, t, x_0) - eps) <= bound).all()


def test_at_the_end_of_jsd_x_0_cannot_be_predicted_and_the_error_says_why() -> None:
    jsd = Schedule.jsd(10)
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"t = 10: alpha_bar_t = 0 in schedule 'jsd' \(beta_10 = 1\).*cannot give x_0"):
        predict_x_0(jsd, x, np.array([3, 10, 9]), x)
    assert np.isfinite(predict_x_0(jsd, x, 9, x)).all()
    np.testing.assert_array_equal(q_sample(jsd, x, 10, 7 * x), 7 * x)
    np.testing.assert_array_equal(predict_eps(jsd, 7 * x, 10, x), 7 * x)


# --- steps, dtypes, errors -------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "q_step": lambda s, x, t, y: q_step(s, x, t, y),
    "q_sample": lambda s, x, t, y: q_sample(s, x, t, y),
    "q_mean_var": lambda s, x, t, y: q_mean_var(s, x, t),
    "q_posterior": lambda s, x, t, y: q_posterior(s, x, y, t),
    "predict_x_0": lambda s, x, t, y: predict_x_0(s, x, t, y),
    "predict_eps": lambda s, x, t, y: predict_eps(s, x, t, y),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def results(value: Any) -> tuple[Array, ...]:
    return value if isinstance(value, tuple) else (value,)


@every_function
@given(case=noised())
def test_one_step_for_all_is_that_step_for_each(function: Callable[..., Any], case: Case) -> None:
    schedule, x, t, y = case
    step = int(t[0])
    for one, each in zip(
        results(function(schedule, x, step, y)), results(function(schedule, x, np.full(len(x), step), y)), strict=True
    ):
        np.testing.assert_array_equal(np.broadcast_to(one, x.shape), np.broadcast_to(each, x.shape))


@every_function
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("t", [1, np.int32(7), np.array([1, 500, 1000])])
def test_results_keep_the_dtype_and_inputs_stay_as_they_were(function: Callable[..., Any], dtype: Any, t: Any) -> None:
    x, y = rng_normal(1, 2, 3, 2, 2, 1).astype(dtype)
    before = x.copy(), y.copy()
    for result in results(function(LINEAR, x, t, y)):
        assert result.dtype == dtype
    assert (x == before[0]).all() and (y == before[1]).all()


@every_function
@pytest.mark.parametrize(
    ("t", "message"),
    [
        (0, r"t: wanted steps in 1\.\.1000, got 0\.\.0"),
        (1001, r"t: wanted steps in 1\.\.1000, got 1001\.\.1001"),
        (np.array([5, -1, 7]), r"t: wanted steps in 1\.\.1000, got -1\.\.7"),
        (1.0, r"t: wanted integers in 1\.\.1000, got dtype float64"),
        (True, "t: wanted integers .* got dtype bool"),
        (np.array([1, 2]), r"t: wanted one integer or shape \(3,\), got shape \(2,\)"),
        (np.array([5]), r"got shape \(1,\)"),
        (np.array([[1], [2], [3]]), r"got shape \(3, 1\)"),
    ],
)
def test_a_bad_step_is_an_error_that_says_what_came(function: Callable[..., Any], t: Any, message: str) -> None:
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match=message):
        function(LINEAR, x, t, x)


@every_function
@pytest.mark.parametrize(
    ("x", "came"),
    [
        (np.zeros((3, 2), np.uint8), "dtype uint8"),
        (np.zeros((3, 2), int), "dtype int64"),
        ([[0.0, 1.0]] * 3, "list"),
        (np.zeros((3, 2), complex), "dtype complex128"),
    ],
)
def test_unscaled_or_unarrayed_images_are_an_error(function: Callable[..., Any], x: Any, came: str) -> None:
    with pytest.raises(ValueError, match=rf"x\w+: wanted a floating array \(images in \[-1, 1\]\), got {came}"):
        function(LINEAR, x, 1, np.zeros((3, 2)))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "q_mean_var"])
def test_shapes_must_be_equal_not_just_broadcast(name: str) -> None:
    for other in (np.zeros((3, 1)), np.zeros((1, 2)), np.zeros(2), np.zeros((3, 2, 1))):
        with pytest.raises(ValueError, match=r"wanted the shape of x\w+, \(.*\), got \("):
            FUNCTIONS[name](LINEAR, np.zeros((3, 2)), 1, other)


def test_of_one_step_for_all_the_variance_is_one_number() -> None:
    x = np.ones((2, 3, 1))
    for one, each in zip(
        (q_mean_var(LINEAR, x, 7)[1], q_posterior(LINEAR, x, x, 7)[1]),
        (q_mean_var(LINEAR, x, np.array([7, 8]))[1], q_posterior(LINEAR, x, x, np.array([7, 8]))[1]),
        strict=True,
    ):
        assert np.shape(one) == () and np.shape(each) == (2, 1, 1)

"""The reverse process: parametrisations, variances, and Algorithm 2 (Eqs. 1, 7, 11, 15; §3.2)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, every_parametrisation, expand, noised, schedule_of, schedules

from ddpm_ref import (
    PARAMETRISATIONS,
    Schedule,
    mean_slope,
    mixed_variance,
    output_from_x_0,
    output_to_x_0,
    p_mean,
    p_mean_var,
    p_sample,
    predict_x_0,
    q_posterior,
    q_sample,
    reverse_variance,
    sample,
)
from ddpm_ref.checks import Array

LINEAR = schedule_of(np.linspace(1e-4, 0.02, 1000))


def rng_normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def outputs(schedule: Schedule, x_0: Any, t: Any, eps: Array) -> tuple[Array, dict[str, Array]]:
    """x_t, and what a network of each parametrisation should say of it, written out anew."""
    beta, alpha, abar, abar_prev = (
        expand(table, t - shift, x_0)
        for table, shift in [(schedule.beta, 0), (schedule.alpha, 0), (schedule.alpha_bar, 0), (schedule.alpha_bar, 1)]
    )
    x_t = q_sample(schedule, x_0, t, eps)
    mu = (np.sqrt(abar_prev) * beta * x_0 + np.sqrt(alpha) * (1 - abar_prev) * x_t) / (1 - abar)
    return x_t, {"eps": eps, "x_0": x_0, "mu": mu, "v": np.sqrt(abar) * eps - np.sqrt(1 - abar) * x_0}


# --- parametrisations ------------------------------------------------------------------------------------------------


@every_parametrisation
@given(case=noised())
def test_every_parametrisation_maps_to_x_0_and_to_every_other(predicts: str, case: Case) -> None:
    schedule, _, t, _ = case
    x_t, output = outputs(*case)
    x_0 = output_to_x_0(schedule, x_t, t, output[predicts], predicts)
    np.testing.assert_allclose(x_0, case[1], rtol=1e-9, atol=1e-9)
    for wanted in PARAMETRISATIONS:
        got = output_from_x_0(schedule, x_t, t, x_0, wanted)
        np.testing.assert_allclose(got, output[wanted], rtol=1e-8, atol=1e-8, err_msg=wanted)


@given(noised())
def test_v_is_the_rotation_of_x_0_and_eps(case: Case) -> None:
    """x_t = √ᾱ x_0 + √(1-ᾱ) ε and v = √ᾱ ε - √(1-ᾱ) x_0: together they keep the length."""
    x_t, output = outputs(*case)
    np.testing.assert_allclose(x_t**2 + output["v"] ** 2, case[1] ** 2 + case[3] ** 2, rtol=1e-12, atol=1e-12)


@given(noised())
def test_eq_11_is_eq_7_at_the_x_0_of_eq_15(case: Case) -> None:
    schedule, x_t, t, eps = case
    x_0 = predict_x_0(schedule, x_t, t, eps)
    mean = q_posterior(schedule, x_0, x_t, t)[0]
    np.testing.assert_allclose(p_mean(schedule, x_t, t, eps), mean, rtol=1e-11, atol=1e-11)


def test_eq_11_is_eq_7_at_the_x_0_of_eq_15_at_every_step_of_the_default_schedule() -> None:
    t = np.arange(1, 1001)
    x_t, eps = rng_normal(0, 2, 1000, 4)
    mean = q_posterior(LINEAR, predict_x_0(LINEAR, x_t, t, eps), x_t, t)[0]
    np.testing.assert_allclose(p_mean(LINEAR, x_t, t, eps), mean, rtol=1e-10, atol=1e-10)


@given(noised())
def test_p_mean_var_has_one_mean_for_outputs_that_say_the_same(case: Case) -> None:
    schedule, x_0, t, _ = case
    x_t, output = outputs(*case)
    for predicts in PARAMETRISATIONS:
        step = p_mean_var(schedule, x_t, t, output[predicts], predicts=predicts, var="beta")
        np.testing.assert_allclose(step.mean, output["mu"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(step.x_0_hat, x_0, rtol=1e-9, atol=1e-9)
        expected = expand(reverse_variance(schedule, "beta"), t, x_0)
        np.testing.assert_array_equal(step.var, expected)


@given(noised())
def test_a_predicted_eps_goes_through_eq_11_itself_and_a_predicted_mean_is_the_mean(case: Case) -> None:
    schedule, x_t, t, output = case
    eps, mu = (p_mean_var(schedule, x_t, t, output, predicts=predicts).mean for predicts in ("eps", "mu"))
    np.testing.assert_array_equal(eps, p_mean(schedule, x_t, t, output))
    np.testing.assert_array_equal(mu, output)


@given(noised())
def test_what_a_network_predicts_is_eps_unless_told(case: Case) -> None:
    schedule, x_t, t, output = case
    for function in (output_to_x_0, output_from_x_0):
        np.testing.assert_array_equal(
            function(schedule, x_t, t, output), function(schedule, x_t, t, output, predicts="eps")
        )
    np.testing.assert_array_equal(mean_slope(schedule, t), mean_slope(schedule, t, "eps"))


@every_parametrisation
@given(case=noised())
def test_clip_clips_x_0_and_takes_eq_7_at_it(predicts: str, case: Case) -> None:
    schedule, x_0, t, _ = case
    x_t, output = outputs(*case)
    step = p_mean_var(schedule, x_t, t, output[predicts], predicts=predicts, clip=True)
    clipped = np.clip(x_0, -1, 1)
    np.testing.assert_allclose(step.x_0_hat, clipped, rtol=1e-9, atol=1e-9)
    assert np.abs(step.x_0_hat).max() <= 1
    np.testing.assert_allclose(step.mean, q_posterior(schedule, clipped, x_t, t)[0], rtol=1e-9, atol=1e-9)


@every_parametrisation
@given(schedule=schedules)
def test_mean_slope_is_how_the_mean_moves_with_the_output(predicts: str, schedule: Schedule) -> None:
    t = np.arange(1, schedule.T + 1)
    x_t, output = rng_normal(1, 2, schedule.T)
    up, down = (p_mean_var(schedule, x_t, t, output + d, predicts=predicts).mean for d in (1, -1))
    slope = mean_slope(schedule, t, predicts)
    # The mean is affine in the output, so a wide difference is exact up to rounding.
    np.testing.assert_allclose(slope, (up - down) / 2, rtol=1e-9, atol=1e-9)
    assert slope.dtype == np.float64 and slope.shape == t.shape
    assert mean_slope(schedule, 1, predicts) == slope[0]


def test_a_mean_of_x_prev_cannot_give_x_0_where_alpha_bar_prev_is_0() -> None:
    schedule = schedule_of([0.5, 1.0, 0.5])
    x = np.ones((2, 1))
    with pytest.raises(ValueError, match=r"t: alpha_bar_\(t-1\) = 0 in schedule 'custom'"):
        output_to_x_0(schedule, x, np.array([1, 3]), x, "mu")
    assert np.isfinite(output_to_x_0(schedule, x, 2, x, "mu")).all()


# --- variances -------------------------------------------------------------------------------------------------------


def test_fixed_variances_are_the_tables_but_at_step_1_beta_tilde_2() -> None:
    for var, table in [("beta", LINEAR.beta), ("beta_tilde", LINEAR.beta_tilde)]:
        sigma2 = reverse_variance(LINEAR, var)
        np.testing.assert_array_equal(sigma2[2:], table[2:])
        assert sigma2[1] == LINEAR.beta_tilde[2] > 0
        assert sigma2.shape == (1001,) and sigma2.dtype == np.float64
    assert LINEAR.beta_tilde[1] == 0 and LINEAR.beta[1] == 1e-4


def test_with_two_steps_it_is_beta_tilde_2_and_a_float32_table_is_made_float64() -> None:
    two = schedule_of([0.3, 0.6])
    assert reverse_variance(two, "beta")[1] == two.beta_tilde[2] != two.beta[1]
    table = reverse_variance(two, np.array([0, 0.1, 0.2], np.float32))
    assert table.dtype == np.float64 and table[1] == np.float32(0.1)


def test_with_a_single_step_the_fixed_variance_is_beta_1() -> None:
    one = Schedule.jsd(1)
    assert reverse_variance(one, "beta")[1] == reverse_variance(one, "beta_tilde")[1] == 1


@given(schedules, st.floats(0, 1), st.booleans())
def test_mixed_variance_lies_between_its_ends_and_rises_with_the_weight(
    schedule: Schedule, weight: float, geometric: bool
) -> None:
    low, high = reverse_variance(schedule, "beta_tilde"), reverse_variance(schedule, "beta")
    np.testing.assert_allclose(mixed_variance(schedule, 0, geometric=geometric)[1:], low[1:], rtol=1e-14)
    np.testing.assert_allclose(mixed_variance(schedule, 1, geometric=geometric)[1:], high[1:], rtol=1e-14)
    a, b = (mixed_variance(schedule, w, geometric=geometric) for w in (weight / 2, weight))
    slack = 1 + 1e-14
    assert (low <= a * slack).all() and (a <= b * slack).all() and (b <= high * slack).all()
    np.testing.assert_array_equal(mixed_variance(schedule, weight), mixed_variance(schedule, weight, geometric=False))
    middle = (low * high) ** 0.5 if geometric else (low + high) / 2
    np.testing.assert_allclose(mixed_variance(schedule, 0.5, geometric=geometric), middle, rtol=1e-14)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_mixed_variance_wants_a_weight_in_0_1(weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight: wanted a number in \[0, 1\], got {weight}"):
        mixed_variance(LINEAR, weight)


def test_a_table_of_the_users_is_taken_as_it_is() -> None:
    table = np.linspace(0, 1, 1001)
    np.testing.assert_array_equal(reverse_variance(LINEAR, table), table)
    step = p_mean_var(LINEAR, np.zeros((2, 3)), np.array([1, 500]), np.zeros((2, 3)), var=table)
    np.testing.assert_allclose(step.var, [[0.001], [0.5]])


BAD_VARIANCES = [
    ("sigma", "var: wanted one of 'beta', 'beta_tilde', got 'sigma'"),
    (np.ones(1000), r"var: wanted a name or a table of T \+ 1 = 1001 values, got shape \(1000,\)"),
    (0.5, r"var: wanted a name or a table of T \+ 1 = 1001 values, got shape \(\)"),
    (np.r_[0, -1e-9, np.ones(999)], "var: wanted finite variances >= 0"),
    (np.r_[np.ones(1000), np.nan], "var: wanted finite variances >= 0"),
]


@pytest.mark.parametrize(("var", "message"), BAD_VARIANCES)
def test_a_bad_variance_is_an_error(var: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reverse_variance(LINEAR, var)


def test_learned_variances_are_the_exponentials_of_the_second_half_of_the_channels() -> None:
    x_t, prediction, log_var = rng_normal(3, 3, 2, 4, 4, 3)
    learned = p_mean_var(LINEAR, x_t, 500, np.concatenate([prediction, log_var], axis=-1), var="learned")
    fixed = p_mean_var(LINEAR, x_t, 500, prediction)
    np.testing.assert_array_equal(learned.mean, fixed.mean)
    np.testing.assert_array_equal(learned.x_0_hat, fixed.x_0_hat)
    np.testing.assert_array_equal(learned.var, np.exp(log_var))


def test_learned_variances_want_twice_the_channels() -> None:
    x_t = np.zeros((2, 4, 4, 3))
    with pytest.raises(
        ValueError, match=r'output: var="learned" wants twice the channels of x_t, got shape \(2, 4, 4, 3\)'
    ):
        p_mean_var(LINEAR, x_t, 500, x_t, var="learned")
    with pytest.raises(ValueError, match=r"wanted the shape of x_t"):
        p_mean_var(LINEAR, x_t, 500, np.zeros((2, 4, 4, 4)), var="learned")


# --- one reverse step ------------------------------------------------------------------------------------------------


@every_parametrisation
@given(case=noised(), temperature=st.floats(0, 2), var=st.sampled_from(["beta", "beta_tilde", "learned"]))
def test_p_sample_is_the_mean_plus_temperature_times_sigma_times_z(
    predicts: str, case: Case, temperature: float, var: str
) -> None:
    schedule, x_t, t, z = case
    output = x_t if var != "learned" else np.concatenate([x_t, z], axis=-1)
    step = p_mean_var(schedule, x_t, t, output, predicts=predicts, var=var)
    drawn, x_0 = p_sample(schedule, x_t, t, output, z, predicts=predicts, var=var, temperature=temperature)
    noise = temperature * np.sqrt(step.var) * z
    assert (np.abs(drawn - (step.mean + noise)) <= 1e-14 * (np.abs(step.mean) + np.abs(noise))).all()
    np.testing.assert_array_equal(x_0, step.x_0_hat)
    without, _ = p_sample(schedule, x_t, t, output, None, predicts=predicts, var=var, temperature=temperature)
    np.testing.assert_array_equal(without, step.mean)


@every_parametrisation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "var", ["beta", "beta_tilde", "learned", np.full(1001, 0.1)], ids=["beta", "beta_tilde", "learned", "table"]
)
@pytest.mark.parametrize("clip", [False, True])
def test_every_result_keeps_the_dtype(predicts: str, dtype: Any, var: Any, clip: bool) -> None:
    x, y, z = rng_normal(4, 3, 3, 2, 2, 1).astype(dtype)
    t = np.array([1, 500, 1000])
    wide = np.concatenate([y, z], axis=-1) if isinstance(var, str) and var == "learned" else y
    kind = dict(predicts=predicts, var=var, clip=clip)
    found = [
        p_mean(LINEAR, x, t, y),
        output_to_x_0(LINEAR, x, t, y, predicts),
        output_from_x_0(LINEAR, x, t, y, predicts),
        *p_mean_var(LINEAR, x, t, wide, **kind),
        *p_sample(LINEAR, x, 500, wide, z, temperature=0.5, **kind),
        sample(LINEAR, lambda x_t, t: wide, x, lambda t: z, **kind),
    ]
    found += p_sample(LINEAR, x, 500, wide, z.astype(np.float64), **kind)  # whatever z's is
    assert {a.dtype for a in found} == {np.dtype(dtype)}


CALLS: dict[str, Callable[..., Array]] = {
    "p_mean": lambda x, t, y: p_mean(LINEAR, x, t, y),
    "p_mean_var": lambda x, t, y: p_mean_var(LINEAR, x, t, y),
    **{f"output_to_x_0 {p}": lambda x, t, y, p=p: output_to_x_0(LINEAR, x, t, y, p) for p in PARAMETRISATIONS},
    **{f"output_from_x_0 {p}": lambda x, t, y, p=p: output_from_x_0(LINEAR, x, t, y, p) for p in ("eps", "mu", "v")},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bad_steps_shapes_and_dtypes_are_errors(call: Callable[..., Any]) -> None:
    x = np.zeros((3, 2))
    for t, message in [
        (0, r"t: wanted steps in 1\.\.1000, got 0"),
        (1001, "got 1001"),
        (2.0, "got dtype float64"),
        (np.array([1, 2]), r"shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(x, t, x)
    with pytest.raises(ValueError, match="wanted the shape of x_t"):
        call(x, 1, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="x_t: wanted a floating array"):
        call(x.astype(int), 1, x)


def test_x_0_as_its_own_target_must_have_the_shape_of_x_t() -> None:
    with pytest.raises(ValueError, match=r"x_0: wanted the shape of x_t, \(3, 2\), got \(3, 1\)"):
        output_from_x_0(LINEAR, np.zeros((3, 2)), 1, np.zeros((3, 1)), "x_0")


@pytest.mark.parametrize(
    "function", [output_to_x_0, output_from_x_0, p_mean_var, lambda s, x, t, y, predicts: mean_slope(s, t, predicts)]
)
def test_an_unknown_parametrisation_is_an_error_that_lists_them(function: Callable[..., Any]) -> None:
    x = np.zeros((3, 2))
    with pytest.raises(ValueError, match="predicts: wanted one of 'eps', 'x_0', 'mu', 'v', got 'noise'"):
        function(LINEAR, x, 1, x, predicts="noise")


@pytest.mark.parametrize("t", [0, -1, 1001, np.array([1, 0])])
def test_the_mean_has_no_slope_outside_the_chain(t):
    with pytest.raises(ValueError, match=r"t: wanted steps in 1\.\.1000"):
        mean_slope(LINEAR, t)

"""Algorithm 2: what it asks for, what it yields, and exactly what it draws under a linear ε-model."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from strategies import schedule_of, short

from ddpm_ref import PARAMETRISATIONS, Schedule, p_mean_var, p_sample, sample, sample_steps
from ddpm_ref.checks import Array

LINEAR = schedule_of(np.linspace(1e-4, 0.02, 1000))
TEN = short(10)


def rng_normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def halving(x_t: Any, t: Any) -> Array:
    return 0.5 * np.tanh(x_t)


def z_of(t: Any) -> Array:
    assert t > 1, "noise was asked for at t = 1, where z = 0"
    return rng_normal(t, 2, 3)


def never(*args: Any) -> Array:
    raise AssertionError("called before the arguments were checked")


X_T = rng_normal(0, 2, 3)


# --- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
@pytest.mark.parametrize("var", ["beta", "beta_tilde", np.linspace(0, 0.5, 11)], ids=["beta", "beta_tilde", "table"])
def test_sample_steps_is_algorithm_2_line_by_line(predicts: str, var: Any) -> None:
    x_t, steps = (
        X_T,
        list(sample_steps(TEN, halving, X_T, z_of, predicts=predicts, var=var, clip=True, temperature=0.7)),
    )
    assert [t for t, _, _ in steps] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    for t, got_x_t, got_x_0 in steps[:-1]:
        np.testing.assert_array_equal(got_x_t, x_t)
        step = p_mean_var(TEN, x_t, t, halving(x_t, t), predicts=predicts, var=var, clip=True)
        np.testing.assert_array_equal(got_x_0, step.x_0_hat)
        x_t = step.mean + (0.7 * np.sqrt(step.var) * z_of(t) if t > 1 else 0)
    np.testing.assert_allclose(steps[-1][1], x_t, rtol=1e-14)
    np.testing.assert_array_equal(steps[-1][1], steps[-1][2])


@pytest.mark.parametrize(
    "kind", [{}, {"var": "beta_tilde"}, {"clip": True}, {"predicts": "v"}, {"temperature": 0.3}], ids=str
)
def test_sample_is_the_last_of_the_steps(kind: Any) -> None:
    *_, (t, last, x_0) = sample_steps(TEN, halving, X_T, z_of, **kind)
    assert t == 0
    np.testing.assert_array_equal(sample(TEN, halving, X_T, z_of, **kind), last)
    np.testing.assert_array_equal(x_0, last)


def test_every_yields_the_multiples_the_first_and_the_sample() -> None:
    def at(**kind: Any) -> dict[int, tuple[Array, Array]]:
        return {t: (x_t, x_0) for t, x_t, x_0 in sample_steps(TEN, halving, X_T, z_of, **kind)}

    full = at()
    for every, wanted in [
        (1, range(10, -1, -1)),
        (3, [10, 9, 6, 3, 0]),
        (4, [10, 8, 4, 0]),
        (10, [10, 0]),
        (99, [10, 0]),
    ]:
        some = at(every=every)
        assert list(some) == list(wanted)
        for t in some:
            np.testing.assert_array_equal(some[t], full[t])


def test_start_goes_on_from_a_later_step() -> None:
    steps = list(sample_steps(TEN, halving, X_T, z_of))
    x_6 = dict((t, x_t) for t, x_t, _ in steps)[6]
    again = list(sample_steps(TEN, halving, x_6, z_of, start=6))
    assert [t for t, _, _ in again] == [6, 5, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(again[-1][1], steps[-1][1])


def test_the_model_is_asked_once_a_step_with_an_integer_and_noise_for_all_but_the_last() -> None:
    asked, drawn = [], []

    def model(x_t: Any, t: Any) -> Array:
        asked.append(t)
        return halving(x_t, t)

    def noise(t: Any) -> Array:
        drawn.append(t)
        return z_of(t)

    sample(TEN, model, X_T, noise)
    assert asked == list(range(10, 0, -1)) and all(type(t) is int for t in asked)
    assert drawn == list(range(10, 1, -1)) and all(type(t) is int for t in drawn)


def test_x_T_is_not_modified() -> None:
    x_T = X_T.copy()
    sample(TEN, halving, x_T, z_of)
    np.testing.assert_array_equal(x_T, X_T)


def test_temperature_0_is_z_0() -> None:
    cold = sample(TEN, halving, X_T, z_of, temperature=0)
    np.testing.assert_array_equal(cold, sample(TEN, halving, X_T, lambda t: np.zeros_like(X_T)))
    x_t = X_T
    for t in range(10, 0, -1):
        x_t = p_mean_var(TEN, x_t, t, halving(x_t, t)).mean
    np.testing.assert_array_equal(cold, x_t)


def test_temperature_scales_the_noise_linearly_and_leaves_x_T() -> None:
    def drawn(temperature: float) -> Array:
        return sample(TEN, lambda x_t, t: 0.3 * x_t, X_T, z_of, temperature=temperature)

    np.testing.assert_allclose(drawn(0.5), (drawn(0) + drawn(1)) / 2, rtol=1e-12)
    np.testing.assert_allclose(drawn(3) - drawn(0), 3 * (drawn(1) - drawn(0)), rtol=1e-11)
    assert np.abs(drawn(1) - drawn(0)).min() > 0.01


# --- exactly what it draws -------------------------------------------------------------------------------------------


def gaussian_model(schedule: Schedule, S: float) -> Callable[[Array, int], Array]:
    """The exact ε of x_0 ~ N(0, S): √(1 - ᾱ_t) x_t / S_t with S_t = ᾱ_t S + 1 - ᾱ_t."""
    abar = schedule.alpha_bar
    return lambda x_t, t: np.sqrt(1 - abar[t]) / (abar[t] * S + 1 - abar[t]) * x_t


def reach(schedule: Schedule, S: float, var: Any) -> Array:
    """How x_0 depends on x_T (entry 0) and on each z_t (entry t), with unit vectors as noise."""
    units = np.eye(schedule.T + 1)
    return sample(schedule, gaussian_model(schedule, S), units[0].copy(), lambda t: units[t], var=var)


@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
@pytest.mark.parametrize("S", [1.0, 0.25])
def test_each_z_t_reaches_x_0_through_the_means_of_the_steps_after_it(S: float, var: Any) -> None:
    """E[x_{t-1} | x_t] = √α_t S_{t-1} / S_t x_t for x_0 ~ N(0, S), so z_t reaches x_0 as σ_t ∏_{s<t} of these."""
    St = LINEAR.alpha_bar * S + 1 - LINEAR.alpha_bar
    through = np.cumprod(np.r_[1, np.sqrt(LINEAR.alpha[1:]) * St[:-1] / St[1:]])
    sigma = np.sqrt(LINEAR.beta if var == "beta" else LINEAR.beta_tilde)
    expected = np.r_[through[1000], 0, sigma[2:] * through[1:-1]]
    np.testing.assert_allclose(reach(LINEAR, S, var), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("S", "var", "final"),
    [(1.0, "beta", 0.99990), (1.0, "beta_tilde", 0.99107), (0.25, "beta", 0.25075), (0.25, "beta_tilde", 0.24613)],
)
def test_samples_end_with_the_variance_of_the_closed_recursion(S: float, var: Any, final: float) -> None:
    St = LINEAR.alpha_bar * S + 1 - LINEAR.alpha_bar
    sigma2 = LINEAR.beta if var == "beta" else LINEAR.beta_tilde
    v = 1.0
    for t in range(1000, 0, -1):
        v = LINEAR.alpha[t] * (St[t - 1] / St[t]) ** 2 * v + (sigma2[t] if t > 1 else 0)
    got = (reach(LINEAR, S, var) ** 2).sum()
    np.testing.assert_allclose(got, v, rtol=1e-10)
    assert f"{got:.5f}" == f"{final:.5f}"


@pytest.mark.parametrize(("S", "final"), [(1.0, 1.0), (0.25, 0.25085)])
def test_p_itself_with_beta_1_at_the_last_step_ends_with_the_papers_variance(S: float, final: float) -> None:
    assert f"{(reach(LINEAR, S, 'beta') ** 2).sum() + LINEAR.beta[1]:.5f}" == f"{final:.5f}"


def test_for_unit_gaussian_data_beta_is_the_true_reverse_variance() -> None:
    """With σ_t² = β_t every marginal of the sampler is N(0, I): q's own reverse (§3.2)."""
    units = np.eye(1001)
    model = gaussian_model(LINEAR, 1.0)
    for t, x_t, _ in sample_steps(LINEAR, model, units[0].copy(), lambda t: units[t], every=100):
        if t:
            np.testing.assert_allclose((x_t**2).sum(), 1, rtol=1e-12)


def test_for_data_fixed_to_one_point_beta_tilde_is_the_true_reverse_variance() -> None:
    """With σ_t² = β̃_t every marginal of the sampler is q(x_t | x_0): variance 1 - ᾱ_t (§3.2)."""
    units = np.eye(1001)
    x_0 = np.zeros(1001)
    # Entry 0 starts with the variance that x_T has, 1 - ᾱ_T.
    x_T = np.sqrt(1 - LINEAR.alpha_bar[-1]) * units[0]
    for t, x_t, _ in sample_steps(
        LINEAR, lambda x_t, t: x_0, x_T, lambda t: units[t], predicts="x_0", var="beta_tilde", every=100
    ):
        np.testing.assert_allclose((x_t**2).sum(), 1 - LINEAR.alpha_bar[t], rtol=1e-9, atol=1e-25)


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), -1.0])
def test_a_temperature_that_is_none_is_an_error(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature: wanted a finite number >= 0, got {temperature}"):
        sample_steps(TEN, lambda x_t, t: x_t, X_T, lambda t: X_T, temperature=temperature)


def test_a_first_step_that_leaves_only_noise_is_found_before_the_model_is_called() -> None:
    with pytest.raises(ValueError, match="t = 1: alpha_bar_t = 0"):
        sample_steps(Schedule.jsd(1), lambda x_t, t: x_t, X_T, lambda t: X_T)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"predicts": "noise"}, "predicts: wanted one of 'eps', 'x_0', 'mu', 'v', got 'noise'"),
        ({"var": "sigma"}, "var: wanted one of 'beta', 'beta_tilde', got 'sigma'"),
        ({"var": np.ones(10)}, r"var: wanted a name or a table of T \+ 1 = 11 values, got shape \(10,\)"),
        ({"var": np.full(11, -1.0)}, "var: wanted finite variances >= 0"),
        ({"start": 0}, r"start: wanted an integer in 1\.\.10, got 0"),
        ({"start": 11}, r"start: wanted an integer in 1\.\.10, got 11"),
        ({"start": 5.0}, r"start: wanted an integer in 1\.\.10, got 5\.0"),
        ({"every": 0}, "every: wanted an integer >= 1, got 0"),
        ({"x_T": np.ones((2, 3), int)}, "x_T: wanted a floating array"),
        ({"x_T": [[1.0]]}, "x_T: wanted a floating array .*got list"),
        ({"schedule": Schedule.jsd(10)}, r"t = 10: alpha_bar_t = 0 in schedule 'jsd'"),
    ],
)
def test_bad_arguments_are_errors_before_the_model_is_called(bad: Any, message: str) -> None:
    arguments = {"schedule": TEN, "model": never, "x_T": X_T, "noise": never} | bad
    with pytest.raises(ValueError, match=message):
        sample_steps(**arguments)  # not even started
    if not {"start", "every"} & set(bad):
        with pytest.raises(ValueError, match=message):
            sample(**arguments)


def test_jsd_is_sampled_with_other_parametrisations_or_from_a_later_start() -> None:
    jsd = Schedule.jsd(10)
    for predicts in ("x_0", "mu", "v"):
        assert np.isfinite(sample(jsd, halving, X_T, z_of, predicts=predicts)).all()
    *_, (_, x_0, _) = sample_steps(jsd, halving, X_T, z_of, start=9)
    assert np.isfinite(x_0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_an_error(bad: Any) -> None:
    def model(x_t: Any, t: Any) -> Array:
        return np.where(np.arange(3) == 1, bad, x_t) if t == 1 else x_t

    with pytest.raises(ValueError, match=r"sample: 2 of 6 values are NaN or infinite, first at \(0, 1\)"):
        sample(TEN, model, X_T, z_of)


def test_noise_or_output_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"z: wanted the shape of x_t, \(2, 3\), got \(3,\)"):
        sample(TEN, halving, X_T, lambda t: np.zeros(3))
    with pytest.raises(ValueError, match=r"eps: wanted the shape of x_t, \(2, 3\), got \(2, 1\)"):
        sample(TEN, lambda x_t, t: x_t[:, :1], X_T, z_of)


def test_the_steps_of_a_sampler_are_p_samples() -> None:
    steps = list(sample_steps(TEN, halving, X_T, z_of))
    for (t, x_t, _), (_, x_prev, _) in pairwise(steps):
        expected, _ = p_sample(TEN, x_t, t, halving(x_t, t), z_of(t) if t > 1 else None)
        np.testing.assert_array_equal(x_prev, expected)

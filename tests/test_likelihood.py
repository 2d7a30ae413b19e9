"""The bound term by term: L_T, L_{t-1}, L_0, rate and distortion (Eqs. 3, 5; §4.3)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import SIX, short

from ddpm_ref import (
    PARAMETRISATIONS,
    SCHEDULES,
    BoundTerms,
    Schedule,
    bits_per_dim,
    bound_term,
    bound_terms,
    prior_kl,
    q_mean_var,
    q_sample,
)
from ddpm_ref.checks import Array
from ddpm_ref.gaussian import normal_kl


def data(seed: int, *shape: int, levels: int = 17) -> Array:
    return 2 * np.random.default_rng(seed).integers(0, levels, shape) / (levels - 1) - 1


def noise_like(x: Any, seed: int = 0) -> Callable[[int], Array]:
    return lambda t: np.random.default_rng([seed, t]).standard_normal(x.shape).astype(x.dtype)


def model(x_t: Any, t: Any) -> Array:
    return 0.8 * x_t - 0.01 * t


# --- KL and L_T ------------------------------------------------------------------------------------------------------


@given(st.floats(-3, 3), st.floats(0.01, 5), st.floats(-3, 3), st.floats(0.01, 5))
def test_normal_kl_is_the_mean_of_the_log_ratio(mean_1: float, var_1: float, mean_2: float, var_2: float) -> None:
    """By Gauss-Hermite quadrature, exact for the log ratio of two Gaussians."""
    u, weight = np.polynomial.hermite_e.hermegauss(5)
    x = mean_1 + np.sqrt(var_1) * u
    log_ratio = stats.norm.logpdf(x, mean_1, np.sqrt(var_1)) - stats.norm.logpdf(x, mean_2, np.sqrt(var_2))
    expected = (weight * log_ratio).sum() / weight.sum()
    np.testing.assert_allclose(normal_kl(mean_1, var_1, mean_2, var_2), expected, rtol=1e-9, atol=1e-12)
    assert normal_kl(mean_1, var_1, mean_1, var_1) == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_kl_is_the_kl_of_q_x_T_to_the_standard_normal(name: str) -> None:
    schedule = SCHEDULES[name]()
    x_0 = data(1, 3, 2, 2, 1)
    mean, var = q_mean_var(schedule, x_0, schedule.T)
    expected = normal_kl(mean, var, 0.0, 1.0).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(prior_kl(schedule, x_0), expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("x_0_squared", [0.0, 0.25, 1.0])
def test_prior_kl_in_bits_is_the_schedules_prior_gap(x_0_squared: float) -> None:
    s = Schedule.linear()
    gap = bits_per_dim(prior_kl(s, np.full((2, 3), np.sqrt(x_0_squared))))
    np.testing.assert_allclose(gap, s.prior_gap(x_0_squared), rtol=1e-12)


# --- the terms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
@pytest.mark.parametrize(
    "kind",
    [{}, {"var": "beta_tilde"}, {"clip": True}, {"var": SIX.beta + 0.1}],
    ids=["beta", "beta_tilde", "clip", "table"],
)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_row_s_is_the_papers_L_s(predicts: str, kind: Any, levels: int) -> None:
    x_0 = data(levels, 3, 2, 2, 1, levels=levels)
    noise = noise_like(x_0)
    L = bound_terms(SIX, model, x_0, noise, levels=levels, predicts=predicts, **kind).L
    assert L.shape == (7, 3)
    for t in range(1, 7):
        x_t = q_sample(SIX, x_0, t, noise(t))
        term = bound_term(SIX, x_0, x_t, t, model(x_t, t), levels=levels, predicts=predicts, **kind)
        np.testing.assert_array_equal(L[t - 1], term.per_image)
    np.testing.assert_array_equal(L[6], prior_kl(SIX, x_0))


def test_learned_variances_go_through() -> None:
    x_0 = data(2, 2, 3, 1)

    def answer(x_t: Any, t: Any) -> Array:
        return np.concatenate([x_t, np.full_like(x_t, -1)], axis=-1)

    learned = bound_terms(SIX, answer, x_0, noise_like(x_0), levels=17, var="learned")
    fixed = bound_terms(SIX, lambda x_t, t: x_t, x_0, noise_like(x_0), levels=17, var=np.full(7, np.exp(-1)))
    np.testing.assert_allclose(learned.L, fixed.L, rtol=1e-12)


def test_rate_and_distortion_make_the_total() -> None:
    terms = BoundTerms(np.random.default_rng(0).random((7, 3)))
    np.testing.assert_array_equal(terms.distortion, terms.L[0])
    np.testing.assert_allclose(terms.rate, terms.L[1:].sum(axis=0), rtol=1e-15)
    np.testing.assert_allclose(terms.rate + terms.distortion, terms.total, rtol=1e-15)
    assert terms.total.shape == terms.rate.shape == terms.distortion.shape == (3,)


def test_of_a_perfect_model_only_the_decoder_and_the_prior_cost() -> None:
    """ε known and σ² = β̃: every KL is 0."""
    x_0 = data(3, 2, 4)
    noise = noise_like(x_0)
    terms = bound_terms(SIX, lambda x_t, t: noise(t), x_0, noise, levels=17, var="beta_tilde")
    np.testing.assert_allclose(terms.L[1:6], 0, atol=1e-13)
    np.testing.assert_allclose(terms.rate, prior_kl(SIX, x_0), atol=1e-12)
    assert (terms.distortion > 0).all()


def test_each_image_has_its_own_terms_whatever_its_batch() -> None:
    x_0 = data(4, 3, 2, 2)
    noise = noise_like(x_0)
    together = bound_terms(SIX, model, x_0, noise, levels=17).L
    for n in range(3):

        def its_noise(t: int, n: int = n) -> Array:
            return noise(t)[n : n + 1]

        alone = bound_terms(SIX, model, x_0[n : n + 1], its_noise, levels=17).L
        np.testing.assert_array_equal(alone[:, 0], together[:, n])


def test_terms_are_float64_while_the_model_sees_the_datas_dtype() -> None:
    x_0 = data(5, 2, 50, levels=18).astype(np.float32)
    seen = []

    def spy(x_t: Any, t: Any) -> Array:
        seen.append((x_t.dtype, t))
        return model(x_t, np.float32(t))

    terms = bound_terms(short(5), spy, x_0, noise_like(x_0), levels=18)
    assert terms.L.dtype == prior_kl(SIX, x_0).dtype == np.float64
    assert seen == [(np.float32, t) for t in range(1, 6)]
    wide = x_0.astype(np.float64)
    exact = bound_terms(short(5), model, wide, noise_like(x_0), levels=18)
    np.testing.assert_allclose(terms.L, exact.L, rtol=1e-4)
    np.testing.assert_array_equal(terms.L[-1], prior_kl(short(5), wide))


def test_bits_per_dim_are_nats_over_log_2() -> None:
    assert bits_per_dim(np.log(2)) == 1
    np.testing.assert_allclose(bits_per_dim(np.array([0, np.log(256)])), [0, 8])


# --- errors ----------------------------------------------------------------------------------------------------------


def never(*args: Any) -> Array:
    raise AssertionError("called before the data were checked")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_are_not_finite_are_an_error(bad: Any) -> None:
    x_0 = np.zeros((2, 3))
    x_0[1, 2] = bad
    with pytest.raises(ValueError, match=r"x_0: 1 of 6 values are NaN or infinite, first at \(1, 2\)"):
        bound_terms(SIX, never, x_0, never, levels=17)


def test_one_grey_level_is_an_error_at_any_step() -> None:
    x_0 = data(7, 2, 3)
    for t in (1, 4, np.array([1, 4])):
        with pytest.raises(ValueError, match="levels: wanted an integer >= 2, got 1"):
            bound_term(SIX, x_0, x_0, t, x_0, levels=1)
        assert np.isfinite(bound_term(SIX, x_0, x_0, t, x_0, levels=2).per_image).all()


def test_integer_data_are_an_error() -> None:
    for refused in (
        lambda x: bound_terms(SIX, never, x, never, levels=256),
        lambda x: prior_kl(SIX, x),
    ):
        with pytest.raises(ValueError, match=r"x_0: wanted a floating array .* got dtype uint8"):
            refused(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"levels": 1}, "levels: wanted an integer >= 2"),
        ({"predicts": "noise"}, "predicts: wanted one of"),
        ({"var": "sigma"}, "var: wanted one of"),
        ({"var": np.zeros(7)}, r"var: the bound wants every sigma_t\^2 > 0"),
    ],
)
def test_bad_arguments_are_errors(bad: Any, message: str) -> None:
    x_0 = data(6, 2, 3)
    with pytest.raises(ValueError, match=message):
        bound_terms(SIX, model, x_0, noise_like(x_0), **{"levels": 17} | bad)

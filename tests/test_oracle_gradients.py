"""The objective at the oracle given x_t: its gradient vanishes, and nothing lowers it.

Expectations over x_0 given x_t are exact, by Bayes' rule: the posterior of a mixture in one dimension is a mixture,
and over each of its components five Gauss-Hermite nodes give every quadratic its mean.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats
from strategies import SIX, every_parametrisation, every_variance, every_weight, long, seeds

from ddpm_ref import (
    Losses,
    MixtureOracle,
    Objective,
    Oracle,
    Schedule,
    bound_term,
    bound_weights,
    mean_slope,
    output_from_x_0,
    squared_error,
)
from ddpm_ref.checks import Array
from ddpm_ref.forward import posterior_coefficients

# --- mixtures in one dimension, given x_t ----------------------------------------------------------------------------


class Mixture(NamedTuple):
    """Σ_k w_k N(m_k, v_k) in one dimension."""

    weights: Array
    means: Array
    variances: Array

    def oracle(self, schedule: Schedule) -> MixtureOracle:
        return MixtureOracle(self.weights, self.means[:, None], self.variances, schedule)

    def posterior(self, schedule: Schedule, t: int, x_t: Any) -> "Mixture":
        """p(x_0 | x_t) by Bayes' rule: 1/v' = 1/v + ᾱ/(1 - ᾱ), m' = v' (m/v + √ᾱ x_t/(1 - ᾱ)), w' ∝ w q_k(x_t).

        x_t: one number, or (G, 1) of them for G posteriors at once.
        """
        abar = schedule.alpha_bar[t]
        variances = 1 / (1 / self.variances + abar / (1 - abar))
        means = variances * (self.means / self.variances + np.sqrt(abar) * x_t / (1 - abar))
        spread = np.sqrt(abar * self.variances + 1 - abar)
        log_w = np.log(self.weights) + stats.norm.logpdf(x_t, np.sqrt(abar) * self.means, spread)
        return Mixture(special.softmax(log_w, axis=-1), means, variances)

    def nodes(self, rule: tuple[Array, Array]) -> tuple[Array, Array]:
        """x_0 and weights, (..., M) each, that integrate over it by a rule for N(0, 1)."""
        u, w = rule
        x_0 = self.means[..., None] + np.sqrt(self.variances)[:, None] * u
        p = self.weights[..., None] * w
        return x_0.reshape(*x_0.shape[:-2], -1), p.reshape(*p.shape[:-2], -1)


def normalised(u: Array, w: Array) -> tuple[Array, Array]:
    return u, w / w.sum()


QUADRATICS = normalised(*np.polynomial.hermite_e.hermegauss(5))
_u = (np.arange(8000) - 3999.5) * 0.002
KINKS = normalised(_u, stats.norm.pdf(_u))  # symmetric, none of them at 0: for |r|, whose slope jumps there


class Given(NamedTuple):
    """One x_t, and everything that may have led to it: x_0 and ε with their probabilities."""

    schedule: Schedule
    t: int
    oracle: Oracle
    x_0: Array
    x_t: Array
    eps: Array
    p: Array

    def best(self, predicts: str) -> Array:
        """The oracle's prediction, the same for all."""
        return self.oracle.predict(self.x_t, self.t, predicts)

    def objective(self, output: Array, objective: Objective) -> Losses:
        t = np.full(len(self.p), self.t)
        return objective(self.schedule, self.x_0, self.x_t, t, self.eps, output, levels=2)[0]

    def bound(self, output: Array, **kind: Any) -> Losses:
        return bound_term(self.schedule, self.x_0, self.x_t, self.t, output, levels=2, **kind)


def given_x_t(schedule: Schedule, mixture: Mixture, t: int, x_t: float, rule: tuple[Array, Array]) -> Given:
    x_0, p = mixture.posterior(schedule, t, x_t).nodes(rule)
    x_0, abar = x_0[:, None], schedule.alpha_bar[t]
    eps = (x_t - np.sqrt(abar) * x_0) / np.sqrt(1 - abar)
    return Given(schedule, t, mixture.oracle(schedule), x_0, np.full_like(x_0, x_t), eps, p)


def some_mixture(rng: np.random.Generator, K: int) -> Mixture:
    return Mixture(rng.dirichlet(np.ones(K)), rng.uniform(-1.5, 1.5, K), rng.uniform(0.01, 1, K))


@st.composite
def situations(draw: Any, most: int = 3, rule: Any = QUADRATICS, first: int = 1) -> Given:
    """A mixture of up to `most` components, a step from `first` on, and an x_t not too far out."""
    schedule = draw(long)
    mixture = some_mixture(np.random.default_rng(draw(seeds)), draw(st.integers(1, most)))
    t, x_t = draw(st.integers(first, schedule.T)), draw(st.floats(-3, 3))
    return given_x_t(schedule, mixture, t, x_t, rule)


def assert_mean(p: Array, values: Array, expected: float) -> None:
    """E values = expected, to the rounding of its terms."""
    assert abs(p @ values - expected) <= 1e-8 * (p @ np.abs(values) + abs(expected)) + 1e-12, (p @ values, expected)


@every_parametrisation
@every_weight
@given(g=situations(), delta=st.floats(-1, 1))
def test_the_gradient_of_a_squared_error_vanishes_at_the_oracle_and_only_there(
    predicts: str, weight: str, g: Given, delta: float
) -> None:
    """E[d loss / d output | x_t] = 2 w_t δ at the best prediction + δ, and the loss is w_t δ² above the lowest."""
    w = 1.0 if weight == "simple" else bound_weights(g.schedule, predicts)[g.t]
    objective = Objective(predicts, weight=weight)
    lowest, other = (g.objective(g.best(predicts) + d, objective) for d in (0.0, delta))
    assert_mean(g.p, lowest.d_output[:, 0], 0.0)
    assert_mean(g.p, other.d_output[:, 0], 2 * w * delta)
    assert_mean(g.p, other.per_image, g.p @ lowest.per_image + w * delta**2)


@every_parametrisation
@every_variance
@given(g=situations(first=2), delta=st.floats(-1, 1))
def test_the_gradient_of_the_bounds_term_vanishes_at_the_oracle_and_only_there(
    predicts: str, var: str, g: Given, delta: float
) -> None:
    w = bound_weights(g.schedule, predicts, var)[g.t]
    lowest, other = (g.bound(g.best(predicts) + d, predicts=predicts, var=var) for d in (0.0, delta))
    assert_mean(g.p, lowest.d_output[:, 0], 0.0)
    assert_mean(g.p, other.d_output[:, 0], 2 * w * delta)
    assert_mean(g.p, other.per_image, g.p @ lowest.per_image + w * delta**2)


@every_parametrisation
@given(g=situations(first=2), delta=st.floats(-1, 1), shift=st.floats(-1, 1))
def test_a_learned_variance_is_best_at_that_of_x_prev_given_x_t(
    predicts: str, g: Given, delta: float, shift: float
) -> None:
    """Var[x_{t-1} | x_t] = β̃_t + c_0² Var[x_0 | x_t] =: σ*²: there, at the oracle's mean, both gradients vanish.

    Elsewhere, at σ² = σ*² e^shift and the best prediction + δ, with gap = δ dμ_θ / d output, they are gap/σ² dμ_θ /
    d output and ½ (1 - (σ*² + gap²) / σ²), and the loss is ½ ((σ*² + gap²) / σ² - 1 + shift) above the lowest.
    """
    schedule, t = g.schedule, g.t
    x_0, slope = g.x_0[:, 0], mean_slope(schedule, t, predicts)
    best_var = schedule.beta_tilde[t] + posterior_coefficients(schedule, t)[0] ** 2 * (g.p @ (x_0 - g.p @ x_0) ** 2)

    def at(delta: float, shift: float) -> Losses:
        log_var = np.full_like(g.x_0, np.log(best_var) + shift)
        return g.bound(np.concatenate([g.best(predicts) + delta, log_var], axis=1), predicts=predicts, var="learned")

    lowest, other = at(0.0, 0.0), at(delta, shift)
    for values in lowest.d_output.T:
        assert_mean(g.p, values, 0.0)
    var, gap = best_var * np.exp(shift), delta * slope
    assert_mean(g.p, other.d_output[:, 0], gap / var * slope)
    assert_mean(g.p, other.d_output[:, 1], 0.5 * (1 - (best_var + gap**2) / var))
    assert_mean(g.p, other.per_image, g.p @ lowest.per_image + 0.5 * ((best_var + gap**2) / var - 1 + shift))


# --- |r| and Huber: the median, not the mean -------------------------------------------------------------------------


@every_parametrisation
@pytest.mark.parametrize("error", ["l1", "huber"])
@given(g=situations(1, KINKS))
def test_of_a_gaussian_the_gradients_of_l1_and_huber_vanish_at_the_oracle_too(
    predicts: str, error: str, g: Given
) -> None:
    """Mean and median of its posterior are one."""
    assert_mean(g.p, g.objective(g.best(predicts), Objective(predicts, error=error)).d_output[:, 0], 0.0)


def leaning() -> tuple[Mixture, Given]:
    """A posterior with a long tail on one side, wide enough for Huber's δ = 1 to cut it."""
    mixture = Mixture(np.array([0.75, 0.25]), np.array([0.0, 10.0]), np.array([1.0, 25.0]))
    return mixture.posterior(SIX, 6, 1.25), given_x_t(SIX, mixture, 6, 1.25, KINKS)


@every_parametrisation
def test_of_a_skewed_mixture_the_gradients_of_l1_and_huber_do_not_vanish_at_the_oracle(predicts: str) -> None:
    _, g = leaning()
    of = {
        error: g.objective(g.best(predicts), Objective(predicts, error=error)).d_output[:, 0]
        for error in ("squared", "l1", "huber")
    }
    assert_mean(g.p, of["squared"], 0.0)
    for error in ("l1", "huber"):
        assert abs(g.p @ of[error]) > 0.2 * (g.p @ np.abs(of[error])), error


@every_parametrisation
def test_l1_is_lowest_at_the_median_of_the_posterior(predicts: str) -> None:
    (w, m, v), g = leaning()
    median = optimize.brentq(lambda x: w @ stats.norm.cdf(x, m, np.sqrt(v)) - 0.5, -50, 50, xtol=1e-14)
    there = output_from_x_0(SIX, g.x_t, g.t, np.full_like(g.x_0, median), predicts)
    at_median, at_mean = (g.objective(output, Objective(predicts, error="l1")) for output in (there, g.best(predicts)))
    # Between two nodes the sum of signs is off by the probability of a node.
    assert abs(g.p @ at_median.d_output[:, 0]) < 2e-3 < 0.2 < abs(g.p @ at_mean.d_output[:, 0])
    assert g.p @ at_median.per_image < g.p @ at_mean.per_image


# --- over all x_t ----------------------------------------------------------------------------------------------------


@given(long, seeds, st.floats(-1, 1), st.floats(-4, 4), st.floats(-3, 3))
def test_no_perturbation_of_a_mixtures_oracle_lowers_l_simple(
    schedule: Schedule, seed: int, height: float, frequency: float, phase: float
) -> None:
    """loss(ε* + δ) = loss(ε*) + E δ² for δ = a sin(b x_t + c), the mean over x_t by a trapezoidal sum."""
    rng = np.random.default_rng(seed)
    mixture, t = some_mixture(rng, int(rng.integers(1, 4))), int(rng.integers(1, schedule.T + 1))
    oracle = mixture.oracle(schedule)
    x_t = np.linspace(-12, 12, 2401)[:, None]
    x_0, p = mixture.posterior(schedule, t, x_t).nodes(QUADRATICS)
    q, abar = np.exp(oracle.log_q(x_t, t)) * 0.01, schedule.alpha_bar[t]
    eps = (x_t - np.sqrt(abar) * x_0) / np.sqrt(1 - abar)
    best, delta = oracle(x_t, t), height * np.sin(frequency * x_t + phase)

    def loss(output: Array) -> float:
        flat = squared_error(np.broadcast_to(output, eps.shape).reshape(-1, 1), eps.reshape(-1, 1)).per_image
        return float(q @ (p * flat.reshape(eps.shape)).sum(axis=1))

    lowest = loss(best)
    np.testing.assert_allclose(lowest, oracle.irreducible_loss(t), rtol=1e-6)
    np.testing.assert_allclose(loss(best + delta) - lowest, q @ delta[:, 0] ** 2, rtol=1e-9, atol=1e-12)

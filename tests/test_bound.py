"""The bound of a Gaussian three ways: Eq. 3 = Eq. 5 = Eq. 16, each by its own linear algebra; its gaps; p_θ itself.

The identities hold for any p_θ, so they are tested with any affine ε-model; of the best one, the oracle's closed forms
must say the same.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dense_gaussian import (
    Affine,
    Normal,
    affine,
    block,
    cross_entropy,
    entropy,
    gaussians,
    kl,
    log_det,
    oracle_of,
    p_joint,
    q_joint,
    reverse_maps,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import SIX, schedules, seeds, short

from ddpm_ref import GaussianOracle, Schedule, bound_term, p_mean, q_posterior, reverse_variance
from ddpm_ref.checks import Array

variances = st.sampled_from(["beta", "beta_tilde", "any"])


def table(schedule: Schedule, var: str, seed: int = 0) -> Array:
    """σ_t²: a named choice, or any positive numbers."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.05, 2, schedule.T + 1) if var == "any" else reverse_variance(schedule, var)


def affine_model(D: int, seed: int) -> Callable[[Array, int], Array]:
    """An ε-model that is some affine map at each t, good or bad."""

    def model(x_t: Array, t: int) -> Array:
        rng = np.random.default_rng([seed, t])
        return x_t @ rng.normal(0, 0.4, (D, D)) + rng.normal(0, 0.3, D)

    return model


# --- L, three ways ---------------------------------------------------------------------------------------------------


def eq_3(q: Normal, p: Normal, D: int) -> float:
    """E_q[-log p(x_{0:T}) / q(x_{1:T} | x_0)]: a cross entropy of the whole chain less the entropy of its noise."""
    later = list(range(D, len(q.mean)))
    _, _, noise = q.given(list(range(D)), later)
    return cross_entropy(q, p) - entropy(noise)


def eq_5(schedule: Schedule, q: Normal, steps: list[Affine], sigma2: Array, D: int) -> Array:
    """E[L_0], …, E[L_T], a list of T+1: KLs between the one-step Gaussians, the mean gap averaged over (x_0, x_t)."""
    L = np.empty(schedule.T + 1)
    for t in range(1, schedule.T + 1):
        pair = q.part(block(D, 0, t))
        mu, a = steps[t - 1]
        # The difference of the two means is affine in (x_0, x_t), so its mean square is a trace.
        G, g = affine(lambda x, t=t: q_posterior(schedule, x[:, :D], x[:, D:], t)[0], 2 * D)
        G, g = G - np.hstack([np.zeros((D, D)), mu]), g - a
        square = np.trace(G @ pair.cov @ G.T) + ((G @ pair.mean + g) ** 2).sum()
        if t == 1:
            L[0] = 0.5 * (D * np.log(2 * np.pi * sigma2[1]) + square / sigma2[1])
        else:
            ratio = schedule.beta_tilde[t] / sigma2[t]
            L[t - 1] = 0.5 * (D * (ratio - 1 - np.log(ratio)) + square / sigma2[t])
    A, a, S = q.given(block(D, 0), block(D, schedule.T))
    x_0 = q.part(block(D, 0))
    mean_square = np.trace(A @ x_0.cov @ A.T) + ((A @ x_0.mean + a) ** 2).sum()
    L[-1] = 0.5 * (np.trace(S) + mean_square - D - log_det(S))
    return L


def eq_16(schedule: Schedule, q: Normal, steps: list[Affine], sigma2: Array, D: int) -> float:
    """KL(q(x_T) ‖ p(x_T)) + Σ_t E KL(q(x_{t-1} | x_t) ‖ p_θ(x_{t-1} | x_t)) + H(x_0)."""
    total = kl(q.part(block(D, schedule.T)), Normal(np.zeros(D), np.eye(D))) + entropy(q.part(block(D, 0)).cov)
    for t in range(1, schedule.T + 1):
        A, a, S = q.given(block(D, t), block(D, t - 1))
        x_t, (mu, b) = q.part(block(D, t)), steps[t - 1]
        gap = np.trace((A - mu) @ x_t.cov @ (A - mu).T) + (((A - mu) @ x_t.mean + a - b) ** 2).sum()
        total += 0.5 * (np.trace(S) / sigma2[t] + gap / sigma2[t] - D + D * np.log(sigma2[t]) - log_det(S))
    return total


@given(schedules, gaussians(singular=False), variances, seeds)
def test_eq_3_is_eq_5_is_eq_16_for_any_affine_model(schedule: Schedule, gaussian: Any, var: str, seed: int) -> None:
    D, sigma2 = len(gaussian[0]), table(schedule, var, seed)
    q = q_joint(schedule, *gaussian)
    steps = reverse_maps(schedule, affine_model(D, seed), D)
    L = eq_3(q, p_joint(steps, sigma2), D)
    np.testing.assert_allclose(eq_5(schedule, q, steps, sigma2, D).sum(), L, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(eq_16(schedule, q, steps, sigma2, D), L, rtol=1e-7, atol=1e-7)


@given(schedules, gaussians(singular=False), variances, seeds)
def test_the_oracles_bound_is_that_of_each_equation(schedule: Schedule, gaussian: Any, var: str, seed: int) -> None:
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    D, q = oracle.D, q_joint(schedule, *gaussian)
    steps = reverse_maps(schedule, oracle, D)
    terms = eq_5(schedule, q, steps, sigma2, D) / D
    np.testing.assert_allclose(oracle.bound_terms(sigma2), terms, rtol=1e-8, atol=1e-10)
    for L in (eq_3(q, p_joint(steps, sigma2), D), eq_16(schedule, q, steps, sigma2, D)):
        np.testing.assert_allclose(oracle.bound(sigma2), L / D, rtol=1e-8, atol=1e-8)


@given(schedules, gaussians(), variances, seeds)
def test_of_singular_data_and_points_eq_3_is_eq_5_too(schedule: Schedule, gaussian: Any, var: str, seed: int) -> None:
    """Eq. 16 has the entropy of x_0, which is -∞ there; L itself is finite."""
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    q, steps = q_joint(schedule, *gaussian), reverse_maps(schedule, oracle, oracle.D)
    L = eq_3(q, p_joint(steps, sigma2), oracle.D) / oracle.D
    np.testing.assert_allclose(oracle.bound(sigma2), L, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(oracle.bound_terms(sigma2).sum(), L, rtol=1e-7, atol=1e-7)


@given(schedules, st.floats(-1, 1), st.floats(0, 2), variances, seeds)
def test_the_librarys_terms_average_to_the_oracles(schedule: Schedule, m: float, S: float, var: str, seed: int) -> None:
    """`bound_term` at t > 1 is quadratic in (x_0, ε), so 3x3 Gauss-Hermite nodes give its mean exactly."""
    oracle, sigma2 = GaussianOracle([m], S, schedule), table(schedule, var, seed)
    u, w = np.polynomial.hermite_e.hermegauss(3)
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(m + np.sqrt(S) * u, u))
    weight = np.outer(w, w).ravel() / w.sum() ** 2
    for t in range(2, schedule.T + 1):
        abar = schedule.alpha_bar[t]
        x_t = np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * eps
        losses = bound_term(schedule, x_0, x_t, t, oracle(x_t, t), levels=2, var=sigma2)
        np.testing.assert_allclose(oracle.bound_terms(sigma2)[t - 1], weight @ losses.per_image, rtol=1e-8, atol=1e-10)


def test_a_named_variance_is_its_table() -> None:
    oracle = GaussianOracle([0.2, 0.1], 0.5, SIX)
    for var in ("beta", "beta_tilde"):
        sigma2 = reverse_variance(SIX, var)
        np.testing.assert_array_equal(oracle.bound_terms(var), oracle.bound_terms(sigma2))
        assert oracle.bound(var) == oracle.bound(sigma2) and oracle.gap(var) == oracle.gap(sigma2)
        assert oracle.expected_log_p(var) == oracle.expected_log_p(sigma2)
        np.testing.assert_array_equal(oracle.log_p(np.ones((1, 2)), var), oracle.log_p(np.ones((1, 2)), sigma2))
        for a, b in zip(oracle.p_marginals(var), oracle.p_marginals(sigma2), strict=True):
            np.testing.assert_array_equal(a.cov, b.cov)
    assert oracle.bound() == oracle.bound("beta") != oracle.bound("beta_tilde")
    assert oracle.gap() == oracle.gap("beta") and oracle.expected_log_p() == oracle.expected_log_p("beta")


# --- its gaps --------------------------------------------------------------------------------------------------------


@given(schedules, gaussians(singular=False), variances, seeds)
def test_the_bound_exceeds_the_likelihood_by_the_kl_of_the_latents(
    schedule: Schedule, gaussian: Any, var: str, seed: int
) -> None:
    """L + E log p_θ(x_0) = E_{x_0} KL(q(x_{1:T} | x_0) ‖ p_θ(x_{1:T} | x_0))."""
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    D = oracle.D
    q, p = q_joint(schedule, *gaussian), p_joint(reverse_maps(schedule, oracle, D), sigma2)
    now, later = block(D, 0), block(D, *range(1, schedule.T + 1))
    (A, a, S), (B, b, R) = q.given(now, later), p.given(now, later)
    x_0 = q.part(now)
    inverse = np.linalg.inv(R)
    gap = (A - B) @ x_0.mean + a - b
    square = np.trace(inverse @ (S + (A - B) @ x_0.cov @ (A - B).T)) + gap @ inverse @ gap
    expected = 0.5 * (square - len(gap) + log_det(R) - log_det(S))
    found = oracle.bound(sigma2) + oracle.expected_log_p(sigma2)
    np.testing.assert_allclose(found * D, expected, rtol=1e-6, atol=1e-7)
    assert found > -1e-12


@given(schedules, gaussians(singular=False), variances, seeds)
def test_the_bound_exceeds_the_entropy_by_the_kl_of_the_whole_chain(
    schedule: Schedule, gaussian: Any, var: str, seed: int
) -> None:
    """L - H(x_0) = KL(q(x_{0:T}) ‖ p_θ(x_{0:T}))."""
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    q, p = q_joint(schedule, *gaussian), p_joint(reverse_maps(schedule, oracle, oracle.D), sigma2)
    np.testing.assert_allclose(oracle.gap(sigma2) * oracle.D, kl(q, p), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(oracle.entropy() * oracle.D, entropy(gaussian[1]), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(oracle.bound(sigma2) - oracle.gap(sigma2), oracle.entropy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [2, 10, 100, 1000])
def test_unit_gaussians_with_beta_have_no_gap_at_any_T(T: int) -> None:
    """§3.2: σ_t² = β_t is exact for x_0 ~ N(0, I). (σ_1² = β_1, not the β̃_2 of the released code.)"""
    s = short(T)
    assert abs(GaussianOracle(np.zeros(3), 1.0, s).gap(s.beta)) < 1e-12 * T


@given(schedules)
def test_unit_gaussians_with_beta_have_no_gap_on_any_schedule(schedule: Schedule) -> None:
    assert abs(GaussianOracle(np.zeros(3), 1.0, schedule).gap(schedule.beta)) < 1e-12


def test_the_gap_of_narrow_gaussians_falls_as_T_grows() -> None:
    """N(0, ¼): every reverse step is less wrong the shorter it is; it falls about as 1/T."""
    steps = [10, 30, 100, 300, 1000]
    gaps = [GaussianOracle([0.0], 0.25, s).gap(s.beta) for s in map(short, steps)]
    assert all(a > b > 0 for a, b in itertools.pairwise(gaps))
    for now, later in itertools.pairwise(gap * T for gap, T in zip(gaps, steps, strict=True)):
        np.testing.assert_allclose(now, later, rtol=0.15)


@given(schedules, gaussians(singular=False), seeds)
def test_no_variance_beats_the_true_reverse_variance(schedule: Schedule, gaussian: Any, seed: int) -> None:
    """Of all tables σ_t², L is least at the mean of the true reverse variances over the axes."""
    oracle = oracle_of(schedule, gaussian)
    best = np.array([0.0] + [oracle.q_reverse_variance(t).mean() for t in range(1, schedule.T + 1)])
    other = best * np.exp(np.random.default_rng(seed).normal(0, 0.5, len(best)))
    assert oracle.bound(best) <= oracle.bound(other) + 1e-12


def test_of_a_point_only_prior_and_decoder_cost_with_beta_tilde() -> None:
    """§3.2: σ_t² = β̃_t is exact for one point, so every KL of Eq. 5 is 0."""
    L = GaussianOracle([0.3, -0.4], 0.0).bound_terms("beta_tilde")
    np.testing.assert_allclose(L[1:-1], 0, atol=1e-12)
    sigma2 = reverse_variance(Schedule.linear(), "beta_tilde")[1]
    np.testing.assert_allclose(L[0], 0.5 * np.log(2 * np.pi * sigma2), rtol=1e-12)
    np.testing.assert_allclose(L[-1], Schedule.linear().L_T(0.125), rtol=1e-12)


def test_the_gap_to_an_entropy_of_minus_infinity_is_infinite() -> None:
    for cov in (np.zeros((2, 2)), np.ones((2, 2)) - [[0, 0], [0, 1]] + [[0, -1], [-1, 0]]):
        oracle = GaussianOracle(np.zeros(2), cov, SIX)
        assert oracle.entropy() == -np.inf and oracle.gap() == np.inf and np.isfinite(oracle.bound())


@given(seeds, st.integers(2, 6), st.floats(1e-3, 1e3))
def test_rounding_does_not_make_a_singular_covariance_regular(seed: int, D: int, scale: float) -> None:
    """Of a matrix of rank D - 1 the smallest eigenvalue is computed as ±1e-17 or so: it counts as 0."""
    root = scale * np.random.default_rng(seed).standard_normal((D, D - 1))
    oracle = GaussianOracle(np.zeros(D), root @ root.T, SIX)
    assert np.count_nonzero(oracle.data.variances) == D - 1
    assert oracle.entropy() == -np.inf and oracle.gap() == np.inf
    with pytest.raises(ValueError, match="cov: a density wants one that is not singular"):
        oracle.q_marginal(0).log_density(np.zeros((1, D)))
    narrow = GaussianOracle(np.zeros(2), np.diag([1.0, 1e-14]), SIX)  # narrow, but no rounding
    np.testing.assert_allclose(narrow.entropy(), np.log(2 * np.pi * np.e * 1e-7) / 2, rtol=1e-12)


# --- p_θ itself ------------------------------------------------------------------------------------------------------


@given(schedules, gaussians(), variances, seeds, st.booleans())
def test_the_chains_marginals_are_those_of_the_composed_affine_steps(
    schedule: Schedule, gaussian: Any, var: str, seed: int, z_at_1: bool
) -> None:
    """The steps as Eq. 11 computes them from the oracle's ε, composed by dense linear algebra."""
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    chain = oracle.p_marginals(sigma2, z_at_1=z_at_1)
    noise = sigma2.copy()
    noise[1] *= z_at_1
    p = p_joint(reverse_maps(schedule, oracle, oracle.D), noise)
    assert len(chain) == schedule.T + 1
    for t, found in enumerate(chain):
        expected = p.part(block(oracle.D, t))
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.cov, expected.cov, rtol=1e-8, atol=1e-9)


@given(schedules, gaussians(), variances, seeds)
def test_log_p_is_the_density_of_the_last_marginal(schedule: Schedule, gaussian: Any, var: str, seed: int) -> None:
    oracle, sigma2 = oracle_of(schedule, gaussian), table(schedule, var, seed)
    p = p_joint(reverse_maps(schedule, oracle, oracle.D), sigma2).part(block(oracle.D, 0))
    x_0 = np.random.default_rng(seed).normal(0, 1.5, (4, oracle.D))
    expected = stats.multivariate_normal(p.mean, p.cov).logpdf(x_0).reshape(4) / oracle.D
    np.testing.assert_allclose(oracle.log_p(x_0, sigma2), expected, rtol=1e-8, atol=1e-8)
    mean_log_p = -cross_entropy(Normal(*gaussian), p) / oracle.D
    np.testing.assert_allclose(oracle.expected_log_p(sigma2), mean_log_p, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("S", "var"), [(1.0, "beta"), (0.0, "beta_tilde")])
def test_the_extreme_variances_take_each_marginal_of_q_to_the_one_before(S: float, var: str) -> None:
    """§3.2, at every t of the default schedule: the reverse step with σ_t² makes q(x_{t-1}) of q(x_t)."""
    s = Schedule.linear()
    oracle, sigma2 = GaussianOracle(np.zeros(1) if S else [0.6], S), getattr(s, var)
    for t in range(1, s.T + 1):
        A, a = affine(lambda x, t=t: p_mean(s, x, t, oracle(x, t)), 1)
        now, before = oracle.q_marginal(t), oracle.q_marginal(t - 1)
        np.testing.assert_allclose(A @ now.mean + a, before.mean, atol=1e-12)
        np.testing.assert_allclose(A @ now.cov @ A.T + sigma2[t], before.cov, atol=1e-13)


@pytest.mark.parametrize(
    ("S", "var", "z_at_1", "final"),
    [
        (1.0, "beta", False, 0.99990),
        (1.0, "beta_tilde", False, 0.99107),
        (0.25, "beta", False, 0.25075),
        (0.25, "beta_tilde", False, 0.24613),
        (1.0, "beta with beta_1", True, 1.00000),
        (0.25, "beta with beta_1", True, 0.25085),
    ],
)
def test_final_variances_of_algorithm_2_and_of_p(S: float, var: str, z_at_1: bool, final: float) -> None:
    oracle = GaussianOracle([0.0], S)
    sigma2 = Schedule.linear().beta if "with" in var else var
    assert f"{oracle.p_marginals(sigma2, z_at_1=z_at_1)[0].cov[0, 0]:.5f}" == f"{final:.5f}"


def test_p_starts_from_the_standard_normal() -> None:
    for chain in (GaussianOracle([3.0, 4.0], 7.0, SIX).p_marginals(), GaussianOracle([0.0], 0.0).p_marginals("beta")):
        np.testing.assert_array_equal(chain[-1].mean, 0)
        np.testing.assert_array_equal(chain[-1].cov, np.eye(chain[-1].D))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o.bound(np.zeros(7)), r"var: a density wants every sigma_t\^2 > 0"),
        (lambda o: o.log_p(np.zeros((1, 2)), np.zeros(7)), r"var: a density wants every sigma_t\^2 > 0"),
        (lambda o: o.expected_log_p(np.zeros(7)), r"var: a density wants every sigma_t\^2 > 0"),
        (lambda o: o.p_marginals("sigma"), "var: wanted one of"),
        (lambda o: o.bound(np.ones(3)), r"var: wanted a name or a table of T \+ 1 = 7 values"),
        (lambda o: o.log_p(np.zeros((1, 3))), r"x_0: wanted shape \(N, 2\), got \(1, 3\)"),
        (lambda o: o.log_p(np.zeros((1, 2), int)), "x_0: wanted a floating array"),
    ],
)
def test_bad_arguments_are_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(GaussianOracle(np.zeros(2), 1.0, SIX))

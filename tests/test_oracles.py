"""The oracles against dense linear algebra, numerical integration and each other: is the truth that they tell true?"""

from typing import Any

import numpy as np
import pytest
from dense_gaussian import affine, block, gaussians, oracle_of, q_joint
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats
from some_oracles import mixture, some_x_t
from strategies import SIX, schedules, seeds

from ddpm_ref import (
    EmpiricalOracle,
    GaussianOracle,
    MixtureOracle,
    Schedule,
    q_sample,
)

# --- the Gaussian, by conditioning the dense joint of all x_t --------------------------------------------------------


@given(schedules, gaussians())
def test_a_gaussians_marginal_is_that_of_t_noising_steps(schedule: Schedule, gaussian: Any) -> None:
    oracle, joint = oracle_of(schedule, gaussian), q_joint(schedule, *gaussian)
    for t in range(schedule.T + 1):
        expected, found = joint.part(block(oracle.D, t)), oracle.q_marginal(t)
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)
        np.testing.assert_allclose(found.cov, expected.cov, atol=1e-12)
        if t:
            x_t = some_x_t(oracle.D)
            log_q = stats.multivariate_normal(expected.mean, expected.cov).logpdf(x_t).reshape(4)
            np.testing.assert_allclose(oracle.log_q(x_t, t), log_q / oracle.D, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found.log_density(x_t), log_q, rtol=1e-9, atol=1e-9)


@given(schedules, gaussians())
def test_a_gaussians_best_x_0_and_mu_are_the_conditional_means_of_the_joint(schedule: Schedule, gaussian: Any) -> None:
    oracle, joint = oracle_of(schedule, gaussian), q_joint(schedule, *gaussian)
    D = oracle.D
    for t in range(1, schedule.T + 1):
        for wanted, predict in [(0, oracle.x_0), (t - 1, oracle.mu)]:
            A, a, _ = joint.given(block(D, t), block(D, wanted))
            found_A, found_a = affine(lambda x, t=t, predict=predict: predict(x, t), D)
            np.testing.assert_allclose(found_A, A, rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(found_a, a, rtol=1e-8, atol=1e-8)


@given(schedules, gaussians())
def test_a_gaussians_eps_is_the_formula_of_the_paper_notes(schedule: Schedule, gaussian: Any) -> None:
    """ε* = √(1-ᾱ) S_t⁻¹ (x_t - √ᾱ m), and the irreducible loss tr(ᾱ S S_t⁻¹) / D."""
    oracle, (m, S) = oracle_of(schedule, gaussian), gaussian
    x_t = some_x_t(oracle.D)
    for t in range(1, schedule.T + 1):
        abar = schedule.alpha_bar[t]
        S_t = abar * S + (1 - abar) * np.eye(oracle.D)
        eps = np.sqrt(1 - abar) * np.linalg.solve(S_t, (x_t - np.sqrt(abar) * m).T).T
        np.testing.assert_allclose(oracle(x_t, t), eps, rtol=1e-9, atol=1e-9)
        loss = np.trace(abar * S @ np.linalg.inv(S_t)) / oracle.D
        np.testing.assert_allclose(oracle.irreducible_loss(t), loss, rtol=1e-9, atol=1e-12)


@given(schedules, gaussians())
def test_a_gaussians_uncertainty_is_the_conditional_covariance_of_the_joint(schedule: Schedule, gaussian: Any) -> None:
    oracle, joint = oracle_of(schedule, gaussian), q_joint(schedule, *gaussian)
    D = oracle.D
    for t in range(1, schedule.T + 1):
        _, _, of_x_0 = joint.given(block(D, t), block(D, 0))
        found = oracle.posterior_variance(some_x_t(D), t)
        np.testing.assert_allclose(found, np.full(4, np.trace(of_x_0) / D), rtol=1e-8, atol=1e-10)
        _, _, of_x_prev = joint.given(block(D, t), block(D, t - 1))
        along = oracle.data.along_axes(np.eye(D))
        np.testing.assert_allclose(
            oracle.q_reverse_variance(t), np.diag(along.T @ of_x_prev @ along), rtol=1e-8, atol=1e-10
        )


def test_a_gaussians_true_reverse_variance_is_beta_for_unit_data_and_beta_tilde_for_a_point() -> None:
    """§3.2, at every step of the default schedule; anything in between lies between."""
    s = Schedule.linear()
    unit, point, half = (GaussianOracle(np.zeros(2), cov) for cov in (1.0, 0.0, 0.5))
    for t in range(1, s.T + 1):
        np.testing.assert_allclose(unit.q_reverse_variance(t), s.beta[t], rtol=0, atol=1e-16)
        np.testing.assert_array_equal(point.q_reverse_variance(t), s.beta_tilde[t])
        assert (s.beta_tilde[t] < half.q_reverse_variance(t)).all() and (half.q_reverse_variance(t) < s.beta[t]).all()


# --- mixtures, by numerical integration over x_0 ---------------------------------------------------------------------


@given(schedules, seeds, st.floats(-3, 3))
def test_a_mixtures_posterior_is_bayes_rule_by_quadrature(schedule: Schedule, seed: int, x: float) -> None:
    """Density, mean and variance of x_0 given x_t in one dimension, from p(x_0) q(x_t | x_0) alone."""
    rng = np.random.default_rng(seed)
    w, m, v = rng.dirichlet(np.ones(3)), rng.normal(0, 1, 3), rng.uniform(0.05, 1, 3)
    oracle = MixtureOracle(w, m[:, None], v[:, None, None], schedule)
    x_0 = np.linspace(-15, 15, 9001)  # ten deviations around the farthest means
    prior = (w * stats.norm.pdf(x_0[:, None], m, np.sqrt(v))).sum(axis=1)
    for t in range(1, schedule.T + 1):
        abar = schedule.alpha_bar[t]
        joint = prior * stats.norm.pdf(x, np.sqrt(abar) * x_0, np.sqrt(1 - abar))
        total = integrate.trapezoid(joint, x_0)
        mean = integrate.trapezoid(joint * x_0, x_0) / total
        variance = integrate.trapezoid(joint * (x_0 - mean) ** 2, x_0) / total
        x_t = np.array([[x]])
        np.testing.assert_allclose(oracle.log_q(x_t, t), np.log(total), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(oracle.x_0(x_t, t), mean, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(oracle.posterior_variance(x_t, t), variance, rtol=1e-8, atol=1e-8)


@given(schedules, gaussians(), st.floats(0, 1))
def test_a_mixture_of_one_gaussian_with_itself_is_that_gaussian(schedule: Schedule, gaussian: Any, w: float) -> None:
    mean, cov = gaussian
    mixed, plain = MixtureOracle([w, 1 - w], [mean, mean], [cov, cov], schedule), oracle_of(schedule, gaussian)
    x_t = some_x_t(plain.D)
    for t in range(1, schedule.T + 1):
        np.testing.assert_allclose(mixed(x_t, t), plain(x_t, t), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(mixed.log_q(x_t, t), plain.log_q(x_t, t), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(
            mixed.posterior_variance(x_t, t), plain.posterior_variance(x_t, t), rtol=1e-10, atol=1e-12
        )


@given(seeds)
def test_a_turned_mixture_gives_turned_answers(seed: int) -> None:
    """Rotating data and x_t rotates x̂_0* and leaves densities and uncertainty: no axis is special."""
    oracle = mixture(seed, D=3)
    R = stats.special_ortho_group.rvs(3, random_state=seed)
    turned = MixtureOracle(
        oracle.weights,
        np.stack([g.mean for g in oracle.gaussians]) @ R.T,
        np.stack([R @ g.cov @ R.T for g in oracle.gaussians]),
        SIX,
    )
    x_t = some_x_t(3, seed)
    t = np.array([1, 2, 5, 6])
    np.testing.assert_allclose(turned.x_0(x_t @ R.T, t), oracle.x_0(x_t, t) @ R.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(turned.log_q(x_t @ R.T, t), oracle.log_q(x_t, t), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
        turned.posterior_variance(x_t @ R.T, t), oracle.posterior_variance(x_t, t), rtol=1e-8, atol=1e-8
    )


def test_independent_coordinates_are_a_mixture_of_products() -> None:
    """Two coordinates that are mixtures on their own are one mixture of K² Gaussians."""
    a, b = mixture(1, K=2, D=1), mixture(2, K=2, D=1)
    pairs = [(i, j) for i in range(2) for j in range(2)]
    both = MixtureOracle(
        [a.weights[i] * b.weights[j] for i, j in pairs],
        [[a.gaussians[i].mean[0], b.gaussians[j].mean[0]] for i, j in pairs],
        [np.diag([a.gaussians[i].variances[0], b.gaussians[j].variances[0]]) for i, j in pairs],
        SIX,
    )
    x_t = some_x_t(2)
    for t in range(1, 7):
        for d, one in enumerate((a, b)):
            np.testing.assert_allclose(both.x_0(x_t, t)[:, d], one.x_0(x_t[:, d : d + 1], t)[:, 0], rtol=1e-9)
        sums = a.posterior_variance(x_t[:, :1], t) + b.posterior_variance(x_t[:, 1:], t)
        np.testing.assert_allclose(2 * both.posterior_variance(x_t, t), sums, rtol=1e-9)
        np.testing.assert_allclose(
            both.irreducible_loss(t), (a.irreducible_loss(t) + b.irreducible_loss(t)) / 2, rtol=1e-5
        )


# --- finite data -----------------------------------------------------------------------------------------------------


@given(schedules, seeds, st.integers(1, 6))
def test_the_empirical_posterior_is_bayes_rule_over_the_points(schedule: Schedule, seed: int, K: int) -> None:
    rng = np.random.default_rng(seed)
    points, x_t = rng.standard_normal((K, 2, 2, 1)), rng.standard_normal((3, 2, 2, 1))
    points[-1] = points[0]  # the same picture twice
    oracle = EmpiricalOracle(points, schedule)
    for t in range(1, schedule.T + 1):
        abar = schedule.alpha_bar[t]
        log_q = stats.norm.logpdf(x_t[:, None], np.sqrt(abar) * points, np.sqrt(1 - abar)).sum(axis=(2, 3, 4))
        r = special.softmax(log_q, axis=1)
        x_0 = np.einsum("nk,khwc->nhwc", r, points)
        np.testing.assert_allclose(oracle.responsibilities(x_t, t), r, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(oracle.x_0(x_t, t), x_0, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(
            oracle.log_q(x_t, t), (special.logsumexp(log_q, axis=1) - np.log(K)) / 4, rtol=1e-7, atol=1e-9
        )
        spread = (r * ((points[None] - x_0[:, None]) ** 2).sum(axis=(2, 3, 4))).sum(axis=1)
        np.testing.assert_allclose(oracle.posterior_variance(x_t, t), spread / 4, rtol=1e-6, atol=1e-10)


@given(schedules, seeds)
def test_finite_data_are_a_mixture_without_width_and_one_point_a_gaussian_without(
    schedule: Schedule, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    points, x_t = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    finite, mixed = EmpiricalOracle(points, schedule), MixtureOracle(np.full(5, 0.2), points, schedule=schedule)
    one, point = EmpiricalOracle(points[:1], schedule), GaussianOracle(points[0], 0.0, schedule)
    for t in range(1, schedule.T + 1):
        for a, b in [(finite, mixed), (one, point)]:
            np.testing.assert_allclose(a(x_t, t), b(x_t, t), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(a.log_q(x_t, t), b.log_q(x_t, t), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(a.posterior_variance(x_t, t), b.posterior_variance(x_t, t), atol=1e-9)
        eps = (x_t - np.sqrt(schedule.alpha_bar[t]) * points[0]) / np.sqrt(1 - schedule.alpha_bar[t])
        np.testing.assert_allclose(point(x_t, t), eps, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(point.posterior_variance(x_t, t), 0)


@pytest.mark.parametrize("far", [1e2, 1e4])
def test_finite_data_far_from_0_lose_no_digits(far: float) -> None:
    """Of ‖x_t - √ᾱ_t p_k‖² / (1 - ᾱ_t), multiplied out, 1e-16 far² / (1 - ᾱ_1) would be left: 1e-4 and more at 1e4."""
    schedule, rng = Schedule.linear(), np.random.default_rng(0)
    points = far + np.array([[0.0, 0.0], [0.02, 0.01], [1.0, 1.0]])
    finite, mixed = EmpiricalOracle(points, schedule), MixtureOracle(np.full(3, 1 / 3), points, 0.0, schedule)
    for t in (1, 100):
        x_t = q_sample(schedule, np.tile(points[:2].mean(axis=0), (5, 1)), t, rng.standard_normal((5, 2)))
        for one, other in [
            (finite.responsibilities(x_t, t), mixed.responsibilities(x_t, t)),
            (finite.log_q(x_t, t), mixed.log_q(x_t, t)),
            (finite.posterior_variance(x_t, t), mixed.posterior_variance(x_t, t)),
        ]:
            np.testing.assert_allclose(one, other, rtol=1e-14 * far / 1e-4, atol=1e-16)


def test_early_x_t_know_their_point_and_late_ones_know_nothing() -> None:
    jsd = Schedule.jsd()
    points = np.random.default_rng(0).uniform(-1, 1, (8, 16))
    oracle = EmpiricalOracle(points, jsd)
    eps = np.random.default_rng(1).standard_normal(points.shape)
    for t, expected in [(1, np.eye(8)), (jsd.T, np.full((8, 8), 1 / 8))]:
        r = oracle.responsibilities(q_sample(jsd, points, t, eps), t)
        np.testing.assert_allclose(r, expected, atol=1e-12)

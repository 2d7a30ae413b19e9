"""The oracles against dense linear algebra, numerical integration and each other: is the truth that they tell true?"""

import itertools
from typing import Any

import numpy as np
import pytest
from dense_gaussian import affine, block, gaussians, oracle_of, q_joint
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats
from strategies import SIX, derivative, every_parametrisation, schedules, seeds

from ddpm_ref import (
    PARAMETRISATIONS,
    EmpiricalOracle,
    GaussianOracle,
    MixtureOracle,
    Oracle,
    Schedule,
    output_from_x_0,
    q_sample,
)
from ddpm_ref.checks import Array


def some_x_t(D: int, seed: int = 0, n: int = 4) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, (n, D))


def mixture(seed: int = 0, K: int = 3, D: int = 2, schedule: Schedule = SIX) -> MixtureOracle:
    """Some mixture with full covariances, one of them singular."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(0, 0.6, (K, D, D))
    roots[0, :, 0] = 0
    return MixtureOracle(rng.dirichlet(np.ones(K)), rng.standard_normal((K, D)), roots @ roots.swapaxes(1, 2), schedule)


def oracles() -> list[Oracle]:
    """One of each kind, in one dimension or several."""
    rng = np.random.default_rng(5)
    points = rng.normal(0, 0.5, (6, 3))  # so near that x_1 of one may be taken for another's
    return [
        oracle_of(SIX, (np.array([0.3, -0.2]), np.array([[1.0, 0.4], [0.4, 0.3]]))),
        oracle_of(SIX, (np.array([0.5]), np.zeros((1, 1)))),
        mixture(),
        mixture(1, D=1),
        EmpiricalOracle(points, SIX),
        EmpiricalOracle([[0.5]], SIX),
    ]


every_oracle = pytest.mark.parametrize("oracle", oracles(), ids=lambda o: f"{type(o).__name__}-{o.D}")
every_t = pytest.mark.parametrize("t", range(1, 7))


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


# --- what all have in common -----------------------------------------------------------------------------------------


@every_oracle
@every_t
def test_the_score_is_the_gradient_of_the_density(oracle: Oracle, t: int) -> None:
    x_t = some_x_t(oracle.D)
    score = oracle.score(x_t, t)
    for d in range(oracle.D):
        unit = np.eye(oracle.D)[d]
        slope = derivative(lambda h, unit=unit: oracle.D * oracle.log_q(x_t + h * unit, t), 0.0, 1e-3)
        np.testing.assert_allclose(score[:, d], slope, rtol=1e-6, atol=1e-7)


@every_oracle
@every_t
def test_every_prediction_is_what_the_best_x_0_stands_for(oracle: Oracle, t: int) -> None:
    x_t = some_x_t(oracle.D)
    x_0 = oracle.x_0(x_t, t)
    for predicts in PARAMETRISATIONS:
        expected = output_from_x_0(SIX, x_t, t, x_0, predicts)
        np.testing.assert_array_equal(oracle.predict(x_t, t, predicts), expected)
        np.testing.assert_array_equal(oracle.model(predicts)(x_t, t), expected)
    np.testing.assert_array_equal(oracle(x_t, t), oracle.predict(x_t, t, "eps"))
    np.testing.assert_array_equal(oracle.mu(x_t, t), oracle.predict(x_t, t, "mu"))


@every_oracle
@every_parametrisation
def test_the_irreducible_loss_is_the_mean_of_the_squared_error_of_the_best_prediction(
    oracle: Oracle, predicts: str, rng: np.random.Generator
) -> None:
    """Against 20,000 draws of x_0 and ε; fewer than one test in 1e9 fails by chance.

    8 standard errors, as the squares are skewed by up to γ = 10, and a mean over its own standard error is then
    below -z about e^{γ z³ / 3√n} times as often as a normal.
    """
    x_0 = oracle.draw(20_000, rng)
    eps = rng.standard_normal(x_0.shape)
    for t in (1, 4, 6):
        x_t = q_sample(SIX, x_0, t, eps)
        error = oracle.predict(x_t, t, predicts) - output_from_x_0(SIX, x_t, t, x_0, predicts)
        each = (error**2).mean(axis=1)
        exact = oracle.irreducible_loss(t, predicts, rng=None if oracle.D <= 2 else rng, draws=20_000)
        tolerance = 8 * each.std() / np.sqrt(len(each)) * (1 if oracle.D <= 2 else np.sqrt(2)) + 1e-12
        assert abs(each.mean() - exact) <= tolerance, (t, each.mean(), exact)


@pytest.mark.parametrize("far", [0.5, 2, 5, 6.3])
@pytest.mark.parametrize("t", [1, 3, 6])
def test_the_irreducible_loss_of_two_points_is_its_integral(t: int, far: float) -> None:
    """x_0 = ±a: x̂_0* = a tanh(√ᾱ a x_t / (1 - ᾱ)), so E Var[x_0 | x_t] = a² E sech². √ᾱ a is `far` deviations."""
    abar = SIX.alpha_bar[t]
    a = far * np.sqrt((1 - abar) / abar)
    spread = integrate.quad(
        lambda u: stats.norm.pdf(u) / np.cosh(far * (far + u)) ** 2, -15, 15, points=[-far], epsabs=0, limit=200
    )[0]
    found = EmpiricalOracle([[-a], [a]], SIX).irreducible_loss(t)
    assert found > 1e-9
    np.testing.assert_allclose(found, far**2 * spread, rtol=1e-6)


@pytest.mark.parametrize("t", [1, 5, 20, 100])
def test_the_irreducible_loss_sees_a_narrow_component_within_a_wide_one(t: int) -> None:
    """Of ½ N(0, 1) + ½ at 0.3, whose x_t are 1 and √(1 - ᾱ_t) wide, by the variances within and between the two."""
    s = Schedule.linear()
    abar = s.alpha_bar[t]
    mean, sd = np.sqrt(abar) * 0.3, np.sqrt(1 - abar)

    def spread(x: float) -> float:
        wide, narrow = stats.norm.pdf(x) / 2, stats.norm.pdf(x, mean, sd) / 2
        return wide * sd**2 + wide * narrow / (wide + narrow) * (np.sqrt(abar) * x - 0.3) ** 2

    edges = np.unique(np.concatenate([mean + sd * np.arange(-8, 9), [-10, 10]]))
    integral = sum(integrate.quad(spread, a, b, epsabs=1e-14)[0] for a, b in itertools.pairwise(edges))
    found = MixtureOracle([0.5, 0.5], [[0.0], [0.3]], [1.0, 0.0], s).irreducible_loss(t)
    np.testing.assert_allclose(found, abar / (1 - abar) * integral, rtol=1e-8)


@pytest.mark.parametrize("t", [60, 80, 100, 250])
def test_the_irreducible_loss_of_points_is_the_same_in_two_dimensions_as_in_one(t: int) -> None:
    """A coordinate that is always 0 adds none, also for points that lie 10 deviations apart."""
    line, plane = EmpiricalOracle([[-1.0], [1.0]]), EmpiricalOracle([[-1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(2 * plane.irreducible_loss(t), line.irreducible_loss(t), rtol=1e-6)


def test_a_component_of_weight_0_asks_for_no_finer_grid() -> None:
    found = MixtureOracle([1.0, 0.0], [[0.0, 0.0], [1.0, 0.0]], [1.0, 0.0]).irreducible_loss(1)
    np.testing.assert_allclose(found, GaussianOracle(np.zeros(2)).irreducible_loss(1), rtol=1e-9)


@every_oracle
def test_draws_have_the_moments_of_the_parts(oracle: Oracle, rng: np.random.Generator) -> None:
    """Mean and every second moment of 200,000 draws within 7 standard errors: under 1e-9 by chance for up to 12.

    (With products skewed by up to γ = 14, for which see above.)
    """
    x_0 = oracle.draw(200_000, rng)
    assert x_0.shape == (200_000, *oracle.shape) and x_0.dtype == np.float64
    mean = sum(w * g.mean for w, g in oracle.parts())
    second = sum(w * (g.cov + np.outer(g.mean, g.mean)) for w, g in oracle.parts())
    products = x_0[:, :, None] * x_0[:, None, :]
    for each, expected in [(x_0, mean), (products, second)]:
        slack = 7 * each.std(axis=0) / np.sqrt(len(each)) + 1e-12
        assert (np.abs(each.mean(axis=0) - expected) <= slack).all()


@every_oracle
def test_each_row_is_answered_at_its_own_step_in_its_own_dtype(oracle: Oracle) -> None:
    x_t, t = some_x_t(oracle.D, n=6), np.arange(1, 7)
    for f in (oracle, oracle.score, oracle.x_0, oracle.mu, oracle.log_q, oracle.posterior_variance):
        together = f(x_t, t)
        for n in range(6):
            np.testing.assert_allclose(f(x_t[n : n + 1], int(t[n])), together[n : n + 1], rtol=1e-12, atol=1e-12)
    for f in (oracle, oracle.score, oracle.x_0, oracle.mu):
        narrow = f(x_t.astype(np.float32), t)
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, f(x_t.astype(np.float32).astype(np.float64), t), rtol=1e-6, atol=1e-6)
    for f in (oracle.log_q, oracle.posterior_variance):
        assert f(x_t.astype(np.float32), t).dtype == np.float64


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 1)])
def test_data_may_have_any_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    D = int(np.prod(shape))
    root, mean, x_t = rng.standard_normal((D, D)), rng.standard_normal(shape), rng.standard_normal((4, *shape))
    flat = GaussianOracle(mean.reshape(D), root @ root.T, SIX)
    shaped = GaussianOracle(mean, root @ root.T, SIX)
    mixed = MixtureOracle([1.0], mean[None], (root @ root.T)[None], SIX)
    for t in (1, 6):
        expected = flat(x_t.reshape(4, D), t).reshape(x_t.shape)
        np.testing.assert_allclose(shaped(x_t, t), expected, rtol=1e-12)
        np.testing.assert_allclose(mixed(x_t, t), expected, rtol=1e-12)
    assert shaped.draw(5, rng).shape == mixed.draw(5, rng).shape == (5, *shape)
    assert EmpiricalOracle(x_t, SIX).draw(5, rng).shape == (5, *shape)


def test_the_schedule_is_the_papers_unless_given() -> None:
    for oracle in (GaussianOracle([0.0]), MixtureOracle([1.0], [[0.0]]), EmpiricalOracle([[0.0]])):
        assert oracle.schedule == Schedule.linear()
    assert GaussianOracle([0.0], 1.0, SIX).schedule is SIX


def test_a_number_as_covariance_is_that_times_the_identity() -> None:
    x_t = some_x_t(2)
    for oracle, number in [
        (GaussianOracle(np.ones(2), 0.3 * np.eye(2), SIX), GaussianOracle(np.ones(2), 0.3, SIX)),
        (
            MixtureOracle([0.5, 0.5], np.eye(2), [0.3 * np.eye(2), 0.7 * np.eye(2)], SIX),
            MixtureOracle([0.5, 0.5], np.eye(2), [0.3, 0.7], SIX),
        ),
        (
            MixtureOracle([0.5, 0.5], np.eye(2), [0.3 * np.eye(2)] * 2, SIX),
            MixtureOracle([0.5, 0.5], np.eye(2), 0.3, SIX),
        ),
    ]:
        np.testing.assert_allclose(oracle(x_t, 3), number(x_t, 3), rtol=1e-12)
        for (_, a), (_, b) in zip(oracle.marginal(3), number.marginal(3), strict=True):
            np.testing.assert_allclose(a.cov, b.cov, atol=1e-15)


def test_a_component_of_weight_0_is_not_there() -> None:
    x_t = some_x_t(2)
    with_it = MixtureOracle([0.0, 1.0], [[5.0, 5.0], [0.0, 0.0]], 1.0, SIX)
    np.testing.assert_allclose(with_it(x_t, 2), GaussianOracle(np.zeros(2), 1.0, SIX)(x_t, 2), rtol=1e-12)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianOracle([]), "mean: wanted at least one element"),
        (lambda: GaussianOracle([np.nan]), "mean: 1 of 1 values are NaN"),
        (lambda: GaussianOracle([0.0, 0.0], [1.0, 1.0]), r"cov: wanted one number or shape \(2, 2\), got \(2,\)"),
        (lambda: GaussianOracle([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "cov: wanted a symmetric matrix"),
        (lambda: GaussianOracle([0.0], -1.0), "cov: wanted no negative eigenvalue, got -1"),
        (lambda: GaussianOracle([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "cov: wanted no negative eigenvalue, got -1"),
        (lambda: MixtureOracle([1.0], 0.0), r"means: wanted shape \(K, \*shape\)"),
        (lambda: MixtureOracle([], np.zeros((0, 2))), r"means: wanted shape \(K, \*shape\)"),
        (lambda: MixtureOracle([0.5, 0.6], [[0.0], [1.0]]), r"weights: wanted \(2,\) numbers >= 0 of sum 1"),
        (lambda: MixtureOracle([-0.5, 1.5], [[0.0], [1.0]]), r"weights: wanted \(2,\) numbers >= 0 of sum 1"),
        (lambda: MixtureOracle([1.0], [[0.0], [1.0]]), r"weights: wanted \(2,\)"),
        (lambda: MixtureOracle([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0]), r"covs: wanted one number, \(2,\) or"),
        (lambda: EmpiricalOracle([]), r"points: wanted shape \(K, \*shape\)"),
        (lambda: EmpiricalOracle(1.0), r"points: wanted shape \(K, \*shape\)"),
        (lambda: EmpiricalOracle([[np.inf]]), "points: 1 of 1 values are NaN or infinite"),
    ],
)
def test_a_distribution_that_is_none_is_an_error(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o(np.zeros((2, 3)), 1), r"x_t: wanted shape \(N, 2\), got \(2, 3\)"),
        (lambda o: o(np.zeros(2, int), 1), "x_t: wanted a floating array"),
        (lambda o: o.score([[0.0, 0.0]], 1), "x_t: wanted a floating array"),
        (lambda o: o(np.zeros((2, 2)), 0), r"t: wanted steps in 1\.\.6, got 0"),
        (lambda o: o.log_q(np.zeros((2, 2)), 7), r"t: wanted steps in 1\.\.6, got 7"),
        (lambda o: o.model("noise"), "predicts: wanted one of"),
        (lambda o: o.predict(np.zeros((2, 2)), 1, "noise"), "predicts: wanted one of"),
        (lambda o: o.irreducible_loss(0), r"t: wanted an integer in 1\.\.6, got 0"),
        (lambda o: o.irreducible_loss(7), r"t: wanted an integer in 1\.\.6, got 7"),
        (lambda o: o.irreducible_loss(1, "noise"), "predicts: wanted one of"),
        (lambda o: o.marginal(-1), r"t: wanted an integer in 0\.\.6, got -1"),
        (lambda o: o.marginal(7), r"t: wanted an integer in 0\.\.6, got 7"),
    ],
)
def test_bad_arguments_are_errors(call: Any, message: str) -> None:
    for oracle in (GaussianOracle(np.zeros(2), 1.0, SIX), mixture(), EmpiricalOracle(np.zeros((3, 2)), SIX)):
        with pytest.raises(ValueError, match=message):
            call(oracle)


def test_more_than_two_dimensions_want_a_generator_for_the_irreducible_loss() -> None:
    oracle = EmpiricalOracle(np.zeros((2, 3)), SIX)
    with pytest.raises(ValueError, match="rng: wanted a generator, as D = 3 > 2, got None"):
        oracle.irreducible_loss(1)
    with pytest.raises(ValueError, match="rng: wanted a generator, as widths of x_t's components differ 100 times"):
        MixtureOracle([0.5, 0.5], np.zeros((2, 2)), [1.0, 0.0]).irreducible_loss(1)
    with pytest.raises(ValueError, match="draws: wanted an integer >= 1, got 0"):
        oracle.irreducible_loss(1, rng=np.random.default_rng(0), draws=0)
    with pytest.raises(ValueError, match=r"t: wanted an integer in 1\.\.6, got 0"):
        GaussianOracle(np.zeros(2), 1.0, SIX).q_reverse_variance(0)

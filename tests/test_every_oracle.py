"""What every oracle has in common: scores, predictions, irreducible losses, draws, shapes, and errors."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from some_oracles import every_oracle, every_t, mixture, some_x_t
from strategies import SIX, derivative, every_parametrisation

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

# --- scores, predictions, losses -------------------------------------------------------------------------------------


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
        (lambda: GaussianOracle([0.0], 1.0, "linear"), "schedule: wanted a Schedule or None, got str"),
        (lambda: EmpiricalOracle([[0.0]], "linear"), "schedule: wanted a Schedule or None, got str"),
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

"""Algorithm 2 driven by oracles: it must end on the distribution that the closed forms say, and nowhere else."""

import numpy as np
import pytest
from dense_gaussian import oracle_of
from scipy import stats
from strategies import short

from ddpm_ref import PARAMETRISATIONS, EmpiricalOracle, GaussianOracle, MixtureOracle, Schedule, sample, sample_steps
from ddpm_ref.checks import Array

MEAN = np.array([0.4, -0.3, 0.1])
COV = np.array([[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.2]])


def assert_normal(u: Array, false_alarm: float) -> None:
    """Rows u (n, D) are draws of N(0, I), tested along every axis and diagonal, where Σ u² is χ² of n.

    The tests share false_alarm between them: a right sampler fails with at most that probability.
    """
    n, D = u.shape
    axes = np.eye(D)
    diagonals = [(axes[i] + s * axes[j]) / np.sqrt(2) for i in range(D) for j in range(i) for s in (1, -1)]
    directions = [*axes, *diagonals]
    tail = false_alarm / (4 * len(directions))  # two tests a direction, two tails each
    for v in directions:
        along = u @ v
        assert abs(along.mean()) * np.sqrt(n) < stats.norm.isf(tail)
        assert stats.chi2.ppf(tail, n) < (along**2).sum() < stats.chi2.isf(tail, n)


@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
@pytest.mark.parametrize("predicts", PARAMETRISATIONS)
def test_with_a_gaussian_oracle_samples_have_the_moments_of_the_closed_chain(
    predicts: str, var: str, rng: np.random.Generator
) -> None:
    """20,000 samples by 60 steps; false alarm 1e-9."""
    oracle = oracle_of(short(60), (MEAN, COV))
    x = sample(
        oracle.schedule,
        oracle.model(predicts),
        rng.standard_normal((20_000, 3)),
        lambda t: rng.standard_normal((20_000, 3)),
        predicts=predicts,
        var=var,
    )
    end = oracle.p_marginals(var, z_at_1=False)[0]
    assert_normal(end.along_axes(x - end.mean) / np.sqrt(end.variances), 1e-9)


def test_the_test_of_moments_would_notice_the_other_variance(rng: np.random.Generator) -> None:
    oracle = oracle_of(short(60), (MEAN, COV))
    draw = rng.standard_normal((20_000, 3))
    x = sample(oracle.schedule, oracle, draw, lambda t: rng.standard_normal((20_000, 3)), var="beta")
    end = oracle.p_marginals("beta_tilde", z_at_1=False)[0]
    with pytest.raises(AssertionError):
        assert_normal(end.along_axes(x - end.mean) / np.sqrt(end.variances), 1e-9)


@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
def test_with_unit_vectors_as_noise_the_whole_path_is_the_closed_chain(var: str) -> None:
    """Under a Gaussian oracle x_t is affine in x_T and all z: image k moves only number k of them. No statistics."""
    schedule = short(40)
    oracle = oracle_of(schedule, (MEAN, COV))
    count = (schedule.T + 1) * 3
    units = np.concatenate([np.eye(count), np.zeros((1, count))]).reshape(count + 1, schedule.T + 1, 3)
    chain = oracle.p_marginals(var, z_at_1=False)
    for t, x_t, _ in sample_steps(schedule, oracle, units[:, 0].copy(), lambda t: units[:, t], var=var):
        mean, moved = x_t[-1], x_t[:-1] - x_t[-1]
        np.testing.assert_allclose(mean, chain[t].mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moved.T @ moved, chain[t].cov, rtol=1e-9, atol=1e-12)


def test_temperature_multiplies_every_variance_but_that_of_x_T() -> None:
    schedule = short(40)
    oracle = oracle_of(schedule, (MEAN, COV))
    count = (schedule.T + 1) * 3
    units = np.concatenate([np.eye(count), np.zeros((1, count))]).reshape(count + 1, schedule.T + 1, 3)
    x = sample(schedule, oracle, units[:, 0].copy(), lambda t: units[:, t], temperature=0.5)
    moved = x[:-1] - x[-1]
    end = oracle.p_marginals(0.25 * schedule.beta, z_at_1=False)[0]
    np.testing.assert_allclose(moved.T @ moved, end.cov, rtol=1e-9, atol=1e-12)


def test_no_noise_is_added_at_the_last_step() -> None:
    """Samples of a point are the point: σ_1 z would show as a spread of 0.01."""
    oracle = GaussianOracle([0.25, -0.5], 0.0)
    rng = np.random.default_rng(0)
    x = sample(oracle.schedule, oracle, rng.standard_normal((8, 2)), lambda t: rng.standard_normal((8, 2)))
    np.testing.assert_allclose(x, np.broadcast_to([0.25, -0.5], (8, 2)), atol=1e-12)


def test_with_a_mixture_oracle_every_mode_gets_its_weight(rng: np.random.Generator) -> None:
    """5,000 samples by 1,000 steps; binomial bounds of 1e-9 for each of three modes, and 0.005 for finite T."""
    weights, means = np.array([0.2, 0.3, 0.5]), np.array([[-0.8, 0.5], [0.7, 0.6], [0.1, -0.7]])
    oracle = MixtureOracle(weights, means, 0.01)
    n = 5000
    x = sample(oracle.schedule, oracle, rng.standard_normal((n, 2)), lambda t: rng.standard_normal((n, 2)))
    distance = np.linalg.norm(x[:, None] - means, axis=2)
    assert (distance.min(axis=1) < 0.1 * 8.5).all()  # P(|u| > 8.5) = 2e-16 in the plane, 1e-12 for all
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    low = stats.binom.ppf(1e-9 / 6, n, weights - 0.005)
    high = stats.binom.isf(1e-9 / 6, n, weights + 0.005)
    assert ((low <= counts) & (counts <= high)).all(), counts / n


def test_with_an_empirical_oracle_samples_end_on_training_points(rng: np.random.Generator) -> None:
    """A network that knows its training set by heart draws nothing else, each point as often (χ², 1e-9)."""
    points = np.random.default_rng(1).uniform(-1, 1, (10, 4, 4, 1))
    oracle = EmpiricalOracle(points, short(200))
    n = 1000
    x = sample(oracle.schedule, oracle, rng.standard_normal((n, 4, 4, 1)), lambda t: rng.standard_normal((n, 4, 4, 1)))
    distance = np.sqrt(((x[:, None] - points) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-9)
    counts = np.bincount(distance.argmin(axis=1), minlength=10)
    statistic = ((counts - n / 10) ** 2 / (n / 10)).sum()
    # Points are reached from N(0, I), not from q(x_T): shares differ by up to √ᾱ_T |p| ≈ 2 %, which adds n · 0.02².
    assert statistic < stats.ncx2.isf(1e-9, 9, n * 0.02**2), counts


def test_an_oracle_starts_anywhere(rng: np.random.Generator) -> None:
    """From q(x_t) at t = 30, the rest of the chain ends as the closed recursion from there; false alarm 1e-9."""
    schedule = short(60)
    oracle = oracle_of(schedule, (MEAN, COV))
    shape = (20_000, 3)
    x_t = oracle.q_marginal(30).from_standard(rng.standard_normal(shape))
    for _, x, _ in sample_steps(schedule, oracle, x_t, lambda t: rng.standard_normal(shape), start=30):
        end = x
    mean, variances = (
        oracle.q_marginal(30).along_axes(MEAN) * np.sqrt(schedule.alpha_bar[30]),
        oracle.q_marginal(30).variances,
    )
    for t in range(30, 0, -1):
        abar, before = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
        s, s_before = (a * oracle.data.variances + 1 - a for a in (abar, before))
        slope = np.sqrt(schedule.alpha[t]) * s_before / s
        m = oracle.data.along_axes(MEAN)
        mean = np.sqrt(before) * m + slope * (mean - np.sqrt(abar) * m)
        variances = slope**2 * variances + (schedule.beta[t] if t > 1 else 0)
    assert_normal((oracle.data.along_axes(end) - mean) / np.sqrt(variances), 1e-9)


def test_a_schedule_that_is_not_the_oracles_shows() -> None:
    """ε* of one schedule in the sampler of another draws something else: the schedules must be one."""
    oracle = GaussianOracle([0.0], 0.25, short(20))
    other = Schedule.constant(20, 0.3)
    units = np.eye(21)[:, :, None]
    right, wrong = (sample(s, oracle, units[0].copy(), lambda t: units[t]) for s in (oracle.schedule, other))
    end = oracle.p_marginals(z_at_1=False)[0].variances
    np.testing.assert_allclose((right**2).sum(), end, rtol=1e-9)
    assert abs((wrong**2).sum() - end) > 0.01

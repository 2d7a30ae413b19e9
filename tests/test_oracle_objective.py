"""The objective at the oracle of a Gaussian: its value is the irreducible loss and every affine δ adds E‖δ‖² to it.

Expectations over (x_0, ε) are exact, by 2n points ±√n along the axes of the joint, which give every quadratic its mean.
What holds given x_t, and of mixtures, is in test_oracle_gradients.py. At the end, all kinds of oracle, by chance.
"""

from typing import Any

import numpy as np
import pytest
from dense_gaussian import gaussians, oracle_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import SIX, every_parametrisation, every_variance, every_weight, long, schedules, seeds

from ddpm_ref import (
    EmpiricalOracle,
    GaussianOracle,
    Losses,
    MixtureOracle,
    Objective,
    Oracle,
    Schedule,
    bound_term,
    bound_weights,
    q_sample,
    simple_loss,
)
from ddpm_ref.checks import Array

# --- exactly, for Gaussians of any dimension -------------------------------------------------------------------------


def joint_points(cov: Array, mean: Array) -> tuple[Array, Array]:
    """x_0 and ε, (4D, D) each: every quadratic in them has its mean over x_0 ~ N(mean, cov), ε ~ N(0, I) as its own."""
    D = len(mean)
    variances, axes = np.linalg.eigh(cov)
    u = np.sqrt(2 * D) * np.concatenate([np.eye(2 * D), -np.eye(2 * D)])
    return mean + u[:, :D] @ (axes * np.sqrt(np.maximum(variances, 0))).T, u[:, D:]


def drawn(schedule: Schedule, gaussian: tuple[Array, Array], t: int) -> tuple[GaussianOracle, Array, Array, Array]:
    """The oracle, and x_0, x_t, ε at the points of the joint."""
    x_0, eps = joint_points(gaussian[1], gaussian[0])
    return oracle_of(schedule, gaussian), x_0, q_sample(schedule, x_0, t, eps), eps


def losses(
    schedule: Schedule, x_0: Array, x_t: Array, t: int, eps: Array, output: Array, predicts: str, weight: str
) -> Losses:
    objective = Objective(predicts, weight=weight)
    return objective(schedule, x_0, x_t, np.full(len(x_t), t), eps, output, levels=2)[0]


@given(schedules, gaussians(), st.data())
def test_l_simple_of_a_gaussians_oracle_is_the_irreducible_loss(schedule: Schedule, gaussian: Any, data: Any) -> None:
    """Exactly, and that is tr ᾱ_t S (ᾱ_t S + (1 - ᾱ_t) I)⁻¹ / D."""
    t = data.draw(st.integers(1, schedule.T), label="t")
    oracle, _, x_t, eps = drawn(schedule, gaussian, t)
    loss, _ = simple_loss(oracle(x_t, t), eps)
    np.testing.assert_allclose(loss, oracle.irreducible_loss(t), rtol=1e-9, atol=1e-12)
    abar, S, D = schedule.alpha_bar[t], gaussian[1], oracle.D
    trace = np.trace(np.linalg.solve(abar * S + (1 - abar) * np.eye(D), abar * S))
    np.testing.assert_allclose(loss, trace / D, rtol=1e-9, atol=1e-12)


@every_parametrisation
@every_weight
@given(schedule=schedules, gaussian=gaussians(), seed=seeds)
def test_an_affine_perturbation_of_a_gaussians_oracle_costs_its_own_square(
    predicts: str, weight: str, schedule: Schedule, gaussian: Any, seed: int
) -> None:
    """loss(best + δ) = loss(best) + w_t E‖δ‖² / D for δ = A x_t + a, E‖δ‖² = tr A S_t Aᵀ + ‖A √ᾱ_t m + a‖²."""
    rng = np.random.default_rng(seed)
    t, D = int(rng.integers(1, schedule.T + 1)), len(gaussian[0])
    oracle, x_0, x_t, eps = drawn(schedule, gaussian, t)
    A, a = rng.standard_normal((D, D)), rng.standard_normal(D)
    best = oracle.predict(x_t, t, predicts)
    lowest, perturbed = (
        losses(schedule, x_0, x_t, t, eps, output, predicts, weight).per_image.mean()
        for output in (best, best + x_t @ A.T + a)
    )
    w = 1.0 if weight == "simple" else bound_weights(schedule, predicts)[t]
    np.testing.assert_allclose(lowest, w * oracle.irreducible_loss(t, predicts), rtol=1e-9, atol=1e-12 * w)
    q = oracle.q_marginal(t)
    square = np.trace(A @ q.cov @ A.T) + np.sum((A @ q.mean + a) ** 2)
    np.testing.assert_allclose(perturbed - lowest, w * square / D, rtol=1e-7)


@every_parametrisation
@every_variance
@given(schedule=long, gaussian=gaussians(), seed=seeds)
def test_at_a_gaussians_oracle_every_gradient_is_uncorrelated_with_x_t(
    predicts: str, var: str, schedule: Schedule, gaussian: Any, seed: int
) -> None:
    """Of L_simple, Eq. 12 and L_{t-1}: the gradient is Gaussian as x_t is, so its mean given any x_t is 0."""
    t = int(np.random.default_rng(seed).integers(2, schedule.T + 1))
    oracle, x_0, x_t, eps = drawn(schedule, gaussian, t)
    best = oracle.predict(x_t, t, predicts)
    each = [losses(schedule, x_0, x_t, t, eps, best, predicts, weight) for weight in ("simple", "bound")]
    each.append(bound_term(schedule, x_0, x_t, t, best, levels=2, predicts=predicts, var=var))
    with_1 = np.concatenate([np.ones((len(x_t), 1)), x_t], axis=1)
    scale = [1, *2 * bound_weights(schedule, predicts)[[t, t]]]
    for loss, size in zip(each, scale, strict=True):
        np.testing.assert_allclose(loss.d_output.T @ with_1 / len(x_t), 0, atol=1e-8 * size * (1 + np.abs(best).max()))


# --- by chance -------------------------------------------------------------------------------------------------------


TRAINED_ON: dict[str, Oracle] = {
    "Gaussian": GaussianOracle([0.3, -0.2, 0.1], [[1.0, 0.4, 0.1], [0.4, 0.3, 0.0], [0.1, 0.0, 0.1]], SIX),
    "mixture": MixtureOracle([0.5, 0.3, 0.2], [[0.0, 1.0], [1.0, -1.0], [-1.0, 0.0]], [0.1, 0.02, 0.3], SIX),
    "points": EmpiricalOracle([[-1.0, 0.5], [0.2, 0.3], [1.0, -0.7]], SIX),
}


@pytest.mark.parametrize("name", TRAINED_ON)
@every_parametrisation
def test_the_training_loss_of_an_oracle_averages_to_the_mean_irreducible_loss(
    name: str, predicts: str, rng: np.random.Generator
) -> None:
    """As Algorithm 1 draws: x_0, t ~ U{1..T}, ε. 7.5 standard errors of 30,000 draws: under 1e-9 by chance each.

    (With losses skewed by up to γ = 10, which makes it e^{γ z³ / 3√n} = 2,000 times likelier than of normals.)
    """
    oracle, n = TRAINED_ON[name], 30_000
    x_0, t = oracle.draw(n, rng), rng.integers(1, SIX.T + 1, n)
    eps = rng.standard_normal(x_0.shape)
    x_t = q_sample(SIX, x_0, t, eps)
    output = oracle.predict(x_t, t, predicts)
    each = Objective(predicts)(SIX, x_0, x_t, t, eps, output, levels=2)[0].per_image
    expected = np.mean([oracle.irreducible_loss(step, predicts) for step in range(1, SIX.T + 1)])
    assert abs(each.mean() - expected) < 7.5 * each.std(ddof=1) / np.sqrt(n)

"""Gaussians by dense linear algebra, and the joints of a whole diffusion: what the closed forms must equal.

Nothing here knows an equation of the paper beyond Eqs. 1 and 2: q is built from x_t = √(1-β_t) x_{t-1} + √β_t ε, p from
the affine maps that the code itself applies, and everything else follows by conditioning and determinants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from ddpm_ref import GaussianOracle, Schedule, p_mean
from ddpm_ref.checks import Array


class Normal(NamedTuple):
    """N(mean, cov) over (K,) numbers."""

    mean: Array
    cov: Array

    def part(self, index: Any) -> "Normal":
        """The marginal of some of the numbers."""
        return Normal(self.mean[index], self.cov[np.ix_(index, index)])

    def given(self, known: Any, others: Any) -> tuple[Array, Array, Array]:
        """others | known = x:  N(A x + a, S); returns A, a, S (the pseudo-inverse serves singular covariances)."""
        A = self.cov[np.ix_(others, known)] @ np.linalg.pinv(
            self.cov[np.ix_(known, known)], hermitian=True, rcond=1e-12
        )
        a = self.mean[others] - A @ self.mean[known]
        return A, a, self.cov[np.ix_(others, others)] - A @ self.cov[np.ix_(known, others)]


def log_det(cov: Array) -> float:
    sign, value = np.linalg.slogdet(cov)
    assert sign > 0
    return float(value)


def entropy(cov: Array) -> float:
    return 0.5 * (len(cov) * np.log(2 * np.pi * np.e) + log_det(cov))


def cross_entropy(q: Normal, p: Normal) -> float:
    """E_q[-log p]."""
    d, inverse = q.mean - p.mean, np.linalg.inv(p.cov)
    return float(0.5 * (len(d) * np.log(2 * np.pi) + log_det(p.cov) + np.trace(inverse @ q.cov) + d @ inverse @ d))


def kl(q: Normal, p: Normal) -> float:
    return cross_entropy(q, p) - entropy(q.cov)


Affine = tuple[Array, Array]


def affine(f: Callable[[Array], Array], D: int) -> Affine:
    """A, a of a map f(x) = A x + a on rows (N, D)."""
    a = f(np.zeros((1, D)))[0]
    return (f(np.eye(D)) - a).T, a


def q_joint(schedule: Schedule, mean: Array, cov: Array) -> Normal:
    """q(x_0, …, x_T), numbers in that order, from Eq. 2 alone."""
    D, T = len(mean), schedule.T
    means, root = [mean], np.zeros(((T + 1) * D, (T + 1) * D))  # x = mean + root · independent noises with cov, I, I, …
    root[:D, :D] = np.eye(D)
    for t in range(1, T + 1):
        now, before = slice(t * D, (t + 1) * D), slice((t - 1) * D, t * D)
        means.append(np.sqrt(1 - schedule.beta[t]) * means[-1])
        root[now] = np.sqrt(1 - schedule.beta[t]) * root[before]
        root[now, now] = np.sqrt(schedule.beta[t]) * np.eye(D)
    noise = np.eye((T + 1) * D)
    noise[:D, :D] = cov
    return Normal(np.concatenate(means), root @ noise @ root.T)


def p_joint(steps: list[Affine], sigma2: Array) -> Normal:
    """p_θ(x_0, …, x_T) of Eq. 1 from the affine mean of each reverse step, steps[t-1] that from x_t to x_{t-1}."""
    D, T = len(steps[0][1]), len(steps)
    mean, root = np.zeros((T + 1) * D), np.zeros(((T + 1) * D, (T + 1) * D))
    root[T * D :, T * D :] = np.eye(D)
    for t in range(T, 0, -1):
        now, after = slice((t - 1) * D, t * D), slice(t * D, (t + 1) * D)
        A, a = steps[t - 1]
        mean[now] = A @ mean[after] + a
        root[now] = A @ root[after]
        root[now, now] = np.sqrt(sigma2[t]) * np.eye(D)
    return Normal(mean, root @ root.T)


def reverse_maps(schedule: Schedule, model: Callable[[Array, int], Array], D: int) -> list[Affine]:
    """The affine mean of every reverse step of an affine ε-model, by Eq. 11 as the library computes it."""
    return [affine(lambda x, t=t: p_mean(schedule, x, t, model(x, t)), D) for t in range(1, schedule.T + 1)]  # type: ignore[misc]


def block(D: int, *steps: int) -> list[int]:
    """Where x_t of these steps stand in a joint."""
    return [t * D + d for t in steps for d in range(D)]


@st.composite
def gaussians(draw: Any, *, singular: bool = True, max_D: int = 3) -> tuple[Array, Array]:
    """A mean (D,) and a covariance (D, D) of any rank (0 is a single point), or of full rank."""
    D = draw(st.integers(1, max_D))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.integers(0, D)) if singular else D
    root = rng.standard_normal((D, rank))
    cov = root @ root.T + (0 if singular else 0.05) * np.eye(D)
    return rng.normal(0, 0.7, D), cov


def oracle_of(schedule: Schedule, gaussian: tuple[Array, Array]) -> GaussianOracle:
    return GaussianOracle(*gaussian, schedule)

"""Oracles to try things on, and places to try them at."""

import numpy as np
import pytest
from dense_gaussian import oracle_of
from strategies import SIX

from ddpm_ref import EmpiricalOracle, MixtureOracle, Oracle, Schedule
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

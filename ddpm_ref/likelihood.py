"""The variational bound of a batch, term by term: L_T, L_{t-1}, L_0 (§2, §3.1, §3.3; Eqs. 3, 5). All float64."""

from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array, check_finite, check_float
from ddpm_ref.forward import q_sample
from ddpm_ref.objective import bound_term
from ddpm_ref.reverse import Model, Noise
from ddpm_ref.schedule import Schedule, Table


def bits_per_dim(nats_per_dim: Array) -> Array:
    """Nats per dimension in bits per dimension: divided by log 2."""
    return nats_per_dim / np.log(2)


def prior_kl(schedule: Schedule, x_0: Array) -> Array:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)) of each image in nats per dimension, (N,): `Schedule.L_T` (Eq. 5)."""
    check_float(x_0=x_0)
    return schedule.L_T(np.mean(np.asarray(x_0, dtype=np.float64).reshape(len(x_0), -1) ** 2, axis=1))


class BoundTerms(NamedTuple):
    """One-sample estimates of the terms of Eq. 5 for each image, in nats per dimension.

    L: (T+1, N); row s is the paper's L_s, so L[0] is -log p_θ(x_0 | x_1), L[t-1] a KL, L[T] the prior's.
    """

    L: Array

    @property
    def total(self) -> Array:
        """L_0 + Σ_{t>1} L_{t-1} + L_T, (N,) nats per dimension: an unbiased estimate of L ≥ -log p_θ(x_0)."""
        return self.L.sum(axis=0)

    @property
    def rate(self) -> Array:
        """Σ_{t>1} L_{t-1} + L_T, (N,): what it costs to send x_1 (§4.3)."""
        return self.L[1:].sum(axis=0)

    @property
    def distortion(self) -> Array:
        """L_0, (N,): what it then costs to send x_0 exactly (§4.3)."""
        return self.L[0]


def bound_terms(
    schedule: Schedule,
    model: Model,
    x_0: Array,
    noise: Noise,
    *,
    levels: int,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
) -> BoundTerms:
    """Every term of the bound for a batch, each at one x_t ~ q(x_t | x_0) (Eq. 5).

    x_0: (N, ...) float in [-1, 1] on a grid of `levels` grey levels.  noise(t): ε of x_0's shape, for each t = 1..T.
    clip: clip x̂_0 to [-1, 1] before the mean, as the released code's evaluation does.
    The network sees x_t in x_0's dtype; the terms are computed in float64 from what it answers.
    """
    check_float(x_0=x_0)
    check_finite(x_0=x_0)
    L = np.empty((schedule.T + 1, len(x_0)))
    for t in range(1, schedule.T + 1):
        x_t = q_sample(schedule, x_0, t, noise(t))
        output = model(x_t, t)
        L[t - 1] = bound_term(
            schedule, x_0, x_t, t, output, levels=levels, predicts=predicts, var=var, clip=clip
        ).per_image
    L[schedule.T] = prior_kl(schedule, x_0)
    return BoundTerms(L)

"""The autoregressive view (§4.3): a diffusion that masks one coordinate a step, T = D, and its bound.

q(x_t | x_{t-1}) puts all its mass on x_{t-1} with the t-th coordinate masked out, p(x_T) on the blank. So x_t has its
coordinates 1 … t masked and t+1 … D visible, and in Eq. 16

    L = KL(q(x_T) ‖ p(x_T)) + E_q Σ_t KL(q(x_{t-1} | x_t) ‖ p_θ(x_{t-1} | x_t)) + H(x_0)

the first term is 0 and each of the others trains p_θ to copy coordinates t+1 … D and to predict the t-th from them: an
autoregressive model. If it copies, L = E[-log p_θ(x_0)] exactly, since x_0 determines the whole path.

Coordinates are binary, 0 or 1, and BLANK where masked; x: (N, D) int8. All lengths are bits, in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddpm_ref.checks import Array, check_int

BLANK = 2
LARGEST_D = 6  # of chains written out as tables: 3^D states


class Conditionals(Protocol):
    """p_θ: what a coordinate is, given those after it."""

    @property
    def D(self) -> int:
        """Coordinates."""

    def probability(self, x: Array, t: int) -> Array:
        """p_θ(x^t = 1 | x^{t+1}, …, x^D), (N,); of x (N, D) only the coordinates t+1 … D are looked at. t in 1..D."""


@dataclass(frozen=True, eq=False)
class Tabulated:
    """The conditionals of any distribution over {0, 1}^D, exact.  joint: (2, …, 2), > 0, of sum 1."""

    joint: Array

    @property
    def D(self) -> int:
        """Coordinates."""
        return int(self.joint.ndim)

    def probability(self, x: Array, t: int) -> Array:
        """p(x^t = 1 | x^{t+1}, …, x^D), by summing over what comes before."""
        table = self.joint.sum(axis=tuple(range(t - 1)))
        p_0, p_1 = (table[(np.full(len(x), k), *x[:, t:].T)] for k in (0, 1))
        return p_1 / (p_0 + p_1)

    def log_2(self, x: Array) -> Array:
        """log₂ p(x) of rows (N, D), straight from the table."""
        return np.log2(self.joint[tuple(x.T)])


@dataclass(frozen=True, eq=False)
class Logistic:
    """p_θ(x^t = 1 | …) = σ(b_t + Σ_{s>t} W_ts x^s).  W: (D, D), b: (D,)."""

    W: Array
    b: Array

    @property
    def D(self) -> int:
        """Coordinates."""
        return len(self.b)

    def probability(self, x: Array, t: int) -> Array:
        """σ of the t-th logit, (N,)."""
        logit = self.b[t - 1] + x[:, t:] @ self.W[t - 1, t:]
        return 1 / (1 + np.exp(-logit))


def bound_terms(model: Conditionals, x_0: Array) -> Array:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)) of Eq. 5 for a p_θ that copies, bits, (N, D).

    q is certain of x_{t-1}, which is x_t with its t-th coordinate shown: -log₂ p_θ(x_0^t | x_0^{t+1}, …), column t-1.
    The sum of a row is -log₂ p_θ(x_0); L_T is 0.
    """
    check_binary(x_0, model.D)
    terms = np.empty(x_0.shape)
    for t in range(1, model.D + 1):
        p = model.probability(mask(x_0, t), t)
        terms[:, t - 1] = -np.log2(np.where(x_0[:, t - 1] == 1, p, 1 - p))
    return terms


def mask(x_0: Array, t: int) -> Array:
    """x_t: x_0 with its coordinates 1 … t masked."""
    x_t = x_0.copy()
    x_t[:, :t] = BLANK
    return x_t


def unmask_steps(model: Conditionals, n: int, uniform: Callable[[int], Array]) -> Iterator[tuple[int, Array]]:
    """The reverse chain from the blank: (t, x_t) for t = T … 0, x_0 a draw of p_θ.  uniform(t): (n,) in [0, 1)."""
    x_t = np.full((n, model.D), BLANK, np.int8)
    yield model.D, x_t
    for t in range(model.D, 0, -1):
        x_t = x_t.copy()
        x_t[:, t - 1] = uniform(t) < model.probability(x_t, t)
        yield t - 1, x_t


def check_binary(x: Array, D: int) -> None:
    """ValueError unless x is (N, D) of 0 and 1."""
    if getattr(x, "ndim", 0) != 2 or x.shape[1] != D or not len(x) or not np.isin(x, (0, 1)).all():
        raise ValueError(f"x_0: wanted shape (N, {D}) of 0 and 1, N >= 1, got {getattr(x, 'shape', type(x).__name__)}")


# --- the same chain written out over all 3^D states: nothing of the above is used or assumed -------------------------


def states(D: int) -> Array:
    """Every x_t there is, (3^D, D), in the order of base-3 numbers with x^1 first."""
    check_int("D", D, 1, LARGEST_D)
    return np.stack(np.meshgrid(*[np.arange(3, dtype=np.int8)] * D, indexing="ij"), axis=-1).reshape(-1, D)


def _number(x: Array) -> Array:
    """The place of each state in `states`."""
    return x @ 3 ** np.arange(x.shape[1])[::-1]


def forward_kernels(D: int) -> list[Array]:
    """q(x_t | x_{t-1}) for t = 1 … D, each (from, to)."""
    x, kernels = states(D), []
    for t in range(1, D + 1):
        masked = x.copy()
        masked[:, t - 1] = BLANK
        kernel = np.zeros((len(x), len(x)))
        kernel[np.arange(len(x)), _number(masked)] = 1
        kernels.append(kernel)
    return kernels


def reverse_kernels(model: Conditionals, slip: float = 0.0) -> list[Array]:
    """p_θ(x_{t-1} | x_t) for t = 1 … D, each (from, to): predicts the t-th coordinate and copies those after it.

    slip: the probability that a coordinate after the t-th is turned into its opposite instead of copied.
    From states that the forward chain does not reach at t it stays where it is.
    """
    if not 0 <= slip < 1:
        raise ValueError(f"slip: wanted a probability in [0, 1), got {slip}")
    x, kernels = states(model.D), []
    for t in range(1, model.D + 1):
        reached = (x[:, :t] == BLANK).all(axis=1) & (x[:, t:] != BLANK).all(axis=1)
        p = np.where(reached, model.probability(np.where(reached[:, None], x, 0), t), 0.5)
        kernel = np.eye(len(x))
        kernel[reached] = 0
        for turned in np.ndindex(*[2] * (model.D - t)):
            turns = np.array(turned, dtype=np.int8)
            weight = slip ** int(turns.sum()) * (1 - slip) ** int((1 - turns).sum())
            for value in (0, 1):
                to = x[reached].copy()
                to[:, t:] ^= turns
                to[:, t - 1] = value
                kernel[reached, _number(to)] += weight * np.where(value, p, 1 - p)[reached]
        kernels.append(kernel)
    return kernels


def log_likelihood(P: Sequence[Array]) -> Array:
    """log₂ p_θ(x_0) of every state, (3^D,): the reverse chain run from the blank; -∞ where it never ends."""
    p = np.zeros(len(P[0]))
    p[-1] = 1  # every coordinate BLANK
    for kernel in reversed(P):
        p = p @ kernel
    with np.errstate(divide="ignore"):
        return np.log2(p)


def eq_16(q_0: Array, Q: Sequence[Array], P: Sequence[Array]) -> float:
    """L in bits by Eq. 16: KL(q(x_T) ‖ p(x_T)) + E Σ_t KL(q(x_{t-1} | x_t) ‖ p_θ(x_{t-1} | x_t)) + H(x_0).

    q_0: (3^D,), the data's probabilities.
    """
    q, total = q_0, _kl(q_0, np.ones_like(q_0))  # -H(x_0), to be subtracted
    total = -total
    for Q_t, P_t in zip(Q, P, strict=True):
        both = q[:, None] * Q_t  # q(x_{t-1}, x_t)
        after = both.sum(axis=0)
        total += _kl(both, after * P_t.T)  # E KL = KL of the joints, since x_t has the same law in both
        q = after
    blank = np.zeros_like(q)
    blank[-1] = 1
    return total + _kl(q, blank)


def eq_5(q_0: Array, Q: Sequence[Array], P: Sequence[Array]) -> float:
    """L in bits by Eq. 5: E[L_T + Σ_{t>1} L_{t-1} + L_0], a mean over x_0 of KLs given x_0."""
    blank, total = np.zeros_like(q_0), 0.0
    blank[-1] = 1
    for start in np.flatnonzero(q_0):
        q, L = np.zeros_like(q_0), 0.0
        q[start] = 1
        for Q_t, P_t in zip(Q, P, strict=True):
            # q(x_{t-1}, x_t | x_0); at t = 1 x_{t-1} is x_0 and the KL is L_0.
            both = q[:, None] * Q_t
            after = both.sum(axis=0)
            L += _kl(both, after * P_t.T)
            q = after
        total += q_0[start] * (L + _kl(q, blank))
    return total


def _kl(q: Array, p: Array) -> float:
    """Σ q log₂ q / p over q > 0; ∞ where p = 0 there."""
    there = q > 0
    with np.errstate(divide="ignore"):
        return float((q[there] * (np.log2(q[there]) - np.log2(p[there]))).sum())

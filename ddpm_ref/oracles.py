"""Data distributions whose every diffusion quantity is known exactly: the truth to hold code and networks against.

An oracle is an ε-model: `oracle(x_t, t)` is ε*(x_t, t) = E[ε | x_t], which no network can beat, so it goes wherever a
network goes. Everything follows from what x_t says of x_0 (Eq. 4 and Bayes' rule):

    x̂_0* = E[x_0 | x_t]      ε* = (x_t - √ᾱ_t x̂_0*) / √(1 - ᾱ_t)      ∇ log q(x_t) = -ε* / √(1 - ᾱ_t)

Data have any shape, x_t is (N, *shape); t is one integer in 1..T or (N,). All is computed in float64; what stands for
a network's output comes back in x_t's dtype. Losses, densities and bounds are per dimension, in nats.
The schedule is the paper's unless one is given; it must be that of the sampler or loss that the oracle is handed to.
The reverse process of a Gaussian, with log p_θ(x_0) and the whole bound: `gaussian_oracle.py`.
"""

from abc import ABC, abstractmethod
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from ddpm_ref.checks import Array, Steps, check_choice, check_finite, check_float, check_int, check_step
from ddpm_ref.gaussian import Gaussian
from ddpm_ref.reverse import PARAMETRISATIONS, Model, mean_slope, output_from_x_0
from ddpm_ref.schedule import Schedule

_QUADRATURE_DIMENSIONS = 2  # up to here a grid is cheap,
_QUADRATURE_NODES = 2**20  # if it has no more nodes than this


class Oracle(ABC):
    """What every oracle gives, from its posterior p(x_0 | x_t). Subclasses: Gaussian, mixture, finite set of points."""

    def __init__(self, shape: tuple[int, ...], schedule: Schedule | None) -> None:
        if not isinstance(schedule, Schedule | None):
            raise ValueError(f"schedule: wanted a Schedule or None, got {type(schedule).__name__}")
        self.shape, self.D = shape, int(np.prod(shape))
        self.schedule = Schedule.linear() if schedule is None else schedule

    # --- what a subclass knows, on flat float64 rows x (N, D) with ᾱ_t as a column (N, 1) ---

    @abstractmethod
    def _log_q(self, x: Array, abar: Array) -> Array:
        """log q(x_t), (N,) nats in all."""

    @abstractmethod
    def _posterior(self, x: Array, abar: Array) -> tuple[Array, Array]:
        """E[x_0 | x_t], (N, D), and tr Cov[x_0 | x_t], (N,)."""

    @abstractmethod
    def parts(self) -> list[tuple[float, Gaussian]]:
        """The distribution of x_0 as weights and Gaussians."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_0, (n, *shape) float64."""

    # --- what follows ---

    def marginal(self, t: int) -> list[tuple[float, Gaussian]]:
        """q(x_t) as weights and Gaussians: N(√ᾱ_t m_k, ᾱ_t S_k + (1 - ᾱ_t) I) each (Eq. 4); t = 0 is the data."""
        check_int("t", t, 0, self.schedule.T)
        return [(w, part.noised(self.schedule.alpha_bar[t])) for w, part in self.parts()]

    def log_q(self, x_t: Array, t: Steps) -> Array:
        """log q(x_t), the density of the marginal, (N,) nats per dimension."""
        return self._log_q(*self._rows(x_t, t)) / self.D

    def score(self, x_t: Array, t: Steps) -> Array:
        """∇ log q(x_t) = -ε*(x_t, t) / √(1 - ᾱ_t), the gradient of D · `log_q`, shaped as x_t."""
        x, abar = self._rows(x_t, t)
        eps = self.predict(x.reshape(x_t.shape), t).reshape(x.shape)
        return (eps / -np.sqrt(1 - abar)).reshape(x_t.shape).astype(x_t.dtype)

    def posterior_variance(self, x_t: Array, t: Steps) -> Array:
        """tr Cov[x_0 | x_t] / D, (N,): what no prediction of x_0 from this x_t can avoid."""
        return self._posterior(*self._rows(x_t, t))[1] / self.D

    def predict(self, x_t: Array, t: Steps, predicts: str = "eps") -> Array:
        """The best prediction of ε, x_0, μ̃ or v: the conditional mean of each, given x_t; shaped as x_t.

        All are affine in x_0 once x_t is known, so each is `output_from_x_0` at x̂_0* = E[x_0 | x_t].
        """
        x, abar = self._rows(x_t, t)
        x_0 = self._posterior(x, abar)[0].reshape(x_t.shape)
        return output_from_x_0(self.schedule, x.reshape(x_t.shape), t, x_0, predicts).astype(x_t.dtype)

    def __call__(self, x_t: Array, t: Steps) -> Array:
        """ε*(x_t, t): the oracle as an ε-model."""
        return self.predict(x_t, t)

    def x_0(self, x_t: Array, t: Steps) -> Array:
        """x̂_0*(x_t, t) = E[x_0 | x_t]."""
        return self.predict(x_t, t, "x_0")

    def mu(self, x_t: Array, t: Steps) -> Array:
        """μ*(x_t, t) = E[x_{t-1} | x_t], the mean that Eq. 11 makes of ε*."""
        return self.predict(x_t, t, "mu")

    def model(self, predicts: str = "eps") -> Model:
        """The oracle as a model of any parametrisation, for samplers and losses."""
        check_choice("predicts", predicts, PARAMETRISATIONS)
        return partial(self.predict, predicts=predicts)

    def irreducible_loss(
        self, t: int, predicts: str = "eps", *, rng: np.random.Generator | None = None, draws: int = 4096
    ) -> float:
        """E (target - best prediction)² per element at step t: what L_simple of the perfect network is (Eq. 14).

            E‖ε - ε*‖² = ᾱ_t / (1 - ᾱ_t) E tr Cov[x_0 | x_t]

        and likewise with the squared slope of another target in x_0. The Gaussian's is exact. Of the others in one or
        two dimensions the mean over x_t is a trapezoidal sum, right to 1e-6 of itself where that is above 1e-9; with
        rng it is that over `draws` draws, the conditional covariance being exact. Raises ValueError without rng for
        D > 2, or where a grid as fine as the narrowest component would be too large for the widest (from 6 times in
        two dimensions, 2,900 in one).
        """
        check_int("t", t, 1, self.schedule.T)
        check_choice("predicts", predicts, PARAMETRISATIONS)
        return float(self._slope_in_x_0(t, predicts) ** 2 * self._mean_trace(t, rng, draws) / self.D)

    def _slope_in_x_0(self, t: int, predicts: str) -> float:
        """d target / d x_0 at fixed x_t."""
        if predicts == "x_0":
            return 1.0
        if predicts == "mu":
            return float(mean_slope(self.schedule, t, "x_0"))
        abar = self.schedule.alpha_bar[t]
        return float(-np.sqrt(abar / (1 - abar)) if predicts == "eps" else -1 / np.sqrt(1 - abar))

    def _mean_trace(self, t: int, rng: np.random.Generator | None, draws: int) -> float:
        """E tr Cov[x_0 | x_t] over q(x_t)."""
        abar = self.schedule.alpha_bar[t]
        if rng is not None:
            check_int("draws", draws, 1)
            x = self.draw(draws, rng).reshape(draws, self.D)
            x = np.sqrt(abar) * x + np.sqrt(1 - abar) * rng.standard_normal(x.shape)
            return float(self._posterior(x, abar)[1].mean())
        if self.D > _QUADRATURE_DIMENSIONS:
            raise ValueError(f"rng: wanted a generator, as D = {self.D} > {_QUADRATURE_DIMENSIONS}, got None")
        parts = [(w, part) for w, part in self.marginal(t) if w]
        finest = float(np.sqrt(min(part.variances.min() for _, part in parts)))
        total = 0.0
        for w, part in parts:
            u, weight = _grid(np.sqrt(part.variances), finest)
            total += w * float(weight @ self._posterior(part.from_standard(u), abar)[1])
        return total

    def _rows(self, x_t: Array, t: Steps) -> tuple[Array, Array]:
        """x_t as float64 rows (N, D) and ᾱ_t as a column (N, 1), checked."""
        check_float(x_t=x_t)
        if x_t.shape[1:] != self.shape or x_t.ndim == 0:
            raise ValueError(f"x_t: wanted shape (N, {', '.join(map(str, self.shape))}), got {x_t.shape}")
        check_step(self.schedule.T, t, x_t)
        abar = np.broadcast_to(self.schedule.alpha_bar[t], (len(x_t),))
        return np.asarray(x_t, dtype=np.float64).reshape(len(x_t), self.D), abar[:, None]


def _grid(deviations: Array, finest: float) -> tuple[Array, Array]:
    """Nodes (M, D) and weights (M,) of the trapezoidal rule for a mean over N(0, I), axis d being deviations[d] wide.

    For analytic functions it converges as e^{-2π d/h}, d the distance of their nearest pole from the real axis; what
    depends on a component of deviation `finest`, the smallest of all, is no smoother than that component.
    """
    steps = (0.05 if len(deviations) == 1 else 0.1) * finest / deviations
    halves = np.ceil(9 / steps).astype(int)
    if np.prod(2.0 * halves + 1) > _QUADRATURE_NODES:
        ratio = deviations.max() / finest
        raise ValueError(f"rng: wanted a generator, as widths of x_t's components differ {ratio:.3g} times, got None")
    axes = [step * np.arange(-half, half + 1) for step, half in zip(steps, halves, strict=True)]
    u = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, len(axes))
    weight = np.exp(-0.5 * (u * u).sum(axis=1))
    return u, weight / weight.sum()


class MixtureOracle(Oracle):
    """x_0 ~ Σ_k w_k N(m_k, S_k).

        r_k(x_t) ∝ w_k N(x_t; √ᾱ_t m_k, ᾱ_t S_k + (1 - ᾱ_t) I)      x̂_0* = Σ_k r_k E_k[x_0 | x_t]

    weights: (K,) ≥ 0 of sum 1.  means: (K, *shape).  covs: (K, D, D), or (K,) numbers or one number, times I each;
    0, points, if not given.
    """

    def __init__(
        self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike = 0.0, schedule: Schedule | None = None
    ) -> None:
        means = np.asarray(means, dtype=np.float64)
        if means.ndim == 0 or not means.size:
            raise ValueError(f"means: wanted shape (K, *shape), not empty, got {means.shape}")
        super().__init__(means.shape[1:], schedule)
        self.weights = _checked_weights(weights, len(means))
        covs = np.asarray(covs, dtype=np.float64)
        if covs.shape not in ((), (len(means),), (len(means), self.D, self.D)):
            raise ValueError(
                f"covs: wanted one number, ({len(means)},) or ({len(means)}, {self.D}, {self.D}), got {covs.shape}"
            )
        each = covs if covs.ndim else np.broadcast_to(covs, (len(means),))
        self.gaussians = [Gaussian(mean, cov) for mean, cov in zip(means, each, strict=True)]

    def parts(self) -> list[tuple[float, Gaussian]]:
        """The weights and the Gaussians."""
        return list(zip(self.weights.tolist(), self.gaussians, strict=True))

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_0, (n, *shape) float64."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        u = rng.standard_normal((n, self.D))
        x_0 = np.empty_like(u)
        for i, part in enumerate(self.gaussians):
            x_0[k == i] = part.from_standard(u[k == i])
        return x_0.reshape(n, *self.shape)

    def responsibilities(self, x_t: Array, t: Steps) -> Array:
        """p(k | x_t), the probability of each component, (N, K)."""
        return _normalised(self._log_joint(*self._rows(x_t, t)))[0]

    def _log_joint(self, x: Array, abar: Array) -> Array:
        """log w_k N(x_t; √ᾱ_t m_k, ᾱ_t S_k + (1 - ᾱ_t) I), (N, K)."""
        with np.errstate(divide="ignore"):  # a weight of 0
            log_w = np.log(self.weights)
        return log_w + np.stack([part.log_noised(x, abar) for part in self.gaussians], axis=1)

    def _log_q(self, x: Array, abar: Array) -> Array:
        return _normalised(self._log_joint(x, abar))[1]

    def _posterior(self, x: Array, abar: Array) -> tuple[Array, Array]:
        r = _normalised(self._log_joint(x, abar))[0]
        given = [part.given_noised(x, abar) for part in self.gaussians]
        mean = sum(r[:, k, None] * m for k, (m, _) in enumerate(given))
        # Within the components and between them.
        trace = sum(r[:, k] * (v + ((m - mean) ** 2).sum(axis=1)) for k, (m, v) in enumerate(given))
        return mean, trace


class EmpiricalOracle(MixtureOracle):
    """x_0 is one of K points, each as likely: what a network that knows its training set by heart would say.

        r_k(x_t) = softmax_k(-‖x_t - √ᾱ_t p_k‖² / (2 (1 - ᾱ_t)))      x̂_0* = Σ_k r_k p_k

    `responsibilities` is the exact posterior over which point x_t came from.
    points: (K, *shape), a finite data set; a point may occur more than once.
    """

    def __init__(self, points: ArrayLike, schedule: Schedule | None = None) -> None:
        points = np.array(points, dtype=np.float64)
        if points.ndim == 0 or not points.size:
            raise ValueError(f"points: wanted shape (K, *shape), not empty, got {points.shape}")
        check_finite(points=points)
        Oracle.__init__(self, points.shape[1:], schedule)
        self.points = points
        self.weights = np.full(len(points), 1 / len(points))
        # Around their mean: the squares below would cancel for data far from 0.
        self._centre = points.reshape(len(points), self.D).mean(axis=0)
        self._p = points.reshape(len(points), self.D) - self._centre
        self._p_squared = (self._p * self._p).sum(axis=1)

    def parts(self) -> list[tuple[float, Gaussian]]:
        """Each point as a Gaussian without width."""
        return [(float(w), Gaussian(p, 0.0)) for w, p in zip(self.weights, self.points, strict=True)]

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n of the points, with replacement, (n, *shape) float64."""
        return self.points[rng.integers(0, len(self.points), n)]

    def _log_joint(self, x: Array, abar: Array) -> Array:
        x = x - np.sqrt(abar) * self._centre
        square = (x * x).sum(axis=1)[:, None] - 2 * np.sqrt(abar) * (x @ self._p.T) + abar * self._p_squared
        log_2pi_var = np.log(2 * np.pi * (1 - abar))
        return np.log(self.weights) - 0.5 * (square / (1 - abar) + self.D * log_2pi_var)

    def _posterior(self, x: Array, abar: Array) -> tuple[Array, Array]:
        r = _normalised(self._log_joint(x, abar))[0]
        mean = r @ self._p
        return mean + self._centre, np.maximum(r @ self._p_squared - (mean * mean).sum(axis=1), 0)


def _normalised(log_joint: Array) -> tuple[Array, Array]:
    """p(k | x), (N, K), and log p(x), (N,), from log p(k, x)."""
    top = log_joint.max(axis=1, keepdims=True)
    p = np.exp(log_joint - top)
    total = p.sum(axis=1, keepdims=True)
    return p / total, (top + np.log(total))[:, 0]


def _checked_weights(weights: ArrayLike, K: int) -> Array:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (K,) or not (w >= 0).all() or abs(w.sum() - 1) > 1e-9:
        raise ValueError(f"weights: wanted ({K},) numbers >= 0 of sum 1, got shape {w.shape} of sum {w.sum()}")
    return w / w.sum()

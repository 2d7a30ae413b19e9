"""The Gaussian oracle: for x_0 ~ N(m, S) the whole reverse process is linear, so p_θ and the bound are exact too.

With ε* in Eq. 11 every reverse step is x_{t-1} = A_t x_t + a_t + σ_t z, and along the axes of S each coordinate, of
variance λ in x_0 and s_t = ᾱ_t λ + 1 - ᾱ_t in x_t, runs on its own (c_0, c_t those of Eq. 7):

    A_t = c_t + c_0 √ᾱ_t λ / s_t      mean_{t-1} = A_t mean_t + a_t      var_{t-1} = A_t² var_t + σ_t²

from p(x_T) = N(0, I). All is float64 and per dimension, in nats, as `bound_terms` is. No sampling anywhere.
"""

import numpy as np
from numpy.typing import ArrayLike

from ddpm_ref.checks import Array, check_float, check_int
from ddpm_ref.forward import posterior_coefficients
from ddpm_ref.gaussian import Gaussian, normal_kl
from ddpm_ref.oracles import Oracle
from ddpm_ref.reverse import reverse_variance
from ddpm_ref.schedule import Schedule, Table


class GaussianOracle(Oracle):
    """x_0 ~ N(m, S), of any dimension and any covariance, singular ones and a single point (S = 0) included.

        S_t = ᾱ_t S + (1 - ᾱ_t) I      ε* = √(1 - ᾱ_t) S_t⁻¹ (x_t - √ᾱ_t m)      E‖ε - ε*‖² = tr ᾱ_t S S_t⁻¹

    mean: the shape of one datum, D elements.  cov: (D, D) over the flattened elements, or one number for that times I.
    var in the methods is σ_t² as in `reverse_variance`: "beta", "beta_tilde" or a table of T+1. Both names have
    σ_1² = β̃_2; any positive σ_1² may be put into a table. The bound's L_0 is that of the density, not of Eq. 13.
    """

    def __init__(self, mean: ArrayLike, cov: ArrayLike = 1.0, schedule: Schedule | None = None) -> None:
        self.data = Gaussian(mean, cov)
        super().__init__(self.data.shape, schedule)

    def _log_q(self, x: Array, abar: Array) -> Array:
        return self.data.log_noised(x, abar)

    def _posterior(self, x: Array, abar: Array) -> tuple[Array, Array]:
        return self.data.given_noised(x, abar)

    def parts(self) -> list[tuple[float, Gaussian]]:
        """The one Gaussian."""
        return [(1.0, self.data)]

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_0, (n, *shape) float64."""
        return self.data.from_standard(rng.standard_normal((n, self.D))).reshape(n, *self.shape)

    def _mean_trace(self, t: int, rng: np.random.Generator | None, draws: int) -> float:
        """(1 - ᾱ_t) tr S S_t⁻¹, the same for every x_t."""
        return float(self._posterior_variances(np.array([t])).sum())

    def _posterior_variances(self, t: Array) -> Array:
        """The eigenvalues of Cov[x_0 | x_t], λ (1 - ᾱ_t) / s_t, for steps t (K,): (K, D)."""
        abar = self.schedule.alpha_bar[t][:, None]
        return self.data.variances * (1 - abar) / (abar * self.data.variances + 1 - abar)

    # --- the true reverse process, q ---

    def q_marginal(self, t: int) -> Gaussian:
        """q(x_t) = N(√ᾱ_t m, S_t); t = 0 is the data."""
        return self.marginal(t)[0][1]

    def q_reverse_variance(self, t: int) -> Array:
        """The eigenvalues of Cov[x_{t-1} | x_t], β̃_t + c_0² λ (1 - ᾱ_t) / s_t, (D,), along the axes of S (§3.2).

        β_t for unit Gaussians and β̃_t for a point: the two choices of σ_t². What lies between is what a network could
        gain by learning it.
        """
        check_int("t", t, 1, self.schedule.T)
        c_0, _ = posterior_coefficients(self.schedule, t)
        variances: Array = self.schedule.beta_tilde[t] + c_0**2 * self._posterior_variances(np.array([t]))[0]
        return variances

    # --- the learned one, p_θ ---

    def p_marginals(self, var: str | Table = "beta", *, z_at_1: bool = True) -> list[Gaussian]:
        """The exact distribution of every x_t, t = 0 … T, when Eq. 1 runs with ε* and these σ_t².

        z_at_1: True for p_θ itself; False for Algorithm 2, whose last step adds no noise.
        """
        schedule, data, sigma2 = self.schedule, self.data, reverse_variance(self.schedule, var)
        m = data.along_axes(data.mean.ravel())
        mean, variances = np.zeros((schedule.T + 1, self.D)), np.ones((schedule.T + 1, self.D))  # along the axes of S
        for t in range(schedule.T, 0, -1):
            abar = schedule.alpha_bar[t]
            c_0, c_t = posterior_coefficients(schedule, t)
            gain = np.sqrt(abar) * data.variances / (abar * data.variances + 1 - abar)
            A, a = c_t + c_0 * gain, c_0 * (1 - gain * np.sqrt(abar)) * m
            mean[t - 1] = A * mean[t] + a
            variances[t - 1] = A**2 * variances[t] + (sigma2[t] if t > 1 or z_at_1 else 0.0)
        return [data.with_moments(row, v) for row, v in zip(data.from_axes(mean), variances, strict=True)]

    def log_p(self, x_0: Array, var: str | Table = "beta") -> Array:
        """log p_θ(x_0) of each datum (N, *shape), (N,) nats per dimension."""
        check_float(x_0=x_0)
        if x_0.shape[1:] != self.shape:
            raise ValueError(f"x_0: wanted shape (N, {', '.join(map(str, self.shape))}), got {x_0.shape}")
        return self.p_marginals(self._positive(var))[0].log_density(x_0) / self.D

    def expected_log_p(self, var: str | Table = "beta") -> float:
        """E log p_θ(x_0) over the data, nats per dimension: -H(x_0) - KL(q(x_0) ‖ p_θ(x_0))."""
        p = self.p_marginals(self._positive(var))[0]
        shift = self.data.along_axes((self.data.mean - p.mean).ravel())
        square = (self.data.variances + shift**2) / p.variances
        return float(-0.5 * (np.log(2 * np.pi * p.variances) + square).mean())

    def bound_terms(self, var: str | Table = "beta") -> Table:
        """The expectation of every L_t over data and noise, a table of T+1, nats per dimension (Eq. 5).

            L_T      ½ (ᾱ_T (λ + m² - 1) - log(1 - ᾱ_T))
            L_{t-1}  ½ (log σ_t²/β̃_t + (β̃_t + c_0² λ (1 - ᾱ_t) / s_t) / σ_t² - 1)      t > 1
            L_0      ½ (log 2πσ_1² + c_0² λ (1 - ᾱ_1) / (s_1 σ_1²)),  -log p_θ(x_0 | x_1)

        each the mean over the D axes: the x_0 in μ̃_t is uncertain by Cov[x_0 | x_t]. Row s is L_s, as in `BoundTerms`.
        """
        schedule, sigma2 = self.schedule, self._positive(var)
        t = np.arange(1, schedule.T + 1)
        c_0, _ = posterior_coefficients(schedule, t)
        error = c_0**2 * self._posterior_variances(t).mean(axis=1)
        L = np.empty(schedule.T + 1)
        L[0] = 0.5 * (np.log(2 * np.pi * sigma2[1]) + error[0] / sigma2[1])
        L[1:-1] = normal_kl(0.0, schedule.beta_tilde[2:], np.sqrt(error[1:]), sigma2[2:])
        L[-1] = schedule.L_T((self.data.variances.sum() + (self.data.mean**2).sum()) / self.D)
        return L

    def bound(self, var: str | Table = "beta") -> float:
        """L, the bound on E[-log p_θ(x_0)], nats per dimension: the sum of `bound_terms` (Eqs. 3, 5)."""
        return float(self.bound_terms(var).sum())

    def entropy(self) -> float:
        """H(x_0) in nats per dimension; -∞ for a singular covariance."""
        return self.data.entropy() / self.D

    def gap(self, var: str | Table = "beta") -> float:
        """L - H(x_0) = KL(q(x_{0:T}) ‖ p_θ(x_{0:T})) ≥ 0, nats per dimension: the last line of Eq. 16 less H(x_0).

        KL(q(x_T) ‖ p(x_T)) + Σ_{t≥1} E KL(q(x_{t-1} | x_t) ‖ p_θ(x_{t-1} | x_t)); ∞ for a singular covariance.
        """
        return self.bound(var) - self.entropy()

    def _positive(self, var: str | Table) -> Table:
        sigma2 = reverse_variance(self.schedule, var)
        if not (sigma2[1:] > 0).all():
            raise ValueError("var: a density wants every sigma_t^2 > 0")
        return sigma2

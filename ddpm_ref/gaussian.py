"""Gaussians: KL and Φ in one dimension, where it underflows too, and N(m, S) in any number. All float64."""

import numpy as np
from numpy.typing import ArrayLike

from ddpm_ref.checks import Array, check_finite

# (1 + 2y) erfcx(y) in Chebyshev polynomials of (y - 3.75) / (y + 3.75), which takes [0, ∞) to [-1, 1)
# (the substitution of Shepherd & Laframboise 1981). Fitted at 60 nodes with 40 digits; relative error 1.1e-15.
_ERFCX = np.array(
    [
        1.1775789345674017, -0.004590054580646478, -0.08424913336651792, 0.05920993999819189,
        -0.026658668435305753, 0.009074997670705265, -0.002413163540417608, 0.0004907758365258086,
        -6.916973302501207e-05, 4.13902798607301e-06, 7.74038306619849e-07, -2.1886401049234397e-07,
        1.076499946567091e-08, 4.521959811218287e-09, -7.754400208831351e-10, -6.318088340886684e-11,
        2.86879501093067e-11, 1.9455868545777342e-13, -9.65469674843344e-13, 3.252548148148738e-14,
        3.3478119482868056e-14, -1.8645628804192973e-15, -1.2507950530688328e-15, 7.418235256628797e-17,
        5.068148904802403e-17,
    ]
)  # fmt: skip


def erfcx(y: Array) -> Array:
    """The scaled complementary error function e^{y²} erfc(y) for y ≥ 0, which does not underflow; float64."""
    y = np.asarray(y, dtype=np.float64)
    # At y = ∞ the map's limit is 1 and 1 / (1 + 2y) is 0.
    u = 1 - 7.5 / (y + 3.75)
    return np.polynomial.chebyshev.chebval(u, _ERFCX) / (1 + 2 * y)


def log_normal_cdf(x: Array) -> Array:
    """log Φ(x) of the standard normal, accurate in both tails; float64.

    log Φ(-|x|) = -x²/2 + log(erfcx(|x|/√2) / 2), and for x > 0  log Φ(x) = log(1 - Φ(-x))
    """
    x = np.asarray(x, dtype=np.float64)
    with np.errstate(divide="ignore"):  # log 0 at x = -∞
        lower = np.log(erfcx(np.abs(x) / np.sqrt(2)) / 2) - x * x / 2
    return np.where(x <= 0, lower, np.log1p(-np.exp(lower)))


def normal_kl(mean_1: Array, var_1: Array, mean_2: Array, var_2: Array) -> Array:
    """KL(N(mean_1, var_1) ‖ N(mean_2, var_2)) elementwise, in nats.

    ½ (log(var_2 / var_1) + (var_1 + (mean_1 - mean_2)²) / var_2 - 1)
    """
    return 0.5 * (np.log(var_2) - np.log(var_1) + (var_1 + (mean_1 - mean_2) ** 2) / var_2 - 1)


class Gaussian:
    """N(m, S) over arrays of any shape, S any covariance: singular ones and a single point (S = 0) too.

    mean: any shape, of D elements.  cov: (D, D) over the flattened elements, or one number for that times I.
    It is kept as S = U diag(λ) Uᵀ: adding noise only changes λ, so what follows from Eq. 4 is elementwise along U.
    Raises ValueError for a covariance of another shape, not symmetric, not finite, or with a negative eigenvalue.
    """

    def __init__(self, mean: ArrayLike, cov: ArrayLike = 1.0) -> None:
        mean, cov = np.array(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
        check_finite(mean=mean, cov=cov)
        if not mean.size:
            raise ValueError("mean: wanted at least one element, got none")
        if cov.shape not in ((), (mean.size, mean.size)):
            raise ValueError(f"cov: wanted one number or shape ({mean.size}, {mean.size}), got {cov.shape}")
        self.mean, self.shape, self.D = mean, mean.shape, mean.size
        slack = 1e-10 * float(np.abs(cov).max())
        if cov.ndim and np.abs(cov - cov.T).max() > slack:
            raise ValueError("cov: wanted a symmetric matrix")
        self.axes: Array | None = None  # of U = I
        variances = np.full(self.D, float(cov)) if cov.ndim == 0 else None
        if variances is None:
            variances, self.axes = np.linalg.eigh(cov)
        if variances.min() < -slack:
            raise ValueError(f"cov: wanted no negative eigenvalue, got {variances.min():.3g}")
        # Smaller ones are rounding, as in `numpy.linalg.matrix_rank`: a singular S must not have a finite entropy.
        negligible = self.D * np.finfo(np.float64).eps * variances.max()
        self.variances = np.where(variances > negligible, variances, 0)

    def with_moments(self, mean: Array, variances: Array) -> "Gaussian":
        """Another Gaussian of the same axes U: mean of the same shape, λ (D,)."""
        other = object.__new__(Gaussian)
        other.mean, other.variances, other.axes = mean.reshape(self.shape), variances, self.axes
        other.shape, other.D = self.shape, self.D
        return other

    @property
    def cov(self) -> Array:
        """S, (D, D)."""
        return np.diag(self.variances) if self.axes is None else (self.axes * self.variances) @ self.axes.T

    def along_axes(self, x: Array) -> Array:
        """Rows (N, D) or one vector (D,) in the coordinates of U."""
        return x if self.axes is None else x @ self.axes

    def from_axes(self, y: Array) -> Array:
        """The inverse of `along_axes`."""
        return y if self.axes is None else y @ self.axes.T

    def from_standard(self, u: Array) -> Array:
        """m + S^½ u for each row of standard normals u (N, D): draws, (N, D)."""
        return self.mean.ravel() + self.from_axes(np.sqrt(self.variances) * u)

    def log_density(self, x: Array) -> Array:
        """log N(x; m, S) of each of x (N, *shape), (N,) nats in all.  Raises ValueError if S is singular."""
        if not self.variances.all():
            raise ValueError("cov: a density wants one that is not singular")
        return self.log_noised(np.asarray(x, dtype=np.float64).reshape(len(x), self.D), 1.0)

    def entropy(self) -> float:
        """½ log det(2πe S), nats in all; -∞ if S is singular."""
        with np.errstate(divide="ignore"):
            return float(0.5 * np.log(2 * np.pi * np.e * self.variances).sum())

    # --- x_t = √ᾱ x_0 + √(1 - ᾱ) ε of x_0 ~ N(m, S), on rows x (N, D), ᾱ one number or a column (N, 1) ---

    def noised(self, abar: float) -> "Gaussian":
        """The distribution of x_t, N(√ᾱ m, ᾱ S + (1 - ᾱ) I) (Eq. 4)."""
        return self.with_moments(np.sqrt(abar) * self.mean, abar * self.variances + (1 - abar))

    def log_noised(self, x: Array, abar: Array) -> Array:
        """log q(x_t), (N,) nats in all."""
        y, s = self._centred(x, abar)
        return -0.5 * (y * y / s + np.log(2 * np.pi * s)).sum(axis=1)

    def given_noised(self, x: Array, abar: Array) -> tuple[Array, Array]:
        """E[x_0 | x_t] = m + √ᾱ S S_t⁻¹ (x_t - √ᾱ m), (N, D), and tr Cov[x_0 | x_t] = (1 - ᾱ) tr S S_t⁻¹, (N,)."""
        y, s = self._centred(x, abar)
        mean = self.mean.ravel() + self.from_axes(np.sqrt(abar) * self.variances / s * y)
        trace = ((1 - abar) * self.variances / s).sum(axis=-1)
        return mean, np.broadcast_to(trace, (len(x),))

    def _centred(self, x: Array, abar: Array) -> tuple[Array, Array]:
        """x_t - √ᾱ m along U, (N, D), and the eigenvalues of S_t."""
        return self.along_axes(x - np.sqrt(abar) * self.mean.ravel()), abar * self.variances + (1 - abar)

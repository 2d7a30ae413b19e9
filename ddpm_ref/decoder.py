"""The discretised decoder p_θ(x_0 | x_1): exact probabilities of grey levels (§3.3; Eq. 13)."""

from collections.abc import Callable

import numpy as np

from ddpm_ref.checks import Array, check_float, check_int
from ddpm_ref.gaussian import erfcx

# Bins narrower than this, in units of σ, are integrated by expansion: a difference of Φ would lose their digits.
_NARROW = 1e-4

Gradient = Callable[[Array], tuple[Array, Array]]


def discretized_gaussian_log_likelihood(x_0: Array, mean: Array, var: Array, levels: int) -> tuple[Array, Gradient]:
    """log p_θ(x_0 | x_1) of the discretised decoder, in nats per element, and its adjoint (Eq. 13).

        log ∫_{δ-(x_0)}^{δ+(x_0)} N(x; mean, var) dx,    δ±(x) = x ± 1/(levels - 1), but ±∞ at x = ±1

    x_0: (N, ...) float, grey levels scaled to [-1, 1].  mean: float, var > 0: broadcast against x_0; var is σ_1².
    levels: 256 for 8 bits.  The product over an image's elements is left to the caller, as a sum.
    Returns log p, float64 as all likelihoods, and `backward(d_log_p) -> d_mean, d_var`, each in x_0's broadcast shape.
    """
    check_int("levels", levels, 2)
    check_float(x_0=x_0, mean=mean)
    var = np.asarray(var, dtype=np.float64)
    if (var <= 0).any():
        raise ValueError(f"var: wanted variances > 0, got {var.min()}")
    half, sigma = 1 / (levels - 1), np.sqrt(var)
    x = np.asarray(x_0, dtype=np.float64)
    a = np.where(x < -1 + half, -np.inf, (x - half - mean) / sigma)
    b = np.where(x > 1 - half, np.inf, (x + half - mean) / sigma)

    narrow = b - a < _NARROW
    log_p, d_mean, d_log_var = _wide_bin(np.where(narrow, -1.0, a), np.where(narrow, 1.0, b))
    if narrow.any():
        middle, width = np.where(narrow, (x - mean) / sigma, 0.0), np.where(narrow, 2 * half / sigma, 1.0)
        log_p, d_mean, d_log_var = np.where(narrow, _narrow_bin(middle, width), (log_p, d_mean, d_log_var))
    return log_p, lambda d: (d * d_mean / sigma, d * d_log_var / var)


def _wide_bin(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """log P, σ d log P / d mean and d log P / d log σ² of a bin with edges a < b in units of σ from the mean.

        P = Φ(b) - Φ(a)     σ d log P / d mean = (φ(a) - φ(b)) / P     d log P / d log σ² = (a φ(a) - b φ(b)) / 2P

    φ, Φ: the standard normal's density and distribution function.
    """
    # Φ is kept in its lower tail, where differences do not cancel: a bin above the mean is mirrored below it.
    flip = a + b > 0  # so lo < 0, and |hi| <= |lo|
    lo, hi = np.where(flip, -b, a), np.where(flip, -a, b)
    # Everything is measured in units of e^{-hi²/2} if hi < 0 (the far tail), of 1 if the bin holds the mean.
    scale = np.minimum(hi, 0) ** 2 / 2
    tail_lo = 0.5 * erfcx(-lo / np.sqrt(2)) * _exp(scale - lo * lo / 2)
    tail_hi = 0.5 * erfcx(np.abs(hi) / np.sqrt(2)) * _exp(scale - hi * hi / 2)
    P = np.where(hi > 0, 1 - tail_hi, tail_hi) - tail_lo
    density_a, density_b = (_exp(scale - edge * edge / 2) / (np.sqrt(2 * np.pi) * P) for edge in (a, b))
    # ∞ · φ(∞) = 0
    moment = np.where(np.isinf(a), 0, a) * density_a - np.where(np.isinf(b), 0, b) * density_b
    return np.log(P) - scale, density_a - density_b, moment / 2


def _narrow_bin(m: Array, w: Array) -> tuple[Array, Array, Array]:
    """The same for a bin of width w « 1 around m: φ(m) times the mean of e^{-mu - u²/2} over |u| < w/2.

    log P = log φ(m) + log w + log(sinh z / z) - w²/24 + O(w⁴),    z = mw/2
    """
    z = np.maximum(np.abs(m * w / 2), 1e-8)
    log_sinhc = z + np.log(-np.expm1(-2 * z)) - np.log(2 * z)
    slope = np.where(z < 1e-2, z / 3, 1 / np.tanh(z) - 1 / z)  # d log_sinhc / dz
    log_p = -0.5 * (m * m + np.log(2 * np.pi)) + np.log(w) + log_sinhc - w * w / 24
    # m and w fall as 1/σ, z as 1/σ².
    return log_p, m - np.sign(m) * slope * w / 2, 0.5 * (m * m - 1) - slope * z + w * w / 24


def _exp(x: Array) -> Array:
    """exp that underflows to 0 quietly."""
    with np.errstate(under="ignore"):
        return np.exp(x)

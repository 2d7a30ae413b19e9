"""Bounds that a right implementation exceeds with a stated probability only, without tables of quantiles."""

import math

import numpy as np

from ddpm_ref.checks import Array

FALSE_ALARM = 1e-9
"""Probability that a statistical property breaks for a right implementation (of one seed)."""


def chi_square_bounds(degrees: int, probability: float) -> tuple[float, float]:
    """Values that χ² with these degrees of freedom leaves with at most this probability (Laurent & Massart 2000).

    P(χ² ≥ k + 2√(k x) + 2x) ≤ e^{-x}      P(χ² ≤ k - 2√(k x)) ≤ e^{-x}
    """
    x = math.log(2 / probability)
    return degrees - 2 * math.sqrt(degrees * x), degrees + 2 * math.sqrt(degrees * x) + 2 * x


def normal_bound(probability: float) -> float:
    """|N(0, 1)| exceeds this with at most this probability: P(|z| ≥ b) ≤ 2 e^{-b²/2}."""
    return math.sqrt(2 * math.log(2 / probability))


def distribution_bound(n: int, probability: float) -> float:
    """sup |F_n - F| of n samples exceeds this with at most this probability (Dvoretzky, Kiefer, Wolfowitz; Massart)."""
    return math.sqrt(math.log(2 / probability) / (2 * n))


def largest_is_likely(largest: float, n: int, probability: float) -> bool:
    """Whether the largest |z| of n normals may be this: P(all ≤ m) = erf(m/√2)^n, P(any > m) ≤ n erfc(m/√2)."""
    inside, outside = math.erf(largest / math.sqrt(2)), math.erfc(largest / math.sqrt(2))
    return inside > 0 and n * math.log(inside) >= math.log(probability) and n * outside >= probability


_GRID = np.linspace(-9, 9, 36_001)
_PHI = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in _GRID])


def normal_distance(z: Array) -> float:
    """sup |F_n - Φ| of some numbers; Φ from a table, to 1e-8."""
    z = np.sort(z.reshape(-1))
    cdf = np.interp(z, _GRID, _PHI)
    n = len(z)
    return float(max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max()))


def along(z: Array, x: Array) -> float:
    """⟨z, x⟩ / ‖x‖: exactly N(0, 1) if z is standard normal and independent of x."""
    length = float(np.linalg.norm(x))
    return float(np.vdot(z, x)) / length if length else 0.0

"""Toys for Algorithms 3 and 4: distributions on a grid in the plane, with a schedule that makes all their steps equal.

Everything is exact: x_0 is one of levels^D points, so what is wanted of x_t is a sum over points, mean by mean over
nodes of a trapezoidal rule, and noise is independent along the axes: sums over the grid are one product per axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_ref.checks import Array, check_int
from ddpm_ref.codebook import Codebook
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.gaussian import Gaussian
from ddpm_ref.oracles import EmpiricalOracle
from ddpm_ref.schedule import Schedule, Table

ALPHA_BAR_T = 1e-3  # L_T is then 0.0014 bits at most, and x_T costs what its index code does
GRID_IN_NOISE = 6  # distance of grid points, in x_1's noise √(1 - ᾱ_1): x_1 rounds to x_0, but for 3 σ, and L_0 ≈ 0
_NODES = 96  # of the table of distortions against log(ᾱ / (1 - ᾱ))
_NEGLIGIBLE = 1e-16  # probability of a node

_BLOBS = ([-0.5, -0.4], [0.5, -0.3], [0.0, 0.5])
TOYS: dict[str, list[tuple[float, Gaussian]]] = {
    "gaussian": [(1.0, Gaussian([0.0, 0.0], [[0.16, 0.1], [0.1, 0.12]]))],
    "mixture": [(w, Gaussian(mean, 0.015)) for w, mean in zip((0.3, 0.3, 0.4), _BLOBS, strict=True)],
}
"""Distributions in the plane; a toy's x_0 is a grid point, with probability in proportion to the density there."""


class GridOracle(EmpiricalOracle):
    """x_0 is one of the points of a grid, with given probabilities; otherwise as `EmpiricalOracle`."""

    def __init__(self, parts: Sequence[tuple[float, Gaussian]], levels: int, schedule: Schedule) -> None:
        D = parts[0][1].D
        self.levels = levels
        self.axis = np.linspace(-1, 1, levels)
        grey = np.stack(np.meshgrid(*[np.arange(levels)] * D, indexing="ij"), axis=-1).reshape(-1, D)
        super().__init__(grey * (2 / (levels - 1)) - 1, schedule)
        density = sum(w * np.exp(part.log_density(self.points)) for w, part in parts)
        self.weights = density / np.sum(density)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_0, (n, D) float64."""
        return self.points[rng.choice(len(self.points), size=n, p=self.weights)]

    def entropy(self) -> float:
        """H(x_0) in bits."""
        w = self.weights[self.weights > 0]
        return float(-(w * np.log2(w)).sum())

    def mean_square(self) -> float:
        """E‖x_0‖²."""
        return float(self.weights @ (self.points**2).sum(axis=1))

    def at_nodes(self, abar: float) -> "AtNodes":
        """x_t at nodes a quarter of √(1 - ᾱ_t) apart."""
        width = float(np.sqrt(1 - abar))
        half = int(np.ceil(4 * (1 / width + 7)))
        x_t = width / 4 * np.arange(-half, half + 1)
        apart = (x_t[:, None] - np.sqrt(abar) * self.axis) / width
        return AtNodes(self, np.exp(-0.5 * apart**2) / np.sqrt(2 * np.pi) / 4)


class AtNodes:
    """Sums over the grid at every node x_t of a trapezoidal rule, as arrays (nodes, …, nodes) of D axes.

    along: (nodes, levels), q(x_t | x_0) along one axis, times the distance between nodes.
    """

    def __init__(self, oracle: GridOracle, along: Array) -> None:
        self.D, self.axis, self._along = oracle.D, oracle.axis, along
        self._weights = oracle.weights.reshape((oracle.levels,) * oracle.D)
        self.q = self.joint(np.ones(oracle.levels), 0)
        means = [self.joint(self.axis, d) for d in range(self.D)]
        self.x_0_hat = [np.divide(m, self.q, out=np.zeros_like(m), where=self.q > 0) for m in means]

    def joint(self, f: Array, d: int) -> Array:
        """E[f(x_0's coordinate d); x_t = node], for f by its values at the levels; q(x_t) itself for f = 1."""
        total = self._weights * f.reshape([-1 if k == d else 1 for k in range(self.D)])
        for _ in range(self.D):
            total = np.tensordot(total, self._along, axes=(0, 1))
        return total

    def explained(self) -> float:
        """E‖x̂_0*‖², which is E‖x_0‖² - E‖x_0 - x̂_0*‖²."""
        return float(sum((self.q * m * m).sum() for m in self.x_0_hat))

    def L_0(self, var: float) -> float:
        """E[-log₂ p_θ(x_0 | x_1)] of the decoder with mean x̂_0*, σ_1² = var; a level of a coordinate at a time."""
        total, levels = 0.0, len(self.axis)
        for d in range(self.D):
            for k in range(levels):
                joint = self.joint(np.eye(levels)[k], d)
                some = joint > _NEGLIGIBLE
                x_0 = np.full(some.sum(), self.axis[k])
                log_p, _ = discretized_gaussian_log_likelihood(x_0, self.x_0_hat[d][some], np.asarray(var), levels)
                total -= float(joint[some] @ log_p)
        return total / float(np.log(2))


@dataclass(frozen=True)
class Costs:
    """A toy's expectations, exact, of one copy.

    L: (T+1,) bits; row s is L_s of Eq. 5.  distortion: (T+2,), E‖x_0 - x̂_0(x_t)‖², as `Codebook` wants it.
    """

    L: Table
    distortion: Table


def exact_costs(oracle: GridOracle) -> Costs:
    """What every step costs and shows, under the oracle with σ_t² = β_t, by a trapezoidal sum over x_t.

    KLs are affine in the distortion (`Codebook`); p_θ(x_0 | x_1) has the mean x̂_0 (Eq. 7 at t = 1).
    """
    T, square = oracle.schedule.T, oracle.mean_square()
    nodes = [oracle.at_nodes(float(abar)) for abar in oracle.schedule.alpha_bar[1:]]
    distortion = np.array([0.0, *(square - at.explained() for at in nodes), square]).clip(min=0)
    book = Codebook(oracle.schedule, oracle, oracle.shape, oracle.levels, distortion)
    return Costs(np.array([nodes[0].L_0(float(book.sigma2[1])), *book.kl[1 : T + 1]]), distortion)


def even_schedule(oracle: GridOracle, T: int) -> Schedule:
    """The schedule of T steps whose L_1 … L_{T-1} are equal for this x_0 (the oracle's own schedule is not used).

    Both ends are given: ᾱ_T = 0.001, so that L_T is all but 0 (x_T tells nothing, and must: p(x_T) = N(0, I)), and
    √(1 - ᾱ_1) a sixth of the distance of grid points, so that L_0 is all but 0 too. Between them, for a KL that
    is tried, ᾱ_{T-1}, ᾱ_{T-2}, … follow one after the other by bisection, the KL of a step from x_t growing with
    ᾱ_{t-1}; and that KL is found by bisection over it, as ᾱ_1 grows with it. Expected KLs follow from E‖x_0 - x̂_0‖²,
    which is interpolated in log(ᾱ / (1 - ᾱ)): the steps are even to about 1 %.
    """
    check_int("T", T, 2)
    width = 2 / (oracle.levels - 1) / GRID_IN_NOISE
    ends = (_log_snr(ALPHA_BAR_T), _log_snr(1 - width**2))
    log_snr, square = np.linspace(*ends, _NODES), oracle.mean_square()
    distortion = np.array([square - oracle.at_nodes(float(_alpha_bar(u))).explained() for u in log_snr]).clip(min=0)

    def kl(u: float, u_before: float) -> float:
        """Of x_{t-1} at log SNR u_before, sent after x_t at u; in nats."""
        abar, before = _alpha_bar(u), _alpha_bar(u_before)
        beta, ratio = -np.expm1(np.log(abar) - np.log(before)), (1 - abar) / (1 - before)
        apart = before * beta / (1 - abar) ** 2 * np.interp(u, log_snr, distortion)
        return float(0.5 * (oracle.D * (np.log(ratio) + 1 / ratio - 1) + apart))

    def chain(each: float) -> list[float]:
        """log SNR of x_T, …, x_1 if every step costs so much, or stays at the end once it is reached."""
        chosen = [ends[0]]
        for _ in range(T - 1):
            u = chosen[-1]
            chosen.append(_bisect(lambda before, u=u: kl(u, before) < each, u, ends[1]))  # type: ignore[misc]
        return chosen

    each = _bisect(lambda k: chain(k)[-1] < ends[1] - 1e-9, 0.0, kl(*ends))
    reached = [*chain(each)[:-1], ends[1]]
    return Schedule.from_alpha_bar([1.0, *map(_alpha_bar, reversed(reached))], "even")


def toy(name: str, T: int = 6, levels: int = 17) -> GridOracle:
    """One of `TOYS` on a grid of levels^2 points, under its even schedule of T steps."""
    parts = TOYS[name]
    return GridOracle(parts, levels, even_schedule(GridOracle(parts, levels, Schedule.cosine(T)), T))


def _log_snr(abar: float) -> float:
    return float(np.log(abar) - np.log1p(-abar))


def _alpha_bar(log_snr: float) -> float:
    return float(1 / (1 + np.exp(-log_snr)))


def _bisect(too_low: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number found for which too_low holds, between one for which it does and one for which it need not."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return low

"""Minimal random coding: a draw of q sent as one whole number, by a sender and a receiver who share p and a seed.

The Poisson functional representation (Li & El Gamal 2018). The seed gives both the same candidates Z_1, Z_2, … ~ p
and arrival times T_1 < T_2 < … of a Poisson process of rate 1; with w = q / p the sender takes

    K = argmin_i T_i / w(Z_i)        and sends K;        the receiver computes Z_K

Z_K is an exact draw of q: the points (Z_i, T_i / w(Z_i)) are again a Poisson process, of intensity q, and its first
point is a draw of q. The search ends exactly: no i can win after T_i / max w has passed the best T_j / w(Z_j) so far,
which happens after max w candidates on average. So what is coded at once must be cut into blocks (`log_ratio_max`).
"Exact" is up to the candidates: the counted stream's normals are float32 of 24 random bits each, cut at 5.77 σ.

How long is K? Let D = KL(q ‖ p) in bits and v the total variation between q and p, v ≤ min(1, √(D log 2 / 2)).

  1. Given Z_K = z and Θ = T_K / w(z) ~ Exp(1), independent of each other, K - 1 is a Poisson number of mean
     Θ E_p (w(z) - w)_+ (Li & El Gamal 2018, proof of theorem 1: the points that came earlier but lost).
  2. (w(z) - w)_+ ≤ (w(z) - 1)_+ + (1 - w)_+, whose last term has mean v; so, by Jensen's inequality,
     E log₂ K ≤ E_q log₂(max(w, 1) + v) ≤ D + E_q (log₂ w)_- + log₂(1 + v), and as w log 1/w ≤ min(1/e, 1 - w) for
     w < 1,  E log₂ K ≤ M(D) = D + min(1/e, v) log₂ e + log₂(1 + v).  (With v = 1 it is their bound.)
  3. The code P(K) = (1 - ρ) ρ^e 2^-e, e = ⌊log₂ K⌋, ρ = M / (1 + M) (`entropy_coding.put_index`) then takes
     E log₂ 1/P(K) ≤ M + M log₂(1 + 1/M) + log₂(1 + M) ≤ D + log₂(D + 1) + 3.32  bits

(the most it can be over D + log₂(D + 1), at the D where the bound on v reaches 1), under the D + log₂(D + 1) + 5 that
their theorem gives a block, and little where D is. ρ must be known to both sides, so it is set for the D that they
expect; a block whose own D is half or twice that costs under half a bit more, what separates two geometric laws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.gaussian import normal_kl
from ddpm_ref.random import Purpose, normal, words

LARGEST_STREAM = 2**23  # coordinates a step: a block's first coordinate numbers its stream
_CHUNK = 2**17  # numbers held at a time, 1 MiB


class Choice(NamedTuple):
    """The index K ≥ 1 of the winner, and how many candidates were looked at until that was certain."""

    K: int
    tried: int


def choose(
    log_ratio: Callable[[int, int], Array],
    log_ratio_max: float,
    gaps: Callable[[int, int], Array],
    chunk: int = 2**14,
) -> Choice:
    """K = argmin_i T_i / w(Z_i), exactly.

    log_ratio(first, count): log w of so many candidates, (count,).  log_ratio_max: log max w, or any upper bound.
    gaps(first, count): T_{i+1} - T_i ~ Exp(1), (count,).  chunk: candidates at a time at most; K does not depend on it.
    """
    best, K, last, first, size = np.inf, 0, 0.0, 0, min(64, chunk)
    while first == 0 or np.log(last) - log_ratio_max < best:
        # One running sum, added up in order: where it is cut changes no bit.
        times = np.cumsum(np.concatenate([[last], gaps(first, size)]))[1:]
        score = np.log(times) - log_ratio(first, size)
        winner = int(score.argmin())
        if score[winner] < best:
            best, K = float(score[winner]), first + winner + 1
        last, first, size = float(times[-1]), first + size, min(2 * size, chunk)
    return Choice(K, first)


@dataclass(frozen=True, eq=False)
class GaussianBlock:
    """q = N(mean_q, diag var_q) beside p = N(mean_p, diag var_p); all (d,) float64, var_p ≥ var_q.

    In z = (x - mean_p) / √var_p, with r = var_p / var_q and a = (mean_p - mean_q) / √var_q:

        log w(z) = ½ Σ [log r + z² - (a + √r z)²]        log max w = ½ Σ [log r + a² / (r - 1)]

    the maximum standing at z = -a√r / (r - 1). Where r = 1 it is finite only for a = 0.
    """

    mean_q: Array
    var_q: Array
    mean_p: Array
    var_p: Array

    def part(self, which: slice) -> "GaussianBlock":
        """Some of the coordinates."""
        return GaussianBlock(self.mean_q[which], self.var_q[which], self.mean_p[which], self.var_p[which])

    def kl(self) -> float:
        """KL(q ‖ p) in bits."""
        return float(normal_kl(self.mean_q, self.var_q, self.mean_p, self.var_p).sum() / np.log(2))

    def log_ratio(self, z: Array) -> Array:
        """log w of candidates z (N, d), in nats, (N,)."""
        r, a = self._scaled()
        return 0.5 * (np.log(r) - a * a).sum() + (z * z) @ (0.5 * (1 - r)) - z @ (a * np.sqrt(r))

    def log_ratio_max(self) -> float:
        """log max w, in nats; ∞ where p is not wider than q."""
        r, a = self._scaled()
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 where both agree
            gap = np.where(a == 0, 0.0, a * a / (r - 1))
        return float(0.5 * (np.log(r) + gap).sum()) if (r >= 1).all() else np.inf

    def _scaled(self) -> tuple[Array, Array]:
        return self.var_p / self.var_q, (self.mean_p - self.mean_q) / np.sqrt(self.var_q)


@dataclass(frozen=True)
class Stream:
    """The candidates and arrival times of one block: those of the seed, the step t and the block's first coordinate."""

    seed: int
    t: int
    first: int
    d: int

    def candidates(self, first: int, count: int) -> Array:
        """Z_i = mean_p + √var_p z_i as z, standard normals (count, d) float64, from the index `first` = i - 1 on."""
        rows = np.arange(first, first + count)
        return normal(self.seed, Purpose.CODING, self.t, rows, (self.d,), layer=2 * self.first).astype(np.float64)

    def gaps(self, first: int, count: int) -> Array:
        """Exponentials with 53 random bits each, (count,)."""
        rows = np.arange(first, first + count)
        w = words(self.seed, Purpose.CODING, self.t, rows, 2, layer=2 * self.first + 1).astype(np.float64)
        return -np.log(((w[:, 0] // 2**5) * 2**26 + w[:, 1] // 2**6 + 1) / 2**53)


def choose_from(block: GaussianBlock, stream: Stream) -> Choice:
    """The K of a Gaussian block. Time and memory: about max w · d normals in all, `_CHUNK` of them at a time."""
    chunk = max(1, min(2**14, _CHUNK // stream.d))

    def log_ratio(first: int, count: int) -> Array:
        return block.log_ratio(stream.candidates(first, count))

    return choose(log_ratio, block.log_ratio_max(), stream.gaps, chunk)

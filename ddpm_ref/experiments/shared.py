"""Samples that share x_t: what of an image is decided by step t of the reverse process, and what after (Figure 7)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_int
from ddpm_ref.experiments.chain import Chain, Progress
from ddpm_ref.experiments.trend import Trend, decide, slopes
from ddpm_ref.sampling import batches


@dataclass(frozen=True, eq=False)
class SharedLatents:
    """M continuations x_0 ~ p_θ(x_0 | x_t) of each of L latents x_t, at K steps t.

    t: K steps, falling.  x_t: (K, L, ...).  x_0: (K, L, M, ...).
    """

    t: tuple[int, ...]
    x_t: Array
    x_0: Array

    @property
    def shared(self) -> Array:
        """How far two continuations of one x_t are apart, root mean square on the scale of 0 … 255; (K,).

        127.5 √(2 v_t),   v_t the variance of p_θ(x_0 | x_t), a mean over latents and pixels
        """
        return 127.5 * np.sqrt(2 * self._variances().mean(axis=1))

    @property
    def by_latent(self) -> Array:
        """`shared` of each latent, (K, L)."""
        return 127.5 * np.sqrt(2 * self._variances())

    @property
    def independent(self) -> Array:
        """The same of two continuations of different x_t, which are independent samples; (K,).

        Of groups of mean m_l and variance v_l (divided by M), pairs from two groups are |m_l - m_k|² + v_l + v_k apart.
        """
        x = self._rows()
        square = 2 * x.mean(axis=2).var(axis=1, ddof=1).mean(axis=-1) + 2 * x.var(axis=2).mean(axis=(1, 2))
        return 127.5 * np.sqrt(square)

    @property
    def falls(self) -> Trend:
        """Whether continuations come closer as t falls: their variance rises with t.

        The rule: of each latent the least-squares slope of `_variances` against the K steps t, per step and on the
        scale of [-1, 1]; decided by the interval of its mean over the latents (`trend.decide`).
        """
        return decide(slopes(self.t, self._variances()))

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "t": list(self.t),
            "latents": self.x_0.shape[1],
            "continuations": self.x_0.shape[2],
            "rms_shared": self.shared.tolist(),
            "rms_independent": self.independent.tolist(),
            "rms_shared_by_latent": self.by_latent.tolist(),
            "falls_with_t": self.falls.as_dict(),
        }

    def _rows(self) -> Array:
        """x_0 as (K, L, M, D) in float64."""
        return np.asarray(self.x_0, dtype=np.float64).reshape(*self.x_0.shape[:3], -1)

    def _variances(self) -> Array:
        """The unbiased variance of each group of continuations, a mean over pixels, (K, L)."""
        variances: Array = self._rows().var(axis=2, ddof=1).mean(axis=-1)
        return variances


def shared_latents(
    chain: Chain,
    steps: tuple[int, ...],
    *,
    latents: int,
    continuations: int,
    batch: int,
    progress: Progress | None = None,
) -> SharedLatents:
    """Images 0 … latents-1 run to x_t once, then each x_t to its end several times with other noise.

    steps: falling, in 1..T.  Continuation m of latent l of the k-th step has image number L + (k L + l) M + m, so that
    all are independent but for what they share.
    """
    check_int("latents", latents, 2)
    check_int("continuations", continuations, 2)
    x_t = np.empty((len(steps), latents, *chain.shape), chain.dtype)
    for rows in batches(latents, batch):
        for t, x, _ in chain.steps(rows, steps, progress=progress):
            x_t[steps.index(t), rows] = x
    numbers = latents + np.arange(len(steps) * latents * continuations).reshape(len(steps), -1)
    ends = [
        chain.ends(row, np.repeat(x, continuations, axis=0), t, batch=batch, progress=progress)
        for t, x, row in zip(steps, x_t, numbers, strict=True)
    ]
    return SharedLatents(steps, x_t, np.stack(ends).reshape(len(steps), latents, continuations, *chain.shape))


def shared_work(T: int, steps: tuple[int, ...], *, latents: int, continuations: int, batch: int) -> int:
    """How often `shared_latents` reports progress."""
    return -(-latents // batch) * (T - min(steps) + 1) + -(-latents * continuations // batch) * sum(steps)

"""What an interpolation found: how far decoded images are from sources and from pixel blends, and the findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.experiments.chain import rms_255
from ddpm_ref.experiments.trend import Trend, decide, slopes

COARSE_WAVES = 2  # patterns of at most so many waves across an image are its coarse part


@dataclass(frozen=True, eq=False)
class Interpolation:
    """P pairs, decoded at K steps t and L weights λ; distances are root mean squares on the scale of 0 … 255.

    pairs: (P, 2) indices into `part`.  t: K steps of 0 … T, falling.  lambdas: rising from 0 to 1.
    sources: (P, 2, H, W, C).  decoded: (K, P, L, H, W, C).
    """

    part: str
    pairs: Array
    t: tuple[int, ...]
    lambdas: tuple[float, ...]
    sources: Array
    decoded: Array
    T: int

    def distances(self, others: Array) -> Array:
        """From each decoded image to `others`, which broadcast to (P, L, H, W, C): (K, L), over all pairs."""
        return rms_255(self.decoded - np.asarray(others, dtype=np.float64), axis=(1, *range(3, self.decoded.ndim)))

    @property
    def reconstruction(self) -> Array:
        """Of λ = 0 and 1 together, from the source that went in: what is lost at t; (K,)."""
        lost = self._ends() - self.sources
        return rms_255(lost, axis=tuple(range(1, lost.ndim)))

    @property
    def departure(self) -> Array:
        """Of all λ between 0 and 1, from the pixel blend; (K,)."""
        apart = self._departures()
        return rms_255(apart, axis=tuple(range(1, apart.ndim)))

    @property
    def travel(self) -> Array:
        """How far the decoded images of λ = 0 and 1 are apart, as a multiple of the sources'; (K,).

        1 where all of the difference is kept, 0 where x_t no longer tells one source from the other.
        """
        ends = self._ends()
        apart = rms_255(ends[:, :, 1] - ends[:, :, 0], axis=tuple(range(1, ends.ndim - 1)))
        return apart / rms_255(self._between())

    @property
    def lost(self) -> Array:
        """Reconstruction error of the coarse and of the fine part, relative to the difference of two sources; (K, 2).

            lost_band = √(Σ |reconstruction - source|² / Σ |source' - source|²) in that band

        0 where the band is kept exactly, near 1 where it is as if another image had been drawn.
        """
        error = bands(self._ends() - self.sources)
        return np.sqrt(error.mean(axis=(1, 2)) / self._band_sizes())

    def findings(self) -> dict[str, Trend]:
        """§4.4's "coarse for large t, fine for small t", by a rule that was fixed before any number was seen.

        Of each pair one number, from the steps 0 < t < T (at 0 nothing is noised, at T nothing is left of a source):
        the least-squares slope against t of its reconstruction error, of its departure from the pixel blend (RMS on
        0…255, per step), and the mean over t of what is lost of its fine part less what is lost of its coarse part.
        Each claim says that its number is above 0, and is decided by the interval of the mean over the pairs
        (`trend.decide`).
        """
        inner = [k for k, t in enumerate(self.t) if 0 < t < self.T]
        t = [self.t[k] for k in inner]
        lost = np.sqrt(bands(self._ends() - self.sources).mean(axis=2) / self._band_sizes())[inner]  # (K, P, 2)
        return {
            "reconstruction_rmse_grows_with_t": decide(slopes(t, _rms_of_pairs(self._ends() - self.sources)[inner])),
            "departure_from_pixel_blend_grows_with_t": decide(slopes(t, _rms_of_pairs(self._departures())[inner])),
            "fine_part_is_lost_more_than_coarse": decide((lost[..., 1] - lost[..., 0]).mean(axis=0) if t else []),
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; tables are (t, λ)."""
        blends = mixed(self.sources[:, :1], self.sources[:, 1:], self.lambdas)
        return {
            "part": self.part,
            "pairs": self.pairs.tolist(),
            "t": list(self.t),
            "lambda": list(self.lambdas),
            "rms_between_sources": float(rms_255(self._between())),
            "rms_to_first": self.distances(self.sources[:, :1]).tolist(),
            "rms_to_second": self.distances(self.sources[:, 1:]).tolist(),
            "rms_to_pixel_blend": self.distances(blends).tolist(),
            "reconstruction_rmse": self.reconstruction.tolist(),
            "departure_from_pixel_blend": self.departure.tolist(),
            "travel": self.travel.tolist(),
            "lost_coarse": self.lost[:, 0].tolist(),
            "lost_fine": self.lost[:, 1].tolist(),
            "coarse_waves": COARSE_WAVES,
            "findings": {name: trend.as_dict() for name, trend in self.findings().items()},
        }

    def table(self) -> str:
        """A line for each t, and the findings."""
        line = "{:>6}{:>17}{:>14}{:>9}{:>13}{:>11}".format
        lines = [line("t", "reconstruction", "off blend", "travel", "lost coarse", "fine")]
        for row in zip(self.t, self.reconstruction, self.departure, self.travel, *self.lost.T, strict=True):
            lines.append(line(row[0], *(f"{x:.2f}" for x in row[1:])))
        said = [f"{name.replace('_', ' ')}: {trend.sentence()}" for name, trend in self.findings().items()]
        return "\n".join([*lines, "", *said])

    def _between(self) -> Array:
        """The second source less the first, (P, H, W, C) float64."""
        first, second = np.moveaxis(np.asarray(self.sources, dtype=np.float64), 1, 0)
        return second - first

    def _band_sizes(self) -> Array:
        """|source' - source|² of the coarse and of the fine part, a mean over pairs, (2,); ∞ for none."""
        size = bands(self._between()).mean(axis=0)
        return np.where(size > 0, size, np.inf)

    def _departures(self) -> Array:
        """Decoded images less pixel blends for 0 < λ < 1, (K, P, L-2, H, W, C) float64."""
        blends = mixed(self.sources[:, :1], self.sources[:, 1:], self.lambdas)
        return np.asarray(self.decoded[:, :, 1:-1], dtype=np.float64) - blends[:, 1:-1]

    def _ends(self) -> Array:
        """The decoded images of λ = 0 and λ = 1, (K, P, 2, H, W, C) float64."""
        ends = [self.lambdas.index(0), self.lambdas.index(1)]
        return np.asarray(self.decoded[:, :, ends], dtype=np.float64)


def _rms_of_pairs(x: Array) -> Array:
    """`rms_255` over all but the steps and the pairs: (K, P, ...) to (K, P)."""
    return rms_255(x, axis=tuple(range(2, x.ndim)))


def bands(x: Array) -> Array:
    """|coarse part|² and |fine part|² of images (..., H, W, C): (..., 2), which sum to |x|².

    The coarse part is the Fourier modes of at most COARSE_WAVES waves across the image, in any direction.
    """
    h, w = x.shape[-3:-1]
    waves = np.hypot(*np.meshgrid(h * np.fft.fftfreq(h), w * np.fft.fftfreq(w), indexing="ij"))
    power = (np.abs(np.fft.fft2(x, axes=(-3, -2), norm="ortho")) ** 2).sum(axis=-1)
    return np.stack([power[..., band].sum(axis=-1) for band in (waves <= COARSE_WAVES, waves > COARSE_WAVES)], axis=-1)


def mixed(x: Array, other: Array, lambdas: Sequence[float]) -> Array:
    """(1 - λ) x + λ x' of x, x' (P, 1, ...) for each λ: (P, L, ...), in their dtype."""
    weight = np.asarray(lambdas, dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))
    x_t: Array = (1 - weight) * x + weight * other
    return x_t

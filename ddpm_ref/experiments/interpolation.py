"""Interpolation of images in latent space (§4.3, "Interpolation"; Figures 8, 9).

Two images are noised with the *same* ε, mixed, and decoded by the reverse process:

    x_t, x'_t ~ q(x_t | x_0)      x̄_t = (1 - λ) x_t + λ x'_t      x̄_0 ~ p_θ(x_0 | x̄_t)

(The paper prints x̄_t = (1 - λ) x_0 + λ x'_0 and means this.) With one ε the noise of x̄_t is √(1 - ᾱ_t) ε whatever λ:
x̄_t is what q makes of the pixel blend (1 - λ) x_0 + λ x'_0, its variance is that of any x_t, and nothing is rescaled.
Two noises would leave only (1 - λ)² + λ² of that variance. The noise of decoding is fixed too: every λ and t of a pair
has the z of one image number, so that along λ nothing changes but λ. At t = 0 nothing is noised: it is the pixel blend.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options, pictures
from ddpm_ref.checks import Array, check_finite, check_int, check_same_shape
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments import interpolation_picture
from ddpm_ref.experiments.chain import Chain, Progress, beyond_chance, chain_of, evenly, falls, rms_255
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.data import ImageData
from ddpm_ref.forward import q_sample
from ddpm_ref.random import Purpose, integers, normal
from ddpm_ref.terminal import bar, need, new_folder, say

RESULT = "interpolation.json"
TEXT = "mix two images at step t of the diffusion and decode the mixture (Figures 8, 9)"
MORE = (
    "\nWrites interpolation.png (several pairs at T/2, as Figure 8), interpolation-quarter.png (at T/4, where small\n"
    "images still show their sources), coarse-to-fine.png (one pair at every t, as Figure 9), details.png\n"
    "(what is lost of the sources, and how coarse it is) and interpolation.json."
)

LAMBDAS = tuple(i / 10 for i in range(11))  # 0 and 1: each source, encoded and decoded
PARTS = 8  # t = 0, 125 … 1000
COARSE_WAVES = 2  # patterns of at most so many waves across an image are its coarse part
SHOWN = 6  # pairs in interpolation.png


@dataclass(frozen=True, eq=False)
class Interpolation:
    """P pairs, decoded at K steps t and L weights λ; distances are root mean squares on the scale of 0 … 255.

    pairs: (P, 2) indices into `part`.  t: K steps, falling.  sources: (P, 2, H, W, C).  decoded: (K, P, L, H, W, C).
    """

    part: str
    pairs: Array
    t: tuple[int, ...]
    lambdas: tuple[float, ...]
    sources: Array
    decoded: Array

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
        blends = _mixed(self.sources[:, :1], self.sources[:, 1:], self.lambdas)
        between = [i for i, weight in enumerate(self.lambdas) if 0 < weight < 1]
        apart = np.asarray(self.decoded[:, :, between], dtype=np.float64) - blends[:, between]
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
        error = _bands(self._ends() - self.sources)
        return np.sqrt(error.mean(axis=(1, 2)) / self._band_sizes())

    def findings(self) -> dict[str, bool]:
        """§4.3's "coarse for large t, fine for small t", judged by the numbers beyond the chance of the pairs.

        Chance is two standard errors (`beyond_chance`): where nothing of the sources is left, two t differ by it alone.
        The fine part is lost more if it is at some t, and the coarse at none.
        """
        blends = _mixed(self.sources[:, :1], self.sources[:, 1:], self.lambdas)
        inner = slice(1, -1)
        lost = _bands(self._ends() - self.sources).mean(axis=2) / self._band_sizes()  # (K, P, 2)
        more = [beyond_chance(row) for row in lost[..., 1] - lost[..., 0]]
        return {
            "reconstruction_rmse_grows_with_t": falls(_squares(self._ends() - self.sources)),
            "departure_from_pixel_blend_grows_with_t": falls(_squares(self.decoded[:, :, inner] - blends[:, inner])),
            "fine_part_is_lost_more_than_coarse": max(more) > 0 and min(more) >= 0,
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; tables are (t, λ)."""
        blends = _mixed(self.sources[:, :1], self.sources[:, 1:], self.lambdas)
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
            "findings": self.findings(),
        }

    def table(self) -> str:
        """A line for each t, and the findings."""
        line = "{:>6}{:>17}{:>14}{:>9}{:>13}{:>11}".format
        lines = [line("t", "reconstruction", "off blend", "travel", "lost coarse", "fine")]
        for row in zip(self.t, self.reconstruction, self.departure, self.travel, *self.lost.T, strict=True):
            lines.append(line(row[0], *(f"{x:.2f}" for x in row[1:])))
        said = [f"{name.replace('_', ' ')}: {'yes' if holds else 'NO'}" for name, holds in self.findings().items()]
        return "\n".join([*lines, "", *said])

    def _between(self) -> Array:
        """The second source less the first, (P, H, W, C) float64."""
        first, second = np.moveaxis(np.asarray(self.sources, dtype=np.float64), 1, 0)
        return second - first

    def _band_sizes(self) -> Array:
        """|source' - source|² of the coarse and of the fine part, a mean over pairs, (2,); ∞ for none."""
        size = _bands(self._between()).mean(axis=0)
        return np.where(size > 0, size, np.inf)

    def _ends(self) -> Array:
        """The decoded images of λ = 0 and λ = 1, (K, P, 2, H, W, C) float64."""
        ends = [self.lambdas.index(0), self.lambdas.index(1)]
        return np.asarray(self.decoded[:, :, ends], dtype=np.float64)


def _squares(x: Array) -> Array:
    """Mean squares over all but the steps and the pairs: (K, P, ...) to (K, P)."""
    squares: Array = np.mean(np.square(x, dtype=np.float64), axis=tuple(range(2, x.ndim)))
    return squares


def _bands(x: Array) -> Array:
    """|coarse part|² and |fine part|² of images (..., H, W, C): (..., 2), which sum to |x|².

    The coarse part is the Fourier modes of at most COARSE_WAVES waves across the image, in any direction.
    """
    h, w = x.shape[-3:-1]
    waves = np.hypot(*np.meshgrid(h * np.fft.fftfreq(h), w * np.fft.fftfreq(w), indexing="ij"))
    power = (np.abs(np.fft.fft2(x, axes=(-3, -2), norm="ortho")) ** 2).sum(axis=-1)
    return np.stack([power[..., band].sum(axis=-1) for band in (waves <= COARSE_WAVES, waves > COARSE_WAVES)], axis=-1)


# --- encode, mix, decode ---------------------------------------------------------------------------------------------


def encode(chain: Chain, x_0: Array, t: int, eps: Array) -> Array:
    """x_t of x_0 (P, ...) with this ε; x_0 itself at t = 0."""
    return q_sample(chain.schedule, x_0, t, eps) if t else x_0


def _mixed(x: Array, other: Array, lambdas: Sequence[float]) -> Array:
    """(1 - λ) x + λ x' of x, x' (P, 1, ...) for each λ: (P, L, ...), in their dtype."""
    weight = np.asarray(lambdas, dtype=x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))
    mixed: Array = (1 - weight) * x + weight * other
    return mixed


def interpolate(
    chain: Chain,
    x_0: Array,
    other: Array,
    steps: tuple[int, ...],
    lambdas: Sequence[float] = LAMBDAS,
    *,
    batch: int,
    progress: Progress | None = None,
) -> Array:
    """x_0 and x'_0 (P, ...) encoded with one ε a pair, mixed and decoded at every step and λ: (K, P, L, ...).

    steps: in 0..T.  Pair p has ε of image p of the seed's evaluations, and the z of image p, at every t and λ.
    """
    check_same_shape(x_0=x_0, other=other)
    check_finite(x_0=x_0, other=other)
    numbers, count = np.arange(len(x_0)), len(lambdas)
    eps = normal(chain.seed, Purpose.EVALUATE, 0, numbers, chain.shape).astype(x_0.dtype)
    decoded = np.empty((len(steps), len(x_0), count, *chain.shape), chain.dtype)
    for k, t in enumerate(steps):
        x_t, x_t_other = encode(chain, x_0, t, eps), encode(chain, other, t, eps)
        mixed = _mixed(x_t[:, None], x_t_other[:, None], lambdas).reshape(-1, *chain.shape)
        ends = chain.ends(np.repeat(numbers, count), mixed.astype(chain.dtype), t, batch=batch, progress=progress)
        decoded[k] = ends.reshape(decoded[k].shape)
    return decoded


def choose_pairs(count: int, images: int, seed: int) -> Array:
    """count pairs of different images out of so many, (count, 2), by the seed."""
    check_int("count", count, 1)
    check_int("images", images, 2)
    numbers = np.arange(count)
    first = integers(seed, Purpose.INDEX, 0, 2 * numbers, images)
    ahead = 1 + integers(seed, Purpose.INDEX, 0, 2 * numbers + 1, images - 1)
    return np.stack([first, (first + ahead) % images], axis=1)


# --- the experiment --------------------------------------------------------------------------------------------------


def work(T: int, *, pairs: int, batch: int) -> int:
    """How often `measure` reports progress."""
    return -(-pairs * len(LAMBDAS) // batch) * sum(evenly(T, PARTS))


def measure(
    subject: Subject,
    *,
    pairs: int | Array = 8,
    part: str | None = None,
    batch: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interpolation:
    """Pairs of images interpolated at eighths of the diffusion and λ = 0, 0.1 … 1.

    pairs: how many, chosen by the seed, or (P, 2) indices of images.  part: of "held_out" (unless there is none) or
    "train".
    """
    name, images = _part(subject, part)
    pairs = choose_pairs(pairs, len(images), seed) if isinstance(pairs, int) else _checked_pairs(pairs, len(images))
    chain, steps = chain_of(subject, seed), evenly(subject.schedule.T, PARTS)
    sources = np.stack([images.x_0(pairs[:, i], chain.dtype) for i in (0, 1)], axis=1)
    decoded = interpolate(chain, sources[:, 0], sources[:, 1], steps, batch=batch, progress=progress)
    return Interpolation(name, pairs, steps, LAMBDAS, sources, decoded)


def _part(subject: Subject, part: str | None) -> tuple[str, ImageData]:
    """The images that pairs are taken from."""
    if part == "train" or (part is None and subject.held_out is None):
        return "train", subject.train
    if part not in (None, "held_out"):
        raise ValueError(f"part: wanted 'train' or 'held_out', got {part!r}")
    if subject.held_out is None:
        raise ValueError("part: this run held no images out; take them from 'train'")
    return "held_out", subject.held_out


def _checked_pairs(pairs: Array, images: int) -> Array:
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs: wanted integers (P, 2), P >= 1, got {pairs.dtype} {pairs.shape}")
    if pairs.min() < 0 or pairs.max() >= images:
        raise ValueError(f"pairs: wanted images in 0..{images - 1}, got {pairs.min()}..{pairs.max()}")
    if (same := pairs[pairs[:, 0] == pairs[:, 1]]).size:
        raise ValueError(f"pairs: wanted two different images, got {same[0, 0]}:{same[0, 1]}")
    return pairs


def save(folder: Path, result: Interpolation, facts: dict[str, Any]) -> list[Path]:
    """interpolation.json and its pictures, into a folder that is there."""
    runs.write_json(folder / RESULT, {"facts": facts, "result": result.as_dict()})
    decoded = np.clip(result.decoded, -1, 1)
    weights = [f"{weight:g}" for weight in result.lambdas]
    columns = ["source", *weights, "source"]
    half, quarter = len(result.t) // 2, 3 * len(result.t) // 4

    def rows(decoded: Array, sources: Array) -> Array:
        return np.concatenate([sources[:, :1], decoded, sources[:, 1:]], axis=1)

    every_t = np.broadcast_to(result.sources[0], (len(result.t), *result.sources[0].shape))
    strip = pictures.save_strip
    heading = r"$\lambda$ ="
    return [
        folder / RESULT,
        strip(folder / "interpolation.png", rows(decoded[half], result.sources)[:SHOWN], columns, heading=heading),
        strip(folder / "interpolation-quarter.png", rows(decoded[quarter], result.sources)[:SHOWN], columns,
              heading=heading),
        strip(folder / "coarse-to-fine.png", rows(decoded[:, 0], every_t), columns, [f"$t$ = {t}" for t in result.t],
              heading=heading),
        interpolation_picture.save_details(folder / "details.png", result),
    ]  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """`ddpm-ref interpolation`"""
    options.shared(parser, "where to write (interpolation in the run's folder, or the first of -2, -3 … that is new)")
    options.drawing(parser, checkpoint=True, count=False)
    parser.add_argument("--count", type=int, default=8, metavar="P", help="pairs, chosen by the seed")
    parser.add_argument("--pairs", nargs="+", type=_pair, metavar="I:J", help="these pairs of images, counted from 0")
    parser.add_argument("--part", choices=("held_out", "train"), help="which images (held_out, if any were)")


def _pair(text: str) -> tuple[int, int]:
    try:
        i, j = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted I:J, two numbers of images, got {text!r}") from None
    return i, j


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref interpolation`: measure, save, say."""
    need("tqdm", "PIL.Image", "matplotlib.figure")
    subject = open_subject(args)
    name, images = _part(subject, args.part)
    given = args.pairs is not None
    pairs = (
        _checked_pairs(np.array(args.pairs), len(images)) if given else choose_pairs(args.count, len(images), args.seed)
    )
    folder = runs.open_folder(Path(args.out) if args.out else new_folder(run_folder(args) / "interpolation"))
    how: dict[str, Any] = dict(batch=args.draw_batch)
    with bar(work(subject.schedule.T, pairs=len(pairs), **how), f"decoding {len(pairs)} pairs", "step") as progress:
        result = measure(subject, pairs=pairs, part=name, seed=args.seed, progress=progress.update, **how)
    say(result.table())
    for path in save(folder, result, subject.facts(checkpoint=str(args.checkpoint), seed=args.seed, **how)):
        say(f"wrote {path}")
    return 0

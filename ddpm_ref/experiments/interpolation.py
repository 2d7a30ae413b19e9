"""Interpolation of images in latent space (§4.4; Figures 8, 9).

Two images are noised with the *same* ε, mixed, and decoded by the reverse process:

    x_t, x'_t ~ q(x_t | x_0)      x̄_t = (1 - λ) x_t + λ x'_t      x̄_0 ~ p_θ(x_0 | x̄_t)

(The paper prints x̄_t = (1 - λ) x_0 + λ x'_0 and means this.) With one ε the noise of x̄_t is √(1 - ᾱ_t) ε whatever λ:
x̄_t is what q makes of the pixel blend (1 - λ) x_0 + λ x'_0, its variance is that of any x_t, and nothing is rescaled.
Two noises would leave only (1 - λ)² + λ² of that variance. The noise of decoding is fixed too: every λ and t of a pair
has the z of one image number, so that along λ nothing changes but λ. At t = 0 nothing is noised: it is the pixel blend.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options, pictures
from ddpm_ref.checks import Array, check_finite, check_int, check_same_shape
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments import interpolation_picture
from ddpm_ref.experiments.chain import Chain, Progress, chain_of, evenly, falling_steps
from ddpm_ref.experiments.interpolation_result import Interpolation, mixed
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.data import ImageData
from ddpm_ref.forward import q_sample
from ddpm_ref.random import Purpose, integers, normal
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "interpolation.json"
MORE = (
    "\nWrites interpolation.png (several pairs at the step nearest T/2, as Figure 8), interpolation-quarter.png (at\n"
    "the one nearest T/4, where small images still show their sources), coarse-to-fine.png (one pair at every t, as\n"
    "Figure 9), details.png (what is lost of the sources, and how coarse it is) and interpolation.json."
)

LAMBDAS = tuple(i / 10 for i in range(11))  # 0 and 1: each source, encoded and decoded
PARTS = 8  # t = 0, 125 … 1000
SHOWN = 6  # pairs in interpolation.png


# --- encode, mix, decode ---------------------------------------------------------------------------------------------


def encode(chain: Chain, x_0: Array, t: int, eps: Array) -> Array:
    """x_t of x_0 (P, ...) with this ε; x_0 itself at t = 0."""
    return q_sample(chain.schedule, x_0, t, eps) if t else x_0


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
        mixture = mixed(x_t[:, None], x_t_other[:, None], lambdas).reshape(-1, *chain.shape)
        ends = chain.ends(np.repeat(numbers, count), mixture.astype(chain.dtype), t, batch=batch, progress=progress)
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


def work(
    T: int, *, pairs: int, batch: int, steps: Sequence[int] | None = None, lambdas: Sequence[float] = LAMBDAS
) -> int:
    """How often `measure` reports progress."""
    return -(-pairs * len(all_lambdas(lambdas)) // batch) * sum(evenly(T, PARTS) if steps is None else steps)


def all_lambdas(lambdas: Sequence[float]) -> tuple[float, ...]:
    """These λ of [0, 1] and 0 and 1, rising, each once; ValueError if there is none between."""
    if not all(0 <= weight <= 1 for weight in lambdas) or set(lambdas) <= {0, 1}:
        raise ValueError(f"lambdas: wanted numbers in [0, 1], one or more between, got {list(lambdas)}")
    return tuple(sorted({0.0, *map(float, lambdas), 1.0}))


def measure(
    subject: Subject,
    *,
    pairs: int | Array = 8,
    part: str | None = None,
    steps: Sequence[int] | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    batch: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interpolation:
    """Pairs of images interpolated at eighths of the diffusion and λ = 0, 0.1 … 1.

    pairs: how many, chosen by the seed, or (P, 2) indices of images.  part: of "held_out" (unless there is none) or
    "train".  steps: of 0 … T instead of the eighths.  lambdas: others between 0 and 1, which are always there.
    """
    T, lambdas = subject.schedule.T, all_lambdas(lambdas)
    steps = evenly(T, PARTS) if steps is None else falling_steps("steps", steps, T)
    name, images = _part(subject, part)
    pairs = choose_pairs(pairs, len(images), seed) if isinstance(pairs, int) else _checked_pairs(pairs, len(images))
    chain = chain_of(subject, seed)
    sources = np.stack([images.x_0(pairs[:, i], chain.dtype) for i in (0, 1)], axis=1)
    decoded = interpolate(chain, sources[:, 0], sources[:, 1], steps, lambdas, batch=batch, progress=progress)
    return Interpolation(name, pairs, steps, lambdas, sources, decoded, T)


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
    half, quarter = (nearest_step(result.t, result.T / n) for n in (2, 4))

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


def nearest_step(t: Sequence[int], where: float) -> int:
    """The place in t of the step nearest to `where`, of two equally near the first."""
    return min(range(len(t)), key=lambda k: abs(t[k] - where))


def add_options(parser: argparse.ArgumentParser) -> None:
    """`ddpm-ref interpolation`"""
    options.shared(parser, "where to write (interpolation in the run's folder, or the first of -2, -3 … that is new)")
    options.drawing(parser, checkpoint=True, count=False)
    parser.add_argument("--count", type=int, default=8, metavar="P", help="pairs, chosen by the seed")
    parser.add_argument("--pairs", nargs="+", type=_pair, metavar="I:J", help="these pairs of images, counted from 0")
    parser.add_argument("--part", choices=("held_out", "train"), help="which images (held_out, if any were)")
    parser.add_argument("--steps", dest="at", nargs="+", type=int, metavar="T", help="steps to mix at (eighths of T)")
    parser.add_argument("--lambdas", nargs="+", type=float, default=LAMBDAS, metavar="L",
                        help="weights of the second image; 0 and 1 are always there")  # fmt: skip


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
    T = subject.schedule.T
    how: dict[str, Any] = dict(batch=args.draw_batch, lambdas=all_lambdas(args.lambdas))
    how["steps"] = evenly(T, PARTS) if args.at is None else falling_steps("--steps", args.at, T)
    folder = out_folder(args, run_folder(args) / "interpolation")
    with bar(work(T, pairs=len(pairs), **how), f"decoding {len(pairs)} pairs", "step") as progress:
        result = measure(subject, pairs=pairs, part=name, seed=args.seed, progress=progress.update, **how)
    say(result.table())
    wrote(save(folder, result, subject.facts(checkpoint=str(args.checkpoint), seed=args.seed, **how)))
    return 0

"""Nearest training images of samples (Figures 12, 15): are they new, or remembered?

Each sample is shown beside the training images nearest to it, by pixels and, given one, in a feature space. In numbers:
how far samples are from their nearest training image, beside how far held-out images are, which nobody can have
remembered; samples that are a training image once rounded to grey levels; and those with one neighbour three times as
near as the next, as copies with small changes have.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options, pictures
from ddpm_ref.checks import Array, check_finite, check_int
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments import neighbours_picture
from ddpm_ref.experiments.chain import Progress, chain_of
from ddpm_ref.experiments.features import feature_space
from ddpm_ref.experiments.generation import progressive
from ddpm_ref.experiments.quality import check_images
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.data import ImageData, load_data, to_levels
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "neighbours.json"
MORE = (
    "\nWrites neighbours.png (a sample in each row, then its nearest training images), distances.png (how far samples\n"
    "and held-out images are from the nearest) and neighbours.json; with --features neighbours-features.png as well."
)

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # of the distances, in percent
MUCH_NEARER = 3.0
SHOWN = 10  # rows of neighbours.png
NUMBERS = 2**21  # numbers held at a time, 16 MiB

Rows = Callable[[Any], Array]
"""rows(index) -> training images (B, H, W, C) at an index as float64 rows (B, D): their pixels, or features."""

Features = Callable[[Array], Array]
"""features(images) -> (N, F), of images (N, H, W, C) in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest training images of N images, nearest first: distance and index, (N, k) each.

    Distances of pixels are root mean squares on the scale of 0 … 255, of features Euclidean.
    """

    distance: Array
    index: Array

    def as_dict(self) -> dict[str, Any]:
        """Quantiles of the distance to the nearest, and the share that is much nearer to it than to the next."""
        first = self.distance[:, 0]
        return {
            "n": len(first),
            "median": float(np.median(first)),
            "quantiles": dict(zip(map(str, QUANTILES), np.percentile(first, QUANTILES).tolist(), strict=True)),
            "much_nearer_to_one": self.much_nearer,
        }

    @property
    def much_nearer(self) -> float | None:
        """The share of images three times as near to one training image as to the next; None of one neighbour."""
        if self.distance.shape[1] < 2:
            return None
        return float(np.mean(MUCH_NEARER * self.distance[:, 0] < self.distance[:, 1]))


@dataclass(frozen=True, eq=False)
class Space:
    """Neighbours of samples and of held-out images (None if there are none) in one space."""

    samples: Nearest
    held_out: Nearest | None

    @property
    def ratio(self) -> float | None:
        """Median distance of samples over that of held-out images: far below 1 for a model that remembers."""
        if self.held_out is None or not (real := float(np.median(self.held_out.distance[:, 0]))):
            return None
        return float(np.median(self.samples.distance[:, 0])) / real

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        held_out = None if self.held_out is None else self.held_out.as_dict()
        return {"samples": self.samples.as_dict(), "held_out": held_out, "median_ratio": self.ratio}


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What `measure` found: samples (N, H, W, C), their neighbours, and how many are copies of training images."""

    samples: Array
    shown: ImageData
    pixels: Space
    features: Space | None
    copies: int
    held_out_copies: int | None

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "exact_copies": {"samples": self.copies, "held_out": self.held_out_copies},
            "pixels": self.pixels.as_dict(),
            "features": None if self.features is None else self.features.as_dict(),
        }

    def table(self) -> str:
        """Samples beside held-out images, as plain text."""
        line = "{:<38}{:>9}{:>10}{:>8}".format
        lines = [line(f"{len(self.samples)} samples", "samples", "held-out", "ratio")]
        for name, space in (("pixels, RMS 0…255", self.pixels), ("features", self.features)):
            if space is not None:
                ours, real = space.samples, space.held_out
                numbers = [ours.as_dict()["median"], real and real.as_dict()["median"], space.ratio]
                lines.append(line(f"median to nearest, {name}", *(_number(x, ".3f") for x in numbers)))
                shares = [ours.much_nearer, real and real.much_nearer, None]
                lines.append(line("  three times as near as the next", *(_number(x, ".1%") for x in shares)))
        copies = [self.copies, self.held_out_copies, None]
        return "\n".join([*lines, line("exact copies of training images", *(_number(x, "d") for x in copies))])


def _number(x: Any, form: str) -> str:
    return "-" if x is None else format(x, form)


# --- nearest rows ----------------------------------------------------------------------------------------------------


def k_nearest(x: Array, rows: Rows, count: int, k: int) -> Nearest:
    """The k nearest of `count` training rows to each row of x (N, D), by Euclidean distance; all float64.

    Goes block by block, so that memory is bounded; of equally near rows the first comes first.
    """
    check_int("k", k, 1, count)
    check_finite(x=x)
    best, index = np.full((len(x), k), np.inf), np.zeros((len(x), k), dtype=np.intp)
    block = max(k, NUMBERS // max(x.shape[1], len(x)))
    for first in range(0, count, block):
        y = rows(slice(first, min(first + block, count)))
        squares = np.sum(y * y, axis=1) - 2 * x @ y.T  # less |x|², which changes no order
        here = np.broadcast_to(first + np.arange(len(y)), squares.shape)
        squares, here = np.hstack([best, squares]), np.hstack([index, here])
        order = np.argsort(squares, axis=1, kind="stable")[:, :k]
        best, index = (np.take_along_axis(a, order, axis=1) for a in (squares, here))
    # From the difference itself: expanding the square would give a copy a distance of 1e-7, not 0.
    exact = np.array([np.linalg.norm(rows(np.sort(i)) - a, axis=1) for a, i in zip(x, index, strict=True)])
    order = np.argsort(exact, axis=1, kind="stable")
    return Nearest(np.take_along_axis(exact, order, axis=1), np.take_along_axis(np.sort(index, axis=1), order, axis=1))


def nearest_by_pixels(images: Array, train: ImageData, k: int) -> Nearest:
    """The k training images nearest to each of images (N, H, W, C) in [-1, 1]."""
    x = check_images("images", images)
    if images.shape[1:] != train.shape:
        raise ValueError(f"images: wanted images of {train.shape} each, got {images.shape[1:]}")

    def rows(index: Any) -> Array:  # rounded as the images are, so that copies are at distance 0
        return train.x_0(index, images.dtype).reshape(-1, x.shape[1]).astype(np.float64)

    found = k_nearest(x, rows, len(train), k)
    return Nearest(found.distance * 127.5 / np.sqrt(x.shape[1]), found.index)


def nearest_by_features(images: Array, train: ImageData, k: int, features: Features) -> Nearest:
    """The same in a feature space."""
    x = np.asarray(features(images), dtype=np.float64)
    return k_nearest(x, lambda i: np.asarray(features(train.x_0(i)), dtype=np.float64), len(train), k)


def exact_copies(images: Array, train: ImageData) -> int:
    """How many of images (N, H, W, C) are a training image, once rounded to the data's grey levels."""
    levels = min(train.levels, 256)

    def digest(image: Array) -> bytes:
        return hashlib.blake2b(to_levels(image, levels).tobytes(), digest_size=16).digest()

    seen = {digest(train.x_0(i, np.float64)[0]) for i in range(len(train))}
    return sum(digest(image) in seen for image in images)


# --- the experiment --------------------------------------------------------------------------------------------------


def measure(
    subject: Subject,
    *,
    samples: Array | None = None,
    count: int = 100,
    k: int = 9,
    features: Features | None = None,
    batch: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Neighbours:
    """The k nearest training images of samples, given as (N, H, W, C) in [-1, 1] or drawn: images 0 … count-1.

    As many held-out images, if there are so many, are measured beside them.
    """
    train, held = subject.train, subject.held_out
    check_int("k", k, 1, len(train))
    if samples is None:
        check_int("count", count, 1)
        drawn = progressive(chain_of(subject, seed), (0,), count, batch=batch, progress=progress)[0]
        samples = np.clip(drawn, -1, 1)
    real = None if held is None else held.x_0(slice(len(samples)))

    def space(nearest: Callable[..., Nearest], *more: Any) -> Space:
        return Space(nearest(samples, train, k, *more), None if real is None else nearest(real, train, k, *more))

    return Neighbours(
        samples=samples,
        shown=train,
        pixels=space(nearest_by_pixels),
        features=None if features is None else space(nearest_by_features, features),
        copies=exact_copies(samples, train),
        held_out_copies=None if real is None else exact_copies(real, train),
    )


def save(folder: Path, result: Neighbours, facts: dict[str, Any]) -> list[Path]:
    """neighbours.json and its pictures, into a folder that is there."""
    runs.write_json(folder / RESULT, {"facts": facts, "result": result.as_dict()})
    paths = [folder / RESULT]
    for name, space in (("neighbours", result.pixels), ("neighbours-features", result.features)):
        if space is None:
            continue
        ours, samples = space.samples, result.samples[:SHOWN]
        beside = [result.shown.x_0(i, samples.dtype) for i in ours.index[:SHOWN]]
        rows = np.stack([np.concatenate([x[None], y]) for x, y in zip(samples, beside, strict=True)])
        labels = ["sample", *range(1, ours.index.shape[1] + 1)]
        firsts = [f"{d:.1f}" for d in ours.distance[:SHOWN, 0]]
        paths.append(pictures.save_strip(folder / f"{name}.png", rows, labels, firsts, heading="to 1st"))
    return [*paths, neighbours_picture.save_distances(folder / "distances.png", result)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """`ddpm-ref neighbours`"""
    options.shared(parser, "where to write (neighbours in the run's folder, or the first of -2, -3 … that is new)")
    options.drawing(parser, checkpoint=True, count=False)
    parser.add_argument("--samples", metavar="FILE", help="look at these, a samples.npz, instead of drawing")
    parser.add_argument("--count", type=int, metavar="N", help="samples to draw (100), or to take from --samples (all)")
    parser.add_argument("--features", action="store_true",
                        help="also by features of a classifier of the training images, which need labels")  # fmt: skip
    parser.add_argument("--nearest", type=int, default=9, metavar="K", help="training images beside each sample")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref neighbours`: measure, save, say."""
    need("tqdm", "PIL.Image", "matplotlib.figure", *(["sklearn.neural_network"] if args.features else []))
    subject = open_subject(args)
    check_int("--nearest", args.nearest, 1, len(subject.train))
    samples, count = None, 100 if args.count is None else args.count
    check_int("--count", count, 1)
    if args.samples is not None:
        images = load_data(Path(args.samples))
        if images.shape != subject.shape:
            raise ValueError(f"--samples: wanted images of {subject.shape} each, got {images.shape}")
        samples = images.x_0(slice(args.count))
        count = len(samples)
    features = feature_space(subject.train) if args.features else None
    folder = out_folder(args, run_folder(args) / "neighbours")
    how: dict[str, Any] = dict(count=count, k=args.nearest, batch=args.draw_batch)
    steps = 0 if samples is not None else -(-count // args.draw_batch) * subject.schedule.T
    with bar(steps, f"drawing {count} images", "step") as progress:
        result = measure(subject, samples=samples, features=features, seed=args.seed, progress=progress.update, **how)
    say(result.table())
    facts = subject.facts(checkpoint=str(args.checkpoint), seed=args.seed, samples=args.samples, **how)
    wrote(save(folder, result, facts))
    return 0

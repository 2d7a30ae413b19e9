"""Progressive generation (§4.3; Figures 6, 7, 10, 14): how an image comes about while Algorithm 2 runs.

x̂_0 at steps of the reverse process, and its quality at each; samples that share x_t. The paper judges x̂_0 of CIFAR-10
by FID and Inception Score (Figure 10). Here it is the same two formulas without the Inception network: the Fréchet
distance on raw pixels to the training images, and the score of a classifier of the training images where they have
labels, beside held-out images.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options, pictures
from ddpm_ref.checks import Array, check_int
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments import generation_picture, quality
from ddpm_ref.experiments.chain import Chain, Progress, chain_of, evenly, falling_steps, rms_255
from ddpm_ref.experiments.shared import SharedLatents, shared_latents, shared_work
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.data import ImageData
from ddpm_ref.sampling import batches
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "generation.json"
MORE = (
    "\nWrites progressive.png (x̂_0 at steps t), quality.png (its Fréchet distance on raw pixels, and a classifier's\n"
    "judgement where the data have labels), shared.png (samples that share x_t, with the x_t) and generation.json."
)

PARTS = 10  # the reverse process in tenths, and Figure 7's latents at its quarters
QUARTERS = 4
STRIP, PANELS = 8, 4  # samples in progressive.png, latents in shared.png
MOST, NUMBERS = 1000, 2**25  # unless told: samples judged, and numbers held of their x̂_0, 128 MiB, at each step
FRECHET_DIMENSIONS = 4096  # its time grows as D³: for larger images there is no Fréchet distance on raw pixels
BLOCK = 1024


@dataclass(frozen=True)
class Row:
    """Quality of a set of images: Fréchet distance; mean top-class probability and score where there are labels.

    score: exp E KL(p(k | x) ‖ p(k)), the Inception Score's formula with this classifier; at most the number of classes.
    """

    frechet: float | None
    top_probability: float | None = None
    score: float | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """What `measure` found.

    t: K steps, T … 0.  x_0_hat: (K, R, H, W, C), the first R samples of `count`.
    change: (K,) root mean square of x̂_0(t) - x_0 on the scale of 0 … 255.  quality: of x̂_0 at each step.
    held_out: of as many held-out images, None where there are not as many.
    """

    t: tuple[int, ...]
    count: int
    x_0_hat: Array
    change: Array
    quality: tuple[Row, ...]
    held_out: Row | None
    shared: SharedLatents

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "count": self.count,
            "t": list(self.t),
            "rms_to_sample": self.change.tolist(),
            **{name: [getattr(row, name) for row in self.quality] for name in vars(self.quality[0])},
            "held_out": None if self.held_out is None else vars(self.held_out),
            "shared": self.shared.as_dict(),
        }

    def table(self) -> str:
        """Both parts as plain text."""
        line = "{:>10}{:>16}{:>10}{:>12}{:>9}".format
        lines = [line("x̂_0 at t", "RMS to sample", "Fréchet", "top class", "score")]
        rows = [
            (str(t), f"{change:.2f}", row) for t, change, row in zip(self.t, self.change, self.quality, strict=True)
        ]
        rows += [("held-out", "", self.held_out)] if self.held_out else []
        for name, change, row in rows:
            lines.append(line(name, change, *(_number(x) for x in (row.frechet, row.top_probability, row.score))))
        line = "{:>10}{:>16}{:>16}".format
        lines += ["", line("shared t", "RMS of a pair", "of independent")]
        numbers = zip(self.shared.t, self.shared.shared, self.shared.independent, strict=True)
        return "\n".join([*lines, *(line(t, f"{a:.2f}", f"{b:.2f}") for t, a, b in numbers)])


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


# --- x̂_0 over the reverse process ------------------------------------------------------------------------------------


def progressive(
    chain: Chain, steps: tuple[int, ...], count: int, *, batch: int, progress: Progress | None = None
) -> Array:
    """x̂_0 of the images 0 … count-1 at each of K steps: (K, count, ...); at step 0 the image itself."""
    x_0_hat = np.empty((len(steps), count, *chain.shape), chain.dtype)
    for rows in batches(count, batch):
        for t, _, x in chain.steps(rows, steps, progress=progress):
            x_0_hat[steps.index(t), rows] = x
    return x_0_hat


class Judge:
    """Quality of images against training images; images are clipped to [-1, 1] first, as pictures are."""

    def __init__(self, train: ImageData) -> None:
        small = int(np.prod(train.shape)) <= FRECHET_DIMENSIONS and len(train) > 1
        self._moments = moments(train) if small else None
        seen = train.take(slice(quality.CLASSIFIED))
        counts = np.zeros(0) if seen.labels is None else np.unique(seen.labels, return_counts=True)[1]
        able = len(counts) > 1 and counts.min() >= quality.FOLDS
        self._classifier = quality.train_classifier(seen.x_0(), seen.labels) if able else None

    def __call__(self, images: Array) -> Row:
        """Of images (N, H, W, C), N >= 2."""
        x = quality.check_images("images", np.clip(images, -1, 1))
        frechet = None
        if self._moments is not None:
            frechet = quality.frechet_distance_of_moments(*quality.moments("images", x), *self._moments)
        if self._classifier is None:
            return Row(frechet)
        p = np.asarray(self._classifier.predict_proba(x))
        return Row(frechet, float(p.max(axis=1).mean()), classifier_score(p))


def moments(images: ImageData) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of images, in blocks; float64, divided by N - 1."""
    D = int(np.prod(images.shape))

    def blocks() -> Iterator[Array]:
        for first in range(0, len(images), BLOCK):
            yield images.x_0(slice(first, first + BLOCK), np.float64).reshape(-1, D)

    mean, cov = np.zeros(D), np.zeros((D, D))
    for x in blocks():
        mean += x.sum(axis=0) / len(images)
    for x in blocks():
        cov += (x - mean).T @ (x - mean) / (len(images) - 1)
    return mean, cov


def classifier_score(p: Array) -> float:
    """exp E KL(p(k | x) ‖ p(k)) of class probabilities (N, K): the Inception Score (Salimans et al. 2016)."""
    share = p.mean(axis=0)
    ratio = np.divide(p, share, out=np.ones_like(p), where=p > 0)  # 0 log 0 = 0
    return float(np.exp((p * np.log(ratio)).sum(axis=1).mean()))


# --- the experiment --------------------------------------------------------------------------------------------------


def default_count(held_out: ImageData | None, shape: tuple[int, int, int]) -> int:
    """As many as were held out, so that they can be judged beside these, 100 if none; fewer of large images."""
    return max(2, min(len(held_out) if held_out else 100, MOST, NUMBERS // int(np.prod(shape))))


def work(T: int, *, count: int, latents: int, continuations: int, batch: int) -> int:
    """How often `measure` reports progress."""
    shared = shared_work(T, _quarters(T), latents=latents, continuations=continuations, batch=batch)
    return -(-count // batch) * T + shared


def _quarters(T: int) -> tuple[int, ...]:
    """The steps of Figure 7's latents: 1000, 750, 500, 250 of T = 1000."""
    return tuple(t for t in evenly(T, QUARTERS) if t)


def measure(
    subject: Subject,
    *,
    count: int | None = None,
    latents: int = 8,
    continuations: int = 8,
    steps: Sequence[int] | None = None,
    batch: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Generation:
    """x̂_0 and its quality at tenths of the reverse process, and samples that share x_t at its quarters.

    count: samples judged, at least 2 (`default_count`); x̂_0 of each are held at all steps.  steps: of 0 … T instead of
    the tenths; 0, where x̂_0 is the sample, is always there.  Images 0 … count-1 are those that
    `ddpm-ref sample --seed SEED` draws, and the latents are x_t of the first.
    """
    count = default_count(subject.held_out, subject.shape) if count is None else count
    check_int("count", count, 2)
    chain = chain_of(subject, seed)
    T = chain.schedule.T
    steps = all_steps("steps", steps, T)
    how = dict(latents=latents, continuations=continuations, batch=batch)
    judge, held = Judge(subject.train), subject.held_out
    shared = shared_latents(chain, _quarters(T), **how, progress=progress)
    x = progressive(chain, steps, count, batch=batch, progress=progress)
    return Generation(
        t=steps,
        count=count,
        x_0_hat=x[:, :STRIP].copy(),
        change=np.array([rms_255(x_0_hat - x[-1]) for x_0_hat in x]),
        quality=tuple(judge(x_0_hat) for x_0_hat in x),
        held_out=judge(held.x_0(slice(count))) if held is not None and len(held) >= count else None,
        shared=shared,
    )


def all_steps(name: str, steps: Sequence[int] | None, T: int) -> tuple[int, ...]:
    """The steps of x̂_0: tenths of T, or these and 0, falling."""
    if steps is None:
        return evenly(T, PARTS)
    chosen = falling_steps(name, steps, T)
    return chosen if 0 in chosen else (*chosen, 0)


def save(folder: Path, result: Generation, facts: dict[str, Any]) -> list[Path]:
    """generation.json and its pictures, into a folder that is there."""
    runs.write_json(folder / RESULT, {"facts": facts, "result": result.as_dict()})
    rows = np.clip(result.x_0_hat.swapaxes(0, 1), -1, 1)
    shared = result.shared
    latents = range(min(PANELS, shared.x_t.shape[1]))
    cells = [[panel(x_0[i], x_t[i]) for x_0, x_t in zip(shared.x_0, shared.x_t, strict=True)] for i in latents]
    return [
        folder / RESULT,
        pictures.save_strip(folder / "progressive.png", rows, result.t),
        generation_picture.save_quality(folder / "quality.png", result),
        pictures.save_strip(folder / "shared.png", np.array(cells), shared.t),
    ]


def panel(x_0: Array, x_t: Array) -> Array:
    """Three continuations (M, H, W, C) of one x_t and, at the bottom right as in Figure 7, x_t: (2H+3, 2W+3, C)."""
    h, w, c = x_t.shape
    page = np.full((2 * h + 3, 2 * w + 3, c), pictures.GAP / 127.5 - 1, dtype=x_t.dtype)
    places = [(1, 1), (1, w + 2), (h + 2, 1)]
    for image, (y, x) in [*zip(x_0, places, strict=False), (x_t, (h + 2, w + 2))]:
        page[y : y + h, x : x + w] = np.clip(image, -1, 1)
    return page


def add_options(parser: argparse.ArgumentParser) -> None:
    """`ddpm-ref generation`"""
    options.shared(parser, "where to write (generation in the run's folder, or the first of -2, -3 … that is new)")
    options.drawing(parser, checkpoint=True, count=False)
    parser.add_argument("--count", type=int, metavar="N", help="samples judged (as many as held out, 1000 at most)")
    parser.add_argument("--steps", dest="at", nargs="+", type=int, metavar="T",
                        help="steps of x̂_0 (tenths of T); 0, the sample, is always there")  # fmt: skip
    parser.add_argument("--latents", type=int, default=8, metavar="L", help="x_t that samples share, at each t")
    parser.add_argument("--continuations", type=int, default=8, metavar="M", help="samples that share each")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref generation`: measure, save, say."""
    need("tqdm", "PIL.Image", "matplotlib.figure", "sklearn.svm")
    subject = open_subject(args)
    count = default_count(subject.held_out, subject.shape) if args.count is None else args.count
    how = dict(count=count, latents=args.latents, continuations=args.continuations, batch=args.draw_batch)
    steps = all_steps("--steps", args.at, subject.schedule.T)
    check_int("--count", count, 2)
    check_int("--latents", args.latents, 2)
    check_int("--continuations", args.continuations, 2)
    folder = out_folder(args, run_folder(args) / "generation")
    with bar(work(subject.schedule.T, **how), f"drawing {count} images and their relatives", "step") as progress:
        result = measure(subject, **how, steps=steps, seed=args.seed, progress=progress.update)
    say(result.table())
    facts = subject.facts(checkpoint=str(args.checkpoint), seed=args.seed, steps=steps, **how)
    wrote(save(folder, result, facts))
    return 0

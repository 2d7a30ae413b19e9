"""Likelihood, as in Table 1: the bound on training and held-out images, term by term, in bits per dimension (§4, §4.3).

Row t of every table belongs to x_t: L_t is what x_t costs to send once x_{t+1} is there (x_T from nothing, x_0 by the
discretised decoder), and its RMSE that of the x̂_0 which the network makes of x_t (Eq. 15), on the scale 0…255:
127.5 times that of values in [-1, 1], however many grey levels the data have.
"""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import Array, check_choice, check_int
from ddpm_ref.dataset_likelihood import DatasetBound, Progress, dataset_bound, evaluations
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments.likelihood_picture import save_terms
from ddpm_ref.experiments.published import DISTORTION, RATE, TABLE_1
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.atomic import write_text
from ddpm_ref.files.data import ImageData
from ddpm_ref.likelihood import bits_per_dim
from ddpm_ref.reverse import Model
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "likelihood.json"
MORE = """
Prints L_T, rate (L_T + L_1 … L_{T-1}), distortion (L_0) and their sum in bits/dim, with standard errors over images;
writes likelihood.json, a table of every L_t and the RMSE of x̂_0 (0…255) for each part, and likelihood.png.

examples:
  ddpm-ref likelihood runs/demo
  ddpm-ref likelihood runs/demo --every 10
  ddpm-ref likelihood runs/cifar10 --every 20 --count 2000 --parts held-out"""

PARTS = ("train", "held-out")


@dataclass(frozen=True, eq=False)
class PartLikelihood:
    """The bound of one part of the data, bits per dimension; each `_error` is a standard error over the images.

    L, L_sd        (T+1,) means and standard deviations over images of the one-sample terms (sd NaN for one image)
    seen           (T+1,) how many images had the term
    rmse           (T+1,) root of the mean over images of (x̂_0 - x_0)² at x_t, 0…255; row 0 is x_0 itself
    rmse_clipped   (T+1,) the same of x̂_0 clipped to [-1, 1]
    """

    part: str
    images: int
    dimensions: int
    levels: int
    every: int
    L_T: float
    rate: float
    rate_error: float
    distortion: float
    distortion_error: float
    total: float
    total_error: float
    L: Table
    L_sd: Table
    seen: Table
    rmse: Table
    rmse_clipped: Table

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, None for what is not finite, for JSON."""
        return {name: plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> "PartLikelihood":
        """The inverse of `as_dict`, with NaN for None."""

        def restored(value: Any) -> Any:
            if isinstance(value, list):
                return np.array([np.nan if x is None else x for x in value], dtype=np.float64)
            return np.nan if value is None else value

        return cls(**{name: restored(value) for name, value in numbers.items()})


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The bound of each part that was asked for."""

    parts: tuple[PartLikelihood, ...]

    def as_dict(self) -> dict[str, Any]:
        """By part, for JSON."""
        return {one.part: one.as_dict() for one in self.parts}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> "Likelihood":
        """The inverse of `as_dict`."""
        return cls(tuple(PartLikelihood.from_dict(part) for part in numbers.values()))

    def table(self) -> str:
        """A line for each part, and the paper's."""
        row = "{:<30}{:>8}{:>10}{:>18}{:>20}{:>18}".format
        lines = [row("bits/dim", "images", "L_T", "rate", "distortion L_0", "total")]
        for p in self.parts:
            pairs = ((p.rate, p.rate_error), (p.distortion, p.distortion_error), (p.total, p.total_error))
            forms = [".1e" if x < 5e-5 else ".4f" for x, _ in pairs]
            numbers = [f"{shown(x, form)} ±{shown(e, form)}" for (x, e), form in zip(pairs, forms, strict=True)]
            lines.append(row(p.part, f"{p.images:,}", shown(p.L_T, ".1e"), *numbers))
        held = any(p.part == "held-out" for p in self.parts)
        L, simple = (TABLE_1[name].nll_test if held else TABLE_1[name].nll_train for name in ("fixed", "simple"))
        split = f"{RATE:.2f}", f"{DISTORTION:.2f}"
        lines.append(row("CIFAR-10, the paper's L_simple", "", "", *split, f"{simple:.2f}"))
        lines.append(row("CIFAR-10, the paper's L", "", "", "", "", f"{L:.2f}"))
        every = self.parts[0].every
        steps = f" and steps, a K-th of all for each image with K = {every}" if every > 1 else ""
        return "\n".join([*lines, f"± is a standard error over images, their noise{steps}"])


def measure(
    subject: Subject,
    *,
    seed: int = 0,
    every: int = 1,
    count: int | None = None,
    parts: Sequence[str] | None = None,
    batch: int = 100,
    progress: Progress | None = None,
) -> Likelihood:
    """The bound of each of `parts`, or of all that there are if None; of its first `count` images, if it has more.

    every, batch: as in `dataset_bound`.  Raises ValueError for a part that is not there, before any work.
    """
    chosen = _chosen(subject, every, count, parts)
    how = {name: subject.how[name] for name in ("predicts", "var", "clip")}
    how |= dict(seed=seed, every=every, batch=batch, dtype=subject.model.dtype, progress=progress)
    found = [part_likelihood(part, subject.schedule, subject.model, data, **how) for part, data in chosen.items()]
    return Likelihood(tuple(found))


def part_likelihood(part: str, schedule: Schedule, model: Model, data: ImageData, **how: Any) -> PartLikelihood:
    """The bound of these images in bits per dimension; how: the rest of `dataset_bound`'s arguments."""
    return in_bits(part, data, dataset_bound(schedule, model, data, **how))


def in_bits(part: str, data: ImageData, bound: DatasetBound) -> PartLikelihood:
    """What was found, in bits per dimension and RMSE of 0…255."""
    sums: dict[str, float] = {}
    for name in ("rate", "distortion", "total"):
        bits = bits_per_dim(getattr(bound, name))
        sums |= {name: float(bits.mean()), f"{name}_error": bound.standard_error(bits)}
    return PartLikelihood(
        part=part,
        images=len(bound.rate),
        dimensions=int(np.prod(data.shape)),
        levels=data.levels,
        every=bound.every,
        L_T=float(bits_per_dim(bound.L[-1])),
        **sums,
        L=bits_per_dim(bound.L),
        L_sd=bits_per_dim(np.sqrt(bound.L_var)),
        seen=bound.seen,
        rmse=127.5 * np.sqrt(bound.mse),
        rmse_clipped=127.5 * np.sqrt(bound.mse_clipped),
    )


def parts_of(subject: Subject, parts: Sequence[str] | None) -> list[str]:
    """The parts of the data that are asked for, each once; all if None."""
    there = PARTS if subject.held_out is not None else PARTS[:1]
    for part in parts or ():
        check_choice("parts", part, there)
    return [part for part in there if parts is None or part in parts]


def images_of(subject: Subject, part: str, count: int | None = None) -> ImageData:
    """The images of "train" or "held-out", the first `count` if there are more."""
    data = subject.train if part == "train" else subject.held_out
    assert data is not None, "parts_of has refused it"
    if count is not None:
        check_int("count", count, 1)
    return data if count is None or count >= len(data) else data.take(slice(count))


def work(
    subject: Subject, *, seed: int = 0, every: int = 1, count: int | None = None, parts: Sequence[str] | None = None
) -> int:
    """How many evaluations of the network on one image `measure` will report to its progress."""
    chosen = _chosen(subject, every, count, parts).values()
    return sum(evaluations(subject.schedule.T, len(data), every, seed=seed) for data in chosen)


def _chosen(subject: Subject, every: int, count: int | None, parts: Sequence[str] | None) -> dict[str, ImageData]:
    """The images of each part; ValueError for a part that is not there, and for one of fewer than 2 `every`."""
    chosen = {part: images_of(subject, part, count) for part in parts_of(subject, parts)}
    check_every(every, min(map(len, chosen.values())))
    return chosen


def check_every(every: int, images: int) -> None:
    """ValueError unless so many images make two groups or more of K = every: of one there is no standard error."""
    check_int("every", every, 1)
    if 2 * every > images:
        raise ValueError(f"every: wanted at most half of the {images} images, for a standard error, got {every}")


def save(folder: Path, result: Likelihood, facts: dict[str, Any]) -> list[Path]:
    """likelihood.json, likelihood-PART.csv of every part, and likelihood.png."""
    runs.write_json(folder / RESULT, {"facts": facts, "result": result.as_dict()})
    paths = [folder / RESULT]
    for one in result.parts:
        columns = {"t": np.arange(len(one.L)), "L_t": one.L, "L_t_sd": one.L_sd, "images": one.seen}
        path = folder / f"likelihood-{one.part}.csv"
        write_csv(path, columns | {"rmse": one.rmse, "rmse_clipped": one.rmse_clipped})
        paths.append(path)
    curves = {one.part: (one.L, one.rmse_clipped) for one in result.parts}
    return [*paths, save_terms(folder / "likelihood.png", curves)]


def write_csv(path: Path, columns: Mapping[str, Array]) -> None:
    """Columns of equal length, by name; numbers as short as they can be without loss."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(plain(column) for column in columns.values()), strict=True))
    write_text(path, text.getvalue())


def plain(value: Any) -> Any:
    """A number or an array as JSON takes it: whole numbers without a point, None for NaN and infinity."""
    if isinstance(value, np.ndarray):
        return [plain(x) for x in value.tolist()]
    if isinstance(value, float):
        return None if not np.isfinite(value) else int(value) if value.is_integer() else value
    return value


def shown(x: float | None, form: str) -> str:
    """A number in a table; a dash for what is none or not finite."""
    return "–" if x is None or not np.isfinite(x) else format(x, form)


# --- the command -----------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ddpm-ref likelihood`."""
    options.shared(
        parser, "where to write (likelihood in the run's folder, or the first of likelihood-2 … that is new)"
    )
    options.drawing(parser, checkpoint=True, count=False, temperature=False, draws=False)
    bound_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="of the data (all there are)")


def bound_options(parser: argparse.ArgumentParser) -> None:
    """How much of the bound is computed."""
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="K",
        help="every K-th step of each image, other steps for other images: unbiased, K times as fast, less precise",
    )
    parser.add_argument("--batch", type=int, default=100, metavar="N", help="images at a time")
    parser.add_argument("--count", type=int, metavar="N", help="at most the first N images of a part (all)")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref likelihood`"""
    need("tqdm", "matplotlib.figure")
    subject = open_subject(args)
    which = dict(seed=args.seed, every=args.every, count=args.count, parts=args.parts)
    todo = work(subject, **which)
    folder = out_folder(args, f"{run_folder(args)}/likelihood")
    say(taken(subject.backend, args))
    with bar(todo, "bounding", "image step") as progress:
        result = measure(subject, **which, batch=args.batch, progress=progress.update)
    paths = save(folder, result, subject.facts(seed=args.seed, every=args.every, count=args.count))
    say(result.table())
    wrote(paths)
    return 0

"""Progressive coding: what a receiver knows of x_0 after so many bits (§4.3; Figure 5, Table 4).

A receiver who has x_T … x_t has been sent

    rate_t = Σ_{s≥t} L_s      and shows      x̂_0(x_t) (Eq. 15),      distortion_t = √(E (x̂_0 - x_0)²)

with x_t ~ q(x_t | x_0) of real images, as in Algorithms 3 and 4 with a code that wastes nothing: bits per dimension
against RMSE on the scale 0…255. At t = 1 all but L_0 is there; the row t = 0 is the lossless whole, x_0 itself. x̂_0 is
clipped to [-1, 1], as in the released code.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_ref import options
from ddpm_ref.backend_command import taken
from ddpm_ref.dataset_likelihood import Progress
from ddpm_ref.drawing import run_folder
from ddpm_ref.experiments import likelihood
from ddpm_ref.experiments.likelihood import PARTS, PartLikelihood, bound_options, plain, shown, write_csv
from ddpm_ref.experiments.published import DISTORTION, RATE, TABLE_4
from ddpm_ref.experiments.rate_distortion_picture import save_curves
from ddpm_ref.experiments.subject import Subject, open_subject
from ddpm_ref.files import run as runs
from ddpm_ref.schedule import Table
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "rate_distortion.json"
MORE = """
Prints the bits/dim received and the RMSE (0…255) of x̂_0 after each tenth of the reverse steps, and which share of the
bits describes what nobody sees; writes rate_distortion.json, every step as .csv, and the three curves as .png.

examples:
  ddpm-ref rate_distortion runs/demo
  ddpm-ref rate_distortion runs/demo --every 10 --part train"""

GREY_LEVELS = (0.5, 1.0, 2.0)  # RMSEs whose share of the bits is told, in steps between the data's grey levels


class Row(NamedTuple):
    """A row of Table 4: after these reverse steps, T - t + 1, x_t is there."""

    reverse_steps: int
    t: int
    rate: float
    rmse: float


class Detail(NamedTuple):
    """The bits sent after x̂_0 had come, and stayed, within so many grey levels of x_0.

    rmse        that many grey levels on 0…255
    t           the first step of T … 0 from which on the RMSE stays below it; 0 where only x_0 itself does
    bits        bits/dim sent after x_t, L_{t-1} … L_0       share  of the whole code's
    """

    grey_levels: float
    rmse: float
    t: int
    bits: float
    share: float


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Rate (bits/dim) and RMSE (0…255) at every t = 0 … T, and how much of it describes detail."""

    part: str
    images: int
    levels: int
    every: int
    rate: Table
    rmse: Table

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.rate) - 1

    @property
    def distortion(self) -> float:
        """L_0: the bits/dim that make x_1 into x_0, so that rate_1 + L_0 is the lossless code."""
        return float(self.rate[0] - self.rate[1])

    @property
    def rows(self) -> list[Row]:
        """Table 4: after all reverse steps, nine tenths of them … one tenth, fewer rows where T < 10."""
        steps = sorted({max(1, round(self.T * k / 10)) for k in range(1, 11)}, reverse=True)
        return [Row(n, t := self.T - n + 1, float(self.rate[t]), float(self.rmse[t])) for n in steps]

    @property
    def details(self) -> list[Detail]:
        """For each of GREY_LEVELS."""
        return [self.detail(n) for n in GREY_LEVELS]

    def detail(self, grey_levels: float) -> Detail:
        """What was sent after the RMSE came to stay below this many grey levels."""
        rmse = grey_levels * 255 / (self.levels - 1)
        above = np.flatnonzero(~(self.rmse < rmse))
        t = int(above[0]) - 1 if len(above) else self.T
        bits = float(self.rate[0] - self.rate[t])
        return Detail(grey_levels, rmse, t, bits, bits / float(self.rate[0]))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON: the curve, Table 4 beside the paper's, the split and the details."""
        return {
            **{name: plain(value) for name, value in vars(self).items()},
            "T": self.T,
            "lossless": {
                "rate": plain(float(self.rate[1])),
                "distortion": plain(self.distortion),
                "total": plain(float(self.rate[0])),
                "rmse_at_1": plain(float(self.rmse[1])),
            },
            "table_4": [{k: plain(v) for k, v in row._asdict().items()} for row in self.rows],
            "detail": [{k: plain(v) for k, v in detail._asdict().items()} for detail in self.details],
        }

    def table(self) -> str:
        """Table 4, with the paper's beside it where T is its 1000, and what the bits describe."""
        line = "{:>13}{:>7}{:>12}{:>10}{:>19}{:>10}".format
        lines = [line("reverse steps", "t", "rate", "RMSE", "CIFAR-10's rate", "RMSE")]
        published = {row.steps: (row.rate, row.rmse) for row in TABLE_4}
        for n, t, rate, rmse in self.rows:
            theirs = published.get(n, ()) if self.T == 1000 else ()
            paper = [f"{x:.5f}" for x in theirs] or ["", ""]
            lines.append(line(n, t, shown(rate, ".5f"), shown(rmse, ".3f"), *paper))
        split = [shown(x, ".3f") for x in (self.rate[1], self.distortion, self.rate[0])]
        lossless = "{} rate + {} distortion = {} bits/dim, lossless".format(*split)
        lines.append(f"{lossless} (CIFAR-10: {RATE:.2f} + {DISTORTION:.2f}); {self.part}")
        lines += [told(detail) for detail in self.details]
        return "\n".join(lines)


def told(detail: Detail) -> str:
    """A detail as a sentence."""
    error = f"{detail.grey_levels:g} grey level{'s' if detail.grey_levels > 1 else ''} (RMSE {detail.rmse:.2f} of 255)"
    if not detail.t:
        return f"only the whole code brings x̂_0 within {error}"
    bits = f"{shown(detail.bits, '.3f')} bits/dim, {shown(detail.share, '.1%')} of the code"
    return f"from t = {detail.t} on x̂_0 is within {error}: {bits}, describe less than that"


def from_likelihood(part: PartLikelihood) -> RateDistortion:
    """The curves that follow from the bound of a part, so that nothing is computed twice."""
    rate = np.cumsum(part.L[::-1])[::-1]
    return RateDistortion(part.part, part.images, part.levels, part.every, rate, part.rmse_clipped)


def measure(
    subject: Subject,
    *,
    seed: int = 0,
    every: int = 1,
    count: int | None = None,
    part: str | None = None,
    batch: int = 100,
    progress: Progress | None = None,
) -> RateDistortion:
    """The curves of a part of the data: held-out images, as in the paper, or those of training where there are none.

    The rest as in `likelihood.measure`.
    """
    parts = [part_of(subject, part)]
    found = likelihood.measure(
        subject, seed=seed, every=every, count=count, parts=parts, batch=batch, progress=progress
    )
    return from_likelihood(found.parts[0])


def part_of(subject: Subject, part: str | None) -> str:
    """The part that is asked for, or the last that there is."""
    return part or likelihood.parts_of(subject, None)[-1]


def save(folder: Path, result: RateDistortion, facts: dict[str, Any]) -> list[Path]:
    """rate_distortion.json, .csv and .png."""
    path = folder / RESULT
    runs.write_json(path, {"facts": facts, "result": result.as_dict()})
    t = np.arange(result.T + 1)
    columns = {"t": t, "reverse_steps": result.T + 1 - t, "rate": result.rate, "rmse": result.rmse}
    write_csv(folder / "rate_distortion.csv", columns)
    grey_level = 255 / (result.levels - 1)
    picture = save_curves(folder / "rate_distortion.png", result.rate, result.rmse, grey_level)
    return [path, folder / "rate_distortion.csv", picture]


# --- the command -----------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ddpm-ref rate_distortion`."""
    where = "where to write (rate_distortion in the run's folder, or the first of rate_distortion-2 … that is new)"
    options.shared(parser, where)
    options.drawing(parser, checkpoint=True, count=False, temperature=False, draws=False)
    bound_options(parser)
    parser.add_argument("--part", choices=PARTS, help="of the data (held-out if there are any)")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref rate_distortion`"""
    need("tqdm", "matplotlib.figure")
    subject = open_subject(args)
    which = dict(seed=args.seed, every=args.every, count=args.count)
    todo = likelihood.work(subject, **which, parts=[part_of(subject, args.part)])
    folder = out_folder(args, f"{run_folder(args)}/rate_distortion")
    say(taken(subject.backend, args))
    with bar(todo, "coding", "image step") as progress:
        result = measure(subject, **which, part=args.part, batch=args.batch, progress=progress.update)
    paths = save(folder, result, subject.facts(**which))
    say(result.table())
    wrote(paths)
    return 0

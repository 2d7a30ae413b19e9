"""Table 2: what the network predicts × what it is trained on, by sample quality and bits/dim (§4.2; Tables 1, 2).

OUT/settings.json                what all runs share, the backend too; a folder takes no other settings, but more cells,
                                 seeds and another number of threads
OUT/CELL/seed-S/                 one run (ablation_runs.py)
OUT/ablation.json, .csv, .png    the result
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options
from ddpm_ref.backend import Backend
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import Array, check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.experiments import ablation_runs
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2, Cell, Setup, new_setup
from ddpm_ref.experiments.ablation_picture import save_ablation
from ddpm_ref.experiments.ablation_result import (
    MEASURES,
    OUT_OF_RANGE_FRECHET,
    AblationResult,
    CellResult,
    Limits,
    RunResult,
)
from ddpm_ref.experiments.ablation_runs import Stopped, new_judge
from ddpm_ref.experiments.features import frechet_of_features, read_features
from ddpm_ref.files import run as runs
from ddpm_ref.files.atomic import write_text
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.terminal import bar, need, quote, say, wrote

RESULT = "ablation.json"
SETTINGS = "settings.json"
SUBJECT = "eps-simple"  # the cell whose first run other experiments are made on

Progress = Callable[[int, str], object]
"""progress(steps, what): so many more of `total_steps` are done, and what is going on."""


def run_folder(folder: Path, cell: Cell, seed: int) -> Path:
    """Where a run is, within an ablation's folder."""
    return folder / cell.name / f"seed-{seed}"


def total_steps(setup: Setup, cells: Sequence[Cell], seeds: Sequence[int], folder: Path) -> tuple[int, int]:
    """How much work there is, in steps of training and what takes about as long, and how much of it is done."""
    unit = 3 * setup.training.batch
    all_of_it = sum(sum(ablation_runs.work(setup, seed).values()) for seed in seeds) * len(cells)
    behind = sum(ablation_runs.done(setup, seed, run_folder(folder, cell, seed)) for cell in cells for seed in seeds)
    return all_of_it // unit, behind // unit


@dataclass
class _Steps:
    """Passes through a network counted as whole steps of training."""

    unit: int
    progress: Progress
    where: str = ""
    passes: int = 0

    def __call__(self, passes: int, what: str) -> None:
        self.passes += passes
        steps, self.passes = divmod(self.passes, self.unit)
        self.progress(steps, f"{self.where}: {what}")


def ablation(
    folder: Path,
    setup: Setup,
    *,
    cells: Sequence[Cell] = TABLE_2,
    seeds: Sequence[int] = (0, 1, 2),
    backend: Backend | None = None,
    batch: int = 100,
    inception: Path | None = None,
    progress: Progress = lambda steps, what: None,
) -> AblationResult:
    """Train, draw, judge and rate every cell with every seed, and compare them; what the folder has is not made again.

    batch: images drawn at a time.  inception: a file of Inception's features of the data (`read_features`); then every
    run whose folder has features of its samples, inception.npz, gets a FID.
    Raises ValueError before any work for bad arguments and for a folder that was begun with other settings, and
    Stopped when a signal has stopped a training; the same call then goes on bit for bit.
    """
    _check(cells, seeds)
    real = None if inception is None else read_features(inception)
    backend = backend or get_backend()
    settings = shared_settings(setup, backend, batch)
    new = runs.is_new(folder, SETTINGS, settings, added=("backend", "draw_batch"))
    judge = new_judge(setup.train)
    reference = judge(setup.held_out.x_0(dtype=np.float64))
    if new:
        runs.open_folder(folder)
        runs.write_json(folder / SETTINGS, settings)
    keep_freed_memory()
    steps = _Steps(3 * setup.training.batch, progress)
    for seed in seeds:  # all cells of a seed before the next, so that what is there at any time can be compared
        for cell in cells:
            steps.where = f"{cell.label}, seed {seed}"
            there = run_folder(folder, cell, seed)
            ablation_runs.finish(setup, cell, seed, there, backend, judge, steps, batch)
    return collect(folder, setup, cells, seeds, reference, real)


def collect(
    folder: Path,
    setup: Setup,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    reference: dict[str, Any],
    inception: Array | None = None,
) -> AblationResult:
    """The result of runs that are finished."""
    results = [
        CellResult(cell, tuple(_read_run(run_folder(folder, cell, seed), seed, inception) for seed in seeds))
        for cell in cells
    ]
    limits = Limits(OUT_OF_RANGE_FRECHET * reference["frechet"], math.log2(setup.train.levels))
    subject = f"{SUBJECT}/seed-{seeds[0]}" if CELLS[SUBJECT] in cells else None
    return AblationResult(tuple(results), reference, limits, setup.as_dict(), subject)


def save(folder: Path, result: AblationResult, facts: dict[str, Any]) -> list[Path]:
    """ablation.json, ablation.csv and ablation.png."""
    runs.write_json(folder / RESULT, {"facts": facts, "result": result.as_dict()})
    write_text(folder / "ablation.csv", result.csv())
    return [folder / RESULT, folder / "ablation.csv", save_ablation(folder / "ablation.png", result)]


def _read_run(folder: Path, seed: int, inception: Array | None) -> RunResult:
    """The numbers in a finished run's folder."""
    found = runs.read_json(folder / "quality.json") | runs.read_json(folder / "likelihood.json")
    if inception is not None and (path := folder / "inception.npz").exists():
        ours = read_features(path)
        if found.get("n") != len(ours):
            raise ValueError(f"{path}: wanted features of the {found.get('n')} images of samples.npz, got {len(ours)}")
        found["fid"] = frechet_of_features(inception, ours)
    diverged = folder / "diverged.json"
    step = int(runs.read_json(diverged)["step"]) if diverged.exists() else None
    return RunResult(seed, {name: found[name] for name in MEASURES if name in found}, step)


def _check(cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    for name, values in (("cells", cells), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: wanted one or more, each once, got {list(values)}")
    for seed in seeds:
        check_int("seeds", seed, 0, 2**64 - 1)


def shared_settings(setup: Setup, backend: Backend, batch: int) -> dict[str, Any]:
    """What settings.json holds: the setup, and how it is run as far as bits of the samples depend on it."""
    how = {"backend": {"name": backend.name, "precision": backend.precision}, "draw_batch": batch}
    return setup.as_dict() | how


# --- the command -----------------------------------------------------------------------------------------------------

MORE = """
Six cells, {μ̃, ε} × {L with learned Σ, L with fixed Σ, unweighted MSE}, with --all also x_0 and v. Each run draws as
many images as were held out by all 1,000 steps of Algorithm 2; they are judged by the Fréchet distance on raw pixels
and on features of a classifier of the training images, by precision and recall, and by a classifier, beside the
held-out images; the bound is taken on training and held-out images. Marks what has diverged and what is out of range,
and says which of the paper's findings hold. Writes ablation.json, ablation.csv, ablation.png, and a folder for each
run.

A command that was stopped goes on when it is given again.

With --inception, the FID as well: this package has no Inception network. FILE.npz holds an array "features", (N, 2048)
floats: the pool3 features of the real images, as pytorch-fid or torch-fidelity compute them. Do the same for the
samples.npz (array "images", uint8) of each run, put the result beside it as inception.npz, and give the command again.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `ddpm-ref ablation`."""
    options.shared(parser, "where to write, or to go on (runs/ablation)")
    options.drawing(parser, count=False)
    parser.add_argument("--data", default="digits", metavar="SOURCE", help="labelled images, as `ddpm-ref train` takes")
    parser.add_argument("--preset", choices=PRESETS, default="digits", help="network and settings of all cells")
    parser.add_argument("--steps", type=int, help="of each training (the preset's unless given)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each cell: --seed and those after")
    parser.add_argument("--all", action="store_true", help="also networks that predict x_0 and v")
    parser.add_argument("--every", type=int, default=10, metavar="K", help="each image's bound by every K-th step")
    parser.add_argument("--inception", metavar="FILE", help="a .npz of Inception's features of real images, for FID")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref ablation`"""
    need("tqdm", "safetensors", "PIL.Image", "matplotlib.figure", "sklearn.neural_network", "scipy.stats")
    check_int("--seeds", args.seeds, 1)
    folder = Path(args.out or "runs/ablation")
    setup = new_setup(
        args.data, preset=args.preset, steps=args.steps, every=args.every, weights=args.weights, clip=args.clip,
        temperature=args.temperature,
    )  # fmt: skip
    backend = get_backend(args.backend, args.threads, args.precision)
    cells = tuple(CELLS.values()) if args.all else TABLE_2
    seeds = range(args.seed, args.seed + args.seeds)
    say(taken(backend, args))
    total, done = total_steps(setup, cells, seeds, folder)
    say(f"{len(cells)} cells x {len(seeds)} seeds, {setup.steps:,} steps each; folder {folder}")
    inception = Path(args.inception) if args.inception else None
    try:
        with bar(total, "ablation", "step", done) as progress:

            def show(steps: int, what: str) -> None:
                progress.set_description_str(what, refresh=False)
                progress.update(steps)

            result = ablation(
                folder, setup, cells=cells, seeds=seeds, backend=backend, batch=args.draw_batch, inception=inception,
                progress=show,
            )  # fmt: skip
    except Stopped as stopped:
        say(f"{stopped}; give the same command again to go on (folder {quote(folder)})")
        return 0
    paths = save(folder, result, runs.describe(backend=backend.describe()._asdict()))
    say(result.table())
    for finding in result.findings:
        say(f"- {finding.sentence()}")
    wrote(paths)
    return 0

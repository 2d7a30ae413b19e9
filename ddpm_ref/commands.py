"""What the commands of `ddpm-ref` do, once their arguments are read."""

import argparse
import shlex
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ddpm_ref import pictures
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.drawing import draw, drawing_facts, run_folder
from ddpm_ref.experiments import quality
from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import latest_checkpoint, load_checkpoint
from ddpm_ref.files.source import DataSource, reopen_source
from ddpm_ref.from_options import new_trainer, read_facts, resumed_trainer
from ddpm_ref.gallery import Watch, noising_strip, save_samples
from ddpm_ref.terminal import bar, need, out_folder, quote, say, wrote
from ddpm_ref.train import StepReport, Trainer

# --- training --------------------------------------------------------------------------------------------------------


def train_in(
    folder: Path, trainer: Trainer, source: DataSource, settings: runs.RunSettings, resumed: bool
) -> str | None:
    """Train with a progress bar in a run's folder; the signal that stopped it, or None."""
    began, steps = trainer.state.step, settings.steps
    facts = runs.describe(resumed_at=began if resumed else None, **runs.run_facts(trainer, source, settings))
    if resumed:
        runs.write_json(folder / f"run-from-{began:08d}.json", facts)
        facts = (read_facts(folder) or facts) | asdict(settings)
    runs.write_json(folder / "run.json", facts)
    say(
        f"training {trainer.net.size:,} parameters on {len(trainer.data):,} images ({source.source}, "
        f"{'x'.join(map(str, source.shape))}) to step {steps:,}; folder {folder}"
    )
    loss, start = None, time.monotonic()
    with bar(steps, "training", "step", began) as progress:

        def show(report: StepReport) -> None:
            nonlocal loss
            loss = report.loss if loss is None else 0.98 * loss + 0.02 * report.loss
            progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
            progress.update()

        stopped = runs.run_training(trainer, source, folder, settings, progress=show)
    if loss is not None:
        say(f"step {trainer.state.step:,}: loss {loss:.4f}, {time.monotonic() - start:.0f} s")
        draw_loss(folder)
    return stopped


def draw_loss(folder: Path) -> None:
    """loss.png, once the log has a row with all four quarters of t."""
    steps, loss, quarters = runs.loss_curve(folder)
    if len(steps):
        pictures.save_loss_curve(folder / "loss.png", steps, loss, quarters)


def train(args: argparse.Namespace) -> int:
    """`ddpm-ref train`"""
    need("tqdm", "safetensors", "PIL.Image", "matplotlib.figure")
    folder, trainer, source, settings = open_run(args, f"runs/{args.preset}")
    if trainer.state.step >= settings.steps:
        say(f"{folder} is at step {trainer.state.step:,} already; give --steps with a larger number to go on")
        return 0
    say(taken(trainer.backend, args))
    stopped = train_in(folder, trainer, source, settings, args.resume is not None)
    if stopped and trainer.state.step < settings.steps:
        say(f"stopped by {stopped} and saved; go on with: {go_on(args, folder)}")
        return 0
    say(f"done; draw with: ddpm-ref sample {quote(folder)}")
    return 0


def open_run(args: argparse.Namespace, default: str) -> tuple[Path, Trainer, DataSource, runs.RunSettings]:
    """The folder of a new or resumed run, its trainer, its data, and how long it is to run."""
    if args.resume is not None:
        folder = Path(args.resume)
        trainer, source, settings = resumed_trainer(folder, args)
        return runs.open_folder(folder, resume=True), trainer, source, settings
    trainer, source, settings = new_trainer(args)
    return out_folder(args, default), trainer, source, settings


def go_on(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run that was stopped."""
    given = [("--backend", args.backend), ("--threads", args.threads), ("--precision", args.precision)]
    options = [word for name, value in given if value is not None for word in (name, str(value))]
    return shlex.join(["ddpm-ref", args.command, "--resume", str(folder), *options])


# --- sampling --------------------------------------------------------------------------------------------------------


def sample(args: argparse.Namespace) -> int:
    """`ddpm-ref sample`"""
    need("tqdm", "PIL.Image", "matplotlib.figure")
    checkpoint = load_checkpoint(args.checkpoint)
    backend = get_backend(args.backend, args.threads, args.precision)
    facts = drawing_facts(checkpoint, args, backend)
    folder = out_folder(args, f"{run_folder(args)}/samples-{args.seed}")
    say(taken(backend, args))
    watch = Watch(checkpoint.schedule.T)
    images = draw(checkpoint, args.count, args, backend, watch)
    paths = [*save_samples(folder, images), *watch.save(folder)]
    runs.write_json(folder / "sampling.json", facts)
    wrote(paths)
    return 0


# --- demo, evaluate, info --------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    """`ddpm-ref demo`: train on the digits, draw, and show."""
    start = time.monotonic()
    need("tqdm", "safetensors", "PIL.Image", "matplotlib.figure")
    folder, trainer, source, settings = open_run(args, "runs/demo")
    say(taken(trainer.backend, args))
    todo = trainer.state.step < settings.steps
    if stopped := todo and train_in(folder, trainer, source, settings, args.resume is not None):
        say(f"stopped by {stopped} and saved; go on with: {go_on(args, folder)}")
        return 0
    args.seed = trainer.settings.seed  # of a resumed demo: as it began
    checkpoint = load_checkpoint(folder)
    watch = Watch(checkpoint.schedule.T)
    images = draw(checkpoint, args.count, args, trainer.backend, watch)
    paths = [
        *save_samples(folder, images),
        *watch.save(folder),
        noising_strip(checkpoint.schedule, trainer.data, folder),
        *folder.glob("loss.png"),
    ]
    say(f"\n{time.monotonic() - start:.0f} s from command to pictures:")
    for path in paths:
        say(f"  {path}")
    say(f"How good are they?  ddpm-ref evaluate {quote(folder)}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`ddpm-ref evaluate`: as many samples as held-out images, judged beside them."""
    need("tqdm", "PIL.Image", "sklearn.svm")
    checkpoint = load_checkpoint(args.checkpoint)
    backend = get_backend(args.backend, args.threads, args.precision)
    facts = drawing_facts(checkpoint, args, backend)
    _, train_part, held_out = reopen_source(checkpoint.data)
    if train_part.labels is None or held_out is None:
        missing = "labels, which the classifier needs" if held_out else "held-out images to be judged beside"
        raise ValueError(f"{checkpoint.data.source}: this run has no {missing}")
    # Before anything is drawn: this finds data that cannot be judged.
    seen = train_part.x_0()
    classifier, real = quality.reference(held_out.x_0(), seen, train_part.labels)
    folder = out_folder(args, f"{run_folder(args)}/evaluation-{args.seed}")
    say(taken(backend, args))
    images = draw(checkpoint, len(held_out), args, backend)
    result = quality.Comparison(quality.measure(images, seen, classifier), real)
    save_samples(folder, images)
    runs.write_json(folder / "evaluation.json", facts | result.as_dict())
    say(result.table())
    classes = np.unique(train_part.labels)
    for name, report in (("samples", result.samples), ("held-out", result.held_out)):
        shares = "  ".join(f"{c}: {share:5.1%}" for c, share in zip(classes, report.class_share, strict=True))
        say(f"classes, {name:8s}  {shares}")
    say(f"written to {folder}")
    return 0 if result.passed else 1


def info(args: argparse.Namespace) -> int:
    """`ddpm-ref info`: what a checkpoint holds."""
    path = Path(args.checkpoint)
    path = latest_checkpoint(path) if path.is_dir() else path
    c = load_checkpoint(path)
    objective, adam = c.settings.objective, c.settings.adam
    rows = {
        "file": f"{path} ({path.stat().st_size / 2**20:.1f} MiB)",
        "made by": c.made_by,
        "step": f"{c.state.step:,}",
        "network": f"{c.net.size:,} parameters, {c.state.params.dtype}; {c.config}",
        "schedule": f"{c.schedule.name}, T = {c.schedule.T}, beta_1 = {c.schedule.beta[1]:.4g}, "
        f"beta_T = {c.schedule.beta[-1]:.4g}, L_T = {c.schedule.prior_gap():.2g} bits/dim at |x_0| = 1",
        "data": f"{c.data.source}, {'x'.join(map(str, c.data.shape))}, {c.data.levels} grey levels, "
        f"{c.data.held_out} held out (split seed {c.data.split_seed}), sha256 {c.data.fingerprint[:16]}…",
        "objective": str(objective),
        "training": f"batch {c.settings.batch}, flips {c.settings.flips}, seed {c.settings.seed}",
        "optimiser": str(adam),
        "|parameters|": f"raw {np.linalg.norm(c.state.params):.4f}, ema {np.linalg.norm(c.state.ema):.4f}",
    }
    for name, value in rows.items():
        say(f"{name:13s} {value}")
    return 0


def check_counts(args: argparse.Namespace) -> None:
    """Numbers that argparse cannot check, before any work."""
    for name in ("steps", "count", "batch", "draw_batch", "T", "log_every", "save_every", "threads"):
        if getattr(args, name, None) is not None:
            check_int(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    if getattr(args, "seed", None) is not None:
        check_int("--seed", args.seed, 0, 2**64 - 1)

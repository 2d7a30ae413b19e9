"""What the commands of `ddpm-ref` do, once their arguments are read."""

import argparse
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import pictures
from ddpm_ref.backend import Backend
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import Array, check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.experiments import quality
from ddpm_ref.extras import import_extra
from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from ddpm_ref.files.source import DataSource, reopen_source
from ddpm_ref.from_options import new_trainer, read_facts, resumed_trainer
from ddpm_ref.gallery import Watch, noising_strip, save_samples
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.reverse import check_temperature
from ddpm_ref.sampling import batches, generate_steps
from ddpm_ref.train import StepReport, Trainer


def say(text: str) -> None:
    """A line for the user."""
    print(text, flush=True)


@contextmanager
def bar(total: int, what: str, unit: str, done: int = 0) -> Iterator[Any]:
    """A progress bar with the time left; silent when standard error is no terminal."""
    tqdm = import_extra("tqdm", "a progress bar").tqdm
    with tqdm(total=total, initial=done, desc=what, unit=unit, disable=None, dynamic_ncols=True, smoothing=0.05) as one:
        yield one


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
    folder = Path(args.out) if args.out else new_folder(default)
    trainer, source, settings = new_trainer(args)
    return runs.open_folder(folder), trainer, source, settings


def new_folder(default: str | Path) -> Path:
    """The first of default, default-2, … that is not yet there."""
    folder, number = Path(default), 1
    while folder.exists():
        number += 1
        folder = Path(f"{default}-{number}")
    return folder


def go_on(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run that was stopped."""
    given = [("--backend", args.backend), ("--threads", args.threads), ("--precision", args.precision)]
    options = [word for name, value in given if value is not None for word in (name, str(value))]
    return shlex.join(["ddpm-ref", args.command, "--resume", str(folder), *options])


def quote(path: str | Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def need(*modules: str) -> None:
    """Import what a command will use at its end before it begins, so that no work is lost for want of it."""
    for module in modules:
        import_extra(module, "this command")


# --- sampling --------------------------------------------------------------------------------------------------------


def sampler_settings(checkpoint: Checkpoint, args: argparse.Namespace, backend: Backend) -> dict[str, Any]:
    """The arguments of `generate_steps` that the command line and the checkpoint's objective give, checked."""
    objective = checkpoint.settings.objective
    var = args.var or objective.var
    if objective.var != "learned" and var == "learned":
        raise ValueError("var: this checkpoint's network was trained without log-variance channels")
    if objective.var == "learned" and var != "learned":
        raise ValueError(f"var: this checkpoint's network gives its own variances; got {var!r}")
    check_temperature(args.temperature)
    return {
        "seed": args.seed,
        "backend": backend,
        "predicts": objective.predicts,
        "var": var,
        "clip": args.clip,
        "temperature": args.temperature,
    }


def draw(
    checkpoint: Checkpoint,
    count: int,
    args: argparse.Namespace,
    backend: Backend,
    watch: Watch | None = None,
) -> Array:
    """count samples of a checkpoint by Algorithm 2 with a progress bar, (count, H, W, C) in [-1, 1].

    watch(t, x_t, x̂_0) sees the steps it wants of the first batch.
    """
    keep_freed_memory()
    T, settings = checkpoint.schedule.T, sampler_settings(checkpoint, args, backend)
    params = checkpoint.params(args.weights)
    images = []
    with bar(T * -(-count // args.draw_batch), f"drawing {count} images", "step") as progress:
        for number, samples in enumerate(batches(count, args.draw_batch)):
            steps = generate_steps(
                checkpoint.net, params, checkpoint.schedule, samples, checkpoint.data.shape, **settings
            )
            for t, x_t, x_0 in steps:
                if watch and number == 0 and watch.wants(t):
                    watch(t, backend.to_host(x_t), backend.to_host(x_0))
                progress.update(t > 0)
            images.append(backend.to_host(x_t))
    return np.clip(np.concatenate(images), -1, 1)


def sample(args: argparse.Namespace) -> int:
    """`ddpm-ref sample`"""
    need("tqdm", "PIL.Image", "matplotlib.figure")
    checkpoint = load_checkpoint(args.checkpoint)
    backend = get_backend(args.backend, args.threads, args.precision)
    facts = drawing_facts(checkpoint, args, backend)
    folder = runs.open_folder(Path(args.out) if args.out else new_folder(f"{run_folder(args)}/samples-{args.seed}"))
    say(taken(backend, args))
    watch = Watch(checkpoint.schedule.T)
    images = draw(checkpoint, args.count, args, backend, watch)
    paths = [*save_samples(folder, images), *watch.save(folder)]
    runs.write_json(folder / "sampling.json", facts)
    for path in paths:
        say(f"wrote {path}")
    return 0


def drawing_facts(checkpoint: Checkpoint, args: argparse.Namespace, backend: Backend) -> dict[str, Any]:
    """How samples were made, for their folder; raises for bad arguments."""
    settings = sampler_settings(checkpoint, args, backend)
    settings["backend"] = backend.describe()._asdict()
    return runs.describe(
        checkpoint=str(args.checkpoint),
        step=checkpoint.state.step,
        weights=args.weights,
        draw_batch=args.draw_batch,
        **settings,
        network=asdict(checkpoint.config),
        schedule={"name": checkpoint.schedule.name, "T": checkpoint.schedule.T},
    )


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of the checkpoint that was named."""
    path = Path(args.checkpoint)
    return path if path.is_dir() else path.parent


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
    folder = Path(args.out) if args.out else new_folder(f"{run_folder(args)}/evaluation-{args.seed}")
    runs.open_folder(folder)
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

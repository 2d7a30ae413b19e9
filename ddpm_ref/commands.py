"""What the commands of `ddpm-ref` do, once their arguments are read."""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import pictures
from ddpm_ref.backend import get_backend
from ddpm_ref.checks import Array, check_int
from ddpm_ref.experiments import quality
from ddpm_ref.extras import import_extra
from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from ddpm_ref.files.source import DataSource, open_source, reopen_source
from ddpm_ref.gallery import Watch, noising_strip, save_samples
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.plan import preset
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import Objective
from ddpm_ref.sampling import batches, generate_steps
from ddpm_ref.schedule import SCHEDULES, Schedule
from ddpm_ref.train import RECIPES, Trainer, TrainSettings

SMALLEST = {"mnist": 32}  # smaller images are padded to what the preset is meant for


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


def new_trainer(args: argparse.Namespace) -> tuple[Trainer, DataSource, int]:
    """The trainer that the command line describes, its data, and the number of steps."""
    source, train, _ = open_source(
        args.data,
        size=args.image_size,
        levels=args.levels,
        held_out=args.held_out,
        pad=args.pad,
        smallest=SMALLEST.get(args.preset, 0),
    )
    steps, settings = RECIPES[args.preset]
    objective = Objective(
        **_given(
            predicts=args.predicts, var=args.var, error=args.error, weight=args.weight, w_simple=args.w_simple,
            w_elbo=args.w_elbo, learned_weights=args.learned_weights,
        )
    )  # fmt: skip
    adam = replace(settings.adam, **_given(lr=args.lr, warmup=args.warmup, ema=args.ema))
    if args.clip_norm is not None:
        adam = replace(adam, clip_norm=args.clip_norm or None)
    settings = TrainSettings(
        batch=args.batch or settings.batch,
        micro_batch=args.micro_batch,
        flips=settings.flips if args.flips is None else args.flips,
        seed=args.seed,
        objective=objective,
        adam=adam,
    )
    config = preset(
        args.preset,
        channels=source.shape[2],
        learned_variance=objective.var == "learned",
        **_given(
            base=args.base, mult=args.mult, blocks=args.blocks, attention_levels=args.attention_levels,
            groups=args.groups, dropout=args.dropout,
        ),
    )  # fmt: skip
    schedule = _schedule(args)
    trainer = Trainer(
        UNet(config), schedule, train, settings, get_backend(args.backend), dtype=np.dtype(args.dtype).type
    )
    return trainer, source, args.steps or steps


def _schedule(args: argparse.Namespace) -> Schedule:
    """The named schedule with T and, where it has them, the ends of beta that were given."""
    ends = _given(beta_1=args.beta_1, beta_T=args.beta_T)
    if args.schedule == "constant" and "beta_T" in ends:
        ends["beta"] = ends.pop("beta_T")
    takes = inspect.signature(SCHEDULES[args.schedule]).parameters
    if odd := [name for name in ends if name not in takes]:
        raise ValueError(f"{odd[0]}: the schedule {args.schedule!r} has no such end")
    return SCHEDULES[args.schedule](args.T, **ends)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def resumed_trainer(folder: Path, args: argparse.Namespace) -> tuple[Trainer, DataSource, int]:
    """The trainer of a folder's newest checkpoint, and the step it was to reach."""
    checkpoint = load_checkpoint(latest_checkpoint(folder))
    source, train, _ = reopen_source(checkpoint.data)
    facts = folder / "run.json"
    steps = args.steps or (json.loads(facts.read_text()).get("steps") if facts.exists() else None)
    if not isinstance(steps, int):
        raise ValueError(f"steps: {facts} does not say how many steps the run was to take; give --steps")
    trainer = Trainer(
        checkpoint.net,
        checkpoint.schedule,
        train,
        checkpoint.settings,
        get_backend(args.backend),
        state=checkpoint.state,
    )
    return trainer, source, steps


def train_in(folder: Path, trainer: Trainer, source: DataSource, steps: int, args: argparse.Namespace) -> str | None:
    """Train with a progress bar in a run's folder; the signal that stopped it, or None."""
    settings = runs.RunSettings(steps, args.save_every, args.log_every)
    began = trainer.state.step
    command = ["ddpm-ref", *sys.argv[1:]]
    facts = runs.describe(command, resumed_at=began or None, **runs.run_facts(trainer, source, settings))
    runs.write_json(folder / ("run.json" if not began else f"run-from-{began:08d}.json"), facts)
    if began and args.steps:
        runs.write_json(folder / "run.json", json.loads((folder / "run.json").read_text()) | {"steps": steps})
    say(
        f"training {trainer.net.size:,} parameters on {len(trainer.data):,} images ({source.source}, "
        f"{'x'.join(map(str, source.shape))}) to step {steps:,} on the {trainer.backend.name} backend; folder {folder}"
    )
    loss, start = None, time.monotonic()
    with bar(steps, "training", "step", began) as progress:

        def show(report: Any) -> None:
            nonlocal loss
            loss = report.loss if loss is None else 0.98 * loss + 0.02 * report.loss
            progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
            progress.update()

        stopped = runs.run_training(trainer, source, folder, settings, made_by=" ".join(command), progress=show)
    if loss is not None:
        say(f"step {trainer.state.step:,}: loss {loss:.4f}, {time.monotonic() - start:.0f} s")
        _draw_loss(folder)
    return stopped


def _draw_loss(folder: Path) -> None:
    """loss.png, once the log has a row with all four quarters of t."""
    steps, loss, quarters = runs.loss_curve(folder)
    if len(steps):
        pictures.save_loss_curve(folder / "loss.png", steps, loss, quarters)


def train(args: argparse.Namespace) -> int:
    """`ddpm-ref train`"""
    folder, trainer, source, steps = _open_run(args, f"runs/{args.preset}")
    if trainer.state.step >= steps:
        say(f"{folder} is at step {trainer.state.step:,} already; give --steps with a larger number to go on")
        return 0
    if stopped := train_in(folder, trainer, source, steps, args):
        say(f"stopped by {stopped} and saved; go on with: ddpm-ref train --resume {folder}")
        return 0
    say(f"done; draw with: ddpm-ref sample {folder}")
    return 0


def _open_run(args: argparse.Namespace, default: str) -> tuple[Path, Trainer, DataSource, int]:
    """The folder of a new or resumed run, its trainer, its data, and the step to reach."""
    if args.resume:
        folder = Path(args.resume)
        trainer, source, steps = resumed_trainer(folder, args)
    else:
        folder = _folder(args, default)
        trainer, source, steps = new_trainer(args)
    return runs.open_folder(folder, fresh=not args.resume), trainer, source, steps


def _folder(args: argparse.Namespace, default: str) -> Path:
    """A new run's folder: the one asked for, or the first of default, default-2, … not yet there."""
    if args.out:
        return Path(args.out)
    folder, number = Path(default), 1
    while folder.exists():
        number += 1
        folder = Path(f"{default}-{number}")
    return folder


# --- sampling --------------------------------------------------------------------------------------------------------


def draw(
    checkpoint: Checkpoint,
    count: int,
    args: argparse.Namespace,
    watch: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """count samples of a checkpoint by Algorithm 2 with a progress bar, (count, H, W, C) in [-1, 1].

    watch(t, x_t, x̂_0) sees every step of the first batch.
    """
    keep_freed_memory()
    objective, T = checkpoint.settings.objective, checkpoint.schedule.T
    backend, params = get_backend(args.backend), checkpoint.params(args.weights)
    settings = dict(seed=args.seed, backend=backend, predicts=objective.predicts, var=args.var or objective.var,
                    clip=args.clip, temperature=args.temperature)  # fmt: skip
    if objective.var != "learned" and settings["var"] == "learned":
        raise ValueError("var: this checkpoint's network was trained without log-variance channels")
    if objective.var == "learned" and settings["var"] != "learned":
        raise ValueError(f"var: this checkpoint's network gives its own variances; got {settings['var']!r}")
    images = []
    with bar(T * -(-count // args.draw_batch), f"drawing {count} images", "step") as progress:
        for number, samples in enumerate(batches(count, args.draw_batch)):
            steps = generate_steps(
                checkpoint.net, params, checkpoint.schedule, samples, checkpoint.data.shape, **settings
            )
            for t, x_t, x_0 in steps:
                if watch and number == 0:
                    watch(t, x_t, x_0)
                progress.update(t > 0)
            images.append(x_t)
    return np.clip(np.concatenate(images), -1, 1)


def sample(args: argparse.Namespace) -> int:
    """`ddpm-ref sample`"""
    checkpoint = load_checkpoint(args.checkpoint)
    folder = runs.open_folder(Path(args.out or f"{_run_folder(args.checkpoint)}/samples-{args.seed}"), fresh=False)
    facts = runs.describe(["ddpm-ref", *sys.argv[1:]], step=checkpoint.state.step, seed=args.seed, weights=args.weights)
    runs.write_json(folder / "sampling.json", facts)
    watch = Watch(checkpoint.schedule.T)
    images = draw(checkpoint, args.count, args, watch)
    for path in [*save_samples(folder, images), *watch.save(folder)]:
        say(f"wrote {path}")
    return 0


def _run_folder(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


# --- demo, evaluate, info --------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    """`ddpm-ref demo`: train on the digits, draw, and show."""
    start = time.monotonic()
    folder, trainer, source, steps = _open_run(args, "runs/demo")
    stopped = train_in(folder, trainer, source, steps, args) if trainer.state.step < steps else None
    if stopped:
        say(f"stopped by {stopped} and saved; go on with: ddpm-ref demo --resume {folder}")
        return 0
    checkpoint = load_checkpoint(folder)
    watch = Watch(checkpoint.schedule.T)
    images = draw(checkpoint, args.count, args, watch)
    _, images_seen, _ = reopen_source(checkpoint.data)
    paths = [
        *save_samples(folder, images),
        *watch.save(folder),
        noising_strip(checkpoint.schedule, images_seen, folder),
    ]
    say(f"\n{time.monotonic() - start:.0f} s from command to pictures:")
    for path in [*paths, folder / "loss.png"]:
        say(f"  {path}")
    say(f"How good are they?  ddpm-ref evaluate {folder}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`ddpm-ref evaluate`: as many samples as held-out images, judged beside them."""
    checkpoint = load_checkpoint(args.checkpoint)
    _, train_part, held_out = reopen_source(checkpoint.data)
    if train_part.labels is None:
        raise ValueError(f"{checkpoint.data.source}: these images have no labels, which the classifier needs")
    folder = runs.open_folder(Path(args.out or f"{_run_folder(args.checkpoint)}/evaluation-{args.seed}"), fresh=False)
    images = draw(checkpoint, len(held_out), args)
    result = quality.compare(images, held_out.x_0(), train_part.x_0(), train_part.labels)
    facts = runs.describe(["ddpm-ref", *sys.argv[1:]], step=checkpoint.state.step, seed=args.seed, weights=args.weights)
    runs.write_json(folder / "evaluation.json", facts | result.as_dict())
    save_samples(folder, images)
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
    for name, lowest in (
        ("steps", 1),
        ("count", 1),
        ("batch", 1),
        ("draw_batch", 1),
        ("T", 1),
        ("log_every", 1),
        ("save_every", 1),
    ):
        if getattr(args, name, None) is not None:
            check_int(f"--{name.replace('_', '-')}", getattr(args, name), lowest)
    if getattr(args, "seed", None) is not None:
        check_int("--seed", args.seed, 0, 2**64 - 1)

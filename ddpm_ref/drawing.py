"""Algorithm 2 from a checkpoint and the options of the command line: settings, images, facts."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.files import run as runs
from ddpm_ref.files.checkpoint import Checkpoint
from ddpm_ref.gallery import Watch
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.reverse import check_temperature
from ddpm_ref.sampling import batches, generate_steps
from ddpm_ref.terminal import bar


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

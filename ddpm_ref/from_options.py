"""A trainer from the options of the command line, or from the folder of a run that was begun."""

import argparse
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.discovery import get_backend
from ddpm_ref.files.checkpoint import latest_checkpoint, load_checkpoint
from ddpm_ref.files.run import RunSettings
from ddpm_ref.files.source import DataSource, open_source, reopen_source
from ddpm_ref.nn.plan import preset
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import Objective
from ddpm_ref.schedule import SCHEDULES, Schedule
from ddpm_ref.train import RECIPES, Trainer, TrainSettings

_RUN = tuple(RunSettings.__dataclass_fields__)
SMALLEST = {"mnist": 32}  # smaller images are padded to what the preset is meant for


def new_trainer(args: argparse.Namespace) -> tuple[Trainer, DataSource, RunSettings]:
    """The trainer that the command line describes, its data, and how long it is to run."""
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
    backend = get_backend(args.backend, args.threads, args.precision)
    trainer = Trainer(UNet(config), schedule, train, settings, backend, dtype=np.dtype(args.dtype).type)
    return trainer, source, RunSettings(**({"steps": steps} | _run_options(args)))


def _schedule(args: argparse.Namespace) -> Schedule:
    """The named schedule with T and, where it has them, the ends of beta that were given."""
    ends = _given(beta_1=args.beta_1, beta_T=args.beta_T)
    if args.schedule == "constant" and "beta_T" in ends:
        ends["beta"] = ends.pop("beta_T")
    takes = inspect.signature(SCHEDULES[args.schedule]).parameters
    if odd := [name for name in ends if name not in takes]:
        raise ValueError(f"{odd[0]}: the schedule {args.schedule!r} has no such end")
    return SCHEDULES[args.schedule](args.T, **ends)


def _run_options(args: argparse.Namespace) -> dict[str, Any]:
    """How long to run and how often to write, as far as the command line says."""
    return _given(**{name: getattr(args, name) for name in _RUN})


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def resumed_trainer(folder: Path, args: argparse.Namespace) -> tuple[Trainer, DataSource, RunSettings]:
    """The trainer of a folder's newest checkpoint, its data, and how long it is to run: as begun unless told."""
    checkpoint = load_checkpoint(latest_checkpoint(folder))
    source, train, _ = reopen_source(checkpoint.data)
    begun = read_facts(folder)
    options = {name: begun[name] for name in _RUN if name in begun} | _run_options(args)
    if not isinstance(options.get("steps"), int):
        raise ValueError(f"steps: {folder / 'run.json'} does not say how many steps the run was to take; give --steps")
    trainer = Trainer(
        checkpoint.net,
        checkpoint.schedule,
        train,
        checkpoint.settings,
        get_backend(args.backend, args.threads, args.precision),
        state=checkpoint.state,
    )
    return trainer, source, RunSettings(**options)


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder's run.json says; nothing if there is none or it cannot be read, as it is only an account."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}

"""Level steps: a whole training step and a whole reverse step of each preset, ours beside PyTorch and JAX.

Training: lines 2-5 of Algorithm 1 on random pictures, with dropout, clipping at norm 1, Adam and EMA. Sampling: the
network's ε_θ(x_t, t) and line 4 of Algorithm 2 with fresh noise, at the case's batch and, but with --quick, at 1.
"""

from typing import Any

import numpy as np

from benchmarks.cases import CASES, Job
from benchmarks.work import step_work

SMALL = ("digits",)
"""Networks that peers do not compile for minutes; the others with --full."""

QUICK_BATCH = {"base64": 4}
"""Instead of a case's own: steps of a second are not for two minutes."""


def jobs(options: Any) -> list[Job]:
    """Training and sampling of each preset and batch."""
    made = []
    for preset in options.presets:
        case = CASES[preset]
        train, sample = [case.train], list(dict.fromkeys([case.sample, 1]))
        if options.level == "quick":
            train, sample = ([QUICK_BATCH.get(preset, batch)] for batch in (case.train, case.sample))
        for what, own in (("train", train), ("sample", sample)):
            made += [_job(preset, what, batch, options) for batch in options.batch or own]
    return made


def _job(preset: str, what: str, batch: int, options: Any) -> Job:
    config = CASES[preset].config
    work = step_work(config, batch, what, itemsize=np.dtype(options.dtype).itemsize)
    return Job(
        "steps", f"{what} {preset}", what, preset, config, batch, (("", work),),
        contenders=(*options.backends, *options.peers_for(preset in SMALL)), threads=options.threads,
        dtype=options.dtype, precision=options.precision, seconds=0.5 if options.level == "full" else 0.25,
        rounds=options.rounds_of("steps"),
    )  # fmt: skip

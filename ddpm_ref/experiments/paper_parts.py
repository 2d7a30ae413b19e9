"""The parts of `ddpm-ref paper`: what each is of the paper, how much there is to do, and how it is done."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.experiments import (
    ablation,
    autoregressive,
    coding,
    generation,
    interpolation,
    likelihood,
    neighbours,
    rate_distortion,
)
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2, Setup, new_setup
from ddpm_ref.experiments.ablation_runs import saved_samples, subject_of
from ddpm_ref.experiments.coding_toys import TOYS
from ddpm_ref.experiments.features import feature_space
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.files import run as runs

SETTINGS = "paper.json"


@dataclass(frozen=True)
class Plan:
    """What a folder's numbers follow from, beside the data.

    steps, seeds: of every cell of Table 2; seeds are `seed` and those after.  every: K of the likelihood.
    """

    preset: str
    data: str
    steps: int
    seed: int
    seeds: int
    every: int
    weights: str
    clip: bool
    temperature: float
    batch: int
    quick: bool


@dataclass(eq=False)
class Work:
    """A folder that is being filled."""

    folder: Path
    plan: Plan
    setup: Setup
    backend: Backend

    @property
    def seeds(self) -> range:
        """Of the runs of each cell."""
        return range(self.plan.seed, self.plan.seed + self.plan.seeds)

    @property
    def run_folder(self) -> Path:
        """The L_simple ε run that all parts after Table 2 look at."""
        return ablation.run_folder(self.folder / "ablation", CELLS[ablation.SUBJECT], self.plan.seed)

    @cached_property
    def subject(self) -> Subject:
        """Its network."""
        return subject_of(self.setup, CELLS[ablation.SUBJECT], self.run_folder, self.backend)

    def facts(self, **more: Any) -> dict[str, Any]:
        """How a part was made, for its JSON file."""
        return runs.describe(backend=self.backend.describe()._asdict(), plan=asdict(self.plan), **more)


def open_work(folder: Path, plan: Plan, backend: Backend) -> Work:
    """A new folder, or one that was begun with the same plan and backend; ValueError naming what is not the same."""
    setup = new_setup(
        plan.data, preset=plan.preset, steps=plan.steps, every=plan.every, weights=plan.weights, clip=plan.clip,
        temperature=plan.temperature,
    )  # fmt: skip
    what = backend.describe()
    settings = json.loads(json.dumps({"plan": asdict(plan), "backend": what._asdict(), "setup": setup.as_dict()}))
    if runs.is_new(folder, SETTINGS, settings):
        runs.open_folder(folder)
        runs.write_json(folder / SETTINGS, settings)
    return Work(folder, plan, setup, backend)


Advance = Callable[[int], object]


@dataclass(frozen=True)
class Part:
    """One part of the page: what it is of the paper, how much it is to do and in what unit, and how it is done.

    run(work, folder, advance): writes into the folder; advance(n) after n units.
    """

    name: str
    title: str
    of: str
    unit: str
    size: Callable[[Work], int]
    run: Callable[[Work, Path, Advance], None]

    def done(self, work: Work) -> bool:
        """Whether its folder is whole."""
        return (work.folder / self.name / "done").exists()


# --- the parts -------------------------------------------------------------------------------------------------------


def _ablation(work: Work, folder: Path, advance: Advance) -> None:
    result = ablation.ablation(
        folder, work.setup, cells=TABLE_2, seeds=work.seeds, backend=work.backend, batch=work.plan.batch,
        progress=lambda steps, what: advance(steps),
    )  # fmt: skip
    ablation.save(folder, result, work.facts())


def _likelihood_how(work: Work) -> dict[str, Any]:
    return dict(seed=work.plan.seed, every=work.plan.every)


def _likelihood(work: Work, folder: Path, advance: Advance) -> None:
    how = _likelihood_how(work)
    result = likelihood.measure(work.subject, **how, batch=work.plan.batch, progress=advance)
    likelihood.save(folder, result, work.facts())


def _rate_distortion(work: Work, folder: Path, advance: Advance) -> None:
    stored = runs.read_json(work.folder / "likelihood" / likelihood.RESULT)
    found = likelihood.Likelihood.from_dict(stored["result"])
    rate_distortion.save(folder, rate_distortion.from_likelihood(found.parts[-1]), work.facts())
    advance(1)


def generation_how(work: Work) -> dict[str, Any]:
    """How many images progressive generation draws."""
    count = generation.default_count(work.setup.held_out, work.setup.source.shape)
    return dict(count=count, latents=8, continuations=8, batch=work.plan.batch)


def _generation(work: Work, folder: Path, advance: Advance) -> None:
    result = generation.measure(work.subject, **generation_how(work), seed=work.plan.seed, progress=advance)
    generation.save(folder, result, work.facts())


def _interpolation(work: Work, folder: Path, advance: Advance) -> None:
    part, images = ("held_out", len(work.setup.held_out))
    pairs = interpolation.choose_pairs(PAIRS, images, work.plan.seed)
    how = dict(pairs=pairs, part=part, batch=work.plan.batch, seed=work.plan.seed)
    result = interpolation.measure(work.subject, **how, progress=advance)
    interpolation.save(folder, result, work.facts())


def _neighbours(work: Work, folder: Path, advance: Advance) -> None:
    samples = saved_samples(work.run_folder).astype(np.float32)
    result = neighbours.measure(work.subject, samples=samples, features=feature_space(work.setup.train))
    neighbours.save(folder, result, work.facts())
    advance(1)


def _coding(work: Work, folder: Path, advance: Advance) -> None:
    coding.save(folder, coding.measure(seed=work.plan.seed, progress=advance), work.facts())


def _autoregressive(work: Work, folder: Path, advance: Advance) -> None:
    autoregressive.save(folder, autoregressive.measure(seed=work.plan.seed, progress=advance), work.facts())


PAIRS = 8  # of images to interpolate between

PARTS = (
    Part("ablation", "What to predict, and what to train on", "Tables 1 and 2, §4.2", "step",
         lambda w: ablation.total_steps(w.setup, TABLE_2, w.seeds, w.folder / "ablation")[0], _ablation),
    Part("likelihood", "Likelihood, term by term", "Table 1, §4.3", "image step",
         lambda w: likelihood.work(w.subject, **_likelihood_how(w)), _likelihood),
    Part("rate_distortion", "Progressive coding", "Figure 5, Table 4, §4.3", "table", lambda w: 1, _rate_distortion),
    Part("coding", "Sending and receiving real bytes", "Algorithms 3 and 4, §4.3", "message",
         lambda w: len(TOYS) * sum(map(coding.messages_of, coding.COPIES)), _coding),
    Part("generation", "Progressive generation", "Figures 6, 7, 10, 14, §4.3", "step",
         lambda w: generation.work(w.setup.schedule.T, **generation_how(w)), _generation),
    Part("interpolation", "Interpolation", "Figures 8 and 9, §4.4", "step",
         lambda w: interpolation.work(w.setup.schedule.T, pairs=PAIRS, batch=w.plan.batch), _interpolation),
    Part("neighbours", "Nearest neighbours", "Figures 12 and 15", "table", lambda w: 1, _neighbours),
    Part("autoregressive", "The autoregressive view", "§4.3, Eq. 16", "pixel", lambda w: 64, _autoregressive),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)
ALONE = {"coding": 25.0, "autoregressive": 15.0}
"""Parts that need no trained network, with the seconds they take, about."""

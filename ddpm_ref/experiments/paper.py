"""`ddpm-ref paper`: every experiment of §4 that runs offline, in one folder, with one page that shows them.

OUT/paper.json     the settings, of which a folder has one set for good
OUT/NAME/          what one part wrote; it is whole where there is OUT/NAME/done
OUT/index.html     the page, made anew from what is there

What a part writes follows from the settings alone, so a folder that was filled in several goes is the same as one that
was filled at once: results, pictures and page to the byte, on one machine with one backend and number of threads.
(Only when and by which command is noted as it was: under "facts", in run.json and log.csv.)
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_ref import options
from ddpm_ref.backend import Backend
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import check_choice, check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.experiments import ablation, autoregressive, coding, generation, interpolation, likelihood, neighbours
from ddpm_ref.experiments import rate_distortion
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2, Setup, differences, new_setup
from ddpm_ref.experiments.ablation_runs import read_json, subject_of
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.atomic import write_text
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.terminal import bar, need, quote, say

TEXT = "run every experiment of the paper's §4 that needs no download, and show them on one page"
MORE = """
Trains Table 2's six cells with several seeds, then makes every table and figure of §4 on the L_simple network of the
first seed. Says beforehand how long it will take, skips what is done, and goes on where it was stopped when the same
command is given again. Open OUT/index.html.

examples:
  ddpm-ref paper
  ddpm-ref paper --quick
  ddpm-ref paper --parts coding autoregressive
  ddpm-ref paper --preset cifar10 --data cifar-10-batches-bin --backend cupy --precision bf16"""

QUICK = dict(steps=400, seeds=1, every=50)
"""A look at the page in minutes: one seed, networks that have barely learned. Decides nothing."""


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
    stored = read_json(work.folder / "likelihood" / likelihood.RESULT)
    found = likelihood.Likelihood.from_dict(stored["result"])
    rate_distortion.save(folder, rate_distortion.from_likelihood(found.parts[-1]), work.facts())
    advance(1)


def _generation_how(work: Work) -> dict[str, Any]:
    return dict(count=len(work.setup.held_out), latents=8, continuations=8, batch=work.plan.batch)


def _generation(work: Work, folder: Path, advance: Advance) -> None:
    result = generation.measure(work.subject, **_generation_how(work), seed=work.plan.seed, progress=advance)
    generation.save(folder, result, work.facts())


def _interpolation(work: Work, folder: Path, advance: Advance) -> None:
    result = interpolation.measure(
        work.subject, count=PAIRS, batch=work.plan.batch, seed=work.plan.seed, progress=advance
    )
    interpolation.save(folder, result, work.facts())


def _neighbours(work: Work, folder: Path, advance: Advance) -> None:
    neighbours.save(folder, neighbours.measure(work.subject, samples=work.samples), work.facts())
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
         lambda w: len(coding.TOYS) * sum(map(coding.messages_of, coding.COPIES)), _coding),
    Part("generation", "Progressive generation", "Figures 6, 7, 10, 14, §4.3", "step",
         lambda w: generation.work(w.setup.schedule.T, **_generation_how(w)), _generation),
    Part("interpolation", "Interpolation", "Figures 8 and 9, §4.4", "step",
         lambda w: interpolation.work(w.setup.schedule.T, pairs=PAIRS, batch=w.plan.batch), _interpolation),
    Part("neighbours", "Nearest neighbours", "Figures 12 and 15", "table", lambda w: 1, _neighbours),
    Part("autoregressive", "The autoregressive view", "§4.3, Eq. 16", "step",
         lambda w: autoregressive.work(), _autoregressive),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)
ALONE = ("coding", "autoregressive")
"""Parts that need no trained network."""


def chosen_parts(names: Sequence[str] | None) -> tuple[Part, ...]:
    """The parts of these names, in the page's order, with those that they rest on; all if None."""
    for name in names or ():
        check_choice("parts", name, NAMES)
    wanted = set(names or NAMES)
    wanted |= {"ablation"} if wanted - set(ALONE) else set()
    wanted |= {"likelihood"} if "rate_distortion" in wanted else set()
    return tuple(part for part in PARTS if part.name in wanted)


def new_plan(args: argparse.Namespace) -> Plan:
    """The plan that the command line describes."""
    recipe = RECIPES[args.preset][0]
    default = QUICK if args.quick else dict(steps=recipe, seeds=3, every=10)
    given = {name: getattr(args, name) for name in default if getattr(args, name) is not None}
    for name, value in given.items():
        check_int(f"--{name}", value, 1)
    return Plan(
        args.preset, args.data, **(default | given), seed=args.seed, weights=args.weights, clip=args.clip,
        temperature=args.temperature, batch=args.draw_batch, quick=args.quick,
    )  # fmt: skip


def open_work(folder: Path, plan: Plan, backend: Backend) -> Work:
    """A new folder, or one that was begun with the same plan and backend; ValueError naming what is not the same."""
    setup = new_setup(
        plan.data, preset=plan.preset, steps=plan.steps, every=plan.every, weights=plan.weights, clip=plan.clip,
        temperature=plan.temperature,
    )  # fmt: skip
    what = backend.describe()
    settings = json.loads(json.dumps({"plan": asdict(plan), "backend": what._asdict(), "setup": setup.as_dict()}))
    path = folder / "paper.json"
    if path.exists():
        if other := list(differences(read_json(path), settings)):
            raise ValueError(f"out: {folder} was begun with other settings: {'; '.join(other)}; choose another folder")
    else:
        runs.open_folder(folder)
        runs.write_json(path, settings)
    return Work(folder, plan, setup, backend)


def fill(work: Work, parts: Sequence[Part]) -> None:
    """Do what is not done, part by part, with a progress bar for each, and make the page after each."""
    keep_freed_memory()
    for number, part in enumerate(parts, 1):
        if part.done(work):
            continue
        folder = work.folder / part.name
        folder.mkdir(exist_ok=True)
        say(f"[{number}/{len(parts)}] {part.title} ({part.of})")
        with bar(part.size(work), part.name, part.unit, _begun(work, part)) as progress:
            part.run(work, folder, progress.update)
        write_text(folder / "done", "")
        write_page(work)
    write_page(work)


def _begun(work: Work, part: Part) -> int:
    """How much of a part an earlier run has behind it: only Table 2's runs go on where they stopped."""
    if part.name != "ablation":
        return 0
    return ablation.total_steps(work.setup, TABLE_2, work.seeds, work.folder / "ablation")[1]

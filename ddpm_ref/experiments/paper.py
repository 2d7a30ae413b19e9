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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref import options
from ddpm_ref.backend import Backend
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import check_choice, check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.experiments import (
    ablation,
    ablation_runs,
    autoregressive,
    coding,
    generation,
    interpolation,
    likelihood,
    neighbours,
    rate_distortion,
)
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2, Setup, differences, new_setup
from ddpm_ref.experiments.ablation_runs import read_json, saved_samples, subject_of
from ddpm_ref.experiments.forecast import Pace, pace
from ddpm_ref.experiments.page import Page
from ddpm_ref.experiments.paper_sections import SECTIONS
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.atomic import write_text
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.terminal import bar, need, quote, say
from ddpm_ref.train import RECIPES

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
    part, images = ("held_out", len(work.setup.held_out))
    pairs = interpolation.choose_pairs(PAIRS, images, work.plan.seed)
    how = dict(pairs=pairs, part=part, batch=work.plan.batch, seed=work.plan.seed)
    result = interpolation.measure(work.subject, **how, progress=advance)
    interpolation.save(folder, result, work.facts())


def _neighbours(work: Work, folder: Path, advance: Advance) -> None:
    samples = saved_samples(work.run_folder).astype(np.float32)
    neighbours.save(folder, neighbours.measure(work.subject, samples=samples), work.facts())
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
    Part("autoregressive", "The autoregressive view", "§4.3, Eq. 16", "pixel", lambda w: 64, _autoregressive),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)
ALONE = {"coding": 25.0, "autoregressive": 15.0}
"""Parts that need no trained network, with the seconds they take, about."""


def chosen_parts(names: Sequence[str] | None) -> tuple[Part, ...]:
    """The parts of these names, in the page's order, with those that they rest on; all if None."""
    for name in names or ():
        check_choice("parts", name, NAMES)
    wanted = set(names or NAMES)
    wanted |= {"ablation"} if wanted - ALONE.keys() else set()
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


def forecast(work: Work, parts: Sequence[Part], one: Pace) -> dict[str, float]:
    """Seconds that each part will take which is not done, from the pace of single steps."""
    T, plan = work.setup.schedule.T, work.plan
    passes = [ablation_runs.work(work.setup, seed) for seed in work.seeds]
    batches = -(-len(work.setup.held_out) // plan.batch)
    of_each = len(work.seeds) * T * batches * one.draw + sum(p["rate"] for p in passes) * one.rate
    total, behind = ablation.total_steps(work.setup, TABLE_2, work.seeds, work.folder / "ablation")
    training = sum(one.train.values()) * plan.steps * len(work.seeds)
    by_draws = {"generation": generation.work(T, **_generation_how(work)),
                "interpolation": interpolation.work(T, pairs=PAIRS, batch=plan.batch)}  # fmt: skip
    seconds = {
        "ablation": (training + len(TABLE_2) * of_each) * (1 - behind / total),
        "likelihood": passes[0]["rate"] * one.rate,
        **{name: steps * one.draw for name, steps in by_draws.items()},
        **ALONE,
    }
    return {part.name: seconds.get(part.name, 1.0) for part in parts if not part.done(work)}


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(work: Work) -> Path:
    """index.html of the parts that are done."""
    done = [part for part in PARTS if part.done(work)]
    page, below = Page("Denoising Diffusion Probabilistic Models: the experiments, run again"), Page("")
    findings: dict[str, list[tuple[str, str]]] = {}
    for part in done:
        below.section(part.title, part.of, part.name)
        findings[part.title] = SECTIONS[part.name](below, work)
        below.items(findings[part.title])
    introduce(page, work)
    page.contents([(part.name, f"{part.title} ({part.of})") for part in done])
    missing = [part.title for part in PARTS if part not in done]
    if missing:
        page.text(f"Not here yet: {'; '.join(missing)}.")
    page.section("What the paper finds, and what these numbers say", anchor="findings")
    page.items([finding for part in done for finding in findings[part.title]])
    page.append(below)
    return page.write(work.folder / "index.html")


def introduce(page: Page, work: Work) -> None:
    """What was run, and what may be compared."""
    plan, setup = work.plan, work.setup
    h, w, c = setup.source.shape
    page.command(" ".join(["ddpm-ref paper", *(["--quick"] if plan.quick else []), *_differing(plan)]))
    if plan.quick:
        page.text(
            "A quick look, for the page's form: networks that have barely learned, one seed, so no verdict below is to be "
            "believed. Without --quick each network trains in full."
        )
    page.text(
        f"Ho, Jain and Abbeel (2020), §4, on {len(setup.train):,} images ({plan.data}, {h}x{w}x{c}, {setup.source.levels} "
        f"grey levels) with {len(setup.held_out):,} held out, by a network of {setup.net(CELLS['eps-simple']).size:,} "
        f"parameters trained for {plan.steps:,} steps of {setup.training.batch} images, T = {setup.schedule.T:,}. The "
        "paper's are on CIFAR-10: 50,000 photographs of 32x32x3 and 256 levels, 35.7 million parameters, 800,000 steps of "
        "128 images. So no number here is to be compared with one of the paper; orders and shapes are, and each "
        "table says so where even these cannot."
    )


def _differing(plan: Plan) -> list[str]:
    """The options that were not left at their defaults."""
    default = QUICK if plan.quick else dict(steps=RECIPES[plan.preset][0], seeds=3, every=10)
    default |= dict(preset="digits", data="digits", seed=0, weights="ema", temperature=1.0, batch=100)
    words = [
        f"--{'draw-batch' if name == 'batch' else name} {quote(str(getattr(plan, name)))}"
        for name, value in default.items()
        if getattr(plan, name) != value
    ]
    return words + ([] if plan.clip else ["--no-clip"])


# --- the command -----------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `ddpm-ref paper`."""
    options.shared(parser, "where to write, or to go on (runs/paper; with --quick runs/paper-quick)")
    options.drawing(parser, count=False)
    parser.add_argument("--quick", action="store_true", help="a look in a few minutes: one seed, little training")
    parser.add_argument("--parts", nargs="+", choices=NAMES, metavar="PART",
                        help=f"only these, and what they rest on, of: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="digits", help="network and settings of all cells")
    parser.add_argument("--data", default="digits", metavar="SOURCE", help="labelled images, as `ddpm-ref train` takes")
    parser.add_argument("--steps", type=int, metavar="K", help="of each training (the preset's)")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each cell of Table 2 (3)")
    parser.add_argument("--every", type=int, metavar="K", help="each image's bound by every K-th step (10)")


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref paper`"""
    need(
        "tqdm", "safetensors", "PIL.Image", "matplotlib.figure", "sklearn.neural_network", "sklearn.svm", "scipy.stats"
    )
    parts, plan = chosen_parts(args.parts), new_plan(args)
    folder = Path(args.out or ("runs/paper-quick" if args.quick else "runs/paper"))
    backend = get_backend(args.backend, args.threads, args.precision)
    work = open_work(folder, plan, backend)
    say(taken(backend, args))
    todo = [part for part in parts if not part.done(work)]
    if todo:
        say(f"folder {folder}; timing a few steps of each kind …")
        seconds = forecast(work, parts, pace(work.setup, TABLE_2, backend, plan.batch))
        each = ", ".join(f"{name} {minutes(s)}" for name, s in seconds.items())
        say(f"about {minutes(sum(seconds.values()))} on this machine: {each}")
    begun = time.monotonic()
    try:
        fill(work, parts)
    except KeyboardInterrupt as stop:
        what = str(stop) or "stopped"
        say(f"{what}; give the same command again to go on (folder {quote(folder)})")
        return 0 if isinstance(stop, ablation_runs.Stopped) else 130
    if todo:
        say(f"done in {minutes(time.monotonic() - begun)}")
    say(f"open {folder / 'index.html'}")
    return 0


def minutes(seconds: float) -> str:
    """12 min, or 40 s."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

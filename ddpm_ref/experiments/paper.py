"""`ddpm-ref paper`: every experiment of §4 that runs offline, in one folder, with one page that shows them.

OUT/paper.json     the settings, of which a folder has one set for good
OUT/NAME/          what one part wrote; it is whole where there is OUT/NAME/done
OUT/index.html     the page, made anew from what is there

What a part writes follows from the settings alone, so a folder that was filled in several goes is the same as one that
was filled at once: results, pictures and page to the byte, checkpoints in what they hold, on one machine with one
backend and number of threads. (When and by which command is noted as it was: under "facts", in run.json, log.csv.)
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_ref import options
from ddpm_ref.backend_command import taken
from ddpm_ref.checks import check_choice, check_int
from ddpm_ref.discovery import get_backend
from ddpm_ref.experiments import ablation, ablation_runs, paper_figures, paper_sections, published
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2
from ddpm_ref.experiments.forecast import forecast, pace
from ddpm_ref.experiments.page import Page
from ddpm_ref.experiments.paper_parts import ALONE, NAMES, PARTS, Part, Plan, Work, open_work
from ddpm_ref.experiments.paper_sections import Finding, Section, comparable
from ddpm_ref.files.atomic import sweep, write_text
from ddpm_ref.files.run import read_json
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.terminal import bar, need, quote, say
from ddpm_ref.train import RECIPES

MORE = """
Trains Table 2's six cells with several seeds, then makes every table and figure of §4 on the L_simple network of the
first seed. Says beforehand how long it will take, skips what is done, and goes on where it was stopped when the same
command is given again. Open OUT/index.html.

examples:
  ddpm-ref paper
  ddpm-ref paper --quick
  ddpm-ref paper --parts coding autoregressive
  ddpm-ref paper --preset cifar10 --data cifar-10-batches-bin --backend cupy --precision bf16"""

NOT_JUDGED = "not judged"
QUICK = dict(steps=400, seeds=1, every=50)
"""A look at the page in minutes: one seed, networks that have barely learned. Decides nothing."""


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


def fill(work: Work, parts: Sequence[Part]) -> None:
    """Do what is not done, part by part, with a progress bar for each, and make the page after each."""
    keep_freed_memory()
    for number, part in enumerate(parts, 1):
        if part.done(work):
            continue
        folder = work.folder / part.name
        folder.mkdir(exist_ok=True)
        sweep(folder)
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


SECTIONS: dict[str, Section] = {
    one.__name__: one
    for one in (
        paper_sections.ablation, paper_sections.likelihood, paper_sections.rate_distortion, paper_figures.coding,
        paper_figures.generation, paper_figures.interpolation, paper_figures.neighbours, paper_figures.autoregressive,
    )
}  # fmt: skip


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(work: Work) -> Path:
    """index.html of the parts that are done."""
    done = [part for part in PARTS if part.done(work)]
    page, below = Page("Denoising Diffusion Probabilistic Models: the experiments, run again"), Page("")
    findings: list[Finding] = []
    trusted = not work.plan.quick and not _marked(work)
    for part in done:
        below.section(part.title, part.of, part.name)
        here = SECTIONS[part.name](below, work)
        if part.name not in ALONE and not trusted:
            here = [one._replace(verdict=NOT_JUDGED) for one in here]
        below.items([(f"{one.verdict}:", f"{one.claim}. {one.numbers}") for one in here])
        findings += here
    introduce(page, work)
    page.contents([(part.name, f"{part.title} ({part.of})") for part in done])
    missing = [part.title for part in PARTS if part not in done]
    if missing:
        page.text(f"Not here yet: {'; '.join(missing)}.")
    page.section("What the paper finds, and what these numbers say", anchor="findings")
    page.items([(f"{one.verdict}:", f"{one.claim}.") for one in findings])
    page.append(below)
    return page.write(work.folder / "index.html")


def _marked(work: Work) -> bool:
    """Whether the network that the parts look at is itself one that diverged or is out of range."""
    path = work.folder / "ablation" / ablation.RESULT
    cells = read_json(path)["result"]["cells"] if path.exists() else []
    return any(cell["name"] == ablation.SUBJECT and cell["mark"] for cell in cells)


def introduce(page: Page, work: Work) -> None:
    """What was run, and what may be compared."""
    plan, setup, backend = work.plan, work.setup, work.backend.describe()
    h, w, c = setup.source.shape
    page.command(" ".join(["ddpm-ref paper", *(["--quick"] if plan.quick else []), *_differing(plan)]))
    if plan.quick:
        page.text(
            "A quick look, for the page's form: networks that have barely learned, one seed, so that nothing that "
            "rests on them is judged. Without --quick each network trains in full."
        )
    page.text(
        f"Ho, Jain and Abbeel (2020), §4, on {len(setup.train):,} images ({plan.data}, {h}x{w}x{c}, "
        f"{setup.source.levels} grey levels) with {len(setup.held_out):,} held out, by a network of "
        f"{setup.net(CELLS['eps-simple']).size:,} parameters trained for {plan.steps:,} steps of "
        f"{setup.training.batch} images, T = {setup.schedule.T:,}; on {backend.name} ({backend.version}, "
        f"{backend.device}, threads: {backend.threads}). The paper's are on CIFAR-10: 50,000 photographs of 32x32x3 "
        f"and 256 levels, {published.CIFAR10_PARAMETERS / 1e6:.1f} million parameters, {published.TRAINING_STEPS:,} "
        f"steps of {published.BATCH} images."
    )
    page.text(
        "The data are of the paper's kind, so bits/dim, rates and errors may be compared with its numbers, as far as "
        "the training allows; scores of samples, which rest on another network, may not."
        if comparable(work)
        else "So no number here is to be compared with one of the paper; orders and shapes are. Each of its claims is "
        "judged by a rule that is given with it, and where it does not hold the reason is, as far as known."
    )


def _differing(plan: Plan) -> list[str]:
    """The options that were not left at their defaults."""
    default = QUICK if plan.quick else dict(steps=RECIPES[plan.preset][0], seeds=3, every=10)
    other: dict[str, Any] = dict(preset="digits", data="digits", seed=0, weights="ema", temperature=1.0, batch=100)
    words = [
        f"--{'draw-batch' if name == 'batch' else name} {quote(str(getattr(plan, name)))}"
        for name, value in (default | other).items()
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

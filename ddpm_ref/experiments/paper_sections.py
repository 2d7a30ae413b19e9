"""What the page says of each part: its numbers and pictures beside the paper's, and what can be compared.

A section is made from what the part wrote and nothing else: section(page, work). `findings` are the paper's claims,
each with the verdict that these numbers give.
"""

import math
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddpm_ref.experiments import published
from ddpm_ref.experiments.ablation_findings import DOES_NOT_HOLD, HOLDS
from ddpm_ref.experiments.page import Cell, Page
from ddpm_ref.files.run import read_json

if TYPE_CHECKING:
    from ddpm_ref.experiments.paper_parts import Work


class Finding(NamedTuple):
    """A claim of the paper, the verdict that these numbers give, and the numbers."""

    verdict: str
    claim: str
    numbers: str


Section = Callable[[Page, "Work"], list[Finding]]


def result_of(work: "Work", name: str) -> Any:
    """The "result" of a part's JSON file."""
    return read_json(work.folder / name / f"{name}.json")["result"]


def command(work: "Work", name: str, *words: object) -> str:
    """The command that makes a part by itself, with what is not as it is by default."""
    plan = work.plan
    how = ["--seed", plan.seed, *(["--weights", plan.weights] if plan.weights != "ema" else [])]
    how += [] if plan.clip else ["--no-clip"]
    how += ["--temperature", plan.temperature] if plan.temperature != 1 and name not in BOUNDS else []
    how += ["--batch" if name in BOUNDS else "--draw-batch", plan.batch] if plan.batch != 100 else []
    return shlex.join(map(str, ["ddpm-ref", name, *words, *how]))


BOUNDS = ("likelihood", "rate_distortion")
"""Commands that draw nothing."""


def verdict(holds: bool) -> str:
    """In words."""
    return HOLDS if holds else DOES_NOT_HOLD


# --- Tables 1 and 2 --------------------------------------------------------------------------------------------------


def ablation(page: Page, work: "Work") -> list[Finding]:
    """Table 2, and with it Table 1's two rows."""
    found, folder = result_of(work, "ablation"), work.folder / "ablation"
    plan = work.plan
    what = ["--preset", plan.preset, "--data", plan.data, "--steps", plan.steps, "--seeds", plan.seeds]
    page.command(command(work, "ablation", *what, "--every", plan.every))
    page.text(
        f"Every cell is trained for {work.plan.steps:,} steps with {_count(work.plan.seeds, 'seed')}, then draws as "
        "many images as were held out. Mean ± standard deviation over the seeds. Lower Fréchet distances are better, "
        "higher precision, recall and class probability, fewer bits."
    )
    measures = [m for m in found["measures"] if m not in ("nearest_median", "smallest_class_share")]
    rows: list[list[Cell]] = []
    for cell in found["cells"]:
        paper = cell["paper"]
        theirs = (
            paper
            if isinstance(paper, str)
            else f"{paper['inception_score']:.2f} / {paper['fid']:.2f}"
            if paper
            else "–"
        )
        label = cell["label"] + (f" ({cell['mark']})" if cell["mark"] else "")
        numbers = [spread(cell["mean"][m], cell["deviation"][m]) or "not finite" for m in measures]
        rows.append([label, *numbers, theirs])
    held = found["held_out"]
    rows.append(["held-out images", *(spread(held.get(m), None) for m in measures), ""])
    page.table(
        ["predicted, trained on", *(found["measures"][m] for m in measures), "paper: IS / FID"],
        rows,
        found["criteria"],
    )
    page.picture(folder / "ablation.png", "Each seed a dot, each line a mean; the held-out images are the yardstick.")
    page.items([(f"{cell['label']}:", "; ".join(cell["reasons"])) for cell in found["cells"] if cell["reasons"]])
    bits = {cell["name"]: cell["mean"] for cell in found["cells"]}
    one = published.TABLE_1
    page.table(
        ["Table 1, bits/dim", "held-out", "train", "paper's test", "paper's train"],
        [
            ["L, fixed isotropic Σ", bits["eps-fixed"]["bits_held_out"], bits["eps-fixed"]["bits_train"],
             f"≤ {one['fixed'].nll_test:.2f}", f"{one['fixed'].nll_train:.2f}"],
            ["L_simple", bits["eps-simple"]["bits_held_out"], bits["eps-simple"]["bits_train"],
             f"≤ {one['simple'].nll_test:.2f}", f"{one['simple'].nll_train:.2f}"],
        ],
        "" if comparable(work) else "Bits/dim of these images and of photographs with 256 levels cannot be compared; "
        "which row is lower can.",
    )  # fmt: skip
    page.text(
        "FID and Inception Score rest on a network trained on ImageNet, which is not shipped and has nothing to say "
        "of small grey digits. In their place stand the same formula on features of a classifier of the training "
        "images, and on raw pixels."
    )
    samples = work.run_folder / "samples.png"
    if samples.exists():
        page.picture(samples, "Samples of the L_simple network of the first seed (compare Figures 1, 11 and 13).")
    return [
        Finding(f["verdict"], f["text"], " ".join(filter(None, (f["numbers"], f"The paper: {f['paper']}.", _why(f)))))
        for f in found["findings"]
    ]


def _why(finding: dict[str, Any]) -> str:
    """The reason for a disagreement, where one is known or supposed."""
    return "" if finding["verdict"] == HOLDS else finding.get("why") or ""


def comparable(work: "Work") -> bool:
    """Whether bits, rates and errors are of the paper's kind of data: 32x32 colour images with 256 levels."""
    return work.setup.source.shape == (32, 32, 3) and work.setup.source.levels == 256


def spread(mean: float | None, deviation: float | None) -> str | None:
    """1.234 ± 0.056."""
    if mean is None:
        return None
    small = min(x for x in (abs(mean), deviation or math.inf) if x) if mean or deviation else 0.0
    places = min(4, max(0, 1 - math.floor(math.log10(small)))) if small else 3
    if abs(mean) < 1e-4:
        return f"{mean:.1e}" if mean else "0"
    return f"{mean:,.{places}f}" if deviation is None else f"{mean:,.{places}f} ± {deviation:,.{places}f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# --- likelihood and progressive coding -------------------------------------------------------------------------------


def likelihood(page: Page, work: "Work") -> list[Finding]:
    """The bound of the L_simple network in its terms."""
    found = result_of(work, "likelihood")
    page.command(command(work, "likelihood", work.run_folder, "--every", work.plan.every))
    split = ("rate", "distortion", "total")
    rows: list[list[Cell]] = [
        [part, p["images"], f"{p['L_T']:.1e}", *(spread(p[k], p[k + "_error"]) for k in split)]
        for part, p in found.items()
    ]  # fmt: skip
    simple = published.TABLE_1["simple"]
    rows.append(
        [
            "paper, CIFAR-10 test",
            10_000,
            f"about {published.PRIOR_BITS:.0e}",
            f"{published.RATE}",
            f"{published.DISTORTION}",
            f"≤ {simple.nll_test}",
        ]
    )
    page.table(
        ["bits/dim", "images", "L_T", "rate", "distortion L_0", "total"], rows,
        "± is a standard error over images, noise and the steps drawn. Of the L_simple network of the first seed.",
    )  # fmt: skip
    page.picture(work.folder / "likelihood" / "likelihood.png", "Every L_t, and the error of x̂_0 at every x_t.")
    if len(found) < 2:
        return []
    train, held_out = found["train"], found["held-out"]
    apart = held_out["total"] - train["total"]
    error = float(np.hypot(held_out["total_error"], train["total_error"]))
    return [Finding(
        "measured",
        "held-out images take about as many bits as those of training",
        f"{apart:+.3f} ± {error:.3f} bits/dim more (the error is an upper limit: both parts see the same noise). The "
        f"paper: at most {simple.nll_test - simple.nll_train:+.2f}, on 50,000 images.",
    )]  # fmt: skip


def rate_distortion(page: Page, work: "Work") -> list[Finding]:
    """Figure 5 and Table 4."""
    found = result_of(work, "rate_distortion")
    page.command(command(work, "rate_distortion", work.run_folder, "--every", work.plan.every))
    theirs = {row.steps: row for row in published.TABLE_4}
    rows: list[list[Cell]] = []
    for row in found["table_4"]:
        paper = theirs.get(row["reverse_steps"]) if found["T"] == 1000 else None
        rows.append([row["reverse_steps"], f"{row['rate']:.5f}", f"{row['rmse']:.3f}",
                     f"{paper.rate:.5f}" if paper else None, f"{paper.rmse:.3f}" if paper else None])  # fmt: skip
    page.table(
        ["reverse steps T-t+1", "rate, bits/dim", "RMSE, 0…255", "paper's rate", "paper's RMSE"], rows,
        "What a receiver has been sent after some of the steps, and how far its x̂_0 then is from x_0.",
    )  # fmt: skip
    page.picture(work.folder / "rate_distortion" / "rate_distortion.png", "Figure 5 on these data.")
    total = found["lossless"]["total"]
    page.table(
        ["once x̂_0 is within", "RMSE", "from t =", "bits/dim still sent", "share of all bits"],
        [[f"{d['grey_levels']:g} grey level{'s' if d['grey_levels'] > 1 else ''}", d["rmse"], d["t"], d["bits"],
          f"{d['share']:.1%}"] for d in found["detail"]],
        f"Of {total:.3f} bits/dim in all.",
    )  # fmt: skip
    share = {d["grey_levels"]: d["share"] for d in found["detail"]}
    theirs_share = published.DISTORTION / (published.RATE + published.DISTORTION)
    L_0, fine = found["lossless"]["distortion"], found["lossless"]["rmse_at_1"]
    numbers = (
        f"L_0, what is sent after x̂_0 is within an RMSE of {fine:.2f} of 255, is {L_0 / total:.0%} of the code. The "
        f"paper: {theirs_share:.0%}, at {published.DISTORTION_RMSE}."
    )
    if found["levels"] < 64:
        numbers += (
            f" Why: these images have {found['levels']} grey levels, {255 / (found['levels'] - 1):.0f} of 255 apart, "
            f"so x_1, whose noise is {fine:.1f}, already tells which; a code of 256 levels must still say which of "
            f"many. What is alike: {share[0.5]:.0%} of the bits are sent after x̂_0 is within half a grey level of "
            "the data."
        )
    return [Finding(verdict(total < 2 * L_0), "most of the code's bits describe imperceptible detail", numbers)]

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
from ddpm_ref.experiments.ablation_runs import read_json
from ddpm_ref.experiments.page import Cell, Page, show

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
        return f"{mean:.1e}"
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
            "about 1e-5",
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


def coding(page: Page, work: "Work") -> list[Finding]:
    """Algorithms 3 and 4."""
    found = result_of(work, "coding")
    page.command(f"ddpm-ref coding --seed {work.plan.seed}")
    page.text(
        "A sender and a receiver share p_θ and a seed, and exchange real bytes: at every step the sender picks, by "
        "minimal random coding, a candidate that both can draw from p_θ, so that it is an exact sample of q, and sends "
        "its number. All messages were received again, and gave back x_0 to the bit."
    )
    findings = []
    for toy in found["toys"]:
        rows = toy["lengths"]
        page.table(
            ["copies coded jointly", "messages", "KL of a block", "bits/copy, as sent", "bound", "Σ KL", "x_t, as sent",
             "over Σ KL", "L_0", "x_0, as sent", "overhead"],
            [[r["n"], r["messages"], f"{min(r['kl_by_step'][1:]):.1f} to {max(r['kl_by_step'][1:]):.1f}",
              f"{r['bits']:.2f} ± {r['bits_error']:.2f}",
              f"{r['bound']:.2f}", f"{r['kl']:.2f}", f"{r['x_t_bits']:.2f}",
              f"{r['excess']:.2f} ± {r['excess_error']:.2f}", f"{r['x_0_bits']:.3f}", f"{r['x_0_sent']:.3f}",
              f"{r['overhead']:.2f}"] for r in rows],
            f"{toy['name']}: {toy['levels']} x {toy['levels']} grid, T = {toy['T']} with equal L_1 … L_{toy['T'] - 1}, "
            f"H(x_0) = {toy['entropy']:.2f} bits, L = {sum(toy['L']):.2f} bits. The bound is the sum of "
            "KL + log₂(KL + 1) + 5 over the blocks sent, plus L_0. Overhead: count, check sum, flags, whole bytes.",
        )  # fmt: skip
        findings.append(Finding(
            verdict(toy["under_bound"] and toy["excess_falls"]),
            f"sending a sample of q costs about KL(q ‖ p) bits ({toy['name']})",
            f"One copy's x_t take {rows[0]['excess']:.1f} bits over their KL of {rows[0]['kl']:.1f} if sent alone, "
            f"{rows[-1]['excess']:.1f} among {rows[-1]['n']}. The mean length is {'' if toy['under_bound'] else 'not '}"
            f"under the bound for every n; the excess {'falls' if toy['excess_falls'] else 'does not fall'} from every "
            "n to the next by over two standard errors.",
        ))  # fmt: skip
    page.picture(work.folder / "coding" / "coding.png", "Lengths, KL of every step, and what the receiver sees.")
    return findings


# --- generation, interpolation, neighbours ---------------------------------------------------------------------------


def generation(page: Page, work: "Work") -> list[Finding]:
    """Figures 6, 7, 10, 14."""
    found, folder = result_of(work, "generation"), work.folder / "generation"
    page.command(command(work, "generation", work.run_folder, "--count", found["count"]))
    page.picture(folder / "progressive.png", "x̂_0 at steps t of the reverse process (Figures 6 and 14).")
    page.picture(folder / "quality.png", "Its quality on the way (Figure 10, by other measures).")
    page.picture(folder / "shared.png", "Samples that share x_t; x_t itself at the bottom right of each (Figure 7).")
    shared = found["shared"]
    page.table(
        ["shared t", "two samples that share x_t, RMS apart", "two that do not"],
        [[t, a, b] for t, a, b in zip(shared["t"], shared["rms_shared"], shared["rms_independent"], strict=True)],
        f"On the scale 0…255; {shared['latents']} x_t with {shared['continuations']} samples each.",
    )
    apart = ", ".join(f"{a:.0f} at t = {t}" for t, a in zip(shared["t"], shared["rms_shared"], strict=True))
    claim = "large-scale features come first: samples that share x_t are the more alike the smaller t is"
    return [Finding(shared["falls_with_t"]["verdict"], claim, f"{apart}, of 255.")]


def interpolation(page: Page, work: "Work") -> list[Finding]:
    """Figures 8 and 9."""
    found, folder = result_of(work, "interpolation"), work.folder / "interpolation"
    count = len(found["pairs"])
    page.command(command(work, "interpolation", work.run_folder, "--count", count))
    page.text(
        "Two held-out images are taken to x_t with the same noise, mixed as (1 - λ) x_t + λ x'_t and decoded with the "
        "same noise for all λ. (The paper's formula has x_0 where x_t is meant.)"
    )
    page.picture(folder / "interpolation.png", "Rows of λ between two images at T/2 (Figure 8).")
    page.picture(folder / "interpolation-quarter.png", "The same at T/4, where small images still show their sources.")
    page.picture(folder / "coarse-to-fine.png", "The same pair from every t (Figure 9).")
    page.picture(folder / "details.png", "What is kept and what is made up, by t.")
    columns = ("reconstruction_rmse", "departure_from_pixel_blend", "travel", "lost_coarse", "lost_fine")
    page.table(
        ["t", "reconstruction RMSE", "from the pixel blend", "difference kept", "coarse part lost", "fine part lost"],
        [[t, *(found[c][i] for c in columns)] for i, t in enumerate(found["t"])],
        "RMS on 0…255; lost: 0 is kept exactly, 1 as if another image had been drawn.",
    )
    sentences = {
        "reconstruction_rmse_grows_with_t": "the larger t, the less of the source comes back",
        "departure_from_pixel_blend_grows_with_t": "the larger t, the further from a mere blend of pixels",
        "fine_part_is_lost_more_than_coarse": "fine detail is made up before the coarse shape is",
    }
    return [
        Finding(
            one["verdict"],
            f"interpolations are coarse for large t and fine for small t: {sentences[name]}",
            f"Judged by a 95 % interval over {count} pairs.",
        )
        for name, one in found["findings"].items()
    ]


def neighbours(page: Page, work: "Work") -> list[Finding]:
    """Figures 12 and 15."""
    found, folder = result_of(work, "neighbours"), work.folder / "neighbours"
    page.command(command(work, "neighbours", work.run_folder, "--samples", work.run_folder / "samples.npz"))
    page.picture(folder / "neighbours.png", "Samples and the training images nearest to each by pixels.")
    page.picture(folder / "distances.png", "How far samples and held-out images are from the nearest training image.")
    pixels, copies = found["pixels"], found["exact_copies"]
    rows: list[list[Cell]] = [["exact copies of training images", copies["samples"], copies["held_out"]]]
    for name, text in (("median", "median distance to the nearest, RMS 0…255"),
                       ("much_nearer_to_one", "share three times as near to it as to the next")):  # fmt: skip
        rows.append([text, pixels["samples"][name], pixels["held_out"][name]])
    page.table(["", f"{pixels['samples']['n']} samples", f"{pixels['held_out']['n']} held-out images"], rows)
    ratio = pixels["median_ratio"]
    new = copies["samples"] <= copies["held_out"] and ratio is not None and ratio > NEW
    return [Finding(
        verdict(new),
        "samples are not memorised",
        f"Their median distance to the nearest training image is {show(ratio)} times that of held-out images (near 0 "
        f"for a memoriser; more than {NEW} is taken as new), and {copies['samples']} of {pixels['samples']['n']} are "
        "one.",
    )]  # fmt: skip


NEW = 0.8
"""The distance to the nearest training image, as a multiple of held-out images', from which samples count as new."""


def autoregressive(page: Page, work: "Work") -> list[Finding]:
    """The coordinate-masking chain."""
    found = result_of(work, "autoregressive")
    page.command(f"ddpm-ref autoregressive --seed {work.plan.seed}")
    page.text(
        "With T = D steps that mask one coordinate each instead of adding noise, the bound of Eq. 16 trains p_θ to "
        "copy what is visible and to predict the next coordinate: an autoregressive model. On a chain of five binary "
        "coordinates, by enumeration of all states:"
    )
    page.table(
        ["p_θ, bits", "L by Eq. 16", "L by Eq. 5", "-log₂ p_θ(x_0)", "KL(q ‖ p_θ)"],
        [[r["name"], *(f"{r[k]:.6f}" for k in ("eq_16", "eq_5", "negative_log_likelihood", "kl"))]
         for r in found["toy"]],
        f"H(x_0) = {found['toy_entropy']:.6f} bits.",
    )  # fmt: skip
    page.table(
        [f"binary digits, T = D = {found['D']}, bits/dim", "train", "held-out"],
        [[name, bits["train"], bits["held_out"]] for name, bits in found["bits_per_dim"].items()],
        "Pixels as 0 or 1: not to be compared with the bits/dim above.",
    )
    page.picture(work.folder / "autoregressive" / "autoregressive.png", "The chain, and its samples.")
    copying = [r for r in found["toy"] if "slips" not in r["name"]]
    gap = max(max(abs(r[k] - r["negative_log_likelihood"]) for k in ("eq_16", "eq_5")) for r in copying)
    return [Finding(
        verdict(gap < 1e-9),
        "the bound of the masking chain is the autoregressive likelihood, for every p_θ that copies",
        f"They differ by {gap:.0e} bits.",
    )]  # fmt: skip


SECTIONS: dict[str, Section] = {
    one.__name__: one
    for one in (ablation, likelihood, rate_distortion, coding, generation, interpolation, neighbours, autoregressive)
}

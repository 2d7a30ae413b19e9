"""What the page says of coding, generation, interpolation, neighbours and the autoregressive view.

As `paper_sections`, which has the tables: section(page, work), from what the part wrote and nothing else.
"""

from typing import TYPE_CHECKING

from ddpm_ref.experiments.page import Cell, Page, show
from ddpm_ref.experiments.paper_sections import Finding, command, result_of, verdict

if TYPE_CHECKING:
    from ddpm_ref.experiments.paper_parts import Work


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
    page.command(
        command(work, "neighbours", work.run_folder, "--samples", work.run_folder / "samples.npz", "--features")
    )
    page.picture(folder / "neighbours.png", "Samples and the training images nearest to each by pixels.")
    page.picture(folder / "neighbours-features.png", "The same in the feature space of a classifier.")
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

"""What an ablation says of made-up numbers: means, spread, what is unstable, and which of the paper's claims hold."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_ref
from ddpm_ref.experiments import published
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2
from ddpm_ref.experiments.ablation_findings import (
    BITS,
    CLAIMS,
    DOES_NOT_HOLD,
    FEATURES,
    HOLDS,
    UNDECIDED,
    Claim,
    decide,
    quantile,
)
from ddpm_ref.experiments.ablation_picture import save_ablation
from ddpm_ref.experiments.ablation_result import AblationResult, CellResult, Limits, RunResult, show

LOWER = Claim("a is better than b", "a", "b", FEATURES, "3 against 13")
FEWER = Claim("a takes fewer bits than b", "a", "b", BITS, "3 against 4")
ALIKE = Claim("a is as good as b", "a", "b", FEATURES, "13 and 13", alike=True)
NO = None


def verdict(claim, a, b):
    return decide(claim, lambda _: list(a), lambda _: list(b)).verdict


# ---- findings


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((1, 1.1, 0.9), (2, 2.3, 1.7), HOLDS),  # 2, 2.09, 1.89 times
        ((2, 2.2, 1.8), (1, 1.1, 0.9), DOES_NOT_HOLD),
        ((1, 1.1, 0.9), (1.1, 1.0, 1.2), UNDECIDED),  # 1.1, 0.91, 1.33 times
        ((1, 5, 25), (2, 10, 51), HOLDS),  # seeds differ by far more than the cells, which are paired
        ((2, 2.4, 1.7), (56, 154, 68), HOLDS),  # far apart, however much the larger ones scatter
        ((1, 1, 1), (2, 2, 2), HOLDS),
        ((1,), (2,), UNDECIDED),
        ((1, 2), (2, 3.2), UNDECIDED),  # logarithms 0.69, 0.47: 0.58 ± 12.7 · 0.11
        ((0, 0), (1, 1), HOLDS),
        ((1e-300, 1e-12), (1e300, 1e-12), UNDECIDED),  # an interval that no float holds
        ((1, NO, 3), (2, 3, 4), DOES_NOT_HOLD),
        ((1, 2, 3), (2, NO, NO), HOLDS),
        ((1, 2, 3), (0.5, NO, NO), UNDECIDED),
        ((1, NO, 3), (2, NO, 4), UNDECIDED),
    ],
)
def test_a_claim_of_less_is_decided_by_the_paired_ratios(a, b, wanted):
    assert verdict(LOWER, a, b) == wanted


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((1, 1.1, 0.9), (2, 2.2, 1.8), HOLDS),  # differences 1, 1.1, 0.9: 1 ± 0.25
        ((2, 2.2, 1.8), (1, 1.1, 0.9), DOES_NOT_HOLD),
        ((1, 5, 9), (2, 6, 10), HOLDS),  # of which the ratios would not decide
        ((1, 2), (2, 3.2), UNDECIDED),  # 1, 1.2: 1.1 ± 12.7 · 0.1
    ],
)
def test_a_claim_of_fewer_bits_is_decided_by_the_paired_differences(a, b, wanted):
    assert verdict(FEWER, a, b) == wanted


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((10, 10.1, 9.9), (10, 10, 10), HOLDS),
        ((7, 7.1, 6.9), (10, 10, 10), DOES_NOT_HOLD),
        ((13, 13.1, 12.9), (10, 10, 10), DOES_NOT_HOLD),
        ((8, 8.1, 7.9), (10, 10, 10), UNDECIDED),  # on the margin, 1.25 times
        ((12.5, 12.6, 12.4), (10, 10, 10), UNDECIDED),
        ((5, 10, 15), (10, 10, 10), UNDECIDED),
        ((NO, 10, 10), (10, 10, 10), DOES_NOT_HOLD),
        ((10, 10, 10), (10, NO, 10), DOES_NOT_HOLD),
        ((NO, 10, 10), (10, NO, 10), UNDECIDED),
    ],
)
def test_a_claim_of_likeness_is_decided_by_a_margin(a, b, wanted):
    assert verdict(ALIKE, a, b) == wanted


@pytest.mark.parametrize(("claim", "log"), [(LOWER, np.log), (FEWER, np.asarray)])
def test_the_interval_is_students(claim, log):
    stats = pytest.importorskip("scipy.stats")
    a, b = [1.0, 2.0, 4.0, 3.0], [2.5, 2.75, 6.0, 5.0]
    found = decide(claim, lambda _: a, lambda _: b)
    test = stats.ttest_rel(log(b), log(a)).confidence_interval(0.95)
    ends = np.exp if claim is LOWER else np.asarray
    assert (found.low, found.high) == (pytest.approx(ends(test.low)), pytest.approx(ends(test.high)))
    assert found.apart == pytest.approx([2.5, 1.375, 1.5, 5 / 3] if claim is LOWER else [1.5, 0.75, 2.0, 2.0])
    assert found.mean == pytest.approx(stats.gmean(found.apart) if claim is LOWER else 1.5625)
    assert quantile(2) == pytest.approx(4.302653, abs=1e-6)


def test_a_finding_of_seeds_that_only_differ_by_chance_is_declared_one_time_in_twenty(rng):
    """Of 2,000 comparisons of equal cells, 100 are decided on average; 61 to 141 with probability 0.9999."""
    draws = np.exp(rng.standard_normal((2000, 2, 3)))
    decided = sum(verdict(LOWER, a, b) != UNDECIDED for a, b in draws.tolist())
    assert 61 <= decided <= 141


def test_a_sentence_holds_claim_verdict_and_numbers():
    found = decide(LOWER, lambda _: [1, 1.1, 0.9], lambda _: [2, 2.2, 1.8])
    assert found.sentence() == (
        "a is better than b: holds. Fréchet distance of features, b over a, seed by seed: 2, 2, 2; mean 2, "
        "95% interval 2 … 2. The paper: 3 against 13."
    )
    bits = decide(FEWER, lambda _: [1, 1.1, 0.9], lambda _: [2, 2.2, 1.8])
    assert "bits/dim, b less a, seed by seed: +1, +1.1, +0.9; mean +1, 95% interval +0.752 … +1.25." in bits.sentence()
    broken = decide(LOWER, lambda _: [1, 1.1], lambda _: [2, NO])
    assert broken.sentence().startswith("a is better than b: holds. Fréchet")
    assert "seed by seed: 2, not finite (b: not finite). The paper" in broken.sentence()
    single = decide(LOWER, lambda _: [1], lambda _: [3])
    assert "a is better than b: not decided at this spread. " in single.sentence()
    assert "mean 3 (a single seed has no spread). The paper" in single.sentence()
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (data["text"], data["verdict"], data["paper"]) == ("a is better than b", HOLDS, "3 against 13")
    assert data["sentence"] == f"{data['text']}: {data['verdict']}. {data['numbers']}. The paper: {data['paper']}."


def test_a_sentence_of_likeness_holds_the_margin():
    rule = "; alike if surely between 0.8 and 1.25"
    assert decide(ALIKE, lambda _: [10, 10.1], lambda _: [10, 10]).numbers().endswith(rule)
    single = decide(ALIKE, lambda _: [10], lambda _: [12]).numbers()
    assert single.endswith(f"{rule} (a single seed has no spread)")
    missing = decide(ALIKE, lambda _: [10, 10], lambda _: [10, NO]).numbers()
    assert missing.endswith(f"{rule} (b: not finite)")


def test_reasons_are_given_for_the_digits_alone_and_only_where_a_claim_does_not_hold():
    digits, others = replace(result(), setup={"data": {"source": "digits"}}), result()
    told = [finding.as_dict() for finding in digits.findings]
    pairs = list(zip(CLAIMS, digits.findings, strict=True))
    assert [one["why"] for one in told] == [c.why if f.verdict != HOLDS else "" for c, f in pairs]
    assert sum(bool(one["why"]) for one in told) == 1 and sum(bool(claim.why) for claim in CLAIMS) == 4
    ends = [f" {one['why']}." if one["why"] else f"The paper: {one['paper']}." for one in told]
    assert all(one["sentence"].endswith(end) for one, end in zip(told, ends, strict=True))
    assert not any(finding.why for finding in others.findings)


def test_the_numbers_in_the_reasons_are_those_of_the_schedule():
    schedule = ddpm_ref.Schedule.linear(1000)
    weights = ddpm_ref.bound_weights(schedule)[1:]
    deviation = np.sqrt(ddpm_ref.reverse_variance(schedule, "beta"))[1:]
    few_bits, fine = (claim.why for claim in (CLAIMS[2], CLAIMS[3]))
    assert f"{weights[0] / weights.min():.0f} times as much at t = 1 as at t = {weights.argmin() + 1}." in few_bits
    assert weights.argmax() == 0 and f"σ_1 = {deviation[0]:.3f} " in few_bits
    assert f"σ_t, {deviation.min():.3f} … {deviation.max():.2f}, before" in fine
    assert f"batches of {ddpm_ref.train.RECIPES['digits'][1].batch} " in few_bits


def test_the_claims_are_about_cells_of_the_table_and_as_the_paper_has_them():
    fid = {name: math.inf if row is None else row.fid for name, row in published.TABLE_2.items()}
    bits = {"eps-fixed": published.TABLE_1["fixed"].nll_test, "eps-simple": published.TABLE_1["simple"].nll_test}
    for claim in CLAIMS:
        numbers = bits if claim.measure == BITS else fid
        assert claim.alike or numbers[claim.lower] < numbers[claim.higher], claim.text


# ---- results


def result(**changes) -> AblationResult:
    """Six cells of three seeds: Fréchet distances as the paper's FID where it has one; the unstable two have 100."""
    cells = []
    for cell in TABLE_2:
        row = published.TABLE_2[cell.name]
        frechet = 100.0 if row is None else row.fid
        numbers = [
            {
                "frechet_features": frechet + 0.1 * k,
                "frechet": frechet / 10,
                "bits_held_out": 2 + 0.01 * k,
                "recall": 0.5,
            }
            for k in range(3)
        ]
        for k, more in changes.get(cell.name.replace("-", "_"), {}).items():
            numbers[k] |= more
        cells.append(CellResult(cell, tuple(RunResult(k, n) for k, n in enumerate(numbers))))
    reference = {"frechet_features": 1.5, "frechet": 0.5, "recall": 0.9}
    return AblationResult(tuple(cells), reference, Limits(5.0, 4.09), {"steps": 4000}, "eps-simple/seed-0")


def test_marks_tell_what_diverged_from_what_is_out_of_range_and_the_numbers_stay():
    made = result(eps_fixed={1: {"bits_held_out": 4.1}}, mu_fixed={2: {"bits_held_out": None}})
    data = made.as_dict()
    reasons = {cell["name"]: cell["reasons"] for cell in data["cells"]}
    assert reasons == {
        "mu-learned": [],
        "mu-fixed": ["seed 2: the bound is not finite"],
        "mu-simple": [f"seed {k}: Fréchet distance 10" for k in range(3)],
        "eps-learned": [f"seed {k}: Fréchet distance 10" for k in range(3)],
        "eps-fixed": ["seed 1: 4.1 bits/dim"],
        "eps-simple": [],
    }
    far = "out of range"
    assert [cell["mark"] for cell in data["cells"]] == [None, "diverged", far, far, far, None]
    both = RunResult(0, {"frechet": 6.0, "bits_held_out": 5.0}, diverged=7)
    assert [mark for mark, _ in both.marks(made.limits)] == ["diverged", far, far]
    assert CellResult(CELLS["eps-simple"], (made.cells[4].runs[1], both)).mark(made.limits) == "diverged"
    assert data["cells"][2]["mean"]["frechet_features"] == pytest.approx(100.1)
    assert data["cells"][1]["mean"]["bits_held_out"] is None and data["cells"][1]["deviation"]["bits_held_out"] is None
    assert data["cells"][0]["deviation"]["frechet_features"] == pytest.approx(0.1)
    assert data["cells"][2]["paper"] == "unstable" and data["cells"][5]["paper"]["fid"] == 3.17
    assert "above 5 (10 times the held-out images')" in data["criteria"] and "4.09 bits/dim" in data["criteria"]
    json.dumps(data, allow_nan=False)


def test_the_papers_own_numbers_make_the_papers_findings():
    verdicts = [finding.verdict for finding in result().findings]
    bits = [claim.measure for claim in CLAIMS].index(BITS)
    assert verdicts.pop(bits) == UNDECIDED, "the bits of all cells are equal here"
    assert verdicts == [HOLDS] * 7


def test_the_table_aligns_and_marks_what_is_unstable():
    lines = result().table().splitlines()
    heading, rows = lines[0], lines[1:8]
    assert [row.split("  ")[0].rstrip(" *") for row in rows] == [*(cell.label for cell in TABLE_2), "held-out images"]
    column = heading.index("Fréchet, features")
    for row in rows:
        plain = row.replace("\u0303", "")
        assert plain[column - 1] == " " and plain[column] != " "
    assert "23.8 ± 0.1" in rows[0] and "28 / 23.69" not in rows[0] and "7.28 ± 0.10 / 23.69" in rows[0]
    assert rows[6].endswith(" -"), "images have no bits"
    assert " * " in rows[2] and rows[2].endswith("unstable") and " * " not in rows[5]
    assert "mean ± standard deviation over 3 seeds" in lines
    assert "* μ̃, unweighted MSE: out of range (" in "\n".join(lines)


def test_numbers_have_three_digits_or_their_spread():
    assert [show(x, None, 1) for x in (0.1234, 1.2345, 12.345, 123.45, 12345.6, 0.0)] == [
        "0.123", "1.23", "12.3", "123", "12346", "0.000"
    ]  # fmt: skip
    assert show(1.2345, 0.0567, 3) == "1.23 ± 0.06" and show(2.93, 0.0042, 3) == "2.930 ± 0.004"
    assert show(None, None, 3) == "not finite" and show(None, None, 0) == "-"
    assert show(2.0, 1e-7, 3) == "2.0000 ± 0.0000" and show(2.0, 1e-16, 3) == "2.00 ± 0.00"


def test_the_csv_has_a_row_for_each_run_with_all_digits():
    made = result(eps_simple={0: {"frechet": 1 / 3}, 2: {"frechet": None}})
    rows = list(csv.DictReader(io.StringIO(made.csv())))
    assert len(rows) == 18 and rows[15]["cell"] == "eps-simple"
    assert [rows[k]["frechet"] for k in (15, 17)] == ["0.3333333333333333", ""]
    assert [(rows[k]["mark"], rows[k]["reasons"]) for k in (0, 17)] == [
        ("", ""),
        ("diverged", "samples are not finite"),
    ]
    assert rows[6]["mark"] == "out of range"
    assert list(rows[0]) == [
        "cell", "predicts", "trained_on", "seed", "mark", "reasons", "frechet_features", "frechet", "recall",
        "bits_held_out",
    ]  # fmt: skip


def test_the_picture_takes_numbers_far_apart_missing_ones_and_a_single_cell(tmp_path: Path):
    made = result(eps_learned={k: {"frechet_features": 1e6, "bits_held_out": None} for k in range(3)})
    one = AblationResult(made.cells[5:], made.reference, made.limits, {}, None)
    sizes = []
    for name, ablation in (("six.png", made), ("one.png", one)):
        with Image.open(save_ablation(tmp_path / name, ablation)) as image:
            sizes.append(image.size)
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()
            assert [0x1F, 0x4E, 0x79] in pixels, "bars in the colour of the numbers"
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] > sizes[1][1]


# ---- what the paper says


def test_the_papers_numbers_agree_with_each_other():
    one, two, four = published.TABLE_1, published.TABLE_2, published.TABLE_4
    assert [one["fixed"].fid, one["simple"].fid] == [two["eps-fixed"].fid, two["eps-simple"].fid]
    assert one["simple"].inception_score == two["eps-simple"].inception_score
    assert pytest.approx(four[0].rate, abs=0.005) == published.RATE
    assert pytest.approx(four[0].rmse, abs=0.005) == published.DISTORTION_RMSE
    assert pytest.approx(one["simple"].nll_test, abs=0.005) == published.RATE + published.DISTORTION
    assert [row.steps for row in four] == list(range(1000, 0, -100))
    assert all(np.diff([row.rate for row in four]) < 0) and all(np.diff([row.rmse for row in four]) > 0)
    assert list(two) == [cell.name for cell in TABLE_2] and set(two) <= set(CELLS)

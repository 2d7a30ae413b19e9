"""Progressive coding: the curves of Figure 5 against closed forms, Table 4's rows, what is called detail."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small_run import TRAIN, call, save_pictures
from strategies import short
from test_likelihood_experiment import strict, subject

from ddpm_ref import GaussianOracle
from ddpm_ref.checks import Array
from ddpm_ref.experiments import likelihood, rate_distortion
from ddpm_ref.experiments.likelihood import PartLikelihood, part_likelihood
from ddpm_ref.experiments.published import DISTORTION, RATE, TABLE_1, TABLE_4
from ddpm_ref.experiments.rate_distortion import RateDistortion, from_likelihood, told
from ddpm_ref.files.data import ImageData


def made(rate: Any, rmse: Any, levels: int = 256) -> RateDistortion:
    return RateDistortion("held-out", 3, levels, 1, np.array(rate, float), np.array(rmse, float))


# --- the curves ------------------------------------------------------------------------------------------------------


def test_of_gaussian_data_both_curves_are_the_closed_form(rng: Any) -> None:
    """False-alarm rate 3e-5: 21 rates beyond 5 standard deviations (6e-7 each), 20 chi-square tails of 5e-7.

    The data keep within ±0.71, five of their standard deviations, so that clipping x̂_0 changes nothing.
    """
    schedule, levels, n = short(20), 2**20 + 1, 2000
    oracle = GaussianOracle(np.zeros((1, 2, 1)), 0.02, schedule)
    data = ImageData(oracle.draw(n, rng), levels, "gaussian")
    seed = int(rng.integers(2**32))
    part = part_likelihood("held-out", schedule, oracle, data, seed=seed, dtype=np.float64)
    found = from_likelihood(part)
    L = oracle.bound_terms() / np.log(2)
    L[0] -= np.log2(2 / (levels - 1))
    for t in range(21):
        spread = part.L_sd[t:].sum() / np.sqrt(n)  # the terms of an image are correlated at most fully
        assert abs(found.rate[t] - L[t:].sum()) < 5 * spread
    for t in range(1, 21):
        expected = 127.5 * np.sqrt(oracle.irreducible_loss(t, "x_0"))
        assert 2.5e-7 < stats.chi2.cdf(2 * n * (found.rmse[t] / expected) ** 2, 2 * n) < 1 - 2.5e-7
    assert found.rmse[0] == 0 and (np.diff(found.rate) < 0).all()
    np.testing.assert_allclose(found.rate[0], part.total, rtol=1e-12)
    np.testing.assert_allclose(found.rate[1], part.rate, rtol=1e-12)
    np.testing.assert_allclose(found.distortion, part.distortion, rtol=1e-9)
    assert found.rate[-1] == part.L_T


def test_the_curves_show_the_clipped_x_0_hat() -> None:
    one = subject()
    part = likelihood.measure(one, parts=["held-out"], count=3).parts[0]
    found = from_likelihood(part)
    np.testing.assert_array_equal(found.rmse, part.rmse_clipped)
    assert (part.rmse_clipped[1:] < part.rmse[1:]).any()
    assert (found.part, found.images, found.levels, found.every) == ("held-out", 3, 17, 1)


def test_what_is_measured_follows_from_the_likelihoods_file() -> None:
    """So that nothing need be computed twice."""
    one = subject()
    how: dict[str, Any] = dict(seed=2, every=3)
    stored = json.loads(json.dumps(likelihood.measure(one, **how).as_dict()))
    for part in ("train", "held-out"):
        again = from_likelihood(PartLikelihood.from_dict(stored[part]))
        assert again.as_dict() == rate_distortion.measure(one, part=part, **how).as_dict()
    assert rate_distortion.measure(one, **how).part == "held-out"
    assert rate_distortion.measure(subject(held_out=0), count=2).part == "train"


# --- Table 4 ---------------------------------------------------------------------------------------------------------


def test_the_rows_are_table_4s() -> None:
    T = 1000
    found = made(np.linspace(2, 0, T + 1), np.sqrt(np.arange(T + 1)))
    assert [row.reverse_steps for row in found.rows] == [row.steps for row in TABLE_4]
    assert [row.t for row in found.rows] == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    for n, t, rate, rmse in found.rows:
        assert n == T - t + 1 and (rate, rmse) == (found.rate[t], found.rmse[t])
    lines = found.table().splitlines()
    assert lines[1].split() == ["1000", "1", f"{found.rate[1]:.5f}", "1.000", "1.77581", "0.95136"]
    assert lines[10].split()[-2:] == ["0.00000", "67.60125"]


@pytest.mark.parametrize(("T", "steps"), [(20, [20, 18, 16, 14, 12, 10, 8, 6, 4, 2]), (3, [3, 2, 1]), (1, [1])])
def test_other_numbers_of_steps_have_their_tenths(T: int, steps: list[int]) -> None:
    found = made(np.arange(T + 1, 0, -1), np.arange(T + 1))
    assert [row.reverse_steps for row in found.rows] == steps
    assert "1.77581" not in found.table(), "the paper's rows are those of T = 1000"
    assert found.T == T


def test_the_papers_numbers_agree_with_each_other() -> None:
    rates = [row.rate for row in TABLE_4]
    assert round(rates[0], 2) == RATE and rates == sorted(rates, reverse=True)
    assert TABLE_1["simple"].nll_test == RATE + DISTORTION


# --- detail ----------------------------------------------------------------------------------------------------------


def by_definition(found: RateDistortion, grey_levels: float) -> tuple[int, float]:
    """The largest t with every RMSE at s ≤ t below so many grey levels, and the bits that x_t does not have."""
    limit = grey_levels * 255 / (found.levels - 1)
    t = max(t for t in range(found.T + 1) if all(found.rmse[s] < limit for s in range(t + 1)))
    return t, found.rate[0] - found.rate[t]


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_detail_is_what_follows_the_last_visible_error(levels: int) -> None:
    draw = np.random.default_rng(levels)
    for _ in range(30):
        T = 12
        rmse: Array = np.append(0, np.sort(draw.uniform(0, 600 / (levels - 1), T)) * draw.uniform(0.8, 1.2, T))
        found = made(np.cumsum(draw.random(T + 1))[::-1], rmse, levels)
        for detail in found.details:
            t, bits = by_definition(found, detail.grey_levels)
            assert (detail.t, detail.rmse) == (t, detail.grey_levels * 255 / (levels - 1))
            np.testing.assert_allclose([detail.bits, detail.share], [bits, bits / found.rate[0]])


def test_detail_at_the_ends() -> None:
    rate = [4, 3, 2, 1]
    assert made(rate, [0, 9, 9, 9]).detail(1)[2:] == (0, 0, 0), "no x̂_0 is so near: x_0 itself"
    assert made(rate, [0, 1, 9, 9]).detail(1)[2:] == (0, 0, 0), "below, not at, a grey level"
    assert made(rate, [0, 0.5, 9, 9]).detail(1)[2:] == (1, 1, 0.25)
    assert made(rate, [0, 0.5, 0.6, 0.7]).detail(1)[2:] == (3, 3, 0.75), "all but L_T"
    assert made(rate, [0, 0.5, 9, 0.5]).detail(1)[2:] == (1, 1, 0.25), "an error that comes back was not gone"
    assert made(rate, [0, np.nan, 0.5, 0.5]).detail(1)[2:] == (0, 0, 0)
    assert told(made(rate, [0, 9, 9, 9]).detail(1)).startswith("only the whole code")
    assert "t = 1 on" in told(made(rate, [0, 0.5, 9, 9]).detail(1)) and "25.0%" in told(
        made(rate, [0, 0.5, 9, 9]).detail(1)
    )


def test_of_the_papers_network_more_than_half_describes_less_than_a_grey_level() -> None:
    """§4.3 from Table 4: 1.97 of 3.75 bits/dim come after x_1, where the RMSE is 0.95."""
    rates, errors = zip(*((rate, rmse) for _, rate, rmse in TABLE_4), strict=True)
    found = made([rates[0] + 1.97, *rates], [0, *errors])
    detail = found.detail(1)
    assert detail.t == 1
    np.testing.assert_allclose([detail.bits, detail.share], [1.97, 0.526], atol=5e-4)
    np.testing.assert_allclose(found.distortion, 1.97)


# --- files and the command -------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_was_found_and_the_same_each_time(tmp_path: Path) -> None:
    one = subject()
    found = rate_distortion.measure(one, seed=1, every=2)
    paths = rate_distortion.save(tmp_path, found, one.facts(seed=1))
    assert [p.name for p in paths] == ["rate_distortion.json", "rate_distortion.csv", "rate_distortion.png"]
    stored = strict(paths[0])
    result = stored["result"]
    assert stored["facts"]["seed"] == 1 and result == json.loads(json.dumps(found.as_dict()))
    np.testing.assert_array_equal(result["rate"], found.rate)
    np.testing.assert_array_equal(result["rmse"], found.rmse)
    assert result["lossless"] == {
        "rate": found.rate[1],
        "distortion": found.distortion,
        "total": found.rate[0],
        "rmse_at_1": found.rmse[1],
    }
    assert result["table_4"] == [row._asdict() for row in found.rows] and len(result["table_4"]) == 10
    assert result["detail"] == [detail._asdict() for detail in found.details] and len(result["detail"]) == 3
    with paths[1].open() as file:
        rows = np.array(list(csv.reader(file))[1:], float)
    t = np.arange(21)
    np.testing.assert_array_equal(rows, np.transpose([t, 21 - t, found.rate, found.rmse]))
    with Image.open(paths[2]) as picture:
        assert picture.size == (1800, 480)
    first = [p.read_bytes() for p in paths]
    rate_distortion.save(tmp_path, rate_distortion.measure(one, seed=1, every=2), stored["facts"])
    assert [p.read_bytes() for p in paths][1:] == first[1:] and strict(paths[0])["result"] == result


def test_curves_that_are_not_finite_are_saved_as_null(tmp_path: Path) -> None:
    one = made([np.nan] * 4, [0, np.nan, np.inf, 1])
    result = strict(rate_distortion.save(tmp_path, one, {})[0])["result"]
    assert result["rate"] == [None] * 4 and result["rmse"] == [0, None, None, 1]
    assert result["lossless"]["total"] is None and "nan" not in one.table()
    assert "– rate + – distortion = – bits/dim" in one.table()


def test_the_command_prints_table_4_and_writes_beside_the_run(tmp_path: Path) -> None:
    data = save_pictures(tmp_path / "data.npz")
    folder = tmp_path / "a run"
    assert call(*TRAIN, "--data", data, "--held-out", 8, "--steps", 1, "--out", folder).status == 0
    done = call("rate_distortion", folder, "--every", 2, "--count", 5)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[1].split()[:2] == ["reverse", "steps"] and [int(line.split()[1]) for line in lines[2:12]] == [
        *range(1, 11)
    ]
    wrote = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert {p.parent for p in wrote} == {folder / "rate_distortion"} and len(wrote) == 3
    assert strict(wrote[0])["result"]["part"] == "held-out" and strict(wrote[0])["result"]["images"] == 5
    assert call("rate_distortion", folder, "--part", "train", "--count", 3, "--out", tmp_path / "it").status == 0
    assert strict(tmp_path / "it" / "rate_distortion.json")["result"]["part"] == "train"


def test_a_part_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="parts: wanted one of 'train', got 'held-out'"):
        rate_distortion.measure(replace(subject(), held_out=None), part="held-out")

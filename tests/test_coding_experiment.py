"""`ddpm-ref coding`: its exact expectations, what it measures, and the files it writes.

Statistical tests fail a right program less than once in a million times (means off by 5 standard errors).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import short

from ddpm_ref import Schedule, bits_per_dim, bound_terms
from ddpm_ref.cli import main
from ddpm_ref.codebook import expected_distortion
from ddpm_ref.experiments import coding
from ddpm_ref.experiments.coding import TOYS, CodingResult, GridOracle, exact_costs, measure
from ddpm_ref.gaussian import Gaussian


def test_a_grid_oracle_has_the_grids_probabilities() -> None:
    oracle = GridOracle([(1.0, Gaussian([0.2], 0.1))], 5, Schedule.cosine(4))
    x = np.array([-1, -0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(oracle.points[:, 0], x)
    w = np.exp(-((x - 0.2) ** 2) / 0.2)
    np.testing.assert_allclose(oracle.weights, w / w.sum(), rtol=1e-12)
    np.testing.assert_allclose(oracle.entropy(), -(oracle.weights * np.log2(oracle.weights)).sum(), rtol=1e-12)
    drawn = oracle.draw(20_000, np.random.default_rng(0))[:, 0]
    for value, p in zip(x, oracle.weights, strict=True):
        assert abs((drawn == value).mean() - p) < 5 * (p * (1 - p) / 20_000) ** 0.5
    p = oracle.responsibilities(np.array([[0.4]]), 2)[0]
    abar = oracle.schedule.alpha_bar[2]
    expected = oracle.weights * np.exp(-((0.4 - abar**0.5 * x) ** 2) / (2 * (1 - abar)))
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-12)


@pytest.mark.parametrize("schedule", [Schedule.cosine(6), short(8)], ids=["cosine", "linear"])
def test_in_one_dimension_the_distortion_is_the_oracles_irreducible_loss(schedule: Schedule) -> None:
    parts = [(0.4, Gaussian([-0.5], 0.02)), (0.6, Gaussian([0.4], 0.1))]
    oracle = GridOracle(parts, 17, schedule)
    costs = exact_costs(oracle)
    for t in range(1, schedule.T + 1):
        np.testing.assert_allclose(costs.distortion[t], oracle.irreducible_loss(t, "x_0"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", TOYS)
def test_the_toys_costs_are_means_of_the_bound(name: str, rng: np.random.Generator) -> None:
    oracle = GridOracle(TOYS[name], 17, Schedule.cosine(6))
    costs, n = exact_costs(oracle), 20_000
    x_0 = oracle.draw(n, rng)
    L = 2 * bits_per_dim(
        bound_terms(oracle.schedule, oracle, x_0, lambda t: rng.standard_normal(x_0.shape), levels=17).L
    )
    assert (np.abs(L.mean(axis=1) - costs.L) < 5 * L.std(axis=1) / n**0.5 + 1e-9).all()
    found = expected_distortion(oracle.schedule, oracle, x_0, lambda t: rng.standard_normal(x_0.shape))
    np.testing.assert_allclose(found[1:], costs.distortion[1:], rtol=0.12)
    assert costs.L.sum() > oracle.entropy(), "the bound is over the entropy"


@pytest.fixture(scope="module")
def result() -> CodingResult:
    return measure(copies=(2, 4, 16), levels=9, seed=1)


@pytest.mark.parametrize("k", [0, 1])
def test_messages_lie_between_the_kl_and_the_bound_and_n_copies_cost_less_each(result: CodingResult, k: int) -> None:
    """All of a message counts, its count and check sum too."""
    toy = result.toys[k]
    L = sum(toy.L)
    for row in toy.lengths:
        assert row.messages * row.n >= 128 and row.messages >= 8
        assert row.bits + 5 * row.bits_error > L
        assert row.bits - 5 * row.bits_error < row.bound
        np.testing.assert_allclose(row.excess, row.bits - row.kl - row.x_0_bits)
        assert row.bits < row.bound
    excess = [row.excess for row in toy.lengths]
    assert excess == sorted(excess, reverse=True) and excess[-1] < 0.3 * excess[0]
    assert [row.blocks for row in toy.lengths[:2]] == [toy.T, toy.T]


@pytest.mark.parametrize("k", [0, 1])
def test_the_receivers_error_falls_as_expected_to_nothing(result: CodingResult, k: int) -> None:
    """About 400 copies a toy; an error's square varies by no more than 3 times its mean."""
    toy = result.toys[k]
    assert toy.rmse[-1] == toy.rmse_exact[-1] == 0
    assert toy.rmse_exact == sorted(toy.rmse_exact, reverse=True) and len(toy.rmse) == toy.T + 1
    np.testing.assert_allclose(np.square(toy.rmse), np.square(toy.rmse_exact), rtol=5 * 3 / 384**0.5)
    shown, x_0 = np.array(toy.shown), np.array(toy.x_0)
    np.testing.assert_array_equal(shown[-1], x_0)
    assert shown.shape == (toy.T + 1, *x_0.shape)


def test_the_seed_decides_everything() -> None:
    kind: dict[str, Any] = dict(toys=["mixture"], T=3, levels=9, copies=[16])
    first = measure(**kind, seed=2)
    assert measure(**kind, seed=2) == first
    assert measure(**kind, seed=3) != first


def test_the_files_are_the_same_bytes_again_and_plain_json(result: CodingResult, tmp_path: Path) -> None:
    paths = coding.save(tmp_path, result, {"seed": 1})
    assert [p.name for p in paths] == ["coding.json", "coding.png"]
    data = json.loads(paths[0].read_text())
    assert data["facts"] == {"seed": 1}
    assert data["result"] == json.loads(json.dumps(result.as_dict(), allow_nan=False))
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in coding.save(tmp_path, result, {"seed": 1})] == before
    from PIL import Image

    with Image.open(paths[1]) as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["coding", "--T", "2", "--levels", "5", "--copies", "16", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "gaussian: 5 x 5 grid, T = 2" in said and f"wrote {out / 'coding.png'}" in said
    assert {p.name for p in out.iterdir()} == {"coding.json", "coding.png"}
    assert main(["coding", "--out", str(out)]) == 2, "a folder that is not empty"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--T", "1"], "T: wanted an integer in 2..20, got 1"),
        (["--T", "21"], "T: wanted an integer in 2..20, got 21"),
        (["--levels", "65"], "levels: wanted an integer in 2..64"),
        (["--copies", "0"], "copies: wanted an integer in 1..65536"),
        (["--seed", "-1"], "seed: wanted an integer"),
    ],
)
def test_bad_options_are_one_line(
    bad: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coding", "--out", str(tmp_path / "x"), *bad]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_unknown_toys_are_refused() -> None:
    with pytest.raises(ValueError, match="toys: wanted some of gaussian, mixture, got moons"):
        measure(toys=["moons"])

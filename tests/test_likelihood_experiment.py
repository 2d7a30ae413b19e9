"""Table 1 from a checkpoint: units and parts against oracles, files that can be read back, the command."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from small_run import CONFIG, SETTINGS, TRAIN, call, checkpoint, pictures, save_pictures, scattered, trainer
from strategies import short

from ddpm_ref import Backend, GaussianOracle, Objective, dataset_bound
from ddpm_ref.experiments import likelihood
from ddpm_ref.experiments.likelihood import Likelihood, images_of, part_likelihood, plain, work
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.files.data import ImageData

HOW = {"predicts": "eps", "var": "beta", "clip": True, "temperature": 1.0}


def subject(held_out: int = 9, config: Any = CONFIG, settings: Any = SETTINGS, **how: Any) -> Subject:
    """A small network with parameters away from their start, 15 pictures to train on and some held out."""
    train = pictures(15, channels=config.channels)
    one = scattered(trainer(config, settings, train))
    kept = pictures(held_out, channels=config.channels, seed=1) if held_out else None
    return Subject(checkpoint(one), Backend(), train, kept, "raw", HOW | how)


@pytest.fixture(scope="module")
def measured() -> tuple[Subject, Likelihood]:
    one = subject()
    return one, likelihood.measure(one, seed=3, every=2, batch=4)


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_of_gaussian_data_every_number_is_the_closed_form_in_bits_and_grey_levels(rng: Any) -> None:
    """False-alarm rate 2e-5: three sums beyond 5 standard errors (6e-7 each), 20 chi-square tails of 5e-7, and L_T."""
    schedule, levels, n, m, S = short(20), 2**20 + 1, 2000, 0.1, 0.02
    oracle = GaussianOracle(np.full((1, 2, 1), m), S, schedule)
    data = ImageData(oracle.draw(n, rng), levels, "gaussian")
    seed = int(rng.integers(2**32))
    found = part_likelihood("train", schedule, oracle, data, seed=seed, dtype=np.float64)
    L = oracle.bound_terms() / np.log(2)
    L[0] -= np.log2(2 / (levels - 1))  # the decoder's narrow bins hold their density times their width
    for name, expected in (("distortion", L[0]), ("rate", L[1:].sum()), ("total", L.sum())):
        assert abs(getattr(found, name) - expected) < 5 * getattr(found, f"{name}_error"), name
    square = np.mean(data.pixels**2)  # L_T is exact for these images
    np.testing.assert_allclose(found.L_T, schedule.prior_gap(square), rtol=1e-12)
    assert found.L[-1] == found.L_T and found.L_sd[-1] > 0
    for t in range(1, 21):
        squares = n * 2 * (found.rmse[t] / 127.5) ** 2 / oracle.irreducible_loss(t, "x_0")
        assert 2.5e-7 < stats.chi2.cdf(squares, 2 * n) < 1 - 2.5e-7
    assert (found.images, found.dimensions, found.levels, found.every) == (n, 2, levels, 1)


def test_the_parts_are_the_bounds_of_their_images(measured: tuple[Subject, Likelihood]) -> None:
    one, found = measured
    assert [p.part for p in found.parts] == ["train", "held-out"]
    how: dict[str, Any] = dict(seed=3, every=2, predicts="eps", var="beta", clip=True, batch=4)
    for part, data in zip(found.parts, (one.train, one.held_out), strict=True):
        bound = dataset_bound(one.schedule, one.model, data, **how)
        np.testing.assert_array_equal(part.L, bound.L / np.log(2))
        np.testing.assert_allclose(part.L_sd, np.sqrt(bound.L_var) / np.log(2), rtol=1e-12)
        np.testing.assert_allclose(part.total, bound.total.mean() / np.log(2), rtol=1e-12)
        np.testing.assert_allclose(part.total_error, bound.standard_error(bound.total) / np.log(2), rtol=1e-12)
        np.testing.assert_allclose(part.rate + part.distortion, part.total, rtol=1e-12)
        np.testing.assert_array_equal(part.rmse, 127.5 * np.sqrt(bound.mse))
        np.testing.assert_array_equal(part.rmse_clipped, 127.5 * np.sqrt(bound.mse_clipped))
        assert (part.rmse >= part.rmse_clipped).all() and (part.rmse > part.rmse_clipped).any()
        assert (part.images, part.dimensions, part.levels) == (len(data), 16, 17)


def test_the_batch_changes_no_more_than_the_networks_rounding(measured: tuple[Subject, Likelihood]) -> None:
    one, found = measured
    again = likelihood.measure(one, seed=3, every=2, batch=100)
    for a, b in zip(found.parts, again.parts, strict=True):
        np.testing.assert_allclose(a.L, b.L, rtol=1e-4, atol=1e-9)
        np.testing.assert_array_equal(a.seen, b.seen)


def test_colours_and_learned_variances_go_through() -> None:
    config = replace(CONFIG, channels=3, learned_variance=True)
    settings = replace(SETTINGS, objective=Objective(var="learned", w_elbo=0.001))
    found = likelihood.measure(subject(config=config, settings=settings, var="learned"), count=4)
    for part in found.parts:
        assert (part.images, part.dimensions) == (4, 48) and np.isfinite(part.total) and part.rmse[1:].all()


def test_a_network_of_float64_is_given_float64() -> None:
    train = pictures(15)
    double = scattered(trainer(CONFIG, SETTINGS, train, dtype=np.float64))
    one = Subject(checkpoint(double), Backend(), train, None, "raw", HOW)
    (found,) = likelihood.measure(one, count=4).parts
    bound = dataset_bound(one.schedule, one.model, train, seed=0, clip=True, count=4, dtype=np.float64)
    np.testing.assert_array_equal(found.L, bound.L / np.log(2))


def test_count_and_parts_choose_images(measured: tuple[Subject, Likelihood]) -> None:
    one, _ = measured
    both = likelihood.measure(one, count=10)
    assert [p.images for p in both.parts] == [10, 9], "a part that has fewer gives all"
    (alone,) = likelihood.measure(one, count=10, parts=["held-out"]).parts
    np.testing.assert_array_equal(alone.L, both.parts[1].L)
    np.testing.assert_array_equal(images_of(one, "train", 10).pixels, one.train.pixels[:10])
    twice = likelihood.measure(one, count=2, parts=["held-out", "train", "held-out"])
    assert [p.part for p in twice.parts] == ["train", "held-out"]


def test_the_work_is_what_progress_reports(measured: tuple[Subject, Likelihood]) -> None:
    one, _ = measured
    for which in ({}, {"every": 3, "seed": 8}, {"count": 5, "parts": ["train"]}):
        done: list[int] = []
        likelihood.measure(one, progress=done.append, **which)
        assert sum(done) == work(one, **which)


def test_without_held_out_images_there_is_only_training() -> None:
    one = subject(held_out=0)
    assert [p.part for p in likelihood.measure(one, count=2).parts] == ["train"]
    with pytest.raises(ValueError, match="parts: wanted one of 'train', got 'held-out'"):
        likelihood.measure(one, parts=["held-out"])


def test_steps_fewer_than_a_parts_images_allow_are_an_error_before_any_work(
    measured: tuple[Subject, Likelihood],
) -> None:
    def never(n: int) -> None:
        raise AssertionError("worked")

    for bad, message in (
        ({"every": 5}, "every: wanted at most half of the 9 images, for a standard error, got 5"),
        ({"count": 1}, "every: wanted at most half of the 1 images, for a standard error, got 1"),
        ({"count": 0}, "count: wanted an integer >= 1"),
        ({"parts": ["test"]}, "parts: wanted one of 'train', 'held-out'"),
    ):
        with pytest.raises(ValueError, match=message):
            likelihood.measure(measured[0], progress=never, **bad)


# --- files -----------------------------------------------------------------------------------------------------------


def strict(path: Path) -> Any:
    """JSON without the NaN and Infinity that Python would let pass."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_saved_is_what_was_found_and_the_same_each_time(
    measured: tuple[Subject, Likelihood], tmp_path: Path
) -> None:
    one, found = measured
    paths = likelihood.save(tmp_path, found, one.facts(seed=3))
    names = ["likelihood.json", "likelihood-train.csv", "likelihood-held-out.csv", "likelihood.png"]
    assert [p.name for p in paths] == names == sorted(names, key=names.index) and all(p.is_file() for p in paths)
    stored = strict(tmp_path / "likelihood.json")
    assert stored["facts"]["seed"] == 3 and stored["facts"]["clip"] is True
    back = Likelihood.from_dict(stored["result"])
    for a, b in zip(back.parts, found.parts, strict=True):
        for name, value in vars(b).items():
            np.testing.assert_array_equal(getattr(a, name), value, err_msg=name)
    with (tmp_path / "likelihood-held-out.csv").open() as file:
        rows = list(csv.DictReader(file))
    part = found.parts[1]
    columns = {"L_t": part.L, "L_t_sd": part.L_sd, "images": part.seen, "rmse": part.rmse}
    for name, values in (columns | {"t": np.arange(21), "rmse_clipped": part.rmse_clipped}).items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], values, err_msg=name)
    with Image.open(tmp_path / "likelihood.png") as picture:
        assert picture.size == (1200, 480)
    first = [p.read_bytes() for p in paths]
    likelihood.save(tmp_path, likelihood.measure(one, seed=3, every=2, batch=4), stored["facts"])
    assert [p.read_bytes() for p in paths][1:] == first[1:]
    assert strict(tmp_path / "likelihood.json")["result"] == stored["result"]


def test_a_bound_that_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    data = pictures(1)
    with np.errstate(all="ignore"):
        one = part_likelihood("train", short(5), lambda x, t: x * np.nan, data, seed=0)
    likelihood.save(tmp_path, Likelihood((one,)), {})
    result = strict(tmp_path / "likelihood.json")["result"]["train"]
    assert result["total"] is result["total_error"] is result["L"][0] is None and result["L_T"] > 0
    back = Likelihood.from_dict({"train": result}).parts[0]
    assert np.isnan(back.total) and np.isnan(back.L[:-1]).all() and back.L[-1] == back.L_T > 0
    assert Likelihood((one,)).table().splitlines()[1].split()[3:] == ["–", "±–"] * 3


def test_plain_numbers_are_json() -> None:
    array = np.array([1.0, 0.5, np.nan, np.inf, -np.inf])
    assert json.dumps(plain(array)) == "[1, 0.5, null, null, null]"
    assert plain(3) == 3 and plain("part") == "part" and plain(float("nan")) is None and plain(1e300) == 1e300


def test_the_table_puts_the_paper_below(measured: tuple[Subject, Likelihood]) -> None:
    _, found = measured
    lines = found.table().splitlines()
    held = found.parts[1]
    assert lines[1].startswith("train") and lines[2].startswith("held-out")
    assert lines[2].endswith(f"{held.total:.4f} ±{held.total_error:.4f}")
    assert lines[3].split()[-3:] == ["1.78", "1.97", "3.75"] and lines[4].split()[-1] == "3.70"
    assert (
        lines[5] == "± is a standard error over images, their noise and steps, a K-th of all for each image with K = 2"
    )
    trained = replace(found, parts=found.parts[:1]).table().splitlines()
    assert trained[2].split()[-1] == "3.72" and trained[3].split()[-1] == "3.69"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("likelihood")
    data = save_pictures(folder / "data.npz")
    done = call(*TRAIN, "--data", data, "--held-out", 8, "--steps", 1, "--out", folder / "a run")
    assert done.status == 0
    return folder / "a run"


def test_the_command_prints_the_table_and_writes_beside_the_run(run: Path) -> None:
    done = call("likelihood", run, "--every", 2, "--count", 6, "--seed", 4, "--batch", 3)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("backend: ") and lines[1].startswith("bits/dim")
    wrote = [Path(line.removeprefix("wrote ")) for line in lines if line.startswith("wrote ")]
    assert {p.parent for p in wrote} == {run / "likelihood"} and len(wrote) == 4
    stored = strict(wrote[0])
    facts = {name: stored["facts"][name] for name in ("seed", "every", "count", "clip", "weights")}
    assert facts == {"seed": 4, "every": 2, "count": 6, "clip": True, "weights": "ema"}
    assert list(stored["result"]) == ["train", "held-out"] and stored["result"]["train"]["images"] == 6
    again = call("likelihood", run, "--no-clip", "--parts", "held-out", "--count", 6)
    assert again.status == 0 and (run / "likelihood-2" / "likelihood-held-out.csv").is_file()
    assert not (run / "likelihood-2" / "likelihood-train.csv").exists()
    assert strict(run / "likelihood-2" / "likelihood.json")["facts"]["clip"] is False


@pytest.mark.parametrize("command", ["likelihood", "rate_distortion"])
def test_bad_options_are_one_line(run: Path, command: str, tmp_path: Path) -> None:
    def refused(*options: object) -> str:
        return call(command, run, "--out", tmp_path / "out", *options).error

    assert "every: wanted an integer >= 1, got 0" in refused("--every", 0)
    assert "--batch: wanted an integer >= 1, got 0" in refused("--batch", 0)
    assert "--count: wanted an integer >= 1, got 0" in refused("--count", 0)
    assert "every: wanted at most half of the 8 images, for a standard error, got 5" in refused("--every", 5)
    assert "var: this checkpoint's network was trained without" in refused("--var", "learned")
    assert not (tmp_path / "out").exists(), "nothing is made for a command that refuses"


def test_a_temperature_is_no_option_of_a_bound(run: Path) -> None:
    done = call("likelihood", run, "--temperature", 0.5)
    assert done.status == 2 and "unrecognized arguments: --temperature" in done.err

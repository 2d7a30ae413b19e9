"""Interpolation: encoded with one noise, mixed, decoded; exact for linear models and for data known by heart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import TRAIN, Run, call, pictures, save_pictures
from strategies import SIX

from ddpm_ref import EmpiricalOracle, GaussianOracle, q_sample
from ddpm_ref.checks import Array
from ddpm_ref.experiments import interpolation
from ddpm_ref.experiments.ablation_findings import DOES_NOT_HOLD, HOLDS, UNDECIDED, quantile
from ddpm_ref.experiments.chain import Chain, chain_of_model, rms_255
from ddpm_ref.experiments.interpolation import LAMBDAS, choose_pairs, encode, interpolate, nearest_step
from ddpm_ref.experiments.interpolation_result import Interpolation, bands, mixed
from ddpm_ref.random import Purpose, normal

SHAPE = (4, 4, 1)
ROOT = np.random.default_rng(0).normal(0, 0.2, (16, 16))
GAUSSIAN = GaussianOracle(np.linspace(-0.4, 0.4, 16).reshape(SHAPE), ROOT @ ROOT.T, SIX)
X, OTHER = np.random.default_rng(1).uniform(-1, 1, (2, 3, *SHAPE))
STEPS = (6, 3, 1, 0)


def chain(oracle: Any = GAUSSIAN, **how: Any) -> Chain:
    return chain_of_model(SIX, oracle, SHAPE, 5, **how)


def result(decoded: Array, x: Array = X, other: Array = OTHER, t: Any = STEPS) -> Interpolation:
    pairs = np.arange(2 * len(x)).reshape(-1, 2)
    return Interpolation("train", pairs, t, LAMBDAS, np.stack([x, other], axis=1), decoded, 6)


# ---- encode, mix, decode


def test_of_a_linear_model_the_decoded_images_are_linear_in_lambda_with_the_noise_fixed() -> None:
    """Its reverse chain is affine in x_t, with z in the constant: so any other z along λ, or other ε, would show."""
    decoded = interpolate(chain(), X, OTHER, STEPS, batch=4)
    assert decoded.shape == (4, 3, 11, *SHAPE)
    first, last = decoded[:, :, :1], decoded[:, :, -1:]
    weight = np.array(LAMBDAS).reshape(1, 1, 11, 1, 1, 1)
    np.testing.assert_allclose(decoded, (1 - weight) * first + weight * last, atol=1e-12)
    assert np.abs(last - first)[0].max() > 1e-3, "even at T something of x_0 is left in six steps"


def test_each_end_is_the_chain_from_x_t_of_its_source_with_one_noise_for_both() -> None:
    one, numbers = chain(), np.arange(3)
    eps = normal(5, Purpose.EVALUATE, 0, numbers, SHAPE)
    decoded = interpolate(one, X, OTHER, STEPS, batch=100)
    for k, t in enumerate((6, 3, 1)):
        for x_0, place in ((X, 0), (OTHER, -1)):
            expected = one.ends(numbers, q_sample(SIX, x_0, t, eps.astype(np.float64)), t, batch=100)
            np.testing.assert_allclose(decoded[k, :, place], expected, atol=1e-12)


def test_the_mixture_of_x_t_is_x_t_of_the_pixel_blend() -> None:
    eps = normal(5, Purpose.EVALUATE, 0, np.arange(3), SHAPE).astype(np.float64)
    for t in range(1, 7):
        x_t, other = (encode(chain(), x_0, t, eps)[:, None] for x_0 in (X, OTHER))
        np.testing.assert_allclose(
            mixed(x_t, other, [0.3])[:, 0], q_sample(SIX, 0.7 * X + 0.3 * OTHER, t, eps), atol=1e-14
        )


def test_at_t_0_the_pixels_are_mixed_and_no_model_is_asked() -> None:
    def never(x_t: Array, t: int) -> Array:
        raise AssertionError("asked")

    decoded = interpolate(chain_of_model(SIX, never, SHAPE, 5), X, OTHER, (0,), batch=4)[0]
    for weight, row in zip(LAMBDAS, decoded.swapaxes(0, 1), strict=True):
        np.testing.assert_allclose(row, (1 - weight) * X + weight * OTHER, atol=1e-15)


def test_without_noise_what_is_left_of_the_sources_is_the_product_of_the_reverse_means() -> None:
    """x_0 ~ N(0, s I): E[x_{t-1} | x_t] = √α_t s_{t-1} / s_t x_t, so two ends are Π of these times √ᾱ_t apart."""
    s = 0.3
    s_t = SIX.alpha_bar * s + 1 - SIX.alpha_bar
    through = np.cumprod(np.r_[1, np.sqrt(SIX.alpha[1:]) * s_t[:-1] / s_t[1:]])
    one = chain(GaussianOracle(np.zeros(SHAPE), s, SIX), temperature=0.0)
    found = result(interpolate(one, X, OTHER, STEPS, batch=100))
    np.testing.assert_allclose(found.travel, [through[t] * np.sqrt(SIX.alpha_bar[t]) for t in STEPS], rtol=1e-12)
    assert (np.diff(found.travel) > 0).all() and found.travel[-1] == 1


def test_with_data_known_by_heart_every_mixture_decodes_to_one_of_the_sources() -> None:
    far = 8 * np.stack([X[0], OTHER[0]])
    one = chain(EmpiricalOracle(far, SIX))
    decoded = interpolate(one, far[:1], far[1:], (3, 1), batch=100)
    off = np.stack([np.abs(decoded - source).max(axis=(-3, -2, -1)) for source in far])
    assert off.min(axis=0).max() < 1e-6
    assert (off[0, 1, 0, :3] < 1e-6).all() and (off[1, 1, 0, -3:] < 1e-6).all(), "the nearer one"


# ---- the numbers


def test_distances_are_those_by_loops(rng: np.random.Generator) -> None:
    decoded = rng.standard_normal((4, 3, 11, *SHAPE))
    found = result(decoded)
    data = found.as_dict()
    for k in range(4):
        off = []
        for j, weight in enumerate(LAMBDAS):
            blend = (1 - weight) * X + weight * OTHER
            for name, other in (("first", X), ("second", OTHER), ("pixel_blend", blend)):
                assert data[f"rms_to_{name}"][k][j] == pytest.approx(rms_255(decoded[k, :, j] - other))
            off.append(decoded[k, :, j] - blend)
        assert found.reconstruction[k] == pytest.approx(rms_255(np.stack([off[0], off[-1]])))
        assert found.departure[k] == pytest.approx(rms_255(np.stack(off[1:-1])))
        assert found.travel[k] == pytest.approx(rms_255(decoded[k, :, -1] - decoded[k, :, 0]) / rms_255(OTHER - X))
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def wave(y: int, x: int, size: int = 8, channels: int = 1) -> Array:
    grid = 2 * np.pi * np.arange(size) / size
    image = np.cos(y * grid)[:, None] * np.cos(x * grid)[None]
    return np.repeat(image[..., None], channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_coarse_and_the_fine_part_are_told_apart_by_their_waves(channels: int, rng: np.random.Generator) -> None:
    for y, x, coarse in ((0, 0, 1), (1, 1, 1), (2, 0, 1), (0, 2, 1), (2, 1, 0), (3, 0, 0), (0, 4, 0), (4, 4, 0)):
        image = wave(y, x, channels=channels)
        size = (image**2).sum()
        np.testing.assert_allclose(bands(image), [coarse * size, (1 - coarse) * size], atol=1e-12)
    x = rng.standard_normal((2, 5, 7, channels))
    np.testing.assert_allclose(bands(x).sum(axis=-1), (x**2).sum(axis=(1, 2, 3)))


def test_what_is_lost_is_relative_to_the_difference_of_the_sources_in_each_band() -> None:
    coarse, fine = wave(1, 0), wave(4, 0)
    x, other = np.zeros((1, 8, 8, 1)), (coarse + 2 * fine)[None]
    decoded = mixed(x[:, None], other[:, None], LAMBDAS)[None].repeat(3, axis=0)
    decoded[0] += 0.5 * coarse + 2 * fine
    decoded[1] += 0.3 * fine
    found = result(decoded, x, other, (6, 3, 0))
    np.testing.assert_allclose(found.lost, [[0.5, 1], [0, 0.15], [0, 0]], atol=1e-12)


def made(slopes: Any, more_fine: float) -> Interpolation:
    """Four pairs whose decoded images are off by a fine wave as large as t times each slope, and a coarse one less."""
    pairs = len(slopes)
    x, other = np.zeros((pairs, 8, 8, 1)), np.repeat((wave(1, 0) + wave(4, 0))[None], pairs, axis=0)
    decoded = np.repeat(mixed(x[:, None], other[:, None], LAMBDAS)[None], 5, axis=0)
    t = (6, 5, 3, 2, 0)
    for k, p in np.ndindex(5, pairs):
        size = 1 + slopes[p] * t[k] if 0 < t[k] < 6 else 1e3
        decoded[k, p] += size * (wave(4, 0) + (1 - more_fine) * wave(1, 0))
    return result(decoded, x, other, t)


def test_the_findings_are_of_the_pairs_slopes_within_the_diffusion() -> None:
    slopes = np.array([0.1, 0.12, 0.09, 0.13])
    found = made(slopes, 0.3).findings()
    grows = found["reconstruction_rmse_grows_with_t"]
    unit = rms_255(wave(4, 0) + 0.7 * wave(1, 0))
    half = quantile(3) * np.std(slopes, ddof=1) / 2
    expected = unit * np.array([slopes.mean(), slopes.mean() - half, slopes.mean() + half])
    np.testing.assert_allclose([grows.mean, grows.low, grows.high], expected, rtol=1e-9)
    assert found["departure_from_pixel_blend_grows_with_t"].mean == pytest.approx(expected[0])
    sizes = 1 + np.outer((5, 3, 2), slopes)  # a band's loss in units of the difference of the sources in it
    fine = found["fine_part_is_lost_more_than_coarse"]
    wanted = (1 - 0.7 / 1) * sizes.mean()
    assert fine.mean == pytest.approx(wanted) and {one.verdict for one in found.values()} == {HOLDS}


@pytest.mark.parametrize(
    ("slopes", "more_fine", "verdicts"),
    [
        ([-0.1, -0.12, -0.09], -0.3, [DOES_NOT_HOLD] * 3),
        ([-0.1, 0.1, 0.01], 0.0, [UNDECIDED] * 3),
        ([0.1], 0.3, [UNDECIDED] * 3),  # a single pair
        ([0.1, 0.11], -0.3, [HOLDS, HOLDS, DOES_NOT_HOLD]),
    ],
)
def test_a_finding_has_three_verdicts(slopes: list[float], more_fine: float, verdicts: list[str]) -> None:
    found = made(slopes, more_fine)
    assert [one.verdict for one in found.findings().values()] == verdicts
    data = found.as_dict()["findings"]
    assert [one["verdict"] for one in data.values()] == verdicts
    assert all(set(one) == {"verdict", "mean", "low", "high"} for one in data.values())
    assert all(f": {verdict}" in line for verdict, line in zip(verdicts, found.table().splitlines()[-3:], strict=True))
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_without_steps_within_the_diffusion_nothing_is_decided() -> None:
    found = result(np.random.default_rng(0).standard_normal((2, 3, 11, *SHAPE)), t=(6, 0))
    assert [vars(one) for one in found.findings().values()] == [
        {"verdict": UNDECIDED, "mean": None, "low": None, "high": None}
    ] * 3


def test_pairs_are_of_two_images_any_of_them_and_the_seeds() -> None:
    pairs = choose_pairs(3000, 4, 7)
    assert np.array_equal(pairs, choose_pairs(3000, 4, 7)) and not np.array_equal(pairs, choose_pairs(3000, 4, 8))
    assert np.array_equal(choose_pairs(5, 4, 7), pairs[:5])
    counts = np.zeros((4, 4), int)
    np.add.at(counts, tuple(pairs.T), 1)
    # Twelve pairs, 250 of each: 6 σ are 91, a false alarm of 2e-8.
    assert not counts.diagonal().any() and abs(counts[~np.eye(4, dtype=bool)] - 250).max() < 91


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("interpolation")
    data = save_pictures(folder / "data.npz", pictures(24, 8, channels=3, levels=256))
    held = ("--held-out", 6, "--lr", 0.01, "--steps", 3)
    return Run(folder / "run", data, call(*TRAIN, "--data", data, *held, "--out", folder / "run"))


def measured(trained: Run, out: Path, *more: object) -> Any:
    done = call("interpolation", trained.folder, "--count", 2, "--draw-batch", 30, "--out", out, *more)
    assert (done.status, done.err) == (0, "")
    assert [Path(line[6:]).name for line in done.out.splitlines() if line.startswith("wrote ")] == [
        "interpolation.json", "interpolation.png", "interpolation-quarter.png", "coarse-to-fine.png", "details.png",
    ]  # fmt: skip
    return json.loads((out / "interpolation.json").read_text())


def test_the_command_writes_numbers_and_pictures_that_repeat(trained: Run, tmp_path: Path) -> None:
    one, other = measured(trained, tmp_path / "one"), measured(trained, tmp_path / "other")
    assert one["result"] == other["result"]
    for name in ("interpolation.png", "coarse-to-fine.png", "details.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        Image.open(tmp_path / "one" / name).verify()
    found = one["result"]
    assert found["t"] == [10, 9, 8, 6, 5, 4, 2, 1, 0] and found["part"] == "held_out"
    assert found["reconstruction_rmse"][-1] == 0 and found["travel"][-1] == 1 and np.max(found["pairs"]) < 6
    assert [np.shape(found[f"rms_to_{name}"]) for name in ("first", "second", "pixel_blend")] == [(9, 11)] * 3
    named = measured(trained, tmp_path / "named", "--pairs", "0:1", "17:4", "--part", "train")["result"]
    assert named["pairs"] == [[0, 1], [17, 4]] and named["part"] == "train"


def test_steps_and_weights_can_be_chosen(trained: Run, tmp_path: Path) -> None:
    chosen = ("--steps", 3, 7, 10, "--lambdas", 0.75, 0.1, 0.1)
    found = measured(trained, tmp_path / "chosen", *chosen)["result"]
    assert found["t"] == [10, 7, 3] and found["lambda"] == [0, 0.1, 0.75, 1]
    assert [np.shape(found[f"rms_to_{name}"]) for name in ("first", "second", "pixel_blend")] == [(3, 4)] * 3
    one = measured(trained, tmp_path / "one", "--steps", 4)["result"]
    assert one["t"] == [4] and one["findings"]["reconstruction_rmse_grows_with_t"]["verdict"] == UNDECIDED


def test_the_pictures_show_the_steps_nearest_to_a_half_and_a_quarter() -> None:
    assert [nearest_step((1000, 875, 750, 625, 500, 375, 250, 125, 0), 1000 / n) for n in (2, 4)] == [4, 6]
    assert [nearest_step((10, 7, 3), 10 / n) for n in (2, 4)] == [1, 2] and nearest_step((4,), 250.0) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 3, 11), r"--steps: wanted an integer in 0..10, got 11"),
        (("--steps", 3, 3), "--steps: wanted one step or more, each once, got [3, 3]"),
        (("--lambdas", 0.5, 1.5), "lambdas: wanted numbers in [0, 1], one or more between, got [0.5, 1.5]"),
        (("--lambdas", 0, 1), "lambdas: wanted numbers in [0, 1], one or more between, got [0.0, 1.0]"),
        (("--lambdas", "nan"), "lambdas: wanted numbers in [0, 1]"),
        (("--pairs", "0:6"), r"pairs: wanted images in 0..5, got 0..6"),
        (("--pairs", "2:2"), "pairs: wanted two different images, got 2:2"),
        (("--pairs=-1:2",), "pairs: wanted images in 0..5, got -1..2"),
        (("--count", 0), "--count: wanted an integer >= 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(trained: Run, tmp_path: Path, more: Any, message: str) -> None:
    assert message in call("interpolation", trained.folder, "--out", tmp_path / "new", *more).error
    assert not (tmp_path / "new").exists()
    done = call("interpolation", trained.folder, "--pairs", "1-2")
    assert done.status == 2 and "wanted I:J, two numbers of images, got '1-2'" in done.err


def test_the_work_is_told_beforehand() -> None:
    done: list[int] = []
    steps = interpolation.evenly(6, interpolation.PARTS)
    interpolate(chain(), X, OTHER, steps, batch=10, progress=done.append)
    assert sum(done) == interpolation.work(6, pairs=3, batch=10)
    done.clear()
    interpolate(chain(), X, OTHER, (5, 2), (0, 0.5, 1), batch=4, progress=done.append)
    assert sum(done) == interpolation.work(6, pairs=3, batch=4, steps=(5, 2), lambdas=[0.5])

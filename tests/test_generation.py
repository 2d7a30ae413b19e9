"""Progressive generation: x̂_0 on the way and samples that share x_t, where both are known exactly."""

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_gaussian import block, p_joint, reverse_maps
from PIL import Image
from small_run import TRAIN, Run, call, pictures, save_pictures
from strategies import SIX, short

from ddpm_ref import EmpiricalOracle, GaussianOracle, reverse_variance
from ddpm_ref.checks import Array
from ddpm_ref.experiments import generation, quality
from ddpm_ref.experiments.ablation_findings import DOES_NOT_HOLD, HOLDS, UNDECIDED, quantile
from ddpm_ref.experiments.chain import Chain, chain_of_model, evenly, rms_255
from ddpm_ref.experiments.generation import Judge, classifier_score, moments, panel, progressive
from ddpm_ref.experiments.shared import SharedLatents, shared_latents, shared_work
from ddpm_ref.experiments.trend import Trend

MEAN, COV = np.array([0.3, -0.2]), np.array([[1.0, 0.4], [0.4, 0.3]])
GAUSSIAN = GaussianOracle(MEAN, COV, SIX)


def chain(oracle: Any = GAUSSIAN, seed: int = 5, **how: Any) -> Chain:
    return chain_of_model(SIX, oracle, oracle.shape, seed, **how)


# ---- the chain


def test_nothing_is_run_beyond_the_last_step_that_is_wanted() -> None:
    asked: list[int] = []

    def model(x_t: Array, t: int) -> Array:
        asked.append(t)
        return GAUSSIAN(x_t, t)

    one, done = chain_of_model(SIX, model, (2,), 5), []
    assert [t for t, _, _ in one.steps(np.arange(3), (5, 3), progress=done.append)] == [5, 3]
    assert asked == [6, 5, 4, 3] and done == [1] * 4
    assert [t for t, _, _ in one.steps(np.arange(3), (0,), progress=done.append)] == [0] and len(done) == 10


def test_the_ends_of_continuations_are_those_of_the_chain_in_any_batches() -> None:
    one, numbers = chain(), np.arange(5)
    whole = {t: (x_t, x_0) for t, x_t, x_0 in one.steps(numbers, range(7))}
    for start, batch in product((6, 4, 1), (1, 2, 5)):
        ends = one.ends(numbers, whole[start][0], start, batch=batch)
        np.testing.assert_allclose(ends, whole[0][0], rtol=1e-13)
    assert np.array_equal(one.ends(numbers, MEAN[None], 0, batch=1), MEAN[None]), "at t = 0 there is nothing to do"
    with pytest.raises(ValueError, match=r"start: wanted an integer in 0\.\.6, got 7"):
        one.ends(numbers, whole[6][0], 7, batch=1)


def test_even_steps_are_the_papers_scaled_to_any_T() -> None:
    assert evenly(1000, 10) == (1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0)
    assert evenly(1000, 8) == (1000, 875, 750, 625, 500, 375, 250, 125, 0)
    assert evenly(3, 10) == (3, 2, 1, 0)
    assert [generation._quarters(T) for T in (1000, 10, 1)] == [(1000, 750, 500, 250), (10, 8, 5, 2), (1,)]


def test_x_0_hat_on_the_way_is_what_the_model_says_of_x_t() -> None:
    one = chain()
    x = progressive(one, (6, 3, 1, 0), 5, batch=2)
    whole = {t: x_t for t, x_t, _ in one.steps(np.arange(5), (6, 3, 1, 0))}
    for row, t in zip(x, (6, 3, 1), strict=False):
        np.testing.assert_allclose(row, GAUSSIAN.x_0(whole[t], t), rtol=1e-12)
    np.testing.assert_allclose(x[-1], whole[0], rtol=1e-12)
    assert rms_255(np.array([[0.0, 2.0], [2.0, 0.0]])) == pytest.approx(127.5 * 2**0.5)
    assert rms_255(np.array([[0.0, 2.0], [1.0, 1.0]]), axis=1) == pytest.approx([127.5 * 2**0.5, 127.5])


# ---- samples that share x_t


def distance(pairs: Any) -> float:
    return float(np.sqrt(np.mean([np.mean((127.5 * (a - b)) ** 2) for a, b in pairs])))


def test_the_distances_are_those_of_all_pairs(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4, 2, 2, 1)) + 3 * rng.standard_normal((2, 3, 1, 2, 2, 1))
    found = SharedLatents((6, 3), x[:, :, 0], x)
    for k, group in enumerate(x):
        within = [pair for one in group for pair in combinations(one, 2)]
        between = [pair for one, other in combinations(group, 2) for pair in product(one, other)]
        assert found.shared[k] == pytest.approx(distance(within))
        assert found.independent[k] == pytest.approx(distance(between))
        assert found.by_latent[k] == pytest.approx([distance(combinations(one, 2)) for one in group])
    assert found.as_dict()["rms_shared"] == found.shared.tolist()


@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
def test_continuations_of_one_x_t_have_the_variance_of_the_linear_chain(var: Any) -> None:
    """p_θ(x_0 | x_t) of the exact ε is Gaussian with a covariance that is known; 6 σ, a false alarm of 1e-8 a number.

    The independent ones have that of p_θ(x_0). Estimates of a variance from n degrees of freedom are off by √(2/n);
    the larger of two eigenvalues counts, which makes one of the L (M - 1) at least.
    """
    L, M, sigma2 = 200, 20, reverse_variance(SIX, var)
    sigma2[1] = 0  # z = 0 at t = 1
    joint = p_joint(reverse_maps(SIX, GAUSSIAN, 2), sigma2)
    found = shared_latents(chain(var=var), (6, 4, 2, 1), latents=L, continuations=M, batch=1000)
    marginal = 127.5 * np.sqrt(np.trace(joint.part(block(2, 0)).cov))
    for t, shared, independent in zip(found.t, found.shared, found.independent, strict=True):
        _, _, S = joint.given(block(2, t), block(2, 0))
        expected = 127.5 * np.sqrt(max(0, np.trace(S)))  # of two dimensions, and twice the variance: √(2 · tr S / 2)
        assert shared == pytest.approx(expected, rel=6 * np.sqrt(0.5 / (L * (M - 1))), abs=1e-6)
        assert independent == pytest.approx(marginal, rel=6 * np.sqrt(0.5 / L))
    assert found.falls.verdict == HOLDS and found.shared[-1] < 1e-6, "after t = 1 there is no more noise"


def test_continuations_start_at_the_chains_own_x_t_and_have_noise_of_their_own() -> None:
    one = chain()
    found = shared_latents(one, (6, 2), latents=3, continuations=2, batch=2)
    for t, x_t, _ in one.steps(np.arange(3), (6, 2)):
        np.testing.assert_allclose(found.x_t[(6, 2).index(t)], x_t, rtol=1e-13)
    numbers = 3 + np.arange(12).reshape(2, 3, 2)
    for k, t in enumerate((6, 2)):
        for latent in range(3):
            same = np.repeat(found.x_t[k, latent : latent + 1], 2, axis=0)
            expected = one.ends(numbers[k, latent], same, t, batch=2)
            np.testing.assert_allclose(found.x_0[k, latent], expected, rtol=1e-12)
    assert len(np.unique(found.x_0)) == found.x_0.size


def test_a_model_that_knows_its_data_by_heart_ends_at_them_and_keeps_to_the_one_it_has_chosen() -> None:
    points = np.array([[-6.0, 2.0], [5.0, 5.0], [1.0, -6.0]])
    found = shared_latents(chain(EmpiricalOracle(points, SIX)), (6, 1), latents=20, continuations=5, batch=100)
    off = np.abs(found.x_0[..., None, :] - points).max(axis=-1).min(axis=-1)
    assert off.max() < 1e-6
    assert found.shared[1] < 1e-6 < found.shared[0] and found.falls.verdict == HOLDS


def test_falling_is_judged_beyond_chance() -> None:
    latents = np.linspace(0.9, 1.1, 4)

    def of(*spreads: float, size: Array = latents) -> Trend:
        group = np.array([[-1.0], [1.0]]) * np.sqrt(size / 2)[:, None, None]  # of variance `size` each
        x = np.stack([spread**0.5 * group[:: (-1) ** k] for k, spread in enumerate(spreads)])
        return SharedLatents((8, 5, 2)[: len(x)], x[:, :, 0], x).falls

    straight = of(3, 2, 1)
    half = quantile(3) * np.std(latents / 3, ddof=1) / 2
    np.testing.assert_allclose([straight.mean, straight.low, straight.high], [1 / 3, 1 / 3 - half, 1 / 3 + half])
    assert straight.verdict == of(3, 3.01, 1).verdict == HOLDS
    assert of(1, 2).verdict == of(1, 2, 3).verdict == DOES_NOT_HOLD
    assert of(3.01, 3).verdict == of(3, 2, 1, size=latents[:1]).verdict == of(3).verdict == UNDECIDED
    names = ("verdict", "mean", "low", "high")
    assert straight.as_dict() == {name: getattr(straight, name) for name in names}


def test_progress_is_reported_as_often_as_was_said() -> None:
    for L, M, batch in ((3, 2, 2), (2, 5, 100), (4, 3, 1)):
        done: list[int] = []
        shared_latents(chain(), (6, 4, 1), latents=L, continuations=M, batch=batch, progress=done.append)
        assert sum(done) == shared_work(6, (6, 4, 1), latents=L, continuations=M, batch=batch)


def test_the_shared_x_t_stands_at_the_bottom_right() -> None:
    page = panel(np.stack([np.full((2, 3, 1), v) for v in (-0.9, -0.5, 0.5, 9)]), np.full((2, 3, 1), 7.0))
    assert page.shape == (7, 9, 1)
    assert [page[y, x, 0] for y, x in ((1, 1), (2, 3), (1, 5), (2, 7), (4, 1), (5, 3), (4, 5), (5, 7))] == [
        -0.9, -0.9, -0.5, -0.5, 0.5, 0.5, 1, 1,
    ]  # fmt: skip
    assert (page[[0, 3, 6]] == 200 / 127.5 - 1).all() and (page[:, [0, 4, 8]] == 200 / 127.5 - 1).all()


# ---- quality


def test_the_score_is_the_number_of_classes_at_best_and_1_at_worst() -> None:
    assert classifier_score(np.eye(5)) == pytest.approx(5)
    assert classifier_score(np.full((4, 3), 1 / 3)) == pytest.approx(1)
    assert classifier_score(np.array([[1.0, 0, 0], [1, 0, 0]])) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    kl = (p * np.log(p / p.mean(axis=0))).sum(axis=1)
    assert classifier_score(p) == pytest.approx(np.exp(kl.mean()))


def test_moments_in_blocks_are_those_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BLOCK", 7)
    images = pictures(24)
    rows = images.x_0(dtype=np.float64).reshape(24, -1)
    mean, cov = moments(images)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(cov, np.cov(rows.T), atol=1e-15)


def test_a_judge_gives_what_the_data_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(40)
    x, train = pictures(30, seed=1).x_0(dtype=np.float64), data.x_0(dtype=np.float64)
    frechet = quality.frechet_distance(x.reshape(30, -1), train.reshape(40, -1))
    judge = Judge(data)
    row = judge(x)
    p = np.asarray(quality.train_classifier(data.x_0(), data.labels).predict_proba(x.reshape(30, -1)))
    assert row.frechet == pytest.approx(frechet)
    assert row.top_probability == pytest.approx(p.max(axis=1).mean()) and row.score == classifier_score(p)
    assert judge(5 * x) == judge(np.clip(5 * x, -1, 1))
    unlabelled = Judge(replace(data, labels=None))(x)
    assert unlabelled == generation.Row(row.frechet) == Judge(replace(data, labels=np.zeros(40, int)))(x)
    monkeypatch.setattr(generation, "FRECHET_DIMENSIONS", 15)
    assert Judge(replace(data, labels=None))(x) == generation.Row(None)


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("generation")
    data = save_pictures(folder / "data.npz", pictures(48, 8, levels=256))
    done = call(*TRAIN, "--data", data, "--lr", 0.01, "--held-out", 12, "--steps", 4, "--out", folder / "run")
    return Run(folder / "run", data, done)


def measured(trained: Run, out: Path, *more: object) -> Any:
    small = ("--latents", 2, "--continuations", 3, "--draw-batch", 5)
    done = call("generation", trained.folder, *small, "--out", out, "--seed", 3, *more)
    assert (done.status, done.err) == (0, "")
    assert [Path(line[6:]).name for line in done.out.splitlines() if line.startswith("wrote ")] == [
        "generation.json", "progressive.png", "quality.png", "shared.png",
    ]  # fmt: skip
    return json.loads((out / "generation.json").read_text())


def test_the_command_writes_numbers_and_pictures_that_repeat(trained: Run, tmp_path: Path) -> None:
    one, other = measured(trained, tmp_path / "one"), measured(trained, tmp_path / "other")
    assert one["result"] == other["result"] and one["facts"]["seed"] == 3
    for name in ("progressive.png", "quality.png", "shared.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
        Image.open(tmp_path / "one" / name).verify()
    result = one["result"]
    assert result["count"] == 12 and result["t"] == list(range(10, -1, -1)) and result["rms_to_sample"][-1] == 0
    assert all(len(result[name]) == 11 for name in ("rms_to_sample", "frechet", "top_probability", "score"))
    assert result["held_out"]["frechet"] > 0 and result["shared"]["t"] == [10, 8, 5, 2]
    assert measured(trained, tmp_path / "more", "--count", 13)["result"]["held_out"] is None


def test_steps_can_be_chosen_and_end_at_the_sample(trained: Run, tmp_path: Path) -> None:
    tenths = measured(trained, tmp_path / "tenths")["result"]
    chosen = measured(trained, tmp_path / "chosen", "--steps", 2, 9)["result"]
    assert chosen["t"] == [9, 2, 0] and chosen["shared"] == tenths["shared"]
    for name in ("rms_to_sample", "frechet", "score"):
        assert chosen[name] == [tenths[name][k] for k in (1, 8, 10)], "the chain is the same"


def test_its_images_are_those_of_the_command_sample(trained: Run, tmp_path: Path) -> None:
    args = ("--seed", 3, "--draw-batch", 5)
    assert call("sample", trained.folder, "--count", 8, "--out", tmp_path / "drawn", *args).status == 0
    measured(trained, tmp_path / "out", "--count", 8)
    from ddpm_ref.cli import _parser
    from ddpm_ref.experiments.subject import open_subject

    parsed = _parser().parse_args(["generation", str(trained.folder), "--seed", "3"])
    result = generation.measure(open_subject(parsed), count=8, latents=2, continuations=2, batch=5, seed=3)
    with np.load(tmp_path / "drawn" / "samples.npz") as archive:
        drawn = archive["images"]
    assert np.array_equal(np.rint((np.clip(result.x_0_hat[-1], -1, 1) + 1) * 127.5), drawn)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 5, 11), r"--steps: wanted an integer in 0..10, got 11"),
        (("--steps", 5, 5), "--steps: wanted one step or more, each once, got [5, 5]"),
        (("--count", 1), "--count: wanted an integer >= 2, got 1"),
        (("--latents", 1), "--latents: wanted an integer >= 2, got 1"),
        (("--continuations", 0), "--continuations: wanted an integer >= 2, got 0"),
        (("--draw-batch", 0), "--draw-batch: wanted an integer >= 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(trained: Run, tmp_path: Path, more: Any, message: str) -> None:
    assert message in call("generation", trained.folder, "--out", tmp_path / "new", *more).error
    assert not (tmp_path / "new").exists()


def test_the_work_is_told_beforehand() -> None:
    T = short(20).T
    shared = shared_work(T, (20, 15, 10, 5), latents=3, continuations=2, batch=4)
    assert generation.work(T, count=10, latents=3, continuations=2, batch=4) == 3 * 20 + shared

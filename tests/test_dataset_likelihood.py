"""The bound over a data set: means against closed forms, errors against repetition, bits against batches."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_run import pictures
from strategies import SIX, short

import ddpm_ref.dataset_likelihood as module
from ddpm_ref import GaussianOracle, Purpose, bound_terms, dataset_bound, normal, output_to_x_0, q_sample
from ddpm_ref.checks import Array
from ddpm_ref.dataset_likelihood import DatasetBound, evaluations, offsets, steps_of

FIELDS = ("L", "L_var", "seen", "mse", "mse_clipped", "rate", "distortion")


class Drawn:
    """Images as a data set; `asked` is how many were wanted at a time."""

    def __init__(self, x: Array, levels: int) -> None:
        self.x, self.levels, self.shape, self.asked = x, levels, x.shape[1:], list[int]()

    def __len__(self) -> int:
        return len(self.x)

    def x_0(self, index: Array, dtype: Any) -> Array:
        self.asked.append(len(index))
        return self.x[index].astype(dtype)


def model(x_t: Array, t: int) -> Array:
    """An ε-model whose error is its own at each t."""
    return 0.8 * x_t - 0.01 * t


def with_variance(x_t: Array, t: int) -> Array:
    return np.concatenate([model(x_t, t), 0.3 * np.sin(3 * x_t) - 2], axis=-1)


# --- means -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
def test_of_gaussian_data_every_term_is_the_closed_form(rng: Any, every: int, var: str) -> None:
    """False-alarm rate 3e-5: 21 terms and a total beyond 5 standard errors (6e-7 each), 20 chi-square tails of 5e-7.

    The decoder's bins, 2 / (levels - 1) wide, are so narrow that -log of their integral is -log(density) - log(width).
    """
    schedule, levels, n = short(20), 2**20 + 1, 4000
    oracle = GaussianOracle(np.full((2, 1, 1), 0.1), 0.02, schedule)
    data = Drawn(oracle.draw(n, rng), levels)
    seed = int(rng.integers(2**32))
    found = dataset_bound(schedule, oracle, data, seed=seed, var=var, every=every, batch=999, dtype=np.float64)
    expected = oracle.bound_terms(var)
    expected[0] -= np.log(2 / (levels - 1))
    if every == 1:  # a term's mean then has its own images' spread and no other
        assert (abs(found.L - expected) < 5 * np.sqrt(found.L_var / found.seen)).all()
    assert abs(found.total.mean() - expected.sum()) < 5 * found.standard_error(found.total)
    np.testing.assert_allclose(found.L.sum(), found.total.mean(), rtol=1e-12)
    np.testing.assert_allclose([found.L[0], found.L[1:].sum()], [found.distortion.mean(), found.rate.mean()])
    for t in range(1, 21):  # n D mse / v is chi-square of n D
        seen, v = found.seen[t - 1], oracle.irreducible_loss(t, "x_0")
        assert 2.5e-7 < stats.chi2.cdf(seen * 2 * found.mse[t] / v, 2 * seen) < 1 - 2.5e-7
    assert found.mse[0] == found.mse_clipped[0] == 0
    assert set(found.seen[1:-1]) == {n / every} and found.seen[0] == found.seen[-1] == n


KINDS: dict[str, dict[str, Any]] = {
    "eps": {},
    "x_0": {"predicts": "x_0"},
    "mu": {"predicts": "mu", "var": "beta_tilde"},
    "v": {"predicts": "v"},
    "clip": {"clip": True},
    "table": {"var": SIX.beta + 0.1},
    "learned": {"var": "learned", "predicts": "x_0"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_each_image_has_the_terms_of_bound_terms_at_its_own_steps(kind: str, every: int) -> None:
    """On pictures of 17 and of 18 grey levels, which float32 cannot hold; likewise all means over images."""
    levels = 17 if every == 1 else 18
    how, data, n = KINDS[kind], pictures(8, levels=levels), 7
    answer = with_variance if kind == "learned" else model
    found = dataset_bound(SIX, answer, data, seed=5, every=every, count=n, batch=3, dtype=np.float64, **how)

    x_0 = data.x_0(np.arange(n), np.float64)

    def noise(t: int) -> Array:
        return normal(5, Purpose.EVALUATE, t, np.arange(n), (4, 4, 1)).astype(np.float64)

    L = bound_terms(SIX, answer, x_0, noise, levels=levels, **how).L
    offset = offsets(5, n, every)
    took = np.array([[s in (0, 6) or (s - 1) % every == o for o in offset] for s in range(7)])
    weight = np.where(np.isin(np.arange(7), (0, 6)), 1, every)[:, None] * took
    np.testing.assert_allclose(found.distortion, L[0], rtol=1e-13)
    np.testing.assert_allclose(found.rate, (weight * L)[1:].sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.L, (weight * L).mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found.seen, took.sum(axis=1))
    np.testing.assert_allclose(found.L_var, [np.var(row[w], ddof=1) for row, w in zip(L, took, strict=True)], rtol=1e-9)
    for t in range(1, 7):
        x_t = q_sample(SIX, x_0, t, noise(t))
        x = output_to_x_0(SIX, x_t, t, answer(x_t, t)[..., :1], how.get("predicts", "eps"))[took[t - 1]]
        true = x_0[took[t - 1]]
        np.testing.assert_allclose(found.mse[t], np.mean((x - true) ** 2), rtol=1e-12)
        np.testing.assert_allclose(found.mse_clipped[t], np.mean((np.clip(x, -1, 1) - true) ** 2), rtol=1e-12)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_the_mean_over_all_offsets_is_what_every_step_gives(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly unbiased: u_g has K values, each as likely, and the mean over them is the estimate with K = 1."""
    data = pictures(11)  # whose last group is not whole
    whole = dataset_bound(SIX, model, data, seed=3)
    parts = []
    for turn in range(every):
        monkeypatch.setattr(module, "integers", lambda *args, u=turn: np.full(len(args[3]), u))
        parts.append(dataset_bound(SIX, model, data, seed=3, every=every))
    for name in ("L", "rate", "distortion"):
        mean = np.mean([getattr(part, name) for part in parts], axis=0)
        np.testing.assert_allclose(mean, getattr(whole, name), rtol=1e-12, err_msg=name)
    assert len({part.rate.tobytes() for part in parts}) == every


def test_a_group_has_every_offset_once_and_its_turn_is_any() -> None:
    """False-alarm rate 1e-6 for the chi-square of the turns, were the seed drawn anew."""
    offset = offsets(1, 4000 * 5 + 2, 5)
    assert (np.sort(offset[:-2].reshape(-1, 5), axis=1) == np.arange(5)).all()
    assert stats.chisquare(np.bincount(offset[::5], minlength=5)).pvalue > 1e-6
    assert not offsets(1, 9, 1).any() and (offsets(2, 20002, 5) != offset).any()


def test_the_steps_of_all_offsets_are_each_step_once_and_the_first_always() -> None:
    for T, every in ((1, 1), (1, 3), (6, 1), (6, 4), (7, 3), (5, 9)):
        of = [steps_of(T, every, o).tolist() for o in range(every)]
        assert all(steps[0] == 1 and steps == sorted(set(steps)) for steps in of)
        assert sorted(t for steps in of for t in steps[1:]) == list(range(2, T + 1))


# --- standard errors -------------------------------------------------------------------------------------------------


def of(values: Array, every: int) -> float:
    empty = np.zeros(0)
    return DatasetBound(empty, empty, empty, empty, empty, values, 0 * values, every).standard_error(values)


def test_the_standard_error_is_the_textbooks_of_groups() -> None:
    x = np.random.default_rng(0).normal(3, 1, 24)
    np.testing.assert_allclose(of(x, 1), x.std(ddof=1) / np.sqrt(24), rtol=1e-12)
    np.testing.assert_allclose(of(x, 4), x.reshape(6, 4).mean(axis=1).std(ddof=1) / np.sqrt(6), rtol=1e-12)
    sums = [(x[i : i + 5] - x.mean()).sum() for i in range(0, 24, 5)]
    np.testing.assert_allclose(of(x, 5), np.sqrt(5 / 4 * np.sum(np.square(sums))) / 24, rtol=1e-12)
    assert np.isnan(of(x, 24)) and np.isnan(of(x[:1], 1))


@pytest.mark.parametrize("every", [1, 3])
def test_the_standard_error_is_the_spread_of_repetitions(rng: Any, every: int) -> None:
    """Over 200 draws of 24 images, noise and offsets. The ratio of the two variances has a standard deviation of 0.11;
    0.55 to 1.65 are 4 of them below and 5.9 above, of a chi-square that leans upwards: false-alarm rate 1e-5."""
    oracle = GaussianOracle(np.zeros((1, 1, 1)), 0.05, SIX)
    means, errors = [], []
    for seed in rng.integers(2**32, size=200):
        data = Drawn(np.clip(oracle.draw(24, rng), -1, 1), 2**16)
        found = dataset_bound(SIX, oracle, data, seed=int(seed), every=every)
        means.append(found.total.mean())
        errors.append(found.standard_error(found.total))
    assert 0.55 < np.var(means, ddof=1) / np.mean(np.square(errors)) < 1.65


# --- batches, memory, progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("answer", [model, with_variance], ids=["fixed", "learned"])
def test_no_bit_depends_on_the_batch(every: int, answer: Any) -> None:
    how: dict[str, Any] = dict(seed=9, every=every, var="learned" if answer is with_variance else "beta")
    data = pictures(23)
    whole = dataset_bound(short(25), answer, data, **how)
    for batch in (1, 2, 7):
        part = dataset_bound(short(25), answer, data, **how, batch=batch)
        assert [name for name in FIELDS if getattr(part, name).tobytes() != getattr(whole, name).tobytes()] == []


def test_noise_is_the_seeds_and_the_images_own() -> None:
    data = pictures(9)
    one, other = (dataset_bound(SIX, model, data, seed=seed) for seed in (1, 2))
    assert (one.total != other.total).all()
    first = dataset_bound(SIX, model, data, seed=1, count=4)
    np.testing.assert_array_equal(first.total, one.total[:4])


def test_memory_is_the_batchs_whatever_the_number_of_images() -> None:
    """Of an image remain its rate, its distortion and its place: 100 bytes."""

    def peak(n: int) -> int:
        data = Drawn(np.zeros((n, 4, 4, 1), np.float32), 256)
        tracemalloc.start()
        dataset_bound(SIX, model, data, seed=0, batch=50)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert max(data.asked) == 50
        return highest

    peak(100)  # what is made once
    assert peak(2000) - peak(200) < 100 * 1800


def test_progress_counts_every_image_at_every_step() -> None:
    calls: list[Any] = []

    def spy(x_t: Array, t: int) -> Array:
        calls.append((len(x_t), t, x_t.dtype))
        return model(x_t, t)

    for every in (1, 4):
        done: list[int] = []
        calls.clear()
        dataset_bound(SIX, spy, pictures(11), seed=4, every=every, batch=4, progress=done.append)
        assert sum(done) == sum(n for n, _, _ in calls) == evaluations(6, 11, every, seed=4)
        assert all(n <= 4 and isinstance(t, int) and dtype == np.float32 for n, t, dtype in calls)
    assert evaluations(6, 11) == 66


# --- what is not finite, and errors ----------------------------------------------------------------------------------


def test_a_network_that_diverged_has_a_bound_that_is_not_finite() -> None:
    answers = {"beta": lambda x, t: x * np.nan, "learned": lambda x, t: np.concatenate([x, x * np.inf], -1)}
    for var, answer in answers.items():
        with np.errstate(all="ignore"):
            found = dataset_bound(SIX, answer, pictures(5), seed=0, var=var)
        assert not np.isfinite(found.total).any() and not np.isfinite(found.standard_error(found.total))
        np.testing.assert_array_equal(found.seen, 5)


def never(x_t: Array, t: int) -> Array:
    raise AssertionError("called before the arguments were checked")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"every": 0}, r"every: wanted an integer in 1\.\.6, got 0"),
        ({"every": 7}, r"every: wanted an integer in 1\.\.6, got 7"),
        ({"every": 3, "count": 2}, r"every: wanted an integer in 1\.\.2, got 3"),
        ({"count": 7}, r"count: wanted an integer in 1\.\.6, got 7"),
        ({"count": 0}, "count: wanted an integer"),
        ({"batch": 0}, "batch: wanted an integer >= 1"),
        ({"seed": -1}, "seed: wanted an integer"),
        ({"predicts": "noise"}, "predicts: wanted one of"),
        ({"var": "sigma"}, "var: wanted one of"),
        ({"var": np.ones(3)}, "var: wanted a name or a table"),
    ],
)
def test_bad_arguments_are_errors_before_any_work(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset_bound(SIX, never, pictures(6), **{"seed": 0} | bad)


def test_data_that_are_not_finite_are_an_error() -> None:
    data = Drawn(np.full((2, 1, 1, 1), np.nan), 2)
    with pytest.raises(ValueError, match="x_0: 2 of 2 values are NaN"):
        dataset_bound(SIX, never, data, seed=0)

"""The distances that samples are judged by: Fréchet's between Gaussians, and to the nearest neighbour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref.experiments import quality
from ddpm_ref.experiments.quality import (
    frechet_distance,
    frechet_distance_of_moments,
    nearest_distances,
)

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=60)
seeds = st.integers(0, 2**32 - 1)


def covariance(rng: np.random.Generator, d: int, rank: int) -> np.ndarray:
    root = rng.standard_normal((d, rank))
    return root @ root.T / rank


def rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


# ---- the Fréchet distance


def test_in_one_dimension_it_is_the_difference_of_means_and_of_deviations():
    a, b = np.array([[1.0], [3.0], [5.0]]), np.array([[0.0], [6.0]])
    deviations = 2.0, np.sqrt(18.0)
    assert frechet_distance(a, b) == pytest.approx((3 - 3) ** 2 + (deviations[0] - deviations[1]) ** 2)
    assert frechet_distance_of_moments(np.r_[1.0], np.eye(1) * 4, np.r_[-2.0], np.eye(1) * 25) == 9 + 9


@REPEATABLE
@given(seeds, st.integers(1, 8))
def test_for_commuting_covariances_it_is_the_difference_of_deviations_along_the_axes(seed, d):
    rng = np.random.default_rng(seed)
    axes, s, u = rotation(rng, d), rng.uniform(0, 3, d), rng.uniform(0, 3, d)
    s[0] = 0  # singular: a deviation of 0 must come out as 0, not as the root of rounding
    m, n = rng.standard_normal((2, d))
    found = frechet_distance_of_moments(m, axes * s**2 @ axes.T, n, axes * u**2 @ axes.T)
    assert found == pytest.approx(np.sum((m - n) ** 2) + np.sum((s - u) ** 2), rel=1e-6, abs=1e-12)


@REPEATABLE
@given(seeds, st.integers(1, 6))
def test_it_agrees_with_scipys_matrix_square_root(seed, d):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((d + 8, d)) @ rng.standard_normal((d, d))
    b = rng.standard_normal((d + 5, d)) + rng.standard_normal(d)
    s_a, s_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = linalg.sqrtm(s_a @ s_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@REPEATABLE
@given(seeds, st.integers(1, 10), st.integers(1, 10))
def test_it_is_zero_from_itself_symmetric_and_blind_to_rotation(seed, d, rank):
    rng = np.random.default_rng(seed)
    s, u, turn = covariance(rng, d, rank), covariance(rng, d, d), rotation(rng, d)
    m, n = rng.standard_normal((2, d))
    found = frechet_distance_of_moments(m, s, n, u)
    assert frechet_distance_of_moments(m, s, m, s) == pytest.approx(0, abs=1e-12)
    assert frechet_distance_of_moments(n, u, m, s) == pytest.approx(found, rel=1e-6)
    turned = frechet_distance_of_moments(turn @ m, turn @ s @ turn.T, turn @ n, turn @ u @ turn.T)
    assert turned == pytest.approx(found, rel=1e-6)


def test_a_shift_adds_its_square_whatever_the_rank():
    rng = np.random.default_rng(0)
    for n in (2, 5, 50):
        a = rng.standard_normal((n, 20))
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
        assert frechet_distance(a, a + np.eye(20)[3] * 2) == pytest.approx(4, rel=1e-9)


def test_covariances_without_a_common_direction_leave_both_traces():
    a, b = np.diag([4.0, 0, 0]), np.diag([0, 0, 9.0])
    turn = rotation(np.random.default_rng(0), 3)
    found = frechet_distance_of_moments(np.zeros(3), turn @ a @ turn.T, np.zeros(3), turn @ b @ turn.T)
    assert found == pytest.approx(13, abs=1e-12)


def test_it_is_computed_in_float64():
    a = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    assert frechet_distance(a + np.float32(1000), a + np.float32(1000)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a[:20]) == frechet_distance(a.astype(np.float64), a[:20].astype(np.float64))


@pytest.mark.parametrize(
    ("moments", "name"),
    [
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "mean_a, mean_b"),
        ((np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), "cov_a"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.array([[1.0, 0.5], [0, 1]])), "cov_b"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -0.1])), "cov_b"),
        ((np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2)), "mean_b"),
        ((np.zeros(2), np.full((2, 2), np.inf), np.zeros(2), np.eye(2)), "cov_a"),
    ],
)
def test_moments_that_are_none_are_refused_by_name(moments, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        frechet_distance_of_moments(*moments)


def test_rows_are_asked_for_by_name():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"a: wanted .* N >= 2, got"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="b: wanted"):
        frechet_distance(x, x[0])
    with pytest.raises(ValueError, match=r"b: .*NaN"):
        frechet_distance(x, np.where(np.eye(4, 2), np.nan, x))
    with pytest.raises(ValueError, match="mean_a, mean_b: wanted"):
        frechet_distance(x, x[:, :1])


# ---- nearest neighbours


@pytest.mark.parametrize("block", [4, 50, 2**21])
def test_nearest_rows_are_those_of_all_pairs_in_blocks_of_any_size(monkeypatch, block):
    monkeypatch.setattr(quality, "BLOCK", block)
    rng = np.random.default_rng(0)
    x, train = rng.standard_normal((2, 37, 6)).astype(np.float32), rng.standard_normal((2, 53, 6))
    for a, b in zip(x, train, strict=True):
        pairs = np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)
        distance, index = nearest_distances(a, b)
        assert distance == pytest.approx(pairs.min(axis=1), rel=1e-12)
        assert (index == pairs.argmin(axis=1)).all()


@pytest.mark.parametrize("block", [4, 2**21])
def test_a_copy_is_at_distance_zero_and_the_first_of_equals_wins(monkeypatch, block):
    monkeypatch.setattr(quality, "BLOCK", block)
    train = np.random.default_rng(0).uniform(-1, 1, (9, 4, 4, 1))
    distance, index = nearest_distances(train[[5, 2]], np.concatenate([train, train]))
    assert (distance == 0).all() and index.tolist() == [5, 2]


def test_nearest_of_nothing_is_nothing_and_from_nothing_an_error():
    train = np.zeros((3, 2))
    assert [len(part) for part in nearest_distances(np.zeros((0, 2)), train)] == [0, 0]
    with pytest.raises(ValueError, match="train: wanted rows"):
        nearest_distances(train, train[:0])
    with pytest.raises(ValueError, match="train: wanted rows"):
        nearest_distances(train, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"x: .*NaN"):
        nearest_distances(np.full((1, 2), np.nan), train)

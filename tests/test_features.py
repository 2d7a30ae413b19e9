"""Features, precision and recall: against brute force, known geometry, and closed forms."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from small_run import pictures

from ddpm_ref.experiments import features
from ddpm_ref.experiments.features import (
    FeatureNetwork,
    frechet_of_features,
    manifold,
    precision_recall,
    read_features,
    train_features,
)
from ddpm_ref.experiments.quality import frechet_distance

# ---- the network


@pytest.fixture(scope="module")
def digits():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    return (x / 8 - 1).reshape(-1, 8, 8, 1), y


@pytest.fixture(scope="module")
def network(digits):
    return train_features(digits[0][:1000], digits[1][:1000])


def test_features_are_the_last_hidden_layer(network):
    images = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 1))
    found = network(images)
    assert found.shape == (5, features.HIDDEN[-1]) and found.dtype == np.float64
    for image, row in zip(images, found, strict=True):
        h = image.ravel()
        for W, b in zip(network.weights, network.biases, strict=True):
            h = np.array([max(0.0, sum(h[i] * W[i, j] for i in range(len(h))) + b[j]) for j in range(W.shape[1])])
        np.testing.assert_allclose(row, h, rtol=1e-12, atol=1e-12)


def test_a_linear_rule_on_features_recognises_digits_that_were_never_seen(digits, network):
    """Of random features, of the same sizes, it gets 80 to 85 % right; of these 94 %."""
    LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression
    x, y = network(digits[0]), digits[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rule = LogisticRegression(max_iter=300).fit(x[:1000], y[:1000])
    assert rule.score(x[1000:], y[1000:]) > 0.9


def test_doubles_are_further_from_digits_among_features_than_among_pixels(digits, network):
    train, fresh = digits[0][:1000], digits[0][1000:1400]
    doubles = (fresh + np.roll(fresh, 1, axis=0)) / 2
    rows = [x.reshape(len(x), -1) for x in (train, fresh, doubles)]
    by_pixels = frechet_distance(rows[2], rows[0]) / frechet_distance(rows[1], rows[0])
    by_features = frechet_distance(network(doubles), network(train)) / frechet_distance(network(fresh), network(train))
    assert by_features > 1.3 * by_pixels > 1.3


def test_the_seed_decides_the_network(digits):
    images, labels = (part[:100] for part in digits)
    first, again, other = (train_features(images, labels, seed)(images) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_bad_images_and_labels_are_errors(network):
    data = pictures(12)
    x = data.x_0(dtype=np.float64)
    with pytest.raises(ValueError, match=r"labels: wanted one per image, \(12,\), got \(11,\)"):
        train_features(x, data.labels[:-1])
    with pytest.raises(ValueError, match="labels: wanted two classes or more, got one"):
        train_features(x, np.zeros(12, int))
    with pytest.raises(ValueError, match=r"images: wanted 64 numbers each, got \(4, 4, 1\)"):
        network(x)
    with pytest.raises(ValueError, match=r"images: wanted values in \[-1, 1\]"):
        network(np.full((2, 8, 8, 1), 2.0))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(ImportError, match=r'the features needs sklearn: pip install "ddpm_ref\[demo\]"'):
        train_features(pictures(12).x_0(), np.arange(12) % 3)


# ---- Fréchet


@pytest.mark.parametrize(("n", "m", "d"), [(5, 40, 12), (40, 5, 12), (5, 6, 12), (2, 3, 7), (30, 40, 12)])
def test_few_samples_of_many_features_have_the_distance_of_the_formula(n, m, d, rng):
    a, b = rng.standard_normal((n, d)) * 2 + 1, rng.standard_normal((m, d)) @ rng.standard_normal((d, d))
    assert frechet_of_features(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_of_features(a, a) == pytest.approx(0, abs=1e-9)


def test_gaussians_on_one_axis_have_the_closed_form():
    """Along one direction the distance is (m_a - m_b)² + (s_a - s_b)²."""
    axis = np.eye(9)[4]
    a, b = np.outer([1.0, 3.0], axis), np.outer([10.0, 14.0, 18.0], axis)
    assert frechet_of_features(a, b) == pytest.approx((14 - 2) ** 2 + (4 - 2**0.5) ** 2)


# ---- precision and recall


def brute_force(real: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    """By the definition, one pair of points after the other."""

    def share(points: np.ndarray, of: np.ndarray) -> float:
        radii = [sorted(np.linalg.norm(x - y) for j, y in enumerate(of) if j != i)[k - 1] for i, x in enumerate(of)]
        inside = [any(np.linalg.norm(p - x) <= r for x, r in zip(of, radii, strict=True)) for p in points]
        return float(np.mean(inside))

    return share(samples, real), share(real, samples)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [2**21, 16, 7])
def test_precision_and_recall_are_those_of_the_definition_in_blocks_of_any_size(k, block, monkeypatch):
    monkeypatch.setattr(features, "BLOCK", block)
    rng = np.random.default_rng(0)
    real, samples = rng.standard_normal((23, 3)), 0.6 * rng.standard_normal((17, 3)) + 1.5
    found = precision_recall(manifold(real, k), samples, k)
    assert found == brute_force(real, samples, k)
    assert all(0 < share < 1 for share in found)


def test_the_same_points_are_all_inside_and_far_ones_all_outside(rng):
    points = rng.standard_normal((50, 4))
    assert precision_recall(manifold(points), points) == (1, 1)
    assert precision_recall(manifold(points), points + 100) == (0, 0)


def test_samples_of_one_of_two_modes_are_precise_and_recall_half():
    """Real points on two line segments far apart, samples on one of them."""
    segment = np.linspace(0, 1, 20)[:, None] * np.eye(2)[0]
    real = np.concatenate([segment, segment + 50])
    assert precision_recall(manifold(real), segment) == (1, 0.5)
    assert precision_recall(manifold(segment), real) == (0.5, 1)


def test_a_ball_reaches_to_the_kth_neighbour_and_its_edge_is_inside():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert manifold(points, 1).radii.tolist() == [1, 1, 2, 4]
    assert manifold(points, 3).radii.tolist() == [7, 6, 4, 7]
    assert manifold(points, 1).contains(np.array([[-1.0], [-1.01], [11.0], [11.01]])).tolist() == [True, False] * 2


def test_copies_among_the_points_count_as_neighbours():
    points = np.array([[0.0], [0.0], [5.0]])
    assert manifold(points, 1).radii.tolist() == [0, 0, 5]
    assert manifold(points[:2], 1).contains(np.array([[0.0], [1e-12]])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(5), r"samples: wanted \(N, D\) with N > 3, got \(5,\)"),
        (np.zeros((3, 2)), r"samples: wanted \(N, D\) with N > 3, got \(3, 2\)"),
        (np.full((5, 2), np.nan), "samples: 10 of 10 values are NaN"),
        (np.zeros((5, 3)), "features: wanted as many on both sides, got 2 and 3"),
    ],
)
def test_what_is_no_set_of_points_is_an_error(bad, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(manifold(np.zeros((9, 2))), bad)
    with pytest.raises(ValueError, match="k: wanted an integer >= 1, got 0"):
        manifold(np.zeros((9, 2)), 0)


# ---- files


def test_features_are_read_by_name_as_float64(tmp_path: Path, rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", other=np.zeros(3), features=x)
    found = read_features(tmp_path / "a.npz")
    assert found.dtype == np.float64 and np.array_equal(found, x)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 6))}, "wanted an array named features; the archive holds images"),
        ({"features": np.zeros((4, 6), int)}, "features: wanted floats of shape"),
        (
            {"features": np.zeros(4)},
            r"features: wanted floats of shape \(N, D\) with N >= 2, got float64 of shape \(4,\)",
        ),
        ({"features": np.zeros((1, 6))}, "with N >= 2"),
        ({"features": np.full((2, 6), np.inf)}, "features: wanted finite numbers"),
        ({"features": np.array([[None], [1]])}, "features: wanted floats"),
    ],
)
def test_a_file_without_features_is_an_error_that_names_it(arrays, message, tmp_path: Path):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        read_features(path)


def test_what_is_no_archive_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "bad.npz"
    with pytest.raises(ValueError, match=f"{path}: no such file of features"):
        read_features(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=f"{path}: unreadable"):
        read_features(path)


def test_a_network_has_as_many_weights_as_biases():
    with pytest.raises(ValueError, match="zip"):
        FeatureNetwork((np.zeros((4, 2)),), ())(np.zeros((1, 2, 2, 1)))

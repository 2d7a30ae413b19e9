"""Samples judged in a space of learned features, as the paper's FID does by Inception's (§4.1).

The features are the last hidden layer of a small perceptron that was trained to name the classes of the training
images. They are to small images what Inception's pool3 is to photographs: what a network had to extract in order to
recognise. (Decision values of the support vector machine in quality.py would not do: far from all data its kernel
vanishes, and every kind of noise would be mapped to one point.) On the digits the distance in this space sees what the
first two moments of pixels do not: averages of two digits are 9 times as far from the training images as held-out
digits are, on raw pixels 4 times. Inception's own features can be read from a file (`read_features`).

Features are (N, D) float64.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_finite, check_int
from ddpm_ref.experiments.quality import CLASSIFIED, check_images, frechet_distance
from ddpm_ref.extras import import_extra
from ddpm_ref.files.data import ImageData
from ddpm_ref.files.formats import read_npz_array

HIDDEN = (64, 32)  # units of the perceptron's layers; few at last, since a covariance is taken of about 300 samples
EPOCHS = 300  # at most; on the digits it stops by itself after 150
NEIGHBOURS = 3  # of the manifolds, as Kynkäänniemi et al. choose
BLOCK = 2**21  # distances held at a time, 16 MiB
MAX_BYTES = 8 * 2**30  # of a file of features


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """The hidden layers of a perceptron, h_k = max(0, h_{k-1} W_k + b_k); the features are the last h.

    weights: (D_{k-1}, D_k) of each layer, D_0 = H·W·C.  biases: (D_k,).
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def __call__(self, images: Array) -> Array:
        """Features (N, D) of images (N, H, W, C) in [-1, 1]."""
        h = check_images("images", images)
        if h.shape[1] != len(self.weights[0]):
            raise ValueError(f"images: wanted {len(self.weights[0])} numbers each, got {images.shape[1:]}")
        for W, b in zip(self.weights, self.biases, strict=True):
            h = np.maximum(h @ W + b, 0)
        return h


def train_features(images: Array, labels: Array, seed: int = 0) -> FeatureNetwork:
    """Train the perceptron to name the classes of images and keep its hidden layers.

    images: (N, H, W, C).   labels: (N,), at least two classes.   seed: of its initial weights and batches.
    """
    x, y = check_images("images", images), np.asarray(labels)
    if y.shape != (len(x),):
        raise ValueError(f"labels: wanted one per image, ({len(x)},), got {y.shape}")
    if len(np.unique(y)) < 2:
        raise ValueError("labels: wanted two classes or more, got one")
    MLPClassifier = import_extra("sklearn.neural_network", "the features").MLPClassifier
    # A little weight decay; the loss is that of the classes' probabilities, the optimiser Adam.
    network = MLPClassifier(HIDDEN, activation="relu", alpha=1e-3, max_iter=EPOCHS, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")
        network.fit(x, y)
    return FeatureNetwork(tuple(network.coefs_[:-1]), tuple(network.intercepts_[:-1]))


def feature_space(train: ImageData) -> FeatureNetwork:
    """The features that labelled training images give, learned from CLASSIFIED of them at most; the seed is 0."""
    if train.labels is None:
        raise ValueError("features: wanted training images with labels, from which features are learned")
    return train_features(train.x_0(slice(CLASSIFIED), np.float64), train.labels[:CLASSIFIED])


def frechet_of_features(a: Array, b: Array) -> float:
    """`quality.frechet_distance` of features (N, D) and (M, D), at less cost where N or M is below D.

        d²  =  |m_a - m_b|²  +  tr S_a + tr S_b  -  2 ‖A Bᵀ‖_* / √((N - 1)(M - 1))

    A, B: the rows less their means.  S^½ of S = AᵀA / (N - 1) has A's singular values and right singular vectors, so
    the nuclear norm of A Bᵀ, which is N x M, is that of S_a^½ S_b^½, which is D x D: 2,048 for Inception's features.
    """
    a, b = (_checked(name, x) for name, x in (("a", a), ("b", b)))
    _check_width(a, b)
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_distance(a, b)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    A, B = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    cross = np.linalg.svd(A @ B.T, compute_uv=False).sum()
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + np.sum(A * A) + np.sum(B * B) - 2 * cross))


# --- precision and recall --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Manifold:
    """The union of closed balls around points (N, D), each as wide as the distance to its k-th nearest other point.

    radii: (N,).  Made by `manifold`.
    """

    points: Array
    radii: Array

    def contains(self, x: Array) -> Array:
        """Whether each of x (M, D) is in any of the balls, (M,) bool."""
        inside = np.empty(len(x), dtype=bool)
        for rows in _rows(len(x), self.points):
            inside[rows] = (_distances(x[rows], self.points) <= self.radii).any(axis=1)
        return inside


def manifold(points: Array, k: int = NEIGHBOURS) -> Manifold:
    """Where points (N, D) say that data are, N > k."""
    points = _checked("points", points, k)
    radii = np.empty(len(points))
    for rows in _rows(len(points), points):
        distance = _distances(points[rows], points)
        distance[np.arange(len(distance)), np.arange(rows.start, rows.stop)] = -1  # no point is its own neighbour
        radii[rows] = np.partition(distance, k, axis=1)[:, k]
    return Manifold(points, radii)


def precision_recall(real: Manifold, samples: Array, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Which share of the samples the data could have produced, and the reverse (Kynkäänniemi et al. 2019).

        precision = share of samples in the manifold of real        recall = share of real in the manifold of samples

    real: of `manifold`.  samples: (N, D), N > k.  Returns both, in [0, 1].

    Exact, all distances being looked at, a block of rows at a time. Fewer points make wider balls, so that numbers can
    be compared only between equal numbers of points.
    """
    samples = _checked("samples", samples, k)
    _check_width(real.points, samples)
    return float(real.contains(samples).mean()), float(manifold(samples, k).contains(real.points).mean())


def _distances(a: Array, b: Array) -> Array:
    """Euclidean distances (N, M), from the differences: expanded squares would part a point from its copy."""
    squares = np.zeros((len(a), len(b)))
    for x, y in zip(a.T, b.T, strict=True):
        squares += np.subtract.outer(x, y) ** 2
    return np.sqrt(squares)


def _rows(count: int, others: Array) -> Iterator[slice]:
    """Slices that cover range(count), of as many rows as have BLOCK distances to the others."""
    rows = max(1, BLOCK // len(others))
    return (slice(i, min(i + rows, count)) for i in range(0, count, rows))


# --- features from files ---------------------------------------------------------------------------------------------


def read_features(path: str | Path) -> Array:
    """The array "features" of a .npz file, (N, D) float64: of Inception's pool3, D is 2,048.

    Raises ValueError beginning with the path if there is none, or it is not (N, D) floats, finite, with N >= 2.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of features")

    def header(shape: tuple[int, ...], dtype: Any) -> None:
        if dtype.kind != "f" or len(shape) != 2 or shape[0] < 2:
            raise ValueError(f"features: wanted floats of shape (N, D) with N >= 2, got {dtype} of shape {shape}")

    features = read_npz_array(path, "features", header, MAX_BYTES).astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError(f"{path}: features: wanted finite numbers, got NaN or infinity")
    return features


def _checked(name: str, x: Array, k: int = 1) -> Array:
    """Rows of numbers as float64; ValueError unless (N, D), finite, with N > k."""
    check_int("k", k, 1)
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) <= k or not x.shape[1]:
        raise ValueError(f"{name}: wanted (N, D) with N > {k}, got {x.shape}")
    check_finite(**{name: x})
    return x


def _check_width(a: Array, b: Array) -> None:
    """Both have as many features."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features: wanted as many on both sides, got {a.shape[1]} and {b.shape[1]}")

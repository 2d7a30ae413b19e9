"""How good are samples of small labelled images? Judged beside images that were held out from training.

The paper scores CIFAR-10 by FID and Inception Score (§4.1), which need a network trained on ImageNet. For
8x8 digits this file asks the same questions on a scale of minutes, without one: is every class there, does a
classifier recognise the samples, do their first two moments match, and are they new? Held-out images answer
first, and their answers are the yardstick: no sampler can be asked to beat the data.

Images are (N, H, W, C) floats in [-1, 1]. The classifier is scikit-learn's, from the extra "demo".
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ddpm_ref.checks import Array, check_finite, check_float
from ddpm_ref.extras import import_extra

MIN_CLASS_SHARE = 0.04  # each class's share of the samples; a fair share of ten classes is 0.1
MIN_TOP_PROBABILITY = 0.88  # the mean top-class probability, as a multiple of the held-out images'
MAX_FRECHET = 1.25  # the Fréchet distance to the training images, as a multiple of the held-out images'
MIN_NEAREST = 0.8  # the median distance to the nearest training image, likewise: no memoriser passes

CLASSIFIED = 5000  # training images for classifiers at most: the machines' time grows as its square
FOLDS = 5  # of the classifier's calibration
GAMMA_TIMES_PIXELS = 3.2  # kernel width: 0.05 for 8x8 digits, where accuracy and log-likelihood peak
BLOCK = 2**21  # numbers held at a time by nearest_distances, 16 MiB


class Classifier(Protocol):
    """What `measure` asks of a classifier: scikit-learn's way of giving class probabilities."""

    classes_: Array

    def predict_proba(self, X: Array, /) -> Array:
        """Rows (N, D) to probabilities (N, K), in the order of `classes_`."""


@dataclass(frozen=True, eq=False)
class QualityReport:
    """What `measure` found in n images.

    class_share      (K,)  the share of the images that the classifier puts into each class
    top_probability        the mean probability of the class it names, in [1/K, 1]
    frechet                Fréchet distance to the training images, on raw pixels
    nearest_median         median Euclidean distance to the nearest training image
    n                      how many images; `frechet` is comparable only between equal n
    """

    class_share: Array
    top_probability: float
    frechet: float
    nearest_median: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The report as plain numbers and lists, for JSON."""
        return {**vars(self), "class_share": self.class_share.tolist()}


@dataclass(frozen=True)
class Verdict:
    """One question put to the samples and to the held-out images.

    `bound` limits the samples' number: from below if `at_least`, else from above.
    `factor` is the bound as a multiple of the held-out number, None where the bound is absolute.
    """

    name: str
    samples: float
    held_out: float
    bound: float
    factor: float | None
    at_least: bool

    @property
    def ratio(self) -> float | None:
        """Samples over held-out; None where the held-out number is 0."""
        return self.samples / self.held_out if self.held_out else None

    @property
    def ok(self) -> bool:
        """Whether the samples keep to the bound; a number that is not finite never does."""
        return self.samples >= self.bound if self.at_least else self.samples <= self.bound


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both reports and the four verdicts that follow from them; made by `compare`."""

    samples: QualityReport
    held_out: QualityReport

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Variety, recognisability, likeness and novelty, in this order."""
        ours, real = self.samples, self.held_out

        def relative(name: str, field: str, factor: float, at_least: bool) -> Verdict:
            x, y = getattr(ours, field), getattr(real, field)
            return Verdict(name, x, y, factor * y, factor, at_least)

        shares = float(ours.class_share.min()), float(real.class_share.min())
        return (
            Verdict("smallest class share", *shares, MIN_CLASS_SHARE, None, at_least=True),
            relative("mean top-class probability", "top_probability", MIN_TOP_PROBABILITY, True),
            relative("Fréchet distance to training", "frechet", MAX_FRECHET, False),
            relative("median nearest-training distance", "nearest_median", MIN_NEAREST, True),
        )

    @property
    def passed(self) -> bool:
        """Whether all four verdicts are ok."""
        return all(verdict.ok for verdict in self.verdicts)

    def table(self) -> str:
        """The verdicts as a plain-text table, one line each under a heading."""
        line = "{:<32}{:>9}{:>10}{:>7}   {:<15}{}".format
        lines = [line(f"{self.samples.n} images each", "samples", "held-out", "ratio", "bound", "ok")]
        for v in self.verdicts:
            ratio = "-" if v.ratio is None else f"{v.ratio:.2f}"
            of = f"value {v.bound:.2f}" if v.factor is None else f"ratio {v.factor:.2f}"
            bound = of.replace(" ", " >= " if v.at_least else " <= ")
            ok = "yes" if v.ok else "NO"
            lines.append(line(v.name, f"{v.samples:.4f}", f"{v.held_out:.4f}", ratio, bound, ok))
        return "\n".join([*lines, "passed" if self.passed else "FAILED"])

    def as_dict(self) -> dict[str, Any]:
        """Reports and verdicts as plain numbers, lists and truth values, for JSON."""
        verdicts = [{**vars(v), "ratio": v.ratio, "ok": v.ok} for v in self.verdicts]
        reports = {"samples": self.samples.as_dict(), "held_out": self.held_out.as_dict()}
        return {"passed": self.passed, "verdicts": verdicts, **reports}


def compare(samples: Array, held_out: Array, train: Array, labels: Array, seed: int = 0) -> Comparison:
    """Samples beside as many held-out images, both measured against the training images.

    samples, held_out: (N, H, W, C), the same N.   train: (M, H, W, C).   labels: (M,), for the classifier.

    ValueError if the numbers of images differ, because the Fréchet distance shrinks as N grows; and if
    half of the held-out images are training images, because then a memoriser would pass.
    """
    check_images("samples", samples)
    check_images("held_out", held_out)
    if len(samples) != len(held_out):
        raise ValueError(f"samples: wanted as many as held_out, {len(held_out)}, got {len(samples)}")
    classifier, real = reference(held_out, train, labels, seed)
    return Comparison(measure(samples, train, classifier), real)


def reference(held_out: Array, train: Array, labels: Array, seed: int = 0) -> tuple[Classifier, QualityReport]:
    """What samples are judged by: a classifier of the training images, and the held-out images' own report.

    Arguments and errors as `compare`, so that data which cannot be judged are found before anything is drawn.
    """
    check_images("held_out", held_out)
    classifier = train_classifier(train, labels, seed)
    real = measure(held_out, train, classifier)
    if real.nearest_median == 0:
        raise ValueError("held_out: wanted images kept from training, got at least half of them in train")
    return classifier, real


def measure(images: Array, train_images: Array, classifier: Classifier) -> QualityReport:
    """Class shares, recognisability, Fréchet and nearest distance of images against training images.

    images: (N, H, W, C), N >= 2.   train_images: (M, H, W, C).   classifier: of `train_classifier`.
    """
    check_images("images", images)
    train = check_images("train_images", train_images)
    if images.shape[1:] != train_images.shape[1:]:
        raise ValueError(f"images: wanted images of {train_images.shape[1:]} each, got {images.shape[1:]}")
    return report(images, [train_images], classifier, moments("train_images", train))


def report(
    images: Array, parts: Iterable[Array], classifier: Classifier, train_moments: tuple[Array, Array]
) -> QualityReport:
    """What `measure` finds, of training images that come in parts (M, H, W, C), and whose moments are known."""
    x = check_images("images", images)
    p = np.asarray(classifier.predict_proba(x))
    distance = np.full(len(x), np.inf)
    for part in parts:
        distance = np.minimum(distance, nearest_distances(x, part)[0])
    return QualityReport(
        class_share=np.bincount(p.argmax(axis=1), minlength=p.shape[1]) / len(x),
        top_probability=float(p.max(axis=1).mean()),
        frechet=frechet_distance_of_moments(*moments("images", x), *train_moments),
        nearest_median=float(np.median(distance)),
        n=len(x),
    )


def train_classifier(images: Array, labels: Array, seed: int = 0) -> Classifier:
    """One RBF support vector machine per class, its margins m turned into probabilities (Platt 1999):

        p(k | x)  =  σ(a_k m_k(x) + b_k) / Σ_j σ(a_j m_j(x) + b_j)

    images: (N, H, W, C).   labels: (N,), at least two classes of at least five images each.
    seed: shuffles the folds of the calibration, and is all the chance there is.

    The a_k, b_k are fitted once, to the margins of all images as seen by machines that were not trained on
    them. One classifier per fold, averaged, would be underconfident: 0.92 on digits where it is right 99 %
    of the time, against 0.97.
    """
    x, y = check_images("images", images), np.asarray(labels)
    if y.shape != (len(x),):
        raise ValueError(f"labels: wanted one per image, ({len(x)},), got {y.shape}")
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < FOLDS:
        raise ValueError(f"labels: wanted 2 classes or more of {FOLDS} or more, got {counts.tolist()}")

    CalibratedClassifierCV = import_extra("sklearn.calibration", "the classifier").CalibratedClassifierCV
    StratifiedKFold = import_extra("sklearn.model_selection", "the classifier").StratifiedKFold
    OneVsRestClassifier = import_extra("sklearn.multiclass", "the classifier").OneVsRestClassifier
    SVC = import_extra("sklearn.svm", "the classifier").SVC

    machine = SVC(kernel="rbf", gamma=GAMMA_TIMES_PIXELS / x.shape[1], C=10.0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    one_per_class = OneVsRestClassifier(machine)
    calibrated = CalibratedClassifierCV(one_per_class, method="sigmoid", cv=folds, ensemble=False)
    classifier: Classifier = calibrated.fit(x, y)
    return classifier


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Fréchet distance between Gaussians fitted to the rows of a and b.

    a: (N, D), b: (M, D), at least two rows each; covariances divide by N - 1. In squared units of the data.

    Biased: even for a and b of one distribution it is positive, and shrinks as N and M grow. So never
    compare distances that were taken with different numbers of samples.
    """
    return frechet_distance_of_moments(*moments("a", a), *moments("b", b))


def moments(name: str, x: Array) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D), divided by N - 1, of rows (N, D), N >= 2; errors call them `name`."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"{name}: wanted (N, D) with N >= 2, got {x.shape}")
    check_finite(**{name: x})
    mean = x.mean(axis=0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def frechet_distance_of_moments(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Squared Fréchet distance between two Gaussians, from their moments (Dowson & Landau 1982):

        d²  =  |m_a - m_b|²  +  tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½)

    mean_a, mean_b: (D,).   cov_a, cov_b: (D, D), symmetric, positive semidefinite, singular ones too.

    The last trace is the sum of the singular values of S_a^½ S_b^½: their squares are the eigenvalues of
    S_a^½ S_b S_a^½, and taking a root of those would turn rounding of 1e-16 into an error of 1e-8.
    """
    m_a, m_b = np.asarray(mean_a, dtype=np.float64), np.asarray(mean_b, dtype=np.float64)
    if m_a.ndim != 1 or m_a.shape != m_b.shape:
        raise ValueError(f"mean_a, mean_b: wanted (D,) twice, got {m_a.shape} and {m_b.shape}")
    check_finite(mean_a=m_a, mean_b=m_b)
    root_a, trace_a = _root("cov_a", cov_a, len(m_a))
    root_b, trace_b = _root("cov_b", cov_b, len(m_b))
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    return max(0.0, float(np.sum((m_a - m_b) ** 2) + trace_a + trace_b - 2 * cross))


def nearest_distances(x: Array, train: Array) -> tuple[Array, Array]:
    """Euclidean distance of each x to its nearest row of train, and that row's index.

    x: (N, ...), train: (M, ...), M >= 1, flattened to rows.   Returns (N,) float64, (N,) int.

    Goes block by block, so that memory is bounded whatever N and M; of equally near rows the first wins.
    """
    x, train = (np.reshape(z, (len(z), int(np.prod(np.shape(z)[1:])))) for z in (x, train))
    if not len(train) or x.shape[1] != train.shape[1]:
        raise ValueError(f"train: wanted rows (M, {x.shape[1]}) with M >= 1, got {train.shape}")
    check_finite(x=x, train=train)
    best, index = np.full(len(x), np.inf), np.zeros(len(x), dtype=np.intp)
    for i in _blocks(len(x), x.shape[1]):
        for j in _blocks(len(train), train.shape[1]):
            a, b = x[i].astype(np.float64), train[j].astype(np.float64)
            squares = np.sum(b * b, axis=1) - 2 * a @ b.T  # less |a|², which changes no order
            nearest = squares.argmin(axis=1)
            smallest = squares[np.arange(len(a)), nearest]
            closer = smallest < best[i]
            best[i] = np.where(closer, smallest, best[i])
            index[i] = np.where(closer, j.start + nearest, index[i])
    # From the difference itself: expanding the square would give a copy a distance of 1e-7, not 0.
    pairs = ((x[i].astype(np.float64), train[index[i]]) for i in _blocks(len(x), x.shape[1]))
    distances = [np.linalg.norm(a - b, axis=1) for a, b in pairs]
    return np.concatenate([np.zeros(0), *distances]), index


def check_images(name: str, images: Array) -> Array:
    """Images as float64 rows (N, HWC); ValueError unless (N, H, W, C), N >= 1, finite and in [-1, 1]."""
    check_float(**{name: images})
    if images.ndim != 4 or not images.size:
        raise ValueError(f"{name}: wanted (N, H, W, C), not empty, got {images.shape}")
    check_finite(**{name: images})
    low, high = images.min(), images.max()
    if low < -1 or high > 1:
        raise ValueError(f"{name}: wanted values in [-1, 1], clipped if need be, got {low}..{high}")
    rows: Array = images.reshape(len(images), -1).astype(np.float64)
    return rows


def _root(name: str, cov: Array, d: int) -> tuple[Array, float]:
    """The symmetric root of a covariance, and the covariance's trace."""
    cov = np.asarray(cov, dtype=np.float64)
    if cov.shape != (d, d):
        raise ValueError(f"{name}: wanted ({d}, {d}), got {cov.shape}")
    check_finite(**{name: cov})
    largest = np.abs(cov).max(initial=0.0)
    if np.abs(cov - cov.T).max(initial=0.0) > 1e-8 * largest:
        raise ValueError(f"{name}: wanted a symmetric matrix, got {np.abs(cov - cov.T).max()} off at most")
    values, vectors = np.linalg.eigh(cov)
    if values.min(initial=0.0) < -1e-8 * largest:
        raise ValueError(f"{name}: wanted eigenvalues >= 0, got {values[0]}")
    # In the null space of a singular covariance eigenvalues are rounding, of either sign.
    values[values < d * np.finfo(np.float64).eps * values.max(initial=0.0)] = 0.0
    return (vectors * np.sqrt(values)) @ vectors.T, float(np.trace(cov))


def _blocks(n: int, d: int) -> Iterator[slice]:
    """Slices that cover range(n); rows of d numbers, and the square of distances, stay within BLOCK."""
    rows = max(1, min(int(BLOCK**0.5), BLOCK // max(d, 1)))
    return (slice(i, min(i + rows, n)) for i in range(0, n, rows))

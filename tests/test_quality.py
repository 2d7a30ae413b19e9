"""Quality: the measures against closed forms, the verdicts against samplers whose faults are known."""

import json
import sys

import numpy as np
import pytest

from ddpm_ref.experiments import quality
from ddpm_ref.experiments.quality import (
    compare,
    frechet_distance,
    measure,
    train_classifier,
)

# ---- digits: 1077 to train on, 360 held out, and 360 more that stand for samples of a perfect model


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images, labels = (x[order] / 8 - 1).reshape(-1, 8, 8, 1), y[order]
    parts = {"train": np.s_[:1077], "held_out": np.s_[1077:1437], "fresh": np.s_[1437:]}
    return {name: (images[part], labels[part]) for name, part in parts.items()}


@pytest.fixture(scope="module")
def classifier(digits):
    return train_classifier(*digits["train"])


@pytest.fixture(scope="module")
def verdicts(digits, classifier):
    """The last words of the verdicts that samples fail."""
    held_out = measure(digits["held_out"][0], digits["train"][0], classifier)

    def failed(samples):
        comparison = quality.Comparison(measure(samples, digits["train"][0], classifier), held_out)
        return [v.name.split()[-1] for v in comparison.verdicts if not v.ok]

    return failed


def test_the_classifier_is_right_and_knows_how_often(digits, classifier):
    images, labels = (np.concatenate(pair) for pair in zip(digits["held_out"], digits["fresh"], strict=True))
    p = classifier.predict_proba(images.reshape(len(images), -1))
    accuracy = (classifier.classes_[p.argmax(axis=1)] == labels).mean()
    assert accuracy >= 0.97
    assert abs(p.max(axis=1).mean() - accuracy) < 0.04
    assert -np.log(p[np.arange(len(p)), labels]).mean() < 0.08


def test_the_classifier_doubts_noise_and_doubles(digits, classifier):
    x = digits["held_out"][0].reshape(360, -1)
    noise = np.random.default_rng(0).uniform(-1, 1, x.shape)
    assert classifier.predict_proba(noise).max(axis=1).mean() < 0.5
    assert classifier.predict_proba((x + np.roll(x, 1, axis=0)) / 2).max(axis=1).mean() < 0.8


def test_the_seed_decides_the_classifier(digits):
    images, labels = (part[:150] for part in digits["train"])
    x = digits["held_out"][0].reshape(360, -1)
    first, again, other = (train_classifier(images, labels, seed).predict_proba(x) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_report_says_what_was_measured(digits, classifier):
    (images, labels), train = digits["held_out"], digits["train"][0][:300]
    report = measure(images, train, classifier)
    assert report.n == 360
    assert report.class_share == pytest.approx(np.bincount(labels) / 360, abs=0.02)
    assert report.class_share.sum() == pytest.approx(1)
    assert report.frechet == frechet_distance(images.reshape(360, -1), train.reshape(300, -1))
    pairs = np.linalg.norm(images.reshape(360, 1, -1) - train.reshape(1, 300, -1), axis=2)
    assert report.nearest_median == pytest.approx(np.median(pairs.min(axis=1)))


def test_classes_never_seen_have_share_zero(digits, classifier):
    images, labels = digits["train"]
    report = measure(images[labels == 3], images, classifier)
    assert report.class_share == pytest.approx(np.eye(10)[3], abs=0.005)


def test_fresh_digits_pass(digits, verdicts):
    assert verdicts(digits["fresh"][0]) == []


def test_compare_takes_both_measures_against_the_training_images(digits, classifier):
    samples, held_out, train = digits["fresh"][0], digits["held_out"][0], digits["train"][0]
    comparison = compare(samples, held_out, *digits["train"])
    assert comparison.passed
    data = comparison.as_dict()
    assert data["samples"] == measure(samples, train, classifier).as_dict()
    assert data["held_out"] == measure(held_out, train, classifier).as_dict()


def test_memorised_training_digits_fail_by_their_nearness_alone(digits, verdicts):
    train = digits["train"][0][:360]
    assert verdicts(train) == ["distance"]
    blurred = train + 0.1 * np.random.default_rng(0).standard_normal(train.shape)
    assert verdicts(np.clip(blurred, -1, 1)) == ["distance"]


def test_noise_fails_by_all_but_its_nearness(digits, verdicts):
    noise = np.random.default_rng(0).uniform(-1, 1, digits["held_out"][0].shape)
    assert verdicts(noise) == ["share", "probability", "training"]


def test_a_gaussian_with_the_right_moments_is_not_recognised(digits, verdicts):
    train = digits["train"][0].reshape(1077, -1)
    drawn = np.random.default_rng(0).multivariate_normal(train.mean(0), np.cov(train.T), 360, method="eigh")
    assert "probability" in verdicts(drawn.reshape(-1, 8, 8, 1).clip(-1, 1))


def test_a_model_that_forgot_a_class_fails_by_its_share(digits, verdicts):
    images, labels = digits["fresh"]
    fours = images[labels == 4]
    forgetful = images.copy()
    forgetful[labels == 3] = fours[np.arange((labels == 3).sum()) % len(fours)]
    assert "share" in verdicts(forgetful)


def test_faint_digits_fail_by_their_moments(digits, verdicts):
    faint = (digits["fresh"][0] + 1) * 0.8 - 1
    assert "training" in verdicts(faint)


# ---- the comparison as text and as data


def report(**changes) -> quality.QualityReport:
    fields = dict(class_share=np.full(10, 0.1), top_probability=0.9, frechet=2.0, nearest_median=1.0, n=100)
    return quality.QualityReport(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        (dict(class_share=np.array([0.04, 0.96])), True),
        (dict(class_share=np.array([0.039, 0.961])), False),
        (dict(top_probability=0.8 * 0.88), True),
        (dict(top_probability=0.8 * 0.879), False),
        (dict(frechet=2.5), True),
        (dict(frechet=2.51), False),
        (dict(frechet=float("nan")), False),
        (dict(nearest_median=0.8), True),
        (dict(nearest_median=0.79), False),
    ],
)
def test_bounds_hold_to_the_last_value_that_meets_them(changes, ok):
    comparison = quality.Comparison(report(**changes), report(top_probability=0.8))
    assert comparison.passed is ok
    assert sum(not verdict.ok for verdict in comparison.verdicts) == (not ok)


def test_the_table_aligns_and_says_what_failed():
    heading, *lines, last = quality.Comparison(report(frechet=2.6), report()).table().splitlines()
    columns = [heading.index(word) for word in ("bound", "ok")]
    assert heading.startswith("100 images each")
    assert len(lines) == 4
    assert all(line[i - 1] == " " and line[i] != " " for line in lines for i in columns)
    assert [line.split()[-1] for line in lines] == ["yes", "yes", "NO", "yes"]
    assert lines[2].split()[-7:] == ["2.6000", "2.0000", "1.30", "ratio", "<=", "1.25", "NO"]
    assert last == "FAILED"


def test_the_comparison_goes_through_json():
    comparison = quality.Comparison(report(), report(class_share=np.r_[0.0, 1.0]))
    data = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert data["passed"] is True
    assert data["samples"]["class_share"] == [0.1] * 10
    assert [v["ok"] for v in data["verdicts"]] == [True] * 4
    assert data["verdicts"][0]["ratio"] is None, "0 among the held-out has no ratio"
    assert data["verdicts"][2]["bound"] == 2.5
    assert " - " in comparison.table().splitlines()[1]


# ---- errors


def test_samples_must_be_as_many_as_the_held_out(digits):
    held_out = digits["held_out"][0]
    with pytest.raises(ValueError, match="samples: wanted as many as held_out, 360, got 359"):
        compare(held_out[:-1], held_out, *digits["train"])


def test_held_out_images_must_not_be_training_images(digits):
    train, labels = (part[:150] for part in digits["train"])
    with pytest.raises(ValueError, match="held_out: wanted images kept from training"):
        compare(digits["fresh"][0][:100], train[:100], train, labels)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), "wanted a floating array"),
        (np.zeros((2, 64)), r"wanted \(N, H, W, C\)"),
        (np.zeros((0, 8, 8, 1)), "not empty"),
        (np.full((2, 8, 8, 1), np.nan), "NaN"),
        (np.full((2, 8, 8, 1), -1.01), r"wanted values in \[-1, 1\]"),
        (np.full((2, 8, 8, 1), 255.0), r"wanted values in \[-1, 1\]"),
    ],
)
def test_what_is_not_images_is_refused_by_name(digits, classifier, bad, message):
    train, labels = digits["train"]
    with pytest.raises(ValueError, match=f"samples: .*{message}"):
        compare(bad, bad, train, labels)
    with pytest.raises(ValueError, match=f"held_out: .*{message}"):
        compare(train[:2], bad, train, labels)
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        measure(bad, train, classifier)
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        train_classifier(bad, labels)


def test_images_must_have_the_shape_of_the_training_images(digits, classifier):
    with pytest.raises(ValueError, match=r"images: wanted images of \(8, 8, 1\)"):
        measure(np.zeros((2, 4, 16, 1)), digits["train"][0], classifier)


def test_labels_must_be_one_per_image_and_classes_large_enough(digits):
    images, labels = (part[:50] for part in digits["train"])
    for bad in (labels[:-1], labels[:, None], np.zeros(50, int), np.r_[np.zeros(46, int), np.ones(4, int)]):
        with pytest.raises(ValueError, match="labels: wanted"):
            train_classifier(images, bad)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ImportError, match=r'pip install "ddpm_ref\[demo\]"'):
        train_classifier(np.zeros((20, 2, 2, 1)), np.arange(20) % 2)

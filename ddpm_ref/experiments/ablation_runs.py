"""One run of an ablation in its folder: trained, drawn from, judged and rated, each part written once and kept.

run.json, log.csv, checkpoint-*.safetensors   an ordinary run's folder (files/run.py), from which training resumes; of
                    a training that is over only the last checkpoint, whenever it was stopped on the way
diverged.json       {"step", "message"}, if training met a loss or gradient that is not finite; the checkpoint is then
                    that of the step before, and what follows is made from it
samples.npz, .png   as many images as were held out, by Algorithm 2: grey levels 0…255, which are what is judged
quality.json        what the judge found in them        likelihood.json   the bound on training and held-out images
inception.npz       the user's: Inception's features of samples.npz
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.dataset_likelihood import dataset_bound, evaluations
from ddpm_ref.experiments import quality
from ddpm_ref.experiments.ablation_cells import Cell, Setup
from ddpm_ref.experiments.features import (
    FeatureNetwork,
    Manifold,
    feature_space,
    frechet_of_features,
    manifold,
    precision_recall,
)
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.files import run as runs
from ddpm_ref.files.atomic import sweep
from ddpm_ref.files.checkpoint import keep_last, list_checkpoints, load_checkpoint
from ddpm_ref.files.data import ImageData, load_data
from ddpm_ref.gallery import save_samples
from ddpm_ref.likelihood import bits_per_dim
from ddpm_ref.sampling import batches, generate_steps
from ddpm_ref.train import Diverged, StepReport, Trainer

COMPARED = 10_000  # training images at most whose moments and features samples are compared with
SAVE_EVERY = 1000
BATCH = 200  # images at a time in the likelihood

Advance = Callable[[int, str], object]
"""advance(passes, what): so many more images have gone through a network, a step of training counting thrice."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the training, which is saved: the same call goes on with it."""


@dataclass(frozen=True, eq=False)
class Judge:
    """What samples are judged by, the same for all runs: two classifiers of the training images, and these themselves.

    classifier: gives class shares and top-class probabilities.   network: gives the features.
    Moments and features are those of the first COMPARED images; for the nearest, all are looked at, so many at a time.
    """

    train: ImageData
    classifier: quality.Classifier
    network: FeatureNetwork

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """Mean and covariance of the training images' pixels."""
        return quality.moments("train", quality.check_images("train", self._images(0)))

    @cached_property
    def manifold(self) -> Manifold:
        """Of the training images' features."""
        return manifold(self.network(self._images(0)))

    def _images(self, first: int) -> Array:
        """COMPARED training images, or as many as there are, from this one on; (M, H, W, C) float64."""
        return self.train.x_0(slice(first, first + COMPARED), np.float64)

    def __call__(self, images: Array) -> dict[str, Any]:
        """The quality of images (N, H, W, C) as plain numbers."""
        parts = map(self._images, range(0, len(self.train), COMPARED))
        report = quality.report(images, parts, self.classifier, self.moments)
        features = self.network(images)
        precision, recall = precision_recall(self.manifold, features)
        return {
            "frechet_features": frechet_of_features(features, self.manifold.points),
            "precision": precision,
            "recall": recall,
            **report.as_dict(),
            "smallest_class_share": float(report.class_share.min()),
        }


def new_judge(train: ImageData) -> Judge:
    """The judge of samples of a model of these images, which have labels. Its seeds are fixed: 0."""
    some = train.take(slice(quality.CLASSIFIED))
    classifier = quality.train_classifier(some.x_0(dtype=np.float64), some.labels)
    return Judge(train, classifier, feature_space(train))


# --- how much there is to do -----------------------------------------------------------------------------------------


def work(setup: Setup, seed: int) -> dict[str, int]:
    """Passes of an image through a network that the parts of a run take; a step of training counts as three."""
    T, n = setup.schedule.T, len(setup.held_out)
    rated = sum(evaluations(T, len(part), setup.every, seed=seed) for part in (setup.train, setup.held_out))
    return {"train": 3 * setup.training.batch * setup.steps, "draw": T * n, "rate": rated}


def done(setup: Setup, seed: int, folder: Path) -> int:
    """How many of them a folder has behind it."""
    passes = work(setup, seed)
    found = list_checkpoints(folder)
    step = int(found[-1].stem.partition("-")[2]) if found else 0
    trained = passes["train"] if (folder / "diverged.json").exists() else 3 * setup.training.batch * step
    drawn = passes["draw"] if (folder / "quality.json").exists() or (folder / "samples.npz").exists() else 0
    return trained + drawn + (passes["rate"] if (folder / "likelihood.json").exists() else 0)


# --- the parts -------------------------------------------------------------------------------------------------------


def train(setup: Setup, cell: Cell, seed: int, folder: Path, backend: Backend, advance: Advance) -> None:
    """Train to the last step, going on from the folder's newest checkpoint; a divergence is written down, not raised.

    Raises Stopped if a signal came first.
    """
    if (folder / "diverged.json").exists():
        keep_last(folder, 1)
        return
    state = load_checkpoint(folder).state if list_checkpoints(folder) else None
    trainer = Trainer(setup.net(cell), setup.schedule, setup.train, setup.settings(cell, seed), backend, state=state)
    settings = runs.RunSettings(setup.steps, SAVE_EVERY)
    if not (folder / "run.json").exists():
        runs.write_json(folder / "run.json", runs.describe(**runs.run_facts(trainer, setup.source, settings)))
    passes = 3 * setup.training.batch

    def one_more(_: StepReport) -> None:
        advance(passes, "training")

    try:
        stopped = runs.run_training(trainer, setup.source, folder, settings, progress=one_more)
    except Diverged as error:
        runs.save(trainer, setup.source, folder)
        runs.write_json(folder / "diverged.json", {"step": trainer.state.step, "message": str(error)})
        keep_last(folder, 1)
        advance(passes * (setup.steps - trainer.state.step), "diverged")
        return
    if stopped and trainer.state.step < setup.steps:
        raise Stopped(f"stopped by {stopped} at step {trainer.state.step:,} of {folder}, and saved")
    keep_last(folder, 1)


def subject_of(setup: Setup, cell: Cell, folder: Path, backend: Backend) -> Subject:
    """The trained network of a run's folder, as experiments take it."""
    how = setup.how(cell)
    return Subject(load_checkpoint(folder), backend, setup.train, setup.held_out, setup.weights, how)


def draw(subject: Subject, seed: int, batch: int, advance: Advance) -> Array | None:
    """As many samples as held-out images, (N, H, W, C) in [-1, 1]; None if any is not finite."""
    count = len(subject.held_out)  # type: ignore[arg-type]
    images = []
    for samples in batches(count, batch):
        steps = generate_steps(
            subject.checkpoint.net, subject.params, subject.schedule, samples, subject.shape,
            seed=seed, backend=subject.backend, **subject.how,
        )  # fmt: skip
        try:
            for t, x_t, _ in steps:  # noqa: B007
                if t:
                    advance(len(samples), "drawing")
        except ValueError as error:
            if not str(error).startswith("sample:"):  # the one complaint that is left to the end
                raise
            return None
        images.append(subject.backend.to_host(x_t))
    return np.clip(np.concatenate(images), -1, 1)


def rate(subject: Subject, seed: int, every: int, advance: Advance) -> dict[str, float | None]:
    """Bits per dimension on training and held-out images, with the standard error of each; null where not finite."""
    found: dict[str, float] = {}
    how = {name: subject.how[name] for name in ("predicts", "var", "clip")}
    for name, data in (("train", subject.train), ("held_out", subject.held_out)):
        assert data is not None
        bound = dataset_bound(
            subject.schedule, subject.model, data, seed=seed, every=every, batch=BATCH, dtype=subject.model.dtype,
            progress=lambda n: advance(n, "likelihood"), **how,
        )  # fmt: skip
        parts = {"": bound.total, "_rate": bound.rate, "_distortion": bound.distortion}
        found |= {f"bits_{name}{part}": float(bits_per_dim(values.mean())) for part, values in parts.items()}
        found[f"bits_{name}_se"] = float(bits_per_dim(bound.standard_error(bound.total)))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def finish(
    setup: Setup, cell: Cell, seed: int, folder: Path, backend: Backend, judge: Judge, advance: Advance, batch: int
) -> None:
    """Everything that the folder does not have yet, in order."""
    quality_path, likelihood_path = folder / "quality.json", folder / "likelihood.json"
    runs.open_folder(folder, resume=True)
    sweep(folder)
    train(setup, cell, seed, folder, backend, advance)
    subject = subject_of(setup, cell, folder, backend)
    # A network that went astray overflows on the way; what is not finite is found in what comes out.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if not quality_path.exists():
            if not (folder / "samples.npz").exists():
                images = draw(subject, seed, batch, advance)
                if images is None:
                    runs.write_json(quality_path, {"finite": False})
                else:
                    save_samples(folder, images)
            if not quality_path.exists():
                runs.write_json(quality_path, {"finite": True, **judge(saved_samples(folder))})
        if not likelihood_path.exists():
            runs.write_json(likelihood_path, rate(subject, seed, setup.every, advance))


def saved_samples(folder: Path) -> Array:
    """The images of samples.npz, (N, H, W, C) float64 in [-1, 1]."""
    return load_data(folder / "samples.npz").x_0(dtype=np.float64)

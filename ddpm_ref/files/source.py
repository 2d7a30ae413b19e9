"""Which images a run is trained on, described so that a later run finds the very same ones."""

from dataclasses import dataclass
from pathlib import Path

from ddpm_ref.files.data import ImageData, load_data

HELD_OUT = {"digits": 297}  # of its 1,797; other data hold out a tenth
# Constant, so that every run on the same data has the same held-out images. Of the digits it holds out a typical
# part: their Fréchet distance to the others is 0.54, the median over seeds; seed 0's 0.75 would flatter the samples.
SPLIT_SEED = 3


@dataclass(frozen=True)
class DataSource:
    """Which images a run was trained on, and how they were split; `fingerprint` notices a changed file.

    fingerprint: of all images, before the split.  shape: (H, W, C) as trained on, after padding.
    """

    source: str
    shape: tuple[int, int, int]
    levels: int
    held_out: int
    split_seed: int
    fingerprint: str
    size: int | None = None
    padded: int | None = None


def open_source(
    source: str,
    *,
    size: int | None = None,
    levels: int | None = None,
    held_out: int | None = None,
    pad: int | None = None,
    smallest: int = 0,
) -> tuple[DataSource, ImageData, ImageData | None]:
    """Load images for a new run: their description, the training part, the held-out part (None if 0).

    source, size, levels: as `load_data`.  held_out: how many to keep from training.
    pad: to this size, or, where that is None, to `smallest` if they are smaller.
    """
    images = load_data(source, size=size, levels=levels)
    if pad is None and max(images.shape[:2]) < smallest:
        pad = smallest
    held_out = HELD_OUT.get(source, len(images) // 10) if held_out is None else held_out
    return _split(images, source, held_out, SPLIT_SEED, size, pad)


def reopen_source(source: DataSource) -> tuple[DataSource, ImageData, ImageData | None]:
    """The images of an earlier run; ValueError if they are not the same any more."""
    images = load_data(source.source, size=source.size, levels=source.levels)
    again = _split(images, source.source, source.held_out, source.split_seed, source.size, source.padded)
    if again[0] != source:
        raise ValueError(f"data: {source.source} is not what it was when this run began (its images have changed)")
    return again


def _split(
    images: ImageData, source: str, held_out: int, seed: int, size: int | None, pad: int | None
) -> tuple[DataSource, ImageData, ImageData | None]:
    fingerprint = images.fingerprint()
    images = images.padded(pad) if pad is not None else images
    train, held = images.split(held_out, seed) if held_out else (images, None)
    # An absolute path, so that the run can be resumed from another folder; links stay, since names tell formats apart.
    where = source if source == "digits" else str(Path(source).absolute())
    facts = DataSource(where, images.shape, images.levels, held_out, seed, fingerprint, size, pad)
    return facts, train, held

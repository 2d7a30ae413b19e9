"""Image data from local files, and the way between grey levels 0..levels-1 and images in [-1, 1] (§3.3).

The paper: "image data consists of integers in {0, 1, ..., 255} scaled linearly to [-1, 1]". Data stay
grey levels here, a quarter of the memory, until x_0 is asked for. Nothing is downloaded; what a file
may hold and why a bad one can do no harm is in formats.py.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ddpm_ref.checks import Array, check_finite, check_float, check_int
from ddpm_ref.extras import import_extra
from ddpm_ref.files import formats

Index = Any  # whatever indexes one axis of an array: an integer, a slice, integers, a mask
DIGITS_LEVELS = 17  # scikit-learn's digits count the dark pixels, 0..16, of each 4x4 block
ACCEPTED = (
    'accepted are "digits", a .npy or .npz array, an MNIST-style IDX file (plain or .gz), a CIFAR-10 .bin '
    "file, a folder of those, or a folder of PNG or JPEG pictures"
)


def to_levels(x: Array, levels: int) -> Array:
    """The nearest grey level of each value, the inverse of ImageData.x_0.

        k = round((x + 1) / 2 · (levels - 1)),  x clipped to [-1, 1]

    x: (...) float.  levels: 2..256.  Returns (...) uint8 in 0..levels-1.
    Raises ValueError if x is not floating or holds a NaN.

    Truncating instead would darken every picture by half a level on average, and lose most round trips.
    """
    check_float(x=x)
    check_int("levels", levels, 2, 256)
    k = np.rint((np.clip(np.asarray(x, np.float64), -1, 1) + 1) / 2 * (levels - 1))
    if np.isnan(k).any():
        first = tuple(map(int, np.argwhere(np.isnan(k))[0]))
        raise ValueError(f"x: wanted numbers, got {int(np.isnan(k).sum())} NaN of {k.size}, first at {first}")
    return k.astype(np.uint8)


def to_bytes(x: Array) -> Array:
    """Pictures as they are shown and saved: x (...) float in [-1, 1] to (...) uint8 in 0..255, rounded."""
    return to_levels(x, 256)


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images with what is needed to scale, split and recognise them.

    pixels: (N, H, W, C), uint8 grey levels 0..levels-1, or float32 or float64 in [-1, 1].
    levels: number of grey levels, 2..256 for uint8, at least 2 for floats.
    labels: (N,) integers, or None.  name: for people.  source: where the images came from.
    Raises ValueError if pixels, levels and labels are not like that, NaN included.
    """

    pixels: Array
    levels: int
    name: str
    labels: Array | None = None
    source: str = ""

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if not isinstance(pixels, np.ndarray) or pixels.dtype not in formats.IMAGE_DTYPES:
            got = getattr(pixels, "dtype", type(pixels).__name__)
            raise ValueError(f"pixels: wanted an array of uint8, float32 or float64, got {got}")
        if pixels.ndim != 4 or pixels.size == 0:
            raise ValueError(f"pixels: wanted shape (N, H, W, C), every axis >= 1, got {pixels.shape}")
        check_int("levels", self.levels, 2, 256 if pixels.dtype == np.uint8 else None)
        self._check_range()
        if labels is not None:
            shape, dtype = np.shape(labels), getattr(labels, "dtype", np.dtype(object))
            if shape != (len(pixels),) or dtype.kind not in "iu":
                raise ValueError(f"labels: wanted {len(pixels)} integers, got {dtype} of shape {shape}")

    def _check_range(self) -> None:
        low, high = self.pixels.min(), self.pixels.max()
        if self.pixels.dtype == np.uint8:
            if high >= self.levels:
                raise ValueError(f"pixels: wanted grey levels 0..{self.levels - 1}, got {low}..{high}")
        elif not (low >= -1 and high <= 1):  # a NaN fails this too
            check_finite(pixels=self.pixels)
            raise ValueError(f"pixels: wanted floats in [-1, 1], got {low}..{high}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        _, h, w, c = self.pixels.shape
        return h, w, c

    def _rows(self, index: Index) -> Array:
        """The index as a slice or an integer array, so that one image keeps its N axis."""
        return index if isinstance(index, slice) else np.atleast_1d(np.arange(len(self))[index])

    def x_0(self, index: Index = slice(None), dtype: DTypeLike = np.float32) -> Array:
        """Images as the process takes them, 2k / (levels - 1) - 1 for grey level k.

        index: any index of the N axis.  Returns a new array (N, H, W, C), computed in float64, then cast.
        """
        check_float(dtype=np.empty(0, dtype))
        rows = self.pixels[self._rows(index)]
        if rows.dtype != np.uint8:
            return rows.astype(dtype)
        scale = 2 * np.arange(self.levels) / (self.levels - 1) - 1
        return scale.astype(dtype)[rows]

    def take(self, index: Index, name: str | None = None) -> "ImageData":
        """The images at an index of the N axis, with their labels."""
        rows = self._rows(index)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], labels=labels, name=name or self.name)

    def split(self, held_out: int, seed: int = 0) -> tuple["ImageData", "ImageData"]:
        """Training and held-out images: the first held_out of a permutation that seed and N fix for good.

        held_out: 1..N-1.  seed: 0..2⁶⁴-1.  The permutation sorts the raw words of NumPy's Philox, whose
        stream is fixed, unlike the methods of Generator. A larger held_out only adds images.
        """
        check_int("held_out", held_out, 1, len(self) - 1)
        check_int("seed", seed, 0, 2**64 - 1)
        order = np.argsort(np.random.Philox(key=seed).random_raw(len(self)), kind="stable")
        train, held = order[held_out:], order[:held_out]
        return self.take(train, f"{self.name}/train"), self.take(held, f"{self.name}/held-out")

    def padded(self, size: int) -> "ImageData":
        """Each image in the middle of a size x size square of the lowest grey level (-1 for floats).

        size: at least H and W; where the margin is odd, its larger part is below and to the right.
        """
        h, w, _ = self.shape
        check_int("size", size, max(h, w))
        top, left = (size - h) // 2, (size - w) // 2
        margins = ((0, 0), (top, size - h - top), (left, size - w - left), (0, 0))
        lowest = 0 if self.pixels.dtype == np.uint8 else -1
        return replace(self, pixels=np.pad(self.pixels, margins, constant_values=lowest))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of shape, dtype, levels and pixels, so that a resumed run notices changed data."""
        little = self.pixels.dtype.newbyteorder("<")
        pixels = np.ascontiguousarray(self.pixels, little)  # no copy, except on a big-endian machine
        digest = hashlib.sha256(f"{pixels.shape} {self.pixels.dtype.name} {self.levels}".encode())
        digest.update(pixels.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def load_data(
    source: str | Path, *, size: int | None = None, levels: int | None = None, max_bytes: int = 8 * 2**30
) -> ImageData:
    """Images from "digits" (scikit-learn's, 1797 of 8x8) or a local file or folder, told apart by contents.

      .npy, .npz       (N, H, W) or (N, H, W, C), uint8 or float in [-1, 1]; in an archive the only array
                       or the one named images, x or arr_0; labels or y may stand beside it
      IDX, IDX .gz     MNIST's form; labels from the sibling file with the conventional name
      CIFAR-10 binary  one .bin file, or the folder: its data_batch files, else its test_batch
      PNG, JPEG        a folder, searched through; central squares, resized to size

    size: H = W of the result; only pictures are resized to it.  levels: grey levels of the data, 256 if None.
    max_bytes: the largest array to load, in bytes.
    Raises ValueError beginning with the path, whatever is wrong with it; ImportError naming the extra if
    scikit-learn or Pillow is needed and absent. A folder called digits is Path("digits") or "./digits".
    """
    check_int("max_bytes", max_bytes, 1)
    if size is not None:
        check_int("size", size, 1)
    path = Path(source)
    if source == "digits":
        pixels, labels = _digits()
        levels = DIGITS_LEVELS if levels is None else levels
    elif path.is_dir():
        pixels, labels = _read_folder(path, size, max_bytes)
    else:
        pixels, labels = _read_file(path, max_bytes)

    with formats.naming(path):
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if size is not None and pixels.shape[1:3] != (size, size):
            raise ValueError(f"size: got {size}, images are {pixels.shape[1:3]}; only pictures are resized")
        levels = 256 if levels is None else levels
        return ImageData(pixels, levels, path.absolute().name, labels, str(source))


def _digits() -> tuple[Array, Array]:
    digits = import_extra("sklearn.datasets", "the digits data").load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def _read_folder(folder: Path, size: int | None, max_bytes: int) -> tuple[Array, Array | None]:
    batches = sorted(folder.glob("data_batch_*.bin")) or sorted(folder.glob("test_batch.bin"))
    if batches:
        return formats.read_cifar(batches, max_bytes)
    return formats.read_pictures(folder, size, max_bytes), None


def _read_file(path: Path, max_bytes: int) -> tuple[Array, Array | None]:
    """By magic rather than by name, except CIFAR's, which has none: its first bytes may look like any."""
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ValueError(f"{path}: {what}; {ACCEPTED}")
    if path.suffix == ".bin":
        return formats.read_cifar([path], max_bytes)
    start = formats.first_bytes(path)
    if start.startswith(formats.NPY_MAGIC):
        return formats.read_npy_file(path, max_bytes), None
    if start.startswith(formats.ZIP_MAGIC):
        return formats.read_npz(path, max_bytes)
    if start.startswith((formats.GZIP_MAGIC, formats.IDX_MAGIC)):
        images, labels = formats.read_idx(path, max_bytes), formats.idx_labels_path(path)
        return images, None if labels is None else formats.read_idx(labels, max_bytes, len(images))
    raise ValueError(f"{path}: {f'begins with {start!r}' if start else 'is empty'}; {ACCEPTED}")

"""Image arrays out of local files in bounded memory: .npy, .npz, IDX, CIFAR-10 binary, PNG and JPEG.

Any of these files may be damaged, mislabelled or made to do harm. Three rules keep that harmless:

  1. what a header promises is held against the size of the file, the archive's directory and
     max_bytes (of the decoded array) before anything is allocated;
  2. streams are read in chunks and never past the promise, so a compressed file gets at most
     what its header said;
  3. nothing is unpickled, executed, extracted or written.

Whatever is wrong with a file's contents becomes one ValueError that begins with its path (`naming`).
Functions that take a stream leave the path to their caller.
"""

import errno
import gzip
import io
import math
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy

from ddpm_ref.checks import Array
from ddpm_ref.extras import import_extra

CHUNK = 2**20
NPY_MAGIC, ZIP_MAGIC, GZIP_MAGIC, IDX_MAGIC = b"\x93NUMPY", b"PK", b"\x1f\x8b", b"\0\0"
NPY_HEADER = 1024  # an honest one takes 118 bytes; NumPy evaluates it as a literal, which must stay small
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes
IMAGE_DTYPES = tuple(np.dtype(name) for name in ("uint8", "float32", "float64"))
PICTURES = (".png", ".jpg", ".jpeg")
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")

Shape = tuple[int, ...]
CheckHeader = Callable[[Shape, Any], None]


class Readable(Protocol):
    """What a file, a gzip file and an archive's member have in common."""

    def read(self, size: int, /) -> bytes: ...


# --- what every reader shares ---------------------------------------------------------------------


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Report whatever goes wrong with the contents of path as one ValueError that begins with path.

    Every exception is meant: given garbage, zipfile, zlib, NumPy and Pillow between them raise most
    of the built-in ones. MemoryError and what the operating system refuses (permissions, a failing
    disk) pass unchanged, except EINVAL, which a forged offset brings about.
    """
    try:
        yield
    except MemoryError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{path}: unreadable, {type(error).__name__}: {error}") from error


def first_bytes(path: Path, count: int = 8) -> bytes:
    """The first bytes of a file, fewer where it ends before."""
    with path.open("rb") as stream:
        return stream.read(count)


def promised_bytes(shape: Shape, itemsize: int, max_bytes: int) -> int:
    """Bytes that an array of this shape takes; ValueError if it is empty or larger than max_bytes."""
    if min(shape) < 1:
        raise ValueError(f"promises shape {shape}, wanted every axis >= 1")
    count = math.prod(shape) * itemsize
    if count > max_bytes:
        raise ValueError(f"promises {itemsize} B x {shape}, more than max_bytes = {max_bytes}")
    return count


def read_exactly(stream: Readable, count: int, what: str) -> bytearray:
    """Read count bytes; memory grows with what arrives, not with what was promised."""
    data = bytearray()
    while len(data) < count:
        chunk = stream.read(min(CHUNK, count - len(data)))
        if not chunk:
            raise ValueError(f"truncated: {what} ends after {len(data)} of {count} bytes")
        data += chunk
    return data


def check_end(stream: Readable) -> None:
    """Nothing may follow; reaching the end also makes gzip and zipfile verify their checksums."""
    if stream.read(1):
        raise ValueError("holds more bytes than its header promises")


# --- .npy and .npz --------------------------------------------------------------------------------


def image_header(shape: Shape, dtype: Any) -> None:
    """Images are (N, H, W) or (N, H, W, C), uint8 or floating."""
    if dtype.hasobject:
        raise ValueError("holds pickled Python objects, which are never loaded")
    if dtype.newbyteorder("=") not in IMAGE_DTYPES:
        raise ValueError(f"wanted uint8 grey levels, or float32 or float64 in [-1, 1], got dtype {dtype}")
    if len(shape) not in (3, 4):
        raise ValueError(f"wanted images of shape (N, H, W) or (N, H, W, C), got {shape}")
    if len(shape) == 4 and shape[1] <= 4 < shape[3]:
        raise ValueError(f"wanted channels last, (N, H, W, C), got {shape}, which looks channels first")


def label_header(count: int) -> CheckHeader:
    """Labels are integers of shape (count,)."""

    def check(shape: Shape, dtype: Any) -> None:
        if shape != (count,) or dtype.kind not in "iu":
            raise ValueError(f"wanted integer labels of shape ({count},), got {dtype} of shape {shape}")

    return check


def read_npy_header(stream: Readable) -> tuple[Shape, bool, Any, int]:
    """Shape, Fortran order, dtype and the header's own length in bytes; a long header is not even read."""
    magic = read_exactly(stream, npy.MAGIC_LEN, "the .npy magic")
    version = npy.read_magic(io.BytesIO(magic))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}: wanted 1.0 or 2.0, later ones hold records, not images")
    old = version == (1, 0)
    form, parse = ("<H", npy.read_array_header_1_0) if old else ("<I", npy.read_array_header_2_0)
    field = read_exactly(stream, struct.calcsize(form), "the .npy header")
    (length,) = struct.unpack(form, field)
    if length > NPY_HEADER:
        raise ValueError(f".npy header of {length} bytes, wanted at most {NPY_HEADER}")
    text = read_exactly(stream, length, "the .npy header")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header from Python 2 parses, with a warning
        shape, fortran, dtype = parse(io.BytesIO(field + text))
    return tuple(map(int, shape)), fortran, dtype, len(magic) + len(field) + length


def read_npy(stream: Readable, size: int, check: CheckHeader, max_bytes: int) -> Array:
    """The one array in a stream of size bytes; check sees shape and dtype before anything is allocated."""
    shape, fortran, dtype, start = read_npy_header(stream)
    check(shape, dtype)
    count = promised_bytes(shape, dtype.itemsize, max_bytes)
    if start + count != size:
        raise ValueError(f"header promises {start + count} bytes, there are {size}")
    data = read_exactly(stream, count, "the array")
    check_end(stream)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("="))


def read_npy_file(path: Path, max_bytes: int) -> Array:
    """Images (N, H, W) or (N, H, W, C) from a .npy file."""
    with naming(path), path.open("rb") as stream:
        return read_npy(stream, path.stat().st_size, image_header, max_bytes)


class _SmallReads(io.FileIO):
    """A file that refuses large single reads: zipfile fetches an archive's whole directory with one."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > CHUNK:
            raise ValueError(f"archive directory of {size} bytes, wanted at most {CHUNK}")
        return super().read(size) or b""


def npz_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays in an archive by name; plain names, each once, stored or deflated.

    bzip2 and LZMA are refused although zipfile knows them: NumPy never writes them, and they turn
    a few kB into gigabytes, where deflate multiplies by at most 1032.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        if any(mark in name for mark in ("/", "\\", ":", "..")):
            raise ValueError(f"member {name[:80]!r} is named like a path")
        if name in members or name.removesuffix(".npy") in members:
            raise ValueError(f"member {name[:80]!r} occurs twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {name[:80]!r} is neither stored nor deflated")
        members[name.removesuffix(".npy")] = info
    return members


def choose_arrays(names: Sequence[str]) -> tuple[str, str | None]:
    """Names of the images and the labels (or None) among an archive's arrays."""
    labels = next((name for name in ("labels", "y") if name in names), None)
    others = [name for name in names if name != labels]
    known = [name for name in ("images", "x", "arr_0") if name in others]
    if not known and len(others) != 1:
        held = ", ".join(name[:40] for name in names[:20]) or "nothing"
        raise ValueError(f"wanted one array, or one named images, x or arr_0; the archive holds {held}")
    return (known or others)[0], labels


def read_npz(path: Path, max_bytes: int) -> tuple[Array, Array | None]:
    """Images and labels (or None) from a .npz archive."""
    with naming(path), _SmallReads(path) as file, zipfile.ZipFile(file) as archive:
        members = npz_members(archive)
        images, labels = choose_arrays(list(members))

        def read(name: str, check: CheckHeader) -> Array:
            with archive.open(members[name]) as stream:
                return read_npy(stream, members[name].file_size, check, max_bytes)

        pixels = read(images, image_header)
        return pixels, None if labels is None else read(labels, label_header(len(pixels)))


def read_npz_array(path: Path, name: str, check: CheckHeader, max_bytes: int) -> Array:
    """The array of this name in a .npz archive."""
    with naming(path), _SmallReads(path) as file, zipfile.ZipFile(file) as archive:
        members = npz_members(archive)
        if name not in members:
            raise ValueError(f"wanted an array named {name}; the archive holds {', '.join(members) or 'nothing'}"[:400])
        with archive.open(members[name]) as stream:
            return read_npy(stream, members[name].file_size, check, max_bytes)


# --- IDX and CIFAR-10 binary ----------------------------------------------------------------------


def read_idx(path: Path, max_bytes: int, count: int | None = None) -> Array:
    """Images (N, H, W) uint8 from an IDX file, plain or gzipped; with a count, that many labels (count,)."""
    zipped = first_bytes(path, 2) == GZIP_MAGIC
    wanted = 3 if count is None else 1
    with naming(path), gzip.open(path) if zipped else path.open("rb") as stream:
        zeros, kind, dims = struct.unpack(">HBB", read_exactly(stream, 4, "the IDX magic"))
        if zeros != 0 or kind != 8 or dims != wanted:
            what = "images (N, H, W)" if count is None else "labels (N,)"
            got = f"{zeros:04x}{kind:02x}{dims:02x}"
            raise ValueError(f"wanted an IDX file of uint8 {what}, magic 000008{wanted:02x}, got magic {got}")
        shape = struct.unpack(f">{dims}I", read_exactly(stream, 4 * dims, "the IDX header"))
        if count is not None and shape != (count,):
            raise ValueError(f"wanted {count} labels, one per image, got {shape[0]}")
        size = promised_bytes(shape, 1, max_bytes)
        there, promised = path.stat().st_size, 4 + 4 * dims + size
        if not zipped and there != promised:
            raise ValueError(f"header promises {promised} bytes, there are {there}")
        data = read_exactly(stream, size, "the array")
        check_end(stream)
    return np.frombuffer(data, np.uint8).reshape(shape)


def idx_labels_path(path: Path) -> Path | None:
    """Where MNIST keeps the labels of an image file: train-images-idx3-ubyte, train-labels-idx1-ubyte."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        return None
    plain = name.removesuffix(".gz")
    return next((p for p in map(path.with_name, (name, plain, plain + ".gz")) if p.is_file()), None)


def read_cifar(paths: Sequence[Path], max_bytes: int) -> tuple[Array, Array]:
    """Images (N, 32, 32, 3) uint8 and labels (N,) 0..9 from CIFAR-10 binary files, in their order."""
    pixels, labels = [], []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: wanted a CIFAR-10 file, got a folder or a device")
        with naming(path), path.open("rb") as stream:
            size = path.stat().st_size
            if size == 0 or size % CIFAR_RECORD:
                raise ValueError(f"wanted CIFAR-10 records of {CIFAR_RECORD} bytes, got {size} bytes")
            max_bytes -= promised_bytes((size // CIFAR_RECORD, CIFAR_RECORD), 1, max_bytes)
            data = read_exactly(stream, size, "the records")
            records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
            if records[:, 0].max() > 9:
                first = int(np.argmax(records[:, 0] > 9))
                raise ValueError(f"record {first}: wanted a label 0..9, got {records[first, 0]}")
        labels.append(records[:, 0].astype(np.int64))
        pixels.append(np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
    return np.concatenate(pixels), np.concatenate(labels)


# --- PNG and JPEG ---------------------------------------------------------------------------------


def picture_paths(folder: Path) -> list[Path]:
    """PNG and JPEG files anywhere under a folder, sorted by name, without hidden files and folders."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, f) for f in files if not f.startswith(".") and f.lower().endswith(PICTURES)]
    return sorted(path for path in found if path.is_file())


@contextmanager
def open_picture(path: Path, max_bytes: int) -> Iterator[Any]:
    """A picture with its header read and its pixels not yet; decompression bombs are errors."""
    Image = import_extra("PIL.Image", "a folder of pictures")
    with naming(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode not in GREY_MODES + COLOUR_MODES:
                raise ValueError(f"wanted 8-bit grey or colour, got mode {image.mode}")
            promised_bytes((image.height, image.width), 4, max_bytes)
            yield image


def read_pictures(folder: Path, size: int | None, max_bytes: int) -> Array:
    """Images (N, size, size, C) uint8: the central square of each picture, resized with antialiasing.

    size None: the pictures' own, if all are square and alike.  C is 1 if every picture is grey, else
    3; transparency is dropped and a camera's note on orientation ignored.
    """
    paths = picture_paths(folder)
    if not paths:
        raise ValueError(f"{folder}: holds no {', '.join(PICTURES)} file")
    heads = []
    for path in paths:
        with open_picture(path, max_bytes) as image:
            heads.append((image.size, image.mode in GREY_MODES))
            image.verify()  # a PNG's checksums and end, which decoding passes over
    width, height = heads[0][0]
    if size is None and (width != height or any(head != (width, height) for head, _ in heads)):
        raise ValueError(f"{folder}: its pictures are not all square and of one size; give size")
    side, grey = size or width, all(is_grey for _, is_grey in heads)

    with naming(folder):
        promised_bytes((len(paths), side, side, 1 if grey else 3), 1, max_bytes)
    pixels = np.empty((len(paths), side, side, 1 if grey else 3), np.uint8)
    for k, path in enumerate(paths):
        with open_picture(path, max_bytes) as image:
            pixels[k] = central_square(image.convert("L" if grey else "RGB"), side).reshape(pixels.shape[1:])
    return pixels


def central_square(image: Any, side: int) -> Array:
    """The largest square in the middle of a Pillow image, resized to (side, side)."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    lanczos = import_extra("PIL.Image", "a folder of pictures").Resampling.LANCZOS
    return np.asarray(image.crop((left, top, left + edge, top + edge)).resize((side, side), lanczos))

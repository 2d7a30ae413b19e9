"""Bad image files: each is a ValueError naming file and reason, in bounded memory, and nothing is written."""

import gzip
import io
import os
import pickle
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import (
    GIB,
    PEAK,
    ZEROS,
    WritesAFile,
    flipped,
    gzip_bomb,
    idx_bytes,
    npy_bytes,
    npy_with_header,
    npy_with_text,
    npz_with_labels,
    png_bytes,
    square_png,
    zip_bomb,
    zip_bytes,
    zip_with_a_large_directory,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref.files.data import ImageData, load_data

# --- the table: name, the files written, which of them is loaded, what the error says ---------------

PICKLE = pickle.dumps(WritesAFile())
OBJECTS = npy_bytes(np.array([[[WritesAFile()]]]))
NPY, NPZ = npy_bytes(ZEROS), zip_bytes(("images.npy", npy_bytes(ZEROS)))
NAN = np.array([0, np.nan] * 8).reshape(1, 4, 4)
BIG = f"({GIB}, 4, 4)"

SINGLE_FILES = {
    # mislabelled and empty
    "empty file": ("a.npy", b"", "is empty"),
    "text": ("a.npy", b"0 1 2\n", "begins with b'0 1 2"),
    "PNG named .npy": ("a.npy", square_png(), r"begins with b'\\x89PNG"),
    "pickle named .npy": ("a.npy", PICKLE, "begins with"),
    "pickle named .npz": ("a.npz", PICKLE, "begins with"),
    # .npy
    "magic only": ("a.npy", NPY[:6], "truncated"),
    "header cut": ("a.npy", NPY[:60], "truncated"),
    "array cut": ("a.npy", NPY[:-1], "promises 160 bytes, there are 159"),
    "bytes after the array": ("a.npy", NPY + b"x", "promises 160 bytes, there are 161"),
    "version 9": ("a.npy", flipped(NPY, 6, 8), r"version \(9, 0\)"),
    "version 3": ("a.npy", npy_bytes(ZEROS, (3, 0)), r"version \(3, 0\)"),
    "header of 4 GiB": ("a.npy", b"\x93NUMPY\2\0" + b"\xff" * 4 + b"{", "header of 4294967295 bytes"),
    "header not Python": ("a.npy", npy_with_text("{'descr': '|u1', "), "unreadable|Cannot parse"),
    "header a call": ("a.npy", npy_with_text("__import__('os').mkdir('unpickled')"), "malformed"),
    "header nested deeply": ("a.npy", npy_with_text("(" * 1000), "unreadable|Cannot parse|nested"),
    "header not a dictionary": ("a.npy", npy_with_text("[1, 2]"), "not a dictionary"),
    "huge shape": ("a.npy", npy_with_header(f"({2**31}, 28, 28)"), "more than max_bytes"),
    "shape beyond 64 bits": ("a.npy", npy_with_header(f"({2**62}, {2**62}, 4)"), "more than max_bytes"),
    "shape of 300 digits": ("a.npy", npy_with_header(f"({'9' * 300}, 4, 4)"), "more than max_bytes"),
    "shape that wraps to 32": ("a.npy", npy_with_header(f"({2**62 + 2}, 4, 4)"), "more than max_bytes"),
    "shape within max_bytes": ("a.npy", npy_with_header("(67108864, 4, 4)"), "promises .* there are"),
    "negative shape": ("a.npy", npy_with_header("(-2, -4, 4)"), "every axis >= 1"),
    "no images": ("a.npy", npy_with_header("(0, 4, 4)", body=b""), "every axis >= 1"),
    "objects": ("a.npy", OBJECTS, "never loaded"),
    "records": ("a.npy", npy_with_header("(2, 4, 4)", "[('r', '|u1')]"), "uint8 grey levels, .* got"),
    "booleans": ("a.npy", npy_bytes(ZEROS > 0), "got dtype bool"),
    "int64": ("a.npy", npy_bytes(ZEROS.astype(int)), "got dtype int64"),
    "float16": ("a.npy", npy_bytes(ZEROS.astype(np.float16)), "got dtype float16"),
    "one image": ("a.npy", npy_bytes(ZEROS[0]), r"\(N, H, W\).* got \(4, 4\)"),
    "five axes": ("a.npy", npy_bytes(ZEROS[None, None]), r"got \(1, 1, 2, 4, 4\)"),
    "channels first": ("a.npy", npy_bytes(np.zeros((2, 3, 8, 8), np.uint8)), "channels first"),
    "NaN": ("a.npy", npy_bytes(NAN), r"pixels: 8 of 16 .*first at \(0, 0, 1, 0\)"),
    "floats in 0..255": ("a.npy", npy_bytes(ZEROS + 255.0), r"pixels: wanted floats in \[-1, 1\]"),
    # .npz
    "zip cut": ("a.npz", NPZ[:-30], "BadZipFile"),
    "zip checksum": ("a.npz", flipped(NPZ, NPZ.index(b"PK\1\2") + 16), "Bad CRC"),
    "empty archive": ("a.npz", zip_bytes(), "holds nothing"),
    "only labels": ("a.npz", zip_bytes(("labels.npy", npy_bytes([1]))), "holds labels"),
    "member not an array": ("a.npz", zip_bytes(("images.npy", PICKLE)), "magic|truncated"),
    "objects in an archive": ("a.npz", zip_bytes(("x.npy", OBJECTS)), "never loaded"),
    "path upwards": ("a.npz", zip_bytes(("../images.npy", NPY)), "named like a path"),
    "absolute path": ("a.npz", zip_bytes(("/tmp/images.npy", NPY)), "named like a path"),
    "Windows path": ("a.npz", zip_bytes(("c:\\images.npy", NPY)), "named like a path"),
    "bzip2": ("a.npz", zip_bytes(("x.npy", NPY), compression=zipfile.ZIP_BZIP2), "nor deflated"),
    "LZMA": ("a.npz", zip_bytes(("x.npy", NPY), compression=zipfile.ZIP_LZMA), "nor deflated"),
    "labels too few": ("a.npz", npz_with_labels(npy_bytes([1])), r"shape \(2,\).* \(1,\)"),
    "labels floating": ("a.npz", npz_with_labels(npy_bytes([1.0, 2])), "integer labels"),
    "huge labels": ("a.npz", npz_with_labels(npy_with_header(f"({GIB},)")), "labels of shape"),
    "zip bomb, honest": ("a.npz", zip_bomb(npy_with_header(BIG, body=b""), 2**32 - 1), "max_bytes"),
    "zip bomb after an array": ("a.npz", zip_bomb(NPY, GIB + len(NPY)), "promises 160 .* are 1073741984"),
    "zip bomb, size forged": ("a.npz", zip_bomb(NPY, len(NPY)), "BadZipFile: Bad CRC"),
    "zip bomb of names": ("a.npz", zip_with_a_large_directory(), "archive directory of 1880000 bytes"),
    "zip method unknown": ("a.npz", zip_bomb(NPY, len(NPY), method=93), "nor deflated"),
    # IDX
    "IDX cut": ("a-idx3-ubyte", idx_bytes((2, 4, 4))[:-1], "promises 48 bytes, there are 47"),
    "IDX with more": ("a-idx3-ubyte", idx_bytes((2, 4, 4)) + b"x", "promises 48 bytes, there are 49"),
    "IDX labels": ("a-idx3-ubyte", idx_bytes((9,)), "images .*magic 00000803, got magic 00000801"),
    "IDX floats": ("a-idx3-ubyte", idx_bytes((2, 4, 4), kind=13), "got magic 00000d03"),
    "IDX of 2^31 images": ("a-idx3-ubyte", idx_bytes((2**31, 28, 28), b""), "more than max_bytes"),
    "IDX within max_bytes": ("a-idx3-ubyte", idx_bytes((2**20, 28, 28), b""), "promises .* there are 16"),
    "IDX empty": ("a-idx3-ubyte", idx_bytes((0, 28, 28)), "every axis >= 1"),
    "gzip cut": ("a.gz", gzip.compress(idx_bytes((2, 4, 4)))[:-9], "EOFError"),
    "gzip checksum": ("a.gz", flipped(gzip.compress(idx_bytes((2, 4, 4))), -8), "BadGzipFile"),
    "gzip corrupt": ("a.gz", flipped(gzip.compress(idx_bytes((2, 4, 4))), 10), "unreadable"),
    "gzip of text": ("a.gz", gzip.compress(b"hello world"), "wanted an IDX file"),
    "gzip of less": ("a.gz", gzip.compress(idx_bytes((2**20, 28, 28), b"abc")), "truncated: .* 3 of"),
    "gzip bomb": ("a.gz", gzip_bomb(idx_bytes((2, 4, 4))), "more bytes than its header promises"),
    "gzip bomb, honest": ("a.gz", gzip_bomb(idx_bytes((GIB // 4, 8, 8), b"")), "more than max_bytes"),
    # CIFAR-10
    "CIFAR empty": ("a.bin", b"", "records of 3073 bytes, got 0"),
    "CIFAR cut": ("a.bin", bytes(2 * 3073 - 1), "records of 3073 bytes, got 6145"),
    "CIFAR label": ("a.bin", bytes(3073) + b"\x0a" + bytes(3072), r"record 1: wanted a label 0\.\.9, got 10"),
}

FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "no pictures": ({"a.npy": NPY, "notes.txt": b"x"}, r"holds no \.png"),
    "only hidden pictures": ({".a.png": square_png()}, r"holds no \.png"),
    "text named .png": ({"a.png": b"hello"}, r"a\.png: .*cannot identify"),
    "GIF named .png": ({"a.png": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"}, "cannot identify"),
    "16-bit picture": ({"a.png": png_bytes(4, 4, depth=16)}, r"a\.png: wanted 8-bit .*got mode I"),
    "bomb that Pillow warns of": ({"a.png": png_bytes(12_000, 12_000)}, r"a\.png: .*DecompressionBomb"),
    "bomb that Pillow refuses": ({"a.png": png_bytes(60_000, 60_000)}, r"a\.png: .*DecompressionBomb"),
    "text chunk bomb": (
        {"a.png": png_bytes(4, 4, chunks=[(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 * 2**20)))])},
        r"a\.png: ",
    ),
    "different sizes": ({"a.png": square_png(4), "b.png": square_png(5)}, "not all square and of one size"),
    "bad one after a good one": ({"a.png": square_png(), "b.png": square_png()[:50]}, r"b\.png: "),
    "bad CIFAR batch": ({"data_batch_1.bin": bytes(3073), "data_batch_2.bin": b"x"}, r"_2\.bin: .*got 1"),
}


def refusal(path: Path, message: str, **options: Any) -> None:
    """Load path; the error must begin with it (or a file under it) and take no more than PEAK bytes."""
    before = sorted(path.parent.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load_data(path, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path)), "the error names the file first"
    assert len(str(caught.value)) < len(str(path)) * 2 + 1500
    assert peak < PEAK, f"{peak / 2**20:.1f} MiB for a refusal"
    assert sorted(path.parent.rglob("*")) == before, "reading wrote a file"


@pytest.mark.parametrize("case", SINGLE_FILES)
def test_bad_file_is_refused_by_name_in_bounded_memory(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, contents, message = SINGLE_FILES[case]
    (tmp_path / name).write_bytes(contents)
    refusal(tmp_path / name, message)


@pytest.mark.parametrize("case", FOLDERS)
def test_bad_folder_is_refused_by_name_in_bounded_memory(case: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL.PngImagePlugin")
    files, message = FOLDERS[case]
    folder = tmp_path / "folder.npy"  # a name that promises something else
    folder.mkdir()
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    refusal(folder, message)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_with_a_member_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(zip_bytes(("images.npy", NPY), ("images.npy", NPY)))
    refusal(tmp_path / "a.npz", "occurs twice")
    (tmp_path / "b.npz").write_bytes(zip_bytes(("images.npy", NPY), ("images", NPY)))
    refusal(tmp_path / "b.npz", "occurs twice")


def test_a_picture_cut_anywhere_is_refused(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    for kind in ("PNG", "JPEG"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        for keep in range(0, len(stream.getvalue()) - 12, 37):
            (tmp_path / "cut.png").write_bytes(stream.getvalue()[:keep])
            with pytest.raises(ValueError, match=r"cut\.png: "):
                load_data(tmp_path)


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    encrypted = flipped(flipped(NPZ, 6, 1), NPZ.index(b"PK\1\2") + 8, 1)
    (tmp_path / "a.npz").write_bytes(encrypted)
    refusal(tmp_path / "a.npz", "encrypted")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (idx_bytes((3,)), "wanted 2 labels, one per image, got 3"),
        (idx_bytes((2**32 - 1,), b""), "wanted 2 labels"),
        (idx_bytes((2, 4, 4)), "labels .*got magic 00000803"),
        (idx_bytes((2,))[:-1], "promises 10 bytes, there are 9"),
        (gzip_bomb(idx_bytes((2,))), "more bytes than its header promises"),
        (b"", "truncated"),
    ],
)
def test_bad_idx_labels_are_an_error_that_names_the_label_file(tmp_path: Path, labels: Any, message: str) -> None:
    (tmp_path / "t-images-idx3-ubyte").write_bytes(idx_bytes((2, 4, 4)))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match=message) as caught:
        load_data(tmp_path / "t-images-idx3-ubyte")
    assert str(caught.value).startswith(str(tmp_path / "t-labels-idx1-ubyte"))


def test_max_bytes_bounds_every_form_before_it_is_read(tmp_path: Path) -> None:
    for name, contents in (
        ("a.npy", NPY),
        ("a.npz", NPZ),
        ("idx", idx_bytes((2, 4, 4))),
        ("idx.gz", gzip.compress(idx_bytes((2, 4, 4)))),
        ("a.bin", bytes(3073)),
    ):
        (tmp_path / name).write_bytes(contents)
        refusal(tmp_path / name, "max_bytes = 31", max_bytes=31)


def test_folders_and_devices_are_not_read_as_files(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").mkdir()
    refusal(tmp_path, r"data_batch_1\.bin: wanted a CIFAR-10 file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npy")  # opening it would wait for ever
        refusal(tmp_path / "pipe.npy", "neither a file nor a folder")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_refusal_of_the_operating_system_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(NPY)
    (tmp_path / "a.npy").chmod(0)
    with pytest.raises(PermissionError):
        load_data(tmp_path / "a.npy")


# --- damage at random -------------------------------------------------------------------------------

VALID = {
    "a.npy": NPY,
    "f.npy": npy_bytes(np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 4, 4)),
    "a.npz": zip_bytes(("images.npy", NPY), ("labels.npy", npy_bytes([1, 2]))),
    "s.npz": zip_bytes(("images.npy", NPY), compression=zipfile.ZIP_STORED),
    "idx3": idx_bytes((2, 4, 4)),
    "idx3.gz": gzip.compress(idx_bytes((2, 4, 4)), mtime=0),
    "a.bin": bytes(3073),
    "folder/a.png": square_png(),
}
damage = st.tuples(st.integers(0, 399), st.integers(1, 255))


@pytest.mark.parametrize("name", VALID)
@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(flips=st.lists(damage, max_size=4), keep=st.one_of(st.none(), st.integers(0, 400)))
def test_damaged_files_load_or_are_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[int, int]], keep: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent if name.endswith(".png") else path
    if source is not path:
        pytest.importorskip("PIL.Image")
    contents = bytearray(VALID[name])
    for at, mask in flips:
        contents[at % len(contents)] ^= mask
    path.write_bytes(contents[:keep])
    try:
        data = load_data(source, max_bytes=2**20)
    except ValueError as error:
        assert str(error).startswith(str(source))
    else:
        assert isinstance(data, ImageData) and data.pixels.nbytes <= 2**20

"""Every kind of file the loaders read, written by the tests themselves and read back."""

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import labels_of, some_images

from ddpm_ref.checks import Array
from ddpm_ref.files.data import load_data


def idx_bytes(array: Array) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + bytes(array.astype(np.uint8))


def cifar_bytes(images: Array, labels: Array) -> bytes:
    planes = images.transpose(0, 3, 1, 2)
    return b"".join(bytes([k]) + plane.tobytes() for k, plane in zip(labels, planes, strict=True))


@pytest.mark.parametrize("dtype", ["u1", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("shape", "version"), [((5, 4, 3), (1, 0)), ((5, 4, 3, 2), (2, 0))])
def test_npy_round_trips(tmp_path: Path, dtype: Any, order: Any, shape: Any, version: Any) -> None:
    images = some_images(*shape, levels=2).astype(dtype, order=order)
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, images, version=version)
    data = load_data(tmp_path / "a.npy")
    assert data.pixels.dtype == images.dtype.newbyteorder("=") and data.pixels.dtype.isnative
    np.testing.assert_array_equal(data.pixels.reshape(shape), images)
    assert (data.levels, data.name, data.labels) == (256, "a.npy", None)
    assert data.source == str(tmp_path / "a.npy")


def test_levels_and_size_are_checked_against_the_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", some_images(5, 8, 8, levels=4))
    assert load_data(str(tmp_path / "a.npy"), size=8, levels=4).levels == 4
    with pytest.raises(ValueError, match=r"a\.npy: size: got 16"):
        load_data(tmp_path / "a.npy", size=16)
    with pytest.raises(ValueError, match=r"a\.npy: pixels: .*0\.\.2"):
        load_data(tmp_path / "a.npy", levels=3)
    bad_options: list[tuple[str, Any]] = [("size", 0), ("size", 8.0), ("max_bytes", 0)]
    for name, bad in bad_options:
        with pytest.raises(ValueError, match=f"^{name}: "):
            load_data(tmp_path / "a.npy", **{name: bad})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images_name", ["images", "x", "arr_0", "faces"])
@pytest.mark.parametrize("labels_name", ["labels", "y", None])
def test_npz_round_trips(tmp_path: Path, save: Any, images_name: str, labels_name: str | None) -> None:
    arrays = {images_name: some_images(5, 4, 4, 3)}
    if labels_name:
        arrays[labels_name] = np.arange(5, dtype=np.uint16)
    save(tmp_path / "a.npz", **arrays)
    data = load_data(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.pixels, arrays[images_name])
    assert labels_of(data) == ([0, 1, 2, 3, 4] if labels_name else [])


def test_npz_prefers_the_known_name_and_otherwise_lists_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=some_images(5, 4, 4), means=np.zeros(3))
    assert len(load_data(tmp_path / "a.npz")) == 5
    np.savez(tmp_path / "b.npz", x_train=some_images(5, 4, 4), x_test=some_images(2, 4, 4))
    with pytest.raises(ValueError, match=r"b\.npz: .*x_train, x_test"):
        load_data(tmp_path / "b.npz")


@pytest.mark.parametrize("images_gz", [False, True])
@pytest.mark.parametrize("labels_gz", [False, True, None])
def test_idx_round_trips_with_labels(tmp_path: Path, images_gz: bool, labels_gz: bool | None) -> None:
    images, labels = some_images(6, 5, 4), np.arange(6) % 3
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * images_gz)
    path.write_bytes(gzip.compress(idx_bytes(images)) if images_gz else idx_bytes(images))
    if labels_gz is not None:
        encoded = gzip.compress(idx_bytes(labels)) if labels_gz else idx_bytes(labels)
        (tmp_path / ("train-labels-idx1-ubyte" + ".gz" * labels_gz)).write_bytes(encoded)
    data = load_data(path)
    np.testing.assert_array_equal(data.pixels, images[..., None])
    assert labels_of(data) == ([] if labels_gz is None else list(labels))


def test_idx_under_any_name_loads_without_labels(tmp_path: Path) -> None:
    (tmp_path / "faces").write_bytes(idx_bytes(some_images(6, 5, 4)))
    (tmp_path / "faces.gz").write_bytes(gzip.compress(idx_bytes(some_images(6, 5, 4))))
    assert load_data(tmp_path / "faces").labels is load_data(tmp_path / "faces.gz").labels is None


def test_cifar_file_and_folder_round_trip(tmp_path: Path) -> None:
    images, labels = some_images(6, 32, 32, 3), np.array([9, 0, 3, 3, 1, 2])
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(images[:1], labels[:1]))
    assert labels_of(load_data(tmp_path)) == [9]
    (tmp_path / "data_batch_1.bin").write_bytes(cifar_bytes(images[:2], labels[:2]))
    (tmp_path / "data_batch_2.bin").write_bytes(cifar_bytes(images[2:], labels[2:]))
    data = load_data(tmp_path, size=32)
    np.testing.assert_array_equal(data.pixels, images)
    assert labels_of(data) == list(labels) and data.pixels.flags.c_contiguous
    np.testing.assert_array_equal(load_data(tmp_path / "data_batch_2.bin").pixels, images[2:])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: .*max_bytes"):
        load_data(tmp_path, max_bytes=6 * 3073 - 1)  # all files together


def save_picture(path: Path, pixels: Array, mode: str | None = None) -> None:
    image = pytest.importorskip("PIL.Image").fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert(mode) if mode else image).save(path)


def test_pictures_round_trip_sorted_by_name_without_hidden_ones(tmp_path: Path) -> None:
    images = some_images(4, 8, 8, 3)
    for name, pixels in zip(["a/z.png", "b.PNG", "c/1.png", "c/2.png"], images, strict=True):
        save_picture(tmp_path / name, pixels)
    for hidden in (".cache/x.png", ".x.png", "c/._1.png"):
        save_picture(tmp_path / hidden, images[0, :4])
    (tmp_path / "README.txt").write_text("not a picture")
    data = load_data(tmp_path)
    np.testing.assert_array_equal(data.pixels, images)
    assert data.levels == 256 and data.labels is None and data.name == tmp_path.name


def test_pictures_are_grey_only_if_all_are(tmp_path: Path) -> None:
    grey = some_images(8, 8)
    save_picture(tmp_path / "a.png", grey)
    save_picture(tmp_path / "b.png", grey, "LA")
    np.testing.assert_array_equal(load_data(tmp_path).pixels, np.stack([grey, grey])[..., None])
    save_picture(tmp_path / "c.png", some_images(8, 8, 3), "RGBA")
    data = load_data(tmp_path)
    assert data.shape == (8, 8, 3)
    np.testing.assert_array_equal(data.pixels[0], np.repeat(grey[..., None], 3, axis=2))


def test_pictures_are_cut_to_the_central_square(tmp_path: Path) -> None:
    wide = some_images(4, 10, 3)
    save_picture(tmp_path / "wide.png", wide)
    save_picture(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    with pytest.raises(ValueError, match="give size"):
        load_data(tmp_path)
    tall_cut, wide_cut = load_data(tmp_path, size=4).pixels
    np.testing.assert_array_equal(wide_cut, wide[:, 3:7])
    np.testing.assert_array_equal(tall_cut, wide_cut.transpose(1, 0, 2))


def test_pictures_shrink_with_antialiasing(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    save_picture(tmp_path / "stripes.png", stripes)
    inside = load_data(tmp_path, size=8).pixels[0, 1:-1, 1:-1]
    assert inside.min() >= 120 and inside.max() <= 135, "nearest-neighbour would leave black or white"


def test_jpeg_loads(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.jpeg", np.full((16, 16, 3), 200, np.uint8))
    save_picture(tmp_path / "b.jpg", np.full((16, 16, 3), 100, np.uint8))
    means = load_data(tmp_path).pixels.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [200, 100], atol=2)


def test_pictures_count_against_max_bytes_before_they_are_decoded(tmp_path: Path) -> None:
    for k in range(3):
        save_picture(tmp_path / f"{k}.png", some_images(8, 8))
    assert len(load_data(tmp_path, size=16, max_bytes=3 * 256)) == 3
    with pytest.raises(ValueError, match="max_bytes = 767"):
        load_data(tmp_path, size=16, max_bytes=767)


def test_digits_are_17_levels_with_labels() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert data.pixels.shape == (1797, 8, 8, 1) and data.pixels.dtype == np.uint8 and data.levels == 17
    assert data.pixels.max() == 16 and labels_of(data)[:12] == [*range(10), 0, 1]
    assert data.fingerprint() == "c5747e7cce9556169d777ae7cdb961357e95ff044dd6488d879669624fd300d3"


@pytest.mark.parametrize(("module", "source"), [("sklearn.datasets", "digits"), ("PIL.Image", "pictures")])
def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: Any, module: str, source: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "ddpm_ref\[demo\]"'):
        load_data(source if source == "digits" else tmp_path)


def test_unknown_path_is_an_error_that_lists_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"digits: does not exist; .*digits.*npz.*IDX.*CIFAR.*PNG"):
        load_data(tmp_path / "digits")

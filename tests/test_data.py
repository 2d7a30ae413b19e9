"""Image data: every form of file round-trips, scaling is exact, splits and fingerprints are fixed."""

import gzip
import hashlib
import itertools
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.files.data import ImageData, load_data, to_bytes, to_levels

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def some_images(*shape: int, levels: int = 256, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)


def numbered(n: int) -> ImageData:
    """n images of one pixel whose labels count them."""
    return ImageData(np.arange(n).astype(np.uint8).reshape(n, 1, 1, 1), 256, "order", np.arange(n))


def labels_of(data: ImageData) -> list[int]:
    return [] if data.labels is None else list(map(int, data.labels))


def idx_bytes(array: Array) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + bytes(array.astype(np.uint8))


def cifar_bytes(images: Array, labels: Array) -> bytes:
    planes = images.transpose(0, 3, 1, 2)
    return b"".join(bytes([k]) + plane.tobytes() for k, plane in zip(labels, planes, strict=True))


def test_digits_levels_scale_exactly() -> None:
    data = ImageData(np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1), 17, "ramp")
    for dtype in (np.float16, np.float32, np.float64):
        x = data.x_0(dtype=dtype)
        assert x.dtype == dtype and x.shape == (17, 1, 1, 1)
        np.testing.assert_array_equal(x.ravel(), np.arange(17) / 8 - 1)


def test_bytes_scale_to_the_nearest_float32() -> None:
    x = ImageData(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 256, "ramp").x_0()
    exact = [float(Fraction(2 * k, 255) - 1) for k in range(256)]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.ravel(), np.array(exact, np.float32))
    assert x.min() == -1 and x.max() == 1


def test_every_level_of_every_grey_scale_comes_back() -> None:
    for dtype, levels in itertools.product((np.float16, np.float32, np.float64), range(2, 257)):
        k = np.arange(levels, dtype=np.uint8).reshape(levels, 1, 1, 1)
        np.testing.assert_array_equal(to_levels(ImageData(k, levels, "ramp").x_0(dtype=dtype), levels), k)


@REPEATABLE
@given(shape=st.tuples(*[st.integers(1, 4)] * 4), levels=st.integers(2, 256), seed=st.integers(0, 99))
def test_images_survive_scaling_and_rounding(shape: Any, levels: Any, seed: int) -> None:
    data = ImageData(some_images(*shape, levels=levels, seed=seed), levels, "random")
    back = to_levels(data.x_0(), levels)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, data.pixels)


@REPEATABLE
@given(x=st.floats(-1, 1), levels=st.integers(2, 256))
def test_the_nearest_level_is_chosen(x: float, levels: Any) -> None:
    k = int(to_levels(np.array([x]), levels)[0])
    assert abs(2 * k / (levels - 1) - 1 - x) <= 1 / (levels - 1) + 1e-12


def test_bytes_are_rounded_not_truncated_and_clipped() -> None:
    x = np.array([-1, -1 + 0.9 / 127.5, 1 - 0.1 / 127.5, 1, -7, 7, -np.inf, np.inf, 0])
    np.testing.assert_array_equal(to_bytes(x), [0, 1, 255, 255, 0, 255, 0, 255, 128])
    assert to_bytes(x).dtype == np.uint8


def test_scaling_refuses_nan_integers_and_impossible_levels() -> None:
    with pytest.raises(ValueError, match=r"^x: .* 2 NaN of 3, first at \(1,\)"):
        to_bytes(np.array([0, np.nan, np.nan]))
    with pytest.raises(ValueError, match=r"^x: .*uint8"):
        to_bytes(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"^levels: "):
        to_levels(np.zeros(3), 257)
    with pytest.raises(ValueError, match=r"^dtype: "):
        ImageData(some_images(1, 2, 2, 1), 256, "bytes").x_0(dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "levels", "labels", "message"),
    [
        ([[0]], 256, None, "pixels: .*list"),
        (np.zeros((1, 2, 2, 1), np.int64), 256, None, "pixels: .*int64"),
        (np.zeros((1, 2, 2), np.uint8), 256, None, r"pixels: .*\(1, 2, 2\)"),
        (np.zeros((0, 2, 2, 1), np.uint8), 256, None, r"pixels: .*\(0, 2, 2, 1\)"),
        (np.full((1, 2, 2, 1), 17, np.uint8), 17, None, r"pixels: .*0\.\.16, got 17\.\.17"),
        (np.full((1, 2, 2, 1), 1.5), 256, None, r"pixels: .*\[-1, 1\]"),
        (np.full((1, 2, 2, 1), -1.5), 256, None, r"pixels: .*got -1\.5"),
        (np.full((1, 2, 2, 1), np.inf), 256, None, "pixels: 4 of 4"),
        (np.array([0, 0, np.nan, np.nan]).reshape(1, 2, 2, 1), 256, None, r"pixels: 2 of 4 .*\(0, 1, 0, 0\)"),
        (np.zeros((1, 2, 2, 1), np.uint8), 1, None, "levels: .*1"),
        (np.zeros((1, 2, 2, 1), np.uint8), 257, None, "levels: .*257"),
        (np.zeros((1, 2, 2, 1), np.uint8), 16.0, None, r"levels: .*16\.0"),
        (np.zeros((1, 2, 2, 1)), 1, None, "levels: .*1"),
        (np.zeros((1, 2, 2, 1), np.uint8), 256, np.zeros(2, int), r"labels: .*\(2,\)"),
        (np.zeros((1, 2, 2, 1), np.uint8), 256, np.zeros(1), "labels: .*float64"),
    ],
)
def test_image_data_refuses_the_unusable(pixels: Any, levels: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ImageData(pixels, levels, "bad", labels)


def test_one_image_keeps_its_batch_axis_and_label() -> None:
    data = ImageData(some_images(5, 4, 3, 2), 256, "five", np.arange(5))
    assert len(data) == 5 and data.shape == (4, 3, 2)
    assert data.x_0(2).shape == (1, 4, 3, 2)
    assert labels_of(data.take(2)) == [2] and labels_of(data.take(-1)) == [4]
    assert labels_of(data.take(np.arange(5) > 2)) == [3, 4]
    np.testing.assert_array_equal(data.take([3, 1]).pixels, data.pixels[[3, 1]])
    np.testing.assert_array_equal(data.x_0(slice(1, 3)), data.x_0()[1:3])


def test_floats_may_have_any_number_of_levels_and_x_0_copies_them() -> None:
    data = ImageData(np.zeros((2, 2, 2, 1), np.float32), 65536, "floats")
    data.x_0()[:] = 1
    assert not data.pixels.any()


def test_split_is_fixed_for_good() -> None:
    _, held = numbered(1797).split(1796)
    assert labels_of(held)[:10] == [1051, 998, 162, 670, 664, 1492, 185, 322, 431, 318]
    digest = hashlib.sha256(np.array(labels_of(held), "<i8").tobytes()).hexdigest()
    assert digest == "1926f743b5c12179e256f4b2c9c882b46b58aecbd5f0f79a475db6f624cc1b96"


@REPEATABLE
@given(n=st.integers(2, 60), seed=st.integers(0, 2**64 - 1), draw=st.data())
def test_split_is_disjoint_covering_and_nested(n: int, seed: int, draw: Any) -> None:
    data = numbered(n)
    held_out = draw.draw(st.integers(1, n - 1))
    train, held = data.split(held_out, seed)
    assert len(held) == held_out
    assert sorted(labels_of(train) + labels_of(held)) == list(range(n))
    assert labels_of(data.split(1, seed)[1]) == labels_of(held)[:1]


def test_split_keeps_images_beside_their_labels_and_depends_on_the_seed() -> None:
    train, held = numbered(200).split(50, seed=3)
    for part in (train, held):
        np.testing.assert_array_equal(part.pixels.ravel(), labels_of(part))
    assert (train.name, held.name) == ("order/train", "order/held-out")
    assert labels_of(held) != labels_of(numbered(200).split(50, seed=4)[1])


@pytest.mark.parametrize("held_out", [0, 4, -1, 1.0])
def test_split_refuses_to_leave_a_part_empty(held_out: Any) -> None:
    with pytest.raises(ValueError, match=r"^held_out: .* 1\.\.3"):
        numbered(4).split(held_out)


@pytest.mark.parametrize(("dtype", "lowest"), [(np.uint8, 0), (np.float32, -1)])
def test_padding_centres_on_the_lowest_level(dtype: Any, lowest: int) -> None:
    data = ImageData(np.ones((2, 3, 4, 2), dtype), 256, "ones").padded(6)
    assert data.shape == (6, 6, 2) and data.pixels.dtype == dtype
    assert (data.pixels[:, 1:4, 1:5] == 1).all()
    assert (data.pixels == 1).sum() == 2 * 3 * 4 * 2
    assert data.pixels.min() == lowest
    with pytest.raises(ValueError, match=r"^size: .*>= 6"):
        data.padded(5)


def test_fingerprint_notices_pixel_shape_dtype_and_levels_but_not_name() -> None:
    pixels = some_images(3, 4, 4, 1, levels=17)
    data = ImageData(pixels, 17, "a")
    changed = pixels.copy()
    changed[1, 2, 3, 0] ^= 1
    others = [
        ImageData(changed, 17, "a"),
        ImageData(pixels, 18, "a"),
        ImageData(pixels.reshape(3, 2, 8, 1), 17, "a"),
        ImageData(pixels.astype(np.float32) / 16, 17, "a"),
        data.take([0, 2, 1]),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6
    assert ImageData(pixels, 17, "b", np.arange(3), "elsewhere").fingerprint() == data.fingerprint()
    assert ImageData(np.asfortranarray(pixels), 17, "a").fingerprint() == data.fingerprint()


def test_fingerprint_is_fixed_for_good() -> None:
    ramp = ImageData(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), 17, "ramp")
    assert ramp.fingerprint() == "090348b06d031e17c17f960378223f9123630856360aaaccb09b85901eeaaf31"
    ramp = ImageData(ramp.x_0(), 17, "ramp")
    assert ramp.fingerprint() == "21a6e9075a6694c3121cd9f275abed66ebcfc139a50750ebfec2b651ecfa8071"


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

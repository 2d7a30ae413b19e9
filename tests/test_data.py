"""Image data: every form of file round-trips, scaling is exact, splits and fingerprints are fixed."""

import hashlib
import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.files.data import ImageData, to_bytes, to_levels

REPEATABLE = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def some_images(*shape: int, levels: int = 256, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)


def numbered(n: int) -> ImageData:
    """n images of one pixel whose labels count them."""
    return ImageData(np.arange(n).astype(np.uint8).reshape(n, 1, 1, 1), 256, "order", np.arange(n))


def labels_of(data: ImageData) -> list[int]:
    return [] if data.labels is None else list(map(int, data.labels))


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

"""Algorithm 1, lines 2-4: which images, steps, noise and flips a training run draws."""

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from small_run import after, trainer, variant
from strategies import short

from ddpm_ref.checks import Array
from ddpm_ref.files.data import ImageData
from ddpm_ref.train import TrainSettings


def counted(steps: int, batch: int, T: int, data: ImageData) -> tuple[Array, Array, Array]:
    """Image indices, t and ε of many steps; the data's images are told apart by their first pixel."""
    one = trainer(settings=TrainSettings(batch=1, seed=3), data=data, schedule=short(T))
    batches = [one.draw(k, np.arange(batch)) for k in range(1, steps + 1)]
    x_0, t, eps, _ = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    index = np.rint((x_0[:, 0, 0, 0] + 1) / 2 * (data.levels - 1)).astype(int)
    return index, t, eps


def numbered(count: int) -> ImageData:
    """Image k is all grey level k."""
    return ImageData(np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2), count, "numbered")


def test_t_and_the_images_are_uniform_and_independent():
    """Chi-square of 8,000 draws: by t, by image, and both together; a correct stream fails once in 10⁹."""
    index, t, eps = counted(4, 2000, 20, numbered(10))
    assert (t.min(), t.max()) == (1, 20)
    table = np.zeros((20, 10))
    np.add.at(table, (t - 1, index), 1)
    for counts in (table.sum(1), table.sum(0), table.ravel()):
        expected = len(t) / counts.size
        assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-9, counts.size - 1)
    # ε is standard normal and tells nothing of t or of the image: means of 128,000 numbers within 6 deviations.
    scale = 6 / math.sqrt(eps.size)
    assert abs(eps.mean()) < scale and abs((eps**2).mean() - 1) < scale * math.sqrt(2)
    for other in (t, index):
        assert abs(np.corrcoef(eps.mean(axis=(1, 2, 3)), other)[0, 1]) < 6 / math.sqrt(len(t))


def test_t_of_a_single_step_and_data_of_a_single_image_are_drawn():
    index, t, _ = counted(1, 50, 1, numbered(2).take([1]))
    assert set(t) == {1} and set(index) == {1}


def test_each_step_draws_anew():
    batches = [trainer().draw(k, np.arange(50)) for k in (1, 2)]
    for name in ("x_0", "t", "eps"):
        assert not np.array_equal(*(getattr(b, name) for b in batches)), name


def test_dropout_is_drawn_anew_for_each_step_block_and_image(monkeypatch):
    one, masks = variant("dropout"), []
    draw = one.backend.uniform

    def noted(*args: Any, **more: Any) -> Array:
        masks.append(draw(*args, **more))
        return masks[-1]

    monkeypatch.setattr(one.backend, "uniform", noted)
    after(2, one)
    blocks = sum(piece.kind == "block" for piece in one.net.plan)
    assert len(masks) == 2 * blocks
    images = [image.tobytes()[:64] for mask in masks for image in mask]
    assert len(set(images)) == len(images) == 2 * blocks * one.settings.batch


@given(cut=st.integers(1, 11))
@settings(max_examples=5)
def test_the_draws_of_an_image_do_not_depend_on_the_batch_it_is_drawn_in(cut):
    one = variant("flips")
    whole, left, right = (one.draw(3, samples) for samples in (np.arange(12), np.arange(cut), np.arange(cut, 12)))
    for name in ("x_0", "t", "eps"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(left, name), getattr(right, name)])), name


def test_flips_mirror_half_of_the_images_left_to_right_and_change_nothing_else():
    samples = np.arange(2000)
    plain, flipped = trainer().draw(1, samples), variant("flips").draw(1, samples)
    assert np.array_equal(plain.t, flipped.t) and np.array_equal(plain.eps, flipped.eps)
    same = (plain.x_0 == flipped.x_0).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped.x_0[~same], plain.x_0[~same][:, :, ::-1])
    assert abs(same.mean() - 0.5) < 6 * 0.5 / math.sqrt(len(samples))


def test_the_data_are_not_flipped_in_place():
    data = ImageData(np.linspace(-1, 1, 24 * 16, dtype=np.float32).reshape(24, 4, 4, 1), 256, "floats")
    before = data.pixels.copy()
    after(1, variant("flips", data=data))
    assert np.array_equal(data.pixels, before)

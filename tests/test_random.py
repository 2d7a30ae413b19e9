"""The counted stream: Philox against its published answers, stored draws, and what must never matter."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ddpm_ref import Purpose, normal, uniform
from ddpm_ref.checks import Array
from ddpm_ref.random import _log_u24, _sin_cos_u24, integers, philox4x32_10, words

SEED = 0x0123456789ABCDEF
LARGEST = np.sqrt(2 * 24 * np.log(2))

DRAWS: dict[str, Callable[..., Any]] = {
    "words": lambda samples, shape, **kind: words(samples=samples, count=int(np.prod(shape)), **kind),
    "uniform": lambda samples, shape, **kind: uniform(samples=samples, shape=shape, **kind),
    "normal": lambda samples, shape, **kind: normal(samples=samples, shape=shape, **kind),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def philox(counter: list[int], key: list[int]) -> list[int]:
    lanes: Any = [np.array([word], np.uint64) for word in counter]
    return [int(lane[0]) for lane in philox4x32_10(lanes, (key[0], key[1]))]


def hexes(values: Array) -> str:
    return " ".join(f"{v:08x}" for v in np.asarray(values).view(np.uint32).ravel())


# --- Philox ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_answers_published_with_random123(counter: str, key: str, answer: str) -> None:
    found = philox([int(w, 16) for w in counter.split()], [int(w, 16) for w in key.split()])
    assert " ".join(f"{word:08x}" for word in found) == answer


@given(
    seed=st.integers(0, 2**64 - 1),
    purpose=st.sampled_from(Purpose),
    step=st.integers(0, 2**32 - 1),
    sample=st.integers(0, 2**32 - 1),
    layer=st.integers(0, 2**24 - 1),
    element=st.integers(0, 100),
)
def test_a_word_is_philox_of_element_sample_step_purpose_and_layer_under_the_seed(
    seed: int, purpose: Purpose, step: int, sample: int, layer: int, element: int
) -> None:
    expected = philox([element // 4, sample, step, purpose + 256 * layer], [seed % 2**32, seed // 2**32])[element % 4]
    got = words(seed, purpose, step, [sample], element + 1, layer=layer)
    assert got.shape == (1, element + 1) and got.dtype == np.uint32
    assert got[0, element] == expected


# --- stored draws: these bits fix the stream for good ----------------------------------------------------------------


def test_stored_words() -> None:
    assert hexes(words(0, Purpose.X_T, 0, [0], 6)) == "710b8867 00236596 20e6b706 0552a1b6 32cde2b3 a868072d"


def test_stored_normals() -> None:
    first = normal(0, Purpose.X_T, 0, [0], (8,))
    assert hexes(first) == "3fa3a875 3b8e2e7c 400089bf 3e871b9c bf7bf45d bfc0abbc 3eafbc19 3f98b574"
    last = normal(SEED, Purpose.Z, 1000, [2**32 - 1], (2, 3))
    assert hexes(last) == "3e4a11f8 3d2579c6 bf8ef790 bee462fe bd88b928 be370770"


def test_stored_uniforms() -> None:
    u = uniform(SEED, Purpose.DROPOUT, 7, [5], (2, 3), layer=3)
    assert hexes(u) == "3f7703c9 3d94dc70 3e6e2390 3f20316a 3d8cd138 3dda65e8"


def test_stored_integers() -> None:
    assert integers(2024, Purpose.T, 12, range(8), 1000).tolist() == [407, 140, 148, 328, 588, 381, 30, 367]


@pytest.mark.parametrize(
    ("draw", "digest"),
    [
        (normal, "f91ee578af15347f5c61ba38cb706b868bcb616e6cf0b3beadf54355b92e5419"),
        (uniform, "3bd9e7b77d1fa8051708cfe0c0406e4465435a38bbaed45b527b6e62e0b86e0a"),
    ],
    ids=["normal", "uniform"],
)
def test_a_million_draws_have_the_stored_digest(draw: Callable[..., Any], digest: str) -> None:
    """A fused a·b + c changes the last bit of one normal in a hundred: too few for the stored draws above."""
    million = draw(2020, Purpose.EPS, 1, range(1000), (1000,))
    assert hashlib.sha256(million.astype("<f4").tobytes()).hexdigest() == digest


def test_purposes_keep_their_numbers() -> None:
    assert {p.name: p.value for p in Purpose} == dict(
        INIT=1, INDEX=2, T=3, EPS=4, FLIP=5, DROPOUT=6, X_T=7, Z=8, EVALUATE=9, CODING=10
    )


# --- what a draw depends on ------------------------------------------------------------------------------------------


@every_draw
@given(
    samples=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=6),
    cut=st.integers(1, 5),
    shape=st.sampled_from([(1,), (3, 2), (4, 4, 1), (5,)]),
)
def test_any_split_of_a_batch_draws_the_same(
    draw: Callable[..., Any], samples: list[int], cut: int, shape: Any
) -> None:
    kind = dict(seed=SEED, purpose=Purpose.EPS, step=3)
    whole = draw(samples, shape, **kind)
    cut = min(cut, len(samples) - 1)
    parts = draw(samples[:cut], shape, **kind), draw(samples[cut:], shape, **kind)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape[0] == len(samples)


@every_draw
def test_batches_larger_than_a_chunk_of_counters_draw_the_same(draw: Callable[..., Any]) -> None:
    """Many small images, a few middling ones and one large: every way the work is cut."""
    kind = dict(seed=1, purpose=Purpose.X_T, step=0)
    for n, count in [(10_000, 7), (5, 16_384), (2, 40_001)]:
        whole = draw(range(n), (count,), **kind)
        for sample in (0, n // 2, n - 1):
            np.testing.assert_array_equal(whole[sample], draw([sample], (count,), **kind)[0])


@every_draw
def test_more_elements_begin_with_the_same_ones_and_shape_only_folds_them(draw: Callable[..., Any]) -> None:
    kind = dict(seed=SEED, purpose=Purpose.INIT, step=0)
    long = draw([9], (24,), **kind)
    for count in (1, 2, 3, 4, 5, 23):
        np.testing.assert_array_equal(draw([9], (count,), **kind), long[:, :count])
    np.testing.assert_array_equal(draw([9], (2, 3, 4), **kind).ravel(), long.ravel())


@every_draw
def test_seed_purpose_step_sample_and_layer_each_change_the_draw(draw: Callable[..., Any]) -> None:
    base: dict[str, Any] = dict(seed=5, purpose=Purpose.EPS, step=2, samples=[3], shape=(4,), layer=1)
    others: list[dict[str, Any]] = [
        dict(seed=6),
        dict(seed=5 + 2**32),
        dict(purpose=Purpose.Z),
        dict(step=3),
        dict(samples=[4]),
        dict(layer=0),
        dict(layer=256),
    ]
    draws = [draw(**base | other).tobytes() for other in [{}, *others]]
    assert len(set(draws)) == len(draws)
    assert draw(**base).tobytes() == draws[0]


# --- normals ---------------------------------------------------------------------------------------------------------


def test_the_logarithm_is_right_and_the_radius_finite_at_all_2_24_values() -> None:
    worst = 0.0
    for first in range(1, 2**24 + 1, 2**18):
        n = np.arange(first, first + 2**18, dtype=np.uint32)
        log = _log_u24(n)
        assert log.dtype == np.float32 and (log <= 0).all()
        assert np.isfinite(np.sqrt(np.float32(-2) * log)).all()
        exact = np.log(n[::61] / 2**24)
        worst = max(worst, np.abs(log[::61] / np.where(exact, exact, 1) - (exact != 0)).max())
    assert worst < 1.5 * 2**-24
    np.testing.assert_allclose(_log_u24(np.array([1, 2**24], np.uint32)), [-24 * np.log(2), 0], rtol=1e-7)


def test_sine_and_cosine_are_right_all_around_the_circle() -> None:
    n = np.r_[np.arange(0, 2**24, 997), 2**22 * np.arange(1, 5) - 1, 2**22 * np.arange(4)].astype(np.uint32)
    angle = 2 * np.pi * (n + 0.5) / 2**24
    sin, cos = _sin_cos_u24(n)
    assert sin.dtype == cos.dtype == np.float32
    np.testing.assert_allclose(sin, np.sin(angle), rtol=0, atol=2e-7)
    np.testing.assert_allclose(cos, np.cos(angle), rtol=0, atol=2e-7)


def test_normals_are_box_muller_of_the_words() -> None:
    w = words(SEED, Purpose.EPS, 1, range(5), 400).astype(np.int64).reshape(5, 200, 2)
    r = np.sqrt(-2 * np.log(((w[..., 0] >> 8) + 1) / 2**24))
    angle = 2 * np.pi * ((w[..., 1] >> 8) + 0.5) / 2**24
    expected = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1).reshape(5, 400)
    np.testing.assert_allclose(normal(SEED, Purpose.EPS, 1, range(5), (400,)), expected, rtol=0, atol=1e-6)


def test_normals_have_the_moments_and_the_distribution_of_n_0_1() -> None:
    z = normal(7, Purpose.EPS, 0, range(400), (1000,))
    n = z.size
    assert z.dtype == np.float32 and np.abs(z).max() <= LARGEST
    z = z.astype(np.float64)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 3 * np.sqrt(variance / n), power
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.01


def test_normals_of_neighbours_are_uncorrelated() -> None:
    z = normal(8, Purpose.EPS, 0, range(300), (300,)).astype(np.float64)
    other_step = normal(8, Purpose.EPS, 1, range(300), (300,))
    pairs: dict[str, Any] = {"elements": (z[:, 1:], z[:, :-1]), "samples": (z[1:], z[:-1]), "steps": (z, other_step)}
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 3 / np.sqrt(a.size), name


def test_no_normal_is_beyond_the_end_of_the_tail() -> None:
    radius = np.sqrt(np.float32(-2) * _log_u24(np.array([1], np.uint32)))
    sin, cos = _sin_cos_u24(np.arange(0, 2**24, 101, dtype=np.uint32))
    assert max(np.abs(radius * sin).max(), np.abs(radius * cos).max()) <= np.float32(LARGEST)
    assert round(float(LARGEST), 2) == 5.77


# --- uniforms and integers -------------------------------------------------------------------------------------------


def test_uniforms_are_the_top_24_bits_in_0_1() -> None:
    u = uniform(3, Purpose.FLIP, 0, range(200), (500,))
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    np.testing.assert_array_equal(u * 2.0**24, words(3, Purpose.FLIP, 0, range(200), 500) >> 8)
    assert abs(u.mean(dtype=np.float64) - 0.5) < 3 / np.sqrt(12 * u.size)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))
def test_integers_are_the_floor_of_u_n_over_2_32(seed: int, n: Any) -> None:
    got = integers(seed, Purpose.INDEX, 1, range(20), n)
    u = words(seed, Purpose.INDEX, 1, range(20), 1)[:, 0]
    assert got.tolist() == [int(w) * n // 2**32 for w in u]
    assert got.dtype == np.int64 and got.min() >= 0 and got.max() < n


def test_integers_are_evenly_spread() -> None:
    counts = np.bincount(integers(9, Purpose.T, 0, range(100_000), 1000), minlength=1000)
    assert len(counts) == 1000 and counts.min() > 0
    assert stats.chisquare(counts).pvalue > 0.01


# --- errors ----------------------------------------------------------------------------------------------------------


@every_draw
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seed": -1}, f"seed: wanted an integer in 0..{2**64 - 1}, got -1"),
        ({"seed": 2**64}, f"seed: wanted an integer in 0..{2**64 - 1}, got {2**64}"),
        ({"seed": 1.0}, "seed: wanted an integer .* got 1.0"),
        ({"seed": True}, "seed: wanted an integer .* got True"),
        ({"seed": None}, "seed: wanted an integer .* got None"),
        ({"step": -1}, "step: wanted an integer"),
        ({"step": 2**32}, "step: wanted an integer"),
        ({"layer": 2**24}, "layer: wanted an integer"),
    ],
    ids=str,
)
def test_bad_seeds_steps_and_layers_are_errors(draw: Callable[..., Any], bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw([0], (4,), **dict(seed=0, purpose=Purpose.EPS, step=0) | bad)


@every_draw
def test_the_largest_seed_step_layer_and_image_are_taken(draw: Callable[..., Any]) -> None:
    largest: dict[str, Any] = dict(seed=2**64 - 1, purpose=Purpose.EPS, step=2**32 - 1, layer=2**24 - 1)
    found = draw([2**32 - 1], (4,), **largest)
    for name in ("seed", "step", "layer"):
        assert (draw([2**32 - 1], (4,), **largest | {name: largest[name] - 1}) != found).all()


@pytest.mark.parametrize("n", [0, -1, 2**32, 2.0, True])
def test_integers_want_1_to_2_32_minus_1_of_them(n: Any) -> None:
    with pytest.raises(ValueError, match=f"n: wanted an integer in 1..{2**32 - 1}, got {n}"):
        integers(0, Purpose.T, 0, [0], n)


@pytest.mark.parametrize("samples", [[-1], [2**32], [0.5], 3, [[1]]])
def test_image_numbers_that_do_not_fit_the_counter_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        normal(0, Purpose.EPS, 1, samples, (4,))


def test_no_images_are_an_empty_draw():
    assert normal(0, Purpose.EPS, 1, [], (2, 3)).shape == (0, 2, 3)
    assert uniform(0, Purpose.EPS, 1, [], (5,)).shape == (0, 5)

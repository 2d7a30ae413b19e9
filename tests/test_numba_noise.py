"""Numba's random numbers, noising and reverse step: NumPy's bits for any shape, thread count, split and width."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import short

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend, launch, noise, simd
from ddpm_ref_numba.simd import WIDTH, f32, i64
from ddpm_ref_numba.simd_int import from_bits, philox4x32_10, store_some

from ddpm_ref import forward, random, reverse
from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.random import Purpose

SCHEDULE = short(50)
seeds, images, threads = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3])
batches = st.lists(images, max_size=5)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple) | (
    st.integers(1, 12 * WIDTH) | st.sampled_from([noise.GROUP, 2 * noise.GROUP])
).map(lambda n: (n,))


def same(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def uncached(function: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> launch.Kernel:
    """A kernel compiled here and now: of one from the cache there is no assembly, and a test's must not go stale."""
    with monkeypatch.context() as patch:
        patch.setattr(launch._Storage, "_locator_classes", ())
        made = launch.Kernel(function)
        made.compile()
    return made


# --- the stream ------------------------------------------------------------------------------------------------------


def raw_words(thread, threads, args):  # type: ignore[no-untyped-def]
    out, counter, key = (
        f32(args, 0),
        (i64(args, 1), i64(args, 2), i64(args, 3), i64(args, 4)),
        (i64(args, 5), i64(args, 6)),
    )
    w = philox4x32_10(counter[0], counter[1], counter[2], counter[3], key[0], key[1])
    for j in range(4):
        store_some(out, j * WIDTH, from_bits(w[j]), WIDTH)


def test_philox_in_vectors_gives_the_answers_published_with_random123(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, out = uncached(raw_words, monkeypatch), np.zeros((4, WIDTH), np.uint32)
    for counter, key, answer in [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:
        first, *rest = (int(w, 16) for w in counter.split())
        for lane in (0, WIDTH - 1) if first >= WIDTH else (0,):
            kernel(1, out, first - lane, *rest, *(int(w, 16) for w in key.split()))
            assert " ".join(f"{w:08x}" for w in out[:, lane]) == answer


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@given(seeds, st.sampled_from(Purpose), images, batches, shapes, st.integers(0, 2**24 - 1), threads)
def test_draws_are_numpys_bit_for_bit_and_write_nothing_else(
    draw: str, seed: int, purpose: Purpose, step: int, samples: list[int], shape: Any, layer: int, count: int
) -> None:
    with launch.guard():
        found = getattr(NumbaBackend(count), draw)(seed, purpose, step, samples, shape, layer=layer)
    same(found, getattr(random, draw)(seed, purpose, step, samples, shape, layer=layer))


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_large_draws_are_numpys_for_every_thread_count_and_split(draw: str) -> None:
    kind, samples = (2020, Purpose.EPS, 1), np.arange(1000) * 4_000_037 % 2**32
    expected = getattr(random, draw)(*kind, samples, (1003,))  # a million: fusing a·b + c would change 1 % of them
    for count in (1, 2, 3):
        same(getattr(NumbaBackend(count), draw)(*kind, samples, (1003,)), expected)
    parts = [getattr(NumbaBackend(2), draw)(*kind, samples[part], (1003,)) for part in (slice(0, 7), slice(7, None))]
    same(np.concatenate(parts), expected)


@pytest.mark.parametrize("width", [8, 16])
def test_every_width_of_vectors_draws_the_same(width: int, tmp_path: Any) -> None:
    program = """if True:
        import hashlib, ddpm_ref_numba, numpy as np
        draw = ddpm_ref_numba.NumbaBackend(1).normal(2020, 4, 1, np.arange(10), (1003,))
        print(ddpm_ref_numba.simd.WIDTH, draw.astype("<f4").tobytes().hex()[:4000], hashlib.sha256(draw).hexdigest())"""
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"DDPM_REF_SIMD_WIDTH": str(width), "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    got = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    import hashlib

    expected = random.normal(2020, Purpose.EPS, 1, np.arange(10), (1003,)).astype("<f4")
    digest = hashlib.sha256(expected.tobytes()).hexdigest()
    assert got.stdout.split() == [str(width), expected.tobytes().hex()[:4000], digest]


def fused(thread, threads, args):  # type: ignore[no-untyped-def]
    x = simd.load(f32(args, 0), 0)
    simd.store(f32(args, 0), 0, simd.fma(x, x, x))


@pytest.mark.parametrize("name", ["normal", "q_sample", "p_sample"])
def test_no_multiplication_is_fused_with_an_addition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not llvm.get_host_cpu_features().get("fma"):
        pytest.skip("this processor cannot fuse them")

    def assembly(function: Callable[..., None]) -> str:
        return str(uncached(function, monkeypatch)._kept._library.get_asm_str())

    assert "vfm" in assembly(fused)
    found = assembly(getattr(noise, f"{name}_kernel").function)
    assert "vmulps" in found and not any(word in found for word in ("vfm", "vfnm"))


@pytest.mark.parametrize(
    "mistake",
    [dict(seed=-1), dict(seed=2**64), dict(step=2**32), dict(layer=-1), dict(samples=[-1]), dict(samples=[[1]])],
    ids=str,
)
def test_bad_arguments_are_refused_as_by_numpy(mistake: dict[str, Any]) -> None:
    given = dict(seed=1, purpose=Purpose.EPS, step=1, samples=[0], shape=(2,), layer=0) | mistake
    for draw in ("normal", "uniform"):
        with pytest.raises(ValueError) as expected:
            getattr(random, draw)(**given)
        with pytest.raises(ValueError) as found:
            getattr(NumbaBackend(1), draw)(**given)
        assert str(found.value) == str(expected.value)


def test_the_guard_finds_a_draw_that_believes_in_one_number_too_many() -> None:
    out, ids = np.zeros(33, np.float32), np.zeros(1, np.int64)
    noise._run(NumbaBackend(1), noise.normal_kernel, 1, Purpose.EPS, 1, ids, 0, 33, out)
    with launch.guard(), pytest.raises(AssertionError, match="wrote outside"):
        noise._run(NumbaBackend(1), noise.normal_kernel, 1, Purpose.EPS, 1, ids, 0, 34, out)


# --- fused with Eq. 4 and with Algorithm 2's line 4 ------------------------------------------------------------------


def batch(seed: int, samples: list[int], shape: tuple[int, ...]) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x, output = rng.standard_normal((2, len(samples), *shape)).astype(np.float32)
    return x, output


@given(seeds, images, batches, shapes, threads, st.booleans())
def test_noising_is_numpys_bit_for_bit(
    seed: int, step: int, samples: list[int], shape: Any, count: int, one_t: bool
) -> None:
    x_0, _ = batch(seed, samples, shape)
    t = 7 if one_t else np.random.default_rng(seed).integers(1, 51, len(samples))
    with launch.guard():
        x_t, eps = NumbaBackend(count).q_sample(SCHEDULE, x_0, t, seed, step, samples)
    same(eps, random.normal(seed, Purpose.EPS, step, samples, shape))
    same(x_t, forward.q_sample(SCHEDULE, x_0, t, eps))


TABLE = np.linspace(0.0, 0.3, 51)
variances = st.sampled_from(["beta", "beta_tilde", TABLE])


@given(seeds, st.integers(1, 50), batches, shapes, variances, st.booleans(), st.sampled_from([0.0, 0.7, 1]), threads)
def test_the_reverse_step_is_numpys_bit_for_bit(
    seed: int, t: int, samples: list[int], shape: Any, var: Any, clip: bool, temperature: float, count: int
) -> None:
    x_t, output = batch(seed, samples, shape)
    kinds = dict(var=var, clip=clip, temperature=temperature)
    with launch.guard():
        found = NumbaBackend(count).p_sample(SCHEDULE, x_t, t, output, seed, samples, **kinds)
    z = random.normal(seed, Purpose.Z, t, samples, shape) if t > 1 else None
    for a, b in zip(found, reverse.p_sample(SCHEDULE, x_t, t, output, z, **kinds), strict=True):
        same(a, b)


def test_large_batches_are_noised_and_denoised_alike_by_any_number_of_threads() -> None:
    samples = list(range(40))
    x, output = batch(0, samples, (29, 31, 1))
    z = random.normal(5, Purpose.Z, 9, samples, (29, 31, 1))
    for run in map(NumbaBackend, (1, 2, 3)):
        x_t, eps = run.q_sample(SCHEDULE, x, 9, 5, 2, samples)
        same(x_t, forward.q_sample(SCHEDULE, x, 9, eps))
        x_prev, _ = run.p_sample(SCHEDULE, x, 9, output, 5, samples, clip=True)
        same(x_prev, reverse.p_sample(SCHEDULE, x, 9, output, z, clip=True)[0])


def test_clipping_lets_nan_through() -> None:
    x, output = np.full((1, 40), np.nan, np.float32), np.zeros((1, 40), np.float32)
    for found in NumbaBackend(1).p_sample(SCHEDULE, x, 3, output, 1, [0], clip=True):
        assert np.isnan(found).all()


@pytest.mark.parametrize(
    "kinds",
    [dict(predicts="x_0"), dict(predicts="v", clip=True), dict(predicts="mu"), dict(var="learned"), dict(dtype=float)],
    ids=str,
)
def test_what_has_no_kernel_runs_numpys_body(kinds: dict[str, Any]) -> None:
    kinds = dict(kinds)
    x, output = (a.astype(kinds.pop("dtype", a.dtype)) for a in batch(1, [3, 4], (5, 5, 2)))
    output = np.concatenate([output, output], axis=-1).astype(x.dtype) if "var" in kinds else output.astype(x.dtype)
    for a, b in zip(
        NumbaBackend(2).p_sample(SCHEDULE, x, 6, output, 1, [3, 4], **kinds),
        Backend().p_sample(SCHEDULE, x, 6, output, 1, [3, 4], **kinds),
        strict=True,
    ):
        assert a.dtype == x.dtype
        np.testing.assert_array_equal(a, b)
    for a, b in zip(
        NumbaBackend(2).q_sample(SCHEDULE, x, 6, 1, 2, [3, 4]),
        Backend().q_sample(SCHEDULE, x, 6, 1, 2, [3, 4]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (dict(t=0), "t: wanted"),
        (dict(t=51), "t: wanted"),
        (dict(seed=-1), "seed: "),
        (dict(samples=[1]), "samples: wanted one"),
    ],
)
def test_noising_and_the_reverse_step_refuse_bad_arguments(mistake: dict[str, Any], message: str) -> None:
    x, output = batch(1, [3, 4], (5,))
    given = dict(t=5, seed=1, samples=[3, 4]) | mistake
    with pytest.raises(ValueError, match=message):
        NumbaBackend(1).q_sample(SCHEDULE, x, step=1, **given)
    with pytest.raises(ValueError, match=message):
        NumbaBackend(1).p_sample(SCHEDULE, x, output=output, **given)
    with pytest.raises(ValueError, match="eps: wanted the shape"):
        NumbaBackend(1).p_sample(SCHEDULE, x, 5, output[:, :4], 1, [3, 4])

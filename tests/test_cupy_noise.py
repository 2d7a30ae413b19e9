"""The CUDA kernels of random numbers, noising and the reverse step, run on the CPU: NumPy's bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice, bf16_bits, rounded
from ddpm_ref_cupy import noise
from ddpm_ref_cupy.device import Launch
from hypothesis import given
from hypothesis import strategies as st
from strategies import schedule_of, short

from ddpm_ref import forward, random, reverse
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops
from ddpm_ref.random import Purpose

Host = Callable[..., HostDevice]

SCHEDULE = short(50)
seeds, images = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
batches = st.lists(images, max_size=5)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.integers(1, 70).map(lambda n: (n,))
orders, dtypes = st.sampled_from(ORDERS), st.sampled_from([np.float32, np.float64])
layers, steps = st.integers(0, 2**24 - 1), st.integers(0, 2**31 - 1)


def same(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def counters(run: HostDevice, step: int) -> Array:
    """A device's counters with `step` in slot 1."""
    return run.to_device(np.array([-1, step, -1], np.int32))


# --- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@given(seeds, st.sampled_from(Purpose), images, batches, shapes, layers, orders)
def test_draws_are_numpys_bit_for_bit(
    host: Host,
    draw: str,
    seed: int,
    purpose: Purpose,
    step: int,
    samples: list[int],
    shape: Any,
    layer: int,
    order: str,
) -> None:
    found = getattr(noise, draw)(host(order), seed, purpose, step, samples, shape, layer=layer)
    same(found, getattr(random, draw)(seed, purpose, step, samples, shape, layer=layer))


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_large_draws_are_numpys(host: Host, draw: str) -> None:
    kind, samples = (2020, Purpose.EPS, 1), np.arange(300) * 4_000_037 % 2**32
    expected = getattr(random, draw)(*kind, samples, (1003,))  # 300,000: fusing a·b + c would change 1 % of them
    same(getattr(noise, draw)(host(), *kind, samples, (1003,)), expected)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@given(seeds, steps, st.lists(images, min_size=1, max_size=4), st.integers(1, 9), layers, orders)
def test_draws_of_a_step_on_the_device_are_those_of_the_step_given(
    host: Host, draw: str, seed: int, step: int, samples: list[int], count: int, layer: int, order: str
) -> None:
    run = host(order)
    out = run.empty((len(samples), count), np.float32)
    ids = noise.numbers(run, samples)
    getattr(noise, f"{draw}_at")(run, out, seed, Purpose.DROPOUT, counters(run, step), 1, ids, layer=layer)
    same(out, getattr(random, draw)(seed, Purpose.DROPOUT, step, samples, (count,), layer=layer))


@given(seeds, steps, st.lists(images, min_size=1, max_size=9), st.integers(1, 2**31 - 1), orders)
def test_integers_are_numpys(host: Host, seed: int, step: int, samples: list[int], n: int, order: str) -> None:
    run = host(order)
    out = run.empty((len(samples),), np.int32)
    ids = noise.numbers(run, samples)
    noise.integers_at(run, out, seed, Purpose.INDEX, counters(run, step), 1, ids, n)
    assert out.tolist() == random.integers(seed, Purpose.INDEX, step, samples, n).tolist()
    noise.integers_at(run, out, seed, Purpose.T, counters(run, step), 1, ids, 1000, 1)
    assert out.tolist() == (1 + random.integers(seed, Purpose.T, step, samples, 1000)).tolist()


def test_many_images_of_few_numbers_and_more_work_than_threads(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "MOST_BLOCKS", 2)  # then each thread makes several groups of four
    samples = list(range(700))
    same(noise.normal(host(), 5, Purpose.Z, 3, samples, (5,)), random.normal(5, Purpose.Z, 3, samples, (5,)))


def test_launches_cover_every_number_and_stay_within_a_grid() -> None:
    assert noise.launch("normal", 1, 1).grid == (1,)
    assert noise.launch("normal", 128, 3072).grid == (128 * 768 // 256,)
    assert noise.launch("normal", 3, 1025).grid == (-(-3 * 257 // 256),)
    assert noise.launch("normal", 10**6, 10**6).grid == (noise.MOST_BLOCKS,)


@pytest.mark.parametrize(
    "mistake",
    [dict(seed=-1), dict(seed=2**64), dict(step=2**32), dict(layer=-1), dict(samples=[-1]), dict(samples=[[1]])],
    ids=str,
)
def test_bad_arguments_are_refused_as_by_numpy(host: Host, mistake: dict[str, Any]) -> None:
    given = dict(seed=1, purpose=Purpose.EPS, step=1, samples=[0], shape=(2,), layer=0) | mistake
    for draw in ("normal", "uniform"):
        with pytest.raises(ValueError) as expected:
            getattr(random, draw)(**given)
        with pytest.raises(ValueError) as found:
            getattr(noise, draw)(host(), **given)
        assert str(found.value) == str(expected.value)


@given(seeds, steps, st.lists(images, min_size=1, max_size=4), shapes, layers, st.integers(0), dtypes, orders)
def test_dropout_by_draws_that_are_not_kept_is_dropout_by_draws(
    host: Host, seed: int, step: int, samples: list[int], shape: Any, layer: int, k: int, dtype: Any, order: str
) -> None:
    """With one of the draws as the rate, which is then not dropped."""
    run = host(order)
    x, dy = batch(seed, samples, shape, dtype)
    if not x.size:
        return
    u = random.uniform(seed, Purpose.DROPOUT, step, samples, shape, layer=layer)
    rate = float(u.reshape(-1)[k % u.size])
    y, backward = ops.dropout(x, u, rate)
    stream = counters(run, step), 1, noise.numbers(run, samples)
    found, found_backward = noise.dropout_at(run, run.to_device(x), rate, seed, *stream, layer=layer)
    same(found, y)
    same(found_backward(run.to_device(dy)), backward(dy))


@given(seeds, st.lists(images, min_size=1, max_size=4), st.integers(1, 9), st.floats(0, 0.9), orders)
def test_dropout_of_bfloat16_drops_the_same_and_rounds_once(
    host: Host, seed: int, samples: list[int], eights: int, rate: float, order: str
) -> None:
    run, shape = host(order), (3, 8 * eights)
    x, dy = (bf16_bits(a).reshape(a.shape) for a in batch(seed, samples, shape, np.float32))
    u = random.uniform(seed, Purpose.DROPOUT, 7, samples, shape, layer=2)
    y, backward = ops.dropout(rounded(x, "fp32"), u, rate)
    stream = counters(run, 7), 1, noise.numbers(run, samples)
    found, found_backward = noise.dropout_at(run, run.to_device(x), rate, seed, *stream, layer=2)
    same(found, bf16_bits(y).reshape(x.shape))
    same(found_backward(run.to_device(dy)), bf16_bits(backward(rounded(dy, "fp32"))).reshape(x.shape))


# --- fused with Eq. 4 and with Algorithm 2's line 4 ------------------------------------------------------------------


def batch(seed: int, samples: list[int], shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    x, output = np.random.default_rng(seed).standard_normal((2, len(samples), *shape)).astype(dtype)
    return x, output


@given(seeds, steps, batches, shapes, st.booleans(), dtypes, orders)
def test_noising_is_numpys_bit_for_bit(
    host: Host, seed: int, step: int, samples: list[int], shape: Any, one_t: bool, dtype: Any, order: str
) -> None:
    run = host(order)
    x_0, _ = batch(seed, samples, shape, dtype)
    t = 7 if one_t else np.random.default_rng(seed).integers(1, 51, len(samples))
    x_t, eps = noise.q_sample(run, SCHEDULE, run.to_device(x_0), t, seed, step, samples)
    same(eps, random.normal(seed, Purpose.EPS, step, samples, shape).astype(dtype))
    same(x_t, forward.q_sample(SCHEDULE, x_0, t, eps))
    if x_0.size:
        tables = tuple(run.to_device(table) for table in noise.noising_tables(SCHEDULE, dtype))
        each = run.to_device(np.broadcast_to(np.int32(t), len(x_0)))
        again = run.empty(x_0.shape, dtype), run.empty(x_0.shape, dtype)
        ids = noise.numbers(run, samples)
        noise.q_sample_at(run, *again, run.to_device(x_0), tables, each, seed, counters(run, step), 1, ids)
        same(again[0], x_t)
        same(again[1], eps)


TABLE = np.linspace(0.0, 0.3, 51)
variances = st.sampled_from(["beta", "beta_tilde", TABLE])
kinds = st.fixed_dictionaries(
    dict(
        predicts=st.sampled_from(["eps", "x_0", "v"]),
        var=variances,
        clip=st.booleans(),
        temperature=st.sampled_from([0.0, 0.7, 1]),
    )
)


@given(seeds, st.integers(1, 50), batches, shapes, kinds, dtypes, orders)
def test_the_reverse_step_is_numpys_bit_for_bit(
    host: Host, seed: int, t: int, samples: list[int], shape: Any, kind: dict[str, Any], dtype: Any, order: str
) -> None:
    run = host(order)
    x_t, output = batch(seed, samples, shape, dtype)
    assert noise.takes(x_t, t, output, kind["predicts"], kind["var"])
    z = random.normal(seed, Purpose.Z, t, samples, shape) if t > 1 else None
    expected = reverse.p_sample(SCHEDULE, x_t, t, output, z, **kind)
    x_t, output = run.to_device(x_t), run.to_device(output)
    found = noise.p_sample(run, SCHEDULE, x_t, t, output, seed, samples, **kind)
    for a, b in zip(found, expected, strict=True):
        same(a, b)
    if x_t.size:
        table, form = noise.reverse_table(SCHEDULE, dtype, start=50, **kind)
        x_0_hat, ids = run.empty(x_t.shape, dtype), noise.numbers(run, samples)
        table, at = run.to_device(table), counters(run, t)
        noise.p_sample_at(run, x_t, x_0_hat, x_t, output, table, form, seed, at, 1, ids)  # in place
        same(x_t, expected[0])
        same(x_0_hat, expected[1])


def test_a_view_that_does_not_begin_at_16_bytes_is_read_one_number_at_a_time(host: Host) -> None:
    run = host()
    x = run.to_device(np.arange(1, 26, dtype=np.float32).reshape(25, 1) / 25)[1:].reshape(3, 8)
    x_t, eps = noise.q_sample(run, SCHEDULE, x, 9, 1, 1, [4, 5, 6])
    same(x_t, forward.q_sample(SCHEDULE, x, 9, eps))


def test_what_has_no_kernel_is_left_to_numpys_body() -> None:
    x, output = batch(0, [0], (2,), np.float32)
    for wrong in (dict(predicts="mu"), dict(var="learned"), dict(t=np.array([1])), dict(output=output.astype(float))):
        given = dict(x_t=x, t=1, output=output, predicts="eps", var="beta") | wrong
        assert not noise.takes(**given)  # type: ignore[arg-type]


def test_mistakes_are_refused_as_by_numpy(host: Host) -> None:
    x, output = batch(0, [0, 1], (2,), np.float32)
    lost = schedule_of([0.5, 1.0])
    kind = dict(predicts="eps", var="beta", clip=False, temperature=1.0)
    with pytest.raises(ValueError, match="alpha_bar_t = 0"):
        noise.p_sample(host(), lost, x, 2, output, 0, [0, 1], **kind)
    with pytest.raises(ValueError, match="one number for each of the 2 images, got 1"):
        noise.p_sample(host(), SCHEDULE, x, 2, output, 0, [0], **kind)
    with pytest.raises(ValueError, match="samples"):
        noise.q_sample(host(), SCHEDULE, x, 2, 0, 0, [0])
    with pytest.raises(ValueError, match=r"t: wanted steps in 1\.\.50"):
        noise.q_sample(host(), SCHEDULE, x, 51, 0, 0, [0, 1])
    with pytest.raises(ValueError, match="eps: wanted the shape of x_t"):
        noise.p_sample(host(), SCHEDULE, x, 2, output[:, :1], 0, [0, 1], **kind)


# --- the tests' own teeth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new",
    [
        ("y = add_rn(f, y);", "y = add_rn(y, 1.0000001f * f);"),
        ("if (odd != second_half) cos = -cos;", "if (odd) cos = -cos;"),
        ("return {n, n * count + 4 * (i64)block", "return {n, n * count + 4 * (i64)block + 1"),
        ("{n, n * count", "{n, n * blocks * 4"),
        ("round < 10", "round < 9"),
    ],
)
def test_a_change_of_the_kernels_text_shows(host: Host, old: str, new: str) -> None:
    run = host(replace={"noise": [(old, new)]})
    expected = random.normal(3, Purpose.EPS, 2, [5, 6, 7], (37,))
    try:
        found = noise.normal(run, 3, Purpose.EPS, 2, [5, 6, 7], (37,))
    except RuntimeError as error:
        assert "written outside" in str(error)
    else:
        assert found.tobytes() != expected.tobytes()


def test_a_draw_that_believes_in_one_number_too_many_is_found(host: Host) -> None:
    run = host()
    out = run.empty((1, 33), np.float32)
    args = np.uint64(1), np.uint32(1), np.uint32(4)
    with pytest.raises(RuntimeError, match=r"noise\.normal: out: written outside of its 132 bytes"):
        run.launch(Launch("noise.normal", (1,), (64,)), out, noise.numbers(run, [0]), np.int64(1), np.int64(34), *args)

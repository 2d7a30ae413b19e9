"""Up-sampling, concatenation, addition, dropout and SiLU in CUDA, run on the CPU: NumPy's bits, but for SiLU."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import bf16_bits, rounded
from cupy_checks import Host, dtypes, layouts, misaligned, orders
from ddpm_ref_cupy import CupyBackend, pointwise
from ddpm_ref_cupy.device import Device
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend import Backend
from ddpm_ref.backend_cases import Case, check_case
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops

sides, widths, seeds = st.integers(1, 5), st.sampled_from([1, 3, 4, 5, 8, 12]), st.integers(0, 99)
shapes = st.tuples(st.integers(1, 3), sides, sides, widths)


@st.composite
def pieces(draw: Any, channels: st.SearchStrategy[int] = widths) -> Case:
    """One of the operations on some shape."""
    shape, seed = draw(st.tuples(st.integers(1, 3), sides, sides, channels)), draw(seeds)
    kind = draw(st.sampled_from(["upsample", "concat", "add", "dropout"]))
    if kind == "dropout":
        return cases.dropout(shape, draw(st.sampled_from([0.0, 0.1, 0.5, 0.999])), seed=seed)
    if kind == "concat":
        return cases.concat(*shape, draw(channels), seed=seed)
    return cases.upsample(*shape, seed=seed) if kind == "upsample" else cases.add(shape, seed=seed)


@settings(deadline=None, max_examples=60)
@given(pieces(), orders, dtypes, layouts)
def test_they_keep_the_contract(host: Host, case: Case, order: str, dtype: Any, layout: str) -> None:
    check_case(CupyBackend(device=host(order)), case, dtype, layout)


def _same(found: Array, wanted: Array) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()


@settings(deadline=None, max_examples=60)
@given(pieces(), dtypes)
def test_their_bits_are_numpys(host: Host, case: Case, dtype: Any) -> None:
    args = [a.astype(dtype) for a in case.args]
    y, backward = case.call(Backend(), *args)
    run = host()
    found, found_backward = case.call(CupyBackend(device=run), *map(run.to_device, args))
    _same(found, y)
    dy = cases.normals(5, y.shape)[0].astype(dtype)
    gradients, wanted = found_backward(run.to_device(dy)), backward(dy)
    for a, b in zip(*(g if isinstance(g, tuple) else (g,) for g in (gradients, wanted)), strict=True):
        _same(a, b)


@settings(deadline=None, max_examples=40)
@given(pieces(channels=st.sampled_from([8, 16, 40])), orders)
def test_bfloat16_moves_as_it_is_and_sums_are_rounded_once(host: Host, case: Case, order: str) -> None:
    run, bits = host(order), [bf16_bits(a).reshape(a.shape) for a in case.args]
    y, backward = case.call(Backend(), *(rounded(a, "fp32") for a in bits))
    found, found_backward = case.call(CupyBackend(device=run), *map(run.to_device, bits))
    _same(found, bf16_bits(y).reshape(y.shape))
    dy = bf16_bits(cases.normals(5, y.shape)[0]).reshape(y.shape)
    gradients, wanted = found_backward(run.to_device(dy)), backward(rounded(dy, "fp32"))
    for a, b in zip(*(g if isinstance(g, tuple) else (g,) for g in (gradients, wanted)), strict=True):
        _same(a, bf16_bits(b).reshape(b.shape))


def test_dropped_numbers_keep_numpys_sign_of_zero_and_nan(host: Host) -> None:
    run = host()
    x, u = np.array([-1, 2, np.nan, np.inf, -0.0] * 4, np.float32), np.zeros(20, np.float32)
    with np.errstate(invalid="ignore"):
        wanted, _ = ops.dropout(x, u, 0.5)
    y, _ = pointwise.dropout(run, run.to_device(x), run.to_device(u), 0.5)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(wanted[~np.isnan(y)]))


def test_the_adjoint_of_dropout_looks_at_its_uniforms_no_more(host: Host) -> None:
    run = host()
    x, dy = (run.to_device(a.astype(np.float32)) for a in cases.normals(1, (2, 3, 3, 5), (2, 3, 3, 5)))
    u = run.to_device(np.random.RandomState(0).random_sample(x.shape).astype(np.float32))
    wanted = ops.dropout(x, u.copy(), 0.4)[1](dy)
    _, backward = pointwise.dropout(run, x, u, 0.4)
    u[...] = 0
    _same(backward(dy), wanted)


@pytest.mark.parametrize("kind", ["upsample", "concat", "add", "dropout"])
def test_views_may_begin_anywhere(host: Host, kind: str) -> None:
    run = host()
    a, b = (misaligned(run, x.astype(np.float32)) for x in cases.normals(1, (2, 3, 3, 8), (2, 3, 3, 8)))
    args: tuple[Any, ...] = {"upsample": (a,), "dropout": (a, misaligned(run, np.abs(b) % 1), 0.5)}.get(kind, (a, b))
    y, backward = getattr(CupyBackend(device=run), kind)(*args)
    wanted, wanted_backward = getattr(ops, kind)(*args)
    _same(y, wanted)
    dy = misaligned(run, cases.normals(2, y.shape)[0].astype(np.float32))
    for found, exact in zip(
        *(g if isinstance(g, tuple) else (g,) for g in (backward(dy), wanted_backward(dy))), strict=True
    ):
        _same(found, exact)


@settings(deadline=None, max_examples=20)
@given(shapes, dtypes, orders, seeds)
def test_silu_is_numpys_to_a_few_roundings(
    host: Host, shape: tuple[int, ...], dtype: Any, order: str, seed: int
) -> None:
    run = host(order)
    x, dy = (a.astype(dtype) for a in cases.normals(seed, shape, shape))
    x *= 5
    y, backward = pointwise.silu(run, run.to_device(x))
    wanted, wanted_backward = ops.silu(x.astype(np.float64))
    few = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, wanted, rtol=few, atol=0)
    np.testing.assert_allclose(backward(run.to_device(dy)), wanted_backward(dy.astype(np.float64)), rtol=few, atol=few)


@settings(deadline=None, max_examples=20)
@given(shapes, orders, seeds)
def test_silu_of_bfloat16_is_rounded_once(host: Host, shape: tuple[int, ...], order: str, seed: int) -> None:
    run = host(order)
    x, dy = (bf16_bits(5 * a).reshape(shape) for a in cases.normals(seed, shape, shape))
    y, backward = pointwise.silu(run, run.to_device(x))
    wanted, wanted_backward = ops.silu(rounded(x, "fp32").astype(np.float64))
    few, exact = 8 * np.finfo(np.float32).eps, (wanted, wanted_backward(rounded(dy, "fp32").astype(np.float64)))
    for found, a in zip((y, backward(run.to_device(dy))), exact, strict=True):
        assert found.dtype == np.uint16
        np.testing.assert_allclose(rounded(found, "fp32"), a, rtol=few + 2**-8, atol=20 * few)


def test_silu_of_what_overflows_the_exponential_is_zero(host: Host) -> None:
    run = host()
    y, backward = pointwise.silu(run, run.to_device(np.array([-1e4, -200, 200, 1e4], np.float32)))
    np.testing.assert_array_equal(y, np.array([0, 0, 200, 1e4], np.float32))
    np.testing.assert_array_equal(backward(run.to_device(np.ones(4, np.float32))), np.array([0, 0, 1, 1], np.float32))


def test_more_images_than_a_grid_has_rows_are_walked_to(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "_MOST_IMAGES", 2)
    for case in (cases.upsample(5, 2, 3, 4), cases.concat(5, 2, 3, 4, 3)):
        check_case(CupyBackend(device=host()), case)


def test_more_numbers_than_a_grid_has_threads_are_walked_to(host: Host) -> None:
    run = host()
    run.processors = 1
    for case in (cases.add((3, 70_001)), cases.dropout((3, 70_001), 0.3)):
        check_case(CupyBackend(device=run), case)


@given(st.integers(1, 2**40), st.integers(1, 200))
def test_a_grid_has_a_thread_for_every_four_or_64_blocks_a_processor(n: int, processors: int) -> None:
    run = Device()
    run.processors = processors
    blocks = pointwise.by_element(run, "pointwise.pointwise_add", n, np.dtype(np.float32)).grid[0]
    assert blocks == 64 * processors or 4 * 256 * blocks >= n > 4 * 256 * (blocks - 1)

"""The device that runs CUDA kernels on the CPU finds what it is there to find."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice, bf16_bits, rounded
from cuda_host.source import parameters
from ddpm_ref_cupy.device import Launch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.checks import Array

PROBES = Path(__file__).parent / "cuda_host" / "probes"
Make = Callable[..., HostDevice]
orders = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture(scope="session")
def make(host: Make) -> Make:
    """`HostDevice` with the kernels of probes/t.cu; changed: (old, new) in their text."""

    def made(order: str = "forward", changed: tuple[str, str] | None = None) -> HostDevice:
        return host(order, kernels=PROBES, replace={"t": [changed]} if changed else None)

    return made


def arrays(run: HostDevice, *shapes: Any) -> list[Array]:
    return [run.empty((shape,) if isinstance(shape, int) else shape, np.float32) for shape in shapes]


# --- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [np.float32, np.float64])
@orders
def test_a_blocks_sum_is_the_same_in_every_order(make: Make, order: str, real: Any) -> None:
    run = make(order)
    x = run.to_device(np.random.default_rng(0).standard_normal((3, 1000)).astype(real))
    y, first = run.empty((3,), real), make().empty((3,), real)
    run.launch(Launch("t.sums", (3,), (256,), real=real), x, y, np.int32(1000))
    make().launch(Launch("t.sums", (3,), (256,), real=real), x, first, np.int32(1000))
    np.testing.assert_allclose(y, x.sum(1), rtol=1e-5)
    assert y.tobytes() == first.tobytes()


@orders
def test_threads_and_blocks_of_three_dimensions_each_run_once(make: Make, order: str) -> None:
    run = make(order)
    y = run.zeros((24, 30), np.int32)
    run.launch(Launch("t.where", (2, 3, 4), (5, 3, 2)), y)
    np.testing.assert_array_equal(y, 1000 * np.arange(24)[:, None] + np.arange(30))


@orders
def test_lanes_exchange_as_the_manual_says(make: Make, order: str) -> None:
    run, lane = make(order), np.arange(32)
    y = run.empty((7, 32), np.int32)
    run.launch(Launch("t.lanes", (1,), (32,)), y)
    down, up = np.where(lane < 28, lane + 4, lane), np.where(lane >= 4, lane - 4, lane)
    thirds = np.uint32(sum(1 << i for i in range(0, 32, 3))).astype(np.int32)
    most = max((100 + i) % 17 for i in range(32))
    for row, expected in zip(
        y, (105, 100 + (lane ^ 3), 100 + down, 100 + up, 102 + lane // 8 * 8, thirds, most), strict=True
    ):
        np.testing.assert_array_equal(row, np.broadcast_to(expected, 32))


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(ORDERS))
def test_the_tensor_cores_product_is_numpys_of_rounded_operands(make: Make, seed: int, bf16: bool, order: str) -> None:
    run, k, rng = make(order), 16 if bf16 else 8, np.random.default_rng(seed)
    a, b = (run.to_device(rng.standard_normal(shape).astype(np.float32)) for shape in ((16, k), (k, 8)))
    d = run.empty((16, 8), np.float32)
    run.launch(Launch("t.product", (1,), (32,)), a, b, d, np.int32(bf16))
    x, y = (rounded(z, "bf16" if bf16 else "tf32").astype(np.float64) for z in (a, b))
    np.testing.assert_allclose(d, x @ y, rtol=1e-6, atol=1e-6)
    assert np.abs(d - a.astype(np.float64) @ b).max() > 1e-5  # the rounding is there


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_rounding_to_bfloat16_and_tf32(make: Make, numbers: list[float]) -> None:
    run = make()
    x = run.to_device(np.array(numbers, np.float32))
    one, two, tf32 = (run.empty(x.shape, t) for t in (np.uint16, np.uint32, np.uint32))
    run.launch(Launch("t.converted", (1,), (32,)), x, one, two, tf32, np.int32(len(x)))
    np.testing.assert_array_equal(two, one.astype(np.uint32) | one[::-1].astype(np.uint32) << 16)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(one[finite], bf16_bits(x[finite]))
    np.testing.assert_array_equal(tf32[finite], rounded(x[finite], "tf32").view(np.uint32))
    back = (one.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(x))
    for i in np.flatnonzero(finite & np.isfinite(back)):
        near = (one[i] + np.array([-1, 0, 1])).astype(np.uint16)  # the bfloat16 neighbours
        values = (near.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        off = np.abs(values[np.isfinite(values)] - float(x[i]))
        assert abs(float(back[i]) - float(x[i])) == off.min()


@pytest.mark.parametrize("precision, error", [("fp32", 1e-6), ("tf32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("trans_a, trans_b, add", list(itertools.product([False, True], repeat=3)))
def test_products_of_matrices_and_batches(
    host: Make, precision: str, error: float, trans_a: bool, trans_b: bool, add: bool
) -> None:
    run, rng = host(precision=precision), np.random.default_rng(0)
    for batch in ((), (3,)):
        a, b, out = (rng.standard_normal((*batch, *shape)).astype(np.float32) for shape in ((4, 5), (5, 6), (4, 6)))
        expected = a @ b + out if add else a @ b
        left, right = (np.ascontiguousarray(x.swapaxes(-1, -2)) if t else x for x, t in ((a, trans_a), (b, trans_b)))
        run.matmul(left, right, out, trans_a=trans_a, trans_b=trans_b, add=add)
        far = np.abs(out - expected).max()
        assert far < 10 * error and (precision == "fp32" or far > error / 10)


# --- barriers --------------------------------------------------------------------------------------------------------


def turned(run: HostDevice) -> Array:
    x, y = run.to_device(np.arange(256, dtype=np.float32)), run.empty((256,), np.float32)
    run.launch(Launch("t.turned", (1,), (128,)), x, y)
    return y.reshape(2, 128)[:, ::-1].ravel()


@orders
def test_barriers_hold_in_every_order(make: Make, order: str) -> None:
    np.testing.assert_array_equal(turned(make(order)), np.arange(256))


def test_without_the_barrier_after_writing_every_order_reads_nan_bits(make: Make) -> None:
    for order in ORDERS:
        assert np.isnan(turned(make(order, ("__syncthreads();  // written", "")))).any()


def test_without_the_barrier_after_reading_some_order_overwrites_what_is_still_wanted(make: Make) -> None:
    wrong = {order for order in ORDERS if (turned(make(order, ("__syncthreads();  // read", ""))) != range(256)).any()}
    assert "warp-greedy" in wrong


def test_without_either_barrier_of_a_sum_it_is_wrong(host: Make, make: Make) -> None:
    own = "v = warp_reduce<Sum>(v); if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v; __syncthreads();"
    own += "v = 0; for (int w = 0; w < 8; w++) v += scratch[w]; __syncthreads();"
    text = (
        "sum = block_sum(sum, scratch);",
        f"real once; for (int k = 0; k < 2; k++) {{ real v = sum + k; {own} if (!k) once = v; }} sum = once;",
    )
    x = np.arange(256, dtype=np.float32).reshape(1, 256)

    def sums(order: str, changed: tuple[str, str]) -> float:
        run = make(order, changed)
        y = run.empty((1,), np.float32)
        run.launch(Launch("t.sums", (1,), (256,)), run.to_device(x), y, np.int32(256))
        return float(y[0])

    assert {sums(order, text) for order in ORDERS} == {x.sum()}
    for place in (0, 1):
        parts = text[1].split("__syncthreads();")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        assert any(sums(order, (text[0], "__syncthreads();".join(parts))) != x.sum() for order in ORDERS)


@orders
@pytest.mark.parametrize("limit", [1, 32, 63])
def test_a_barrier_that_some_threads_do_not_reach_is_an_error(make: Make, order: str, limit: int) -> None:
    run = make(order)
    with pytest.raises(RuntimeError, match=r"divergent __syncthreads: thread .* waits in .*, thread .* has returned"):
        run.launch(Launch("t.divergent", (1,), (64,)), *arrays(run, 64), np.int32(limit))
    run.launch(Launch("t.divergent", (1,), (64,)), *arrays(run, 64), np.int32(64))


@orders
def test_two_barriers_are_not_one(make: Make, order: str) -> None:
    run = make(order)
    with pytest.raises(RuntimeError, match=r"divergent __syncthreads.*waits elsewhere"):
        run.launch(Launch("t.two_places", (1,), (64,)), *arrays(run, 64))


@orders
def test_a_collective_of_half_a_warp_is_an_error(make: Make, order: str) -> None:
    run = make(order)
    with pytest.raises(RuntimeError, match="divergent warp collective: lane 16"):
        run.launch(Launch("t.half_a_warp", (1,), (32,)), *arrays(run, 32))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_new_arrays_are_nan_and_zeros_are_zero(make: Make) -> None:
    run = make()
    assert np.isnan(run.empty((3, 5), np.float32)).all() and np.isnan(run.empty((7,), np.float64)).all()
    assert (run.empty((5,), np.uint16) == 0xFFFF).all() and not run.zeros((5,), np.int32).any()


def test_an_index_off_by_one_is_found(make: Make) -> None:
    run = make()
    x = run.to_device(np.ones((2, 32), np.float32))
    y = run.empty((2,), np.float32)
    run.launch(Launch("t.sums", (2,), (32,)), x, y, np.int32(32))
    assert (y == 32).all()
    for shift in (-1, 2):
        run, y = (
            make(changed=("y[blockIdx.x] = sum", f"y[(int)blockIdx.x + {shift}] = sum")),
            run.empty((2,), np.float32),
        )
        with pytest.raises(RuntimeError, match=r"t\.sums: y: written outside of its 8 bytes"):
            run.launch(Launch("t.sums", (2,), (32,)), x, y, np.int32(32))
    run, y = make(changed=("x[(i64)blockIdx.x * n + i]", "x[(i64)blockIdx.x * n + i + 1]")), run.empty((2,), np.float32)
    run.launch(Launch("t.sums", (2,), (32,)), x, y, np.int32(32))  # it reads one number past the end
    assert y[0] == 32 and np.isnan(y[1])


def test_a_write_beside_an_odd_sized_array_is_found_through_a_view(make: Make) -> None:
    run = make()
    one = run.empty((5,), np.uint16)[1:4]
    two, tf32 = run.empty((8,), np.uint32), run.empty((8,), np.uint32)
    x = run.to_device(np.ones(8, np.float32))
    run.launch(Launch("t.converted", (1,), (32,)), x[:3], one, two, tf32, np.int32(3))
    with pytest.raises(RuntimeError, match="one: written outside of its 10 bytes"):
        run.launch(Launch("t.converted", (1,), (32,)), x[:5], one, two, tf32, np.int32(5))


@pytest.mark.parametrize("by", [1, 2, 3])
def test_four_numbers_at_an_address_that_a_gpu_refuses(make: Make, by: int) -> None:
    run = make()
    x, y = arrays(run, 132, 128)
    run.launch(Launch("t.shifted", (1,), (32,)), x, y, np.int32(4))
    with pytest.raises(RuntimeError, match=r"prelude\.cuh:\d+: access to an address that is not aligned"):
        run.launch(Launch("t.shifted", (1,), (32,)), x, y, np.int32(by))


def test_shared_memory_has_its_bounds_and_starts_as_nan(make: Make) -> None:
    run = make()
    (y,) = arrays(run, 32)
    run.launch(Launch("t.past_shared", (1,), (32,)), y, np.int32(31))
    with pytest.raises(RuntimeError, match=r"t\.cu:\d+: index 32 is out of its array's bounds"):
        run.launch(Launch("t.past_shared", (1,), (32,)), y, np.int32(32))
    run.launch(Launch("t.dynamic", (2,), (32,), 256), y, np.int32(64))
    assert np.isnan(y).all()  # the second block does not see the first one's
    with pytest.raises(RuntimeError, match="past the launch's 256 bytes of dynamic shared memory"):
        run.launch(Launch("t.dynamic", (1,), (32,), 256), y, np.int32(65))


@orders
def test_asynchronous_copies_are_there_after_the_wait_and_before_only_where_they_are_early(
    make: Make, order: str
) -> None:
    early = order in ("reverse", "warp-greedy-reverse")
    run, x = make(order), np.arange(256, dtype=np.float32)
    given, y = run.to_device(x), run.empty((2, 256), np.float32)
    expected = np.stack([np.where(np.arange(256) < 240, x, 0), x])[:, np.arange(256) ^ 64]
    for waits, there in ((2, [True, True]), (1, [True, False]), (0, [False, False])):
        run.launch(Launch("t.copied", (1,), (64,), 2048), given, y, np.int32(waits), np.int32(60))
        for row, wanted, arrived in zip(y, expected, there, strict=True):
            np.testing.assert_array_equal(row, wanted if arrived or early else np.nan)
    with pytest.raises(RuntimeError, match="async_copy: wants a place in shared memory"):
        run.launch(Launch("t.copied", (1,), (64,), 1024), given, y, np.int32(2), np.int32(60))


# --- arguments -------------------------------------------------------------------------------------------------------


def test_arguments_and_launches_that_a_gpu_would_misread_are_refused(make: Make) -> None:
    run = make()
    x, y = arrays(run, (2, 32), 2)
    how, n = Launch("t.sums", (2,), (32,)), np.int32(32)
    frozen = y.copy()
    frozen.flags.writeable = False
    for args, message in [
        ((x, y), "t.sums: takes x, y, n, got 2 arguments"),
        ((x, y, 32), "n: wanted a NumPy scalar of int32, got int"),
        ((x, y, np.int64(32)), "n: wanted a NumPy scalar of int32, got int64"),
        ((x.astype(np.float64), y, n), "x: wanted a C-contiguous array of float32"),
        ((x[:, ::2], y, n), "x: wanted a C-contiguous array of float32"),
        ((n, y, n), "x: wanted a C-contiguous array"),
        ((x, frozen, n), "y: the kernel may write to it, and the array is read-only"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.launch(how, *args)
    for wrong, message in [
        (how._replace(block=(512,)), "of a kernel made for at most 256 threads"),
        (how._replace(grid=(0,)), "a grid cannot be"),
        (how._replace(grid=(1, 65536)), "a grid cannot be"),
        (how._replace(shared=300_000), "300000 bytes of shared memory"),
        (how._replace(kernel="t.sum"), "no such kernel, there are sums, turned"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.launch(wrong, x, y, n)


def test_a_kernels_signature_says_what_it_takes() -> None:
    found = parameters("const real* __restrict__ x, unsigned short *y, unsigned long long seed, bf16 b", np.float64)
    assert [(p.name, p.dtype, p.is_array, p.is_const) for p in found] == [
        ("x", np.float64, True, True), ("y", np.uint16, True, False), ("seed", np.uint64, False, False),
        ("b", np.uint16, False, False),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a kernel's parameter cannot be 'size_t n'"):
        parameters("size_t n", np.float32)


def test_a_text_that_does_not_compile_says_where(make: Make) -> None:
    with pytest.raises(RuntimeError, match=r"t\.cu:6:\d+: error: .*nothing"):
        make(changed=("sum += x", "sum += nothing")).program("t", np.float32)
    with pytest.raises(ValueError, match="does not hold 'not there'"):
        make(changed=("not there", "")).program("t", np.float32)

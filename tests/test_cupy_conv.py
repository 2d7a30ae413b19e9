"""The 3x3 convolution in CUDA, run on the CPU, against NumPy's in float64 on the operands as the device rounds them."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from cupy_checks import counted_barriers, dtypes, layouts, leaner, misaligned, needs_compiler, orders
from cupy_conv_checks import arguments, hold, results
from ddpm_ref_cupy import CupyBackend, conv, tiles
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend_cases import Case, check_case

pytestmark = needs_compiler
precisions = st.sampled_from(["bf16", "tf32"])
sizes = st.integers(1, 7)


@st.composite
def convolutions(draw: Any) -> Case:
    """Odd and tiny images, any channels, both strides, one bias or one per image."""
    n, h, w, c, d = draw(st.integers(1, 3)), draw(sizes), draw(sizes), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return cases.conv3x3(n, h, w, c, d, stride=draw(st.sampled_from([1, 2])), per_image=draw(st.booleans()))


@settings(deadline=None, max_examples=40)
@given(convolutions(), orders, dtypes, layouts)
def test_products_over_windows_keep_the_contract(case: Case, order: str, dtype: Any, layout: str) -> None:
    check_case(CupyBackend(device=HostDevice(order)), case, dtype, layout)


def test_a_batch_whose_windows_do_not_fit_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "COLUMN_BYTES", 2 * 9 * 6 * 4 * 5)
    run = HostDevice()
    check_case(CupyBackend(device=run), cases.conv3x3(5, 3, 2, 5, 4), np.float32)
    assert [launch.kernel for launch in run.launches].count("conv.windows") > 3


# --- tensor cores ----------------------------------------------------------------------------------------------------


WAYS = [("bf16", False), ("bf16", True), ("tf32", False)]
"""Precisions, and whether images are stored as bfloat16."""
FITTING = [(n, s, s) for n, s in [(1, 2), (3, 4), (5, 4), (17, 4), (2, 8), (3, 8), (2, 16), (1, 32)]]


@settings(deadline=None, max_examples=40)
@given(
    st.one_of(st.sampled_from(FITTING), st.tuples(st.integers(1, 2), st.integers(8, 20), st.integers(9, 40))),
    st.integers(1, 70), st.integers(1, 70), st.sampled_from(WAYS), orders, st.booleans(), st.booleans(),
    st.sampled_from([1, 4, 132]),
)  # fmt: skip
def test_tensor_cores_sum_exactly_the_roundeds(
    shape: tuple[int, int, int],
    c: int,
    d: int,
    way: tuple[str, bool],
    order: str,
    per_image: bool,
    plus: bool,
    processors: int,
) -> None:
    precision, bf16 = way
    args = arguments(*shape, c, d, per_image=per_image, bf16=bf16)
    run = HostDevice(order, precision)
    run.processors = processors
    hold(results(run, *args, bf16=bf16, plus=plus), precision, *args, plus=plus)
    assert any(launch.kernel == f"conv_tensor.{precision}_gradient" for launch in run.launches)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), sizes, sizes, st.integers(1, 20), st.integers(1, 20), orders, st.booleans(), st.booleans())
def test_products_over_windows_of_bfloat16_do_too(
    n: int, h: int, w: int, c: int, d: int, order: str, per_image: bool, plus: bool
) -> None:
    """Here y is rounded twice: by the product, and with the bias."""
    args = arguments(n, h, w, c, d, per_image=per_image, bf16=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "blocks", lambda *_: None)
        found = results(HostDevice(order, "bf16"), *args, bf16=True, plus=plus)
    hold(found, "bf16", *args, plus=plus, twice=True)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("block", tiles.EFFICIENCY)
@pytest.mark.parametrize("shape", [(2, 16, 16), (17, 4, 4), (1, 20, 32)])
def test_every_kernel(
    block: tuple[int, int], precision: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "EFFICIENCY", {block: 1.0})
    run = HostDevice(ORDERS[block[0] % 5], precision)
    args = arguments(*shape, 2 * tiles.CHUNK[precision], 96, per_image=True)
    hold(results(run, *args), precision, *args)
    assert f"conv_tensor.{precision}_{block[0]}x{block[1]}" in {launch.kernel for launch in run.launches}


def test_the_bits_do_not_depend_on_which_thread_runs_first() -> None:
    args = arguments(3, 8, 8, 64, 40, bf16=True)
    first, *others = (results(HostDevice(order, "bf16"), *args, bf16=True) for order in ORDERS)
    for other in others:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))


CHANGES = [
    *counted_barriers("conv_tensor"),
    pytest.param(("block < count", "block < 1"), id="one of a tile's blocks alone"),
    pytest.param(("sums[i] = sum;", ""), id="the last block's sums alone"),
    pytest.param(("arrived[tile] = 0", "arrived[tile] = 1"), id="a count not set back"),
    pytest.param(("tap / 3 - 1) * (Q + 2)", "tap / 3 - 1) * (Q + 1)"), id="a tap one place off"),
    pytest.param(("async_wait<AHEAD - 1>();\n            if", "if"), id="filters not waited for"),
    pytest.param(("lane / 16 * EACH", "lane / 8 * EACH"), id="a fragment's columns"),
    pytest.param(("column + place % wide - 1", "column + place % wide"), id="the rim one pixel off"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_mistake_in_the_kernel_shows(change: tuple[str, str]) -> None:
    """Each barrier and index is there for a reason: changed, some order of threads gives other results or stops."""
    found = {processors: _bits("forward", processors) for processors in (132, 1)}  # with many, blocks share a tile
    replace = [change, *leaner("conv_tensor", *(run for run, _ in found.values()))]

    def differs(order: str, processors: int) -> bool:
        try:
            return _bits(order, processors, replace)[1] != found[processors][1]
        except RuntimeError:
            return True

    assert any(differs(order, processors) for order in reversed(ORDERS) for processors in (132, 1))


def _bits(order: str, processors: int, replace: list[tuple[str, str]] | None = None) -> tuple[HostDevice, list[bytes]]:
    """The device, and the results, twice: a count that is not set back shows the second time."""
    args, run = arguments(3, 8, 8, 96, 40, bf16=True), HostDevice(order, "bf16", replace={"conv_tensor": replace or []})
    run.processors = processors
    return run, [a.tobytes() for _ in range(2) for a in results(run, *args, bf16=True)]


# --- the rule, which needs no kernel ---------------------------------------------------------------------------------


@given(
    st.integers(1, 300), st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), precisions,
    st.sampled_from([1, 16, 132]),
)  # fmt: skip
def test_blocks_cover_every_pixel_and_channel_and_fit(
    n: int, h: int, w: int, c: int, d: int, precision: str, processors: int
) -> None:
    c, d = 16 * c, 16 * d
    cut = tiles.blocks(n, h, w, c, d, precision, processors)
    if cut is None:
        assert h * w < 32
        return
    pixels, wide = map(int, cut.kernel.rpartition("_")[2].split("x"))
    t = cut.tiling
    assert t.images * t.rows * t.columns == pixels
    if t.images > 1:
        assert (t.rows, t.columns) == (h, w) and t.count * t.images >= n
    else:
        assert t.count == n * -(-h // t.rows) * -(-w // t.columns)
    assert cut.grid[0] * wide >= d and cut.grid[1] == t.count
    total, share = cut.grid[0] * cut.grid[1], cut.grid[2]
    assert share == 1 or (total * share <= processors and share <= -(-c // tiles.CHUNK[precision]))
    assert cut.parts == (1 if share == 1 else total * share * pixels * wide)
    assert cut.shared <= 227 << 10 and 4 * t.places <= 12 * cut.threads


@given(st.integers(1, 300), sizes, sizes, st.integers(1, 40), st.integers(1, 40), precisions, st.sampled_from([1, 132]))
def test_a_gradients_tiles_are_read_in_time_and_fit(
    n: int, h: int, w: int, c: int, d: int, precision: str, processors: int
) -> None:
    """While one tile is multiplied in eight steps, the next is read, two pieces of 384 times 16 bytes at each."""
    cut = tiles.gradient_blocks(n, 2**h, 2**w, 16 * c, 16 * d, precision, processors)
    if cut is None:
        return
    rows = cut.tiling.places + tiles.GRADIENT_PIXELS[precision]
    sixteens = rows * tiles.GRADIENT_WIDE * (2 if precision == "bf16" else 4) // 16
    assert sixteens <= 16 * tiles.GRADIENT_THREADS
    assert cut.shared <= 227 << 10 and 1 <= cut.grid[2] <= cut.tiling.count


@given(st.integers(1, 300), sizes, st.sampled_from([32, 256]), precisions)
def test_on_cards_with_less_shared_memory_a_cut_fits_or_windows_take_over(
    n: int, h: int, c: int, precision: str
) -> None:
    for limit in (64 << 10, 99 << 10):
        of = n, 2**h, 2**h, c, c, precision, 80, limit
        assert all(cut is None or cut.shared <= limit for cut in (tiles.blocks(*of), tiles.gradient_blocks(*of)))
    assert tiles.gradient_blocks(128, 8, 8, c, c, precision, 80, 99 << 10)
    run = HostDevice("forward", precision)
    run.shared_limit = 20 << 10
    args = arguments(1, 4, 4, 8, 8)
    hold(results(run, *args), precision, *args)
    assert not any("conv_tensor" in launch.kernel for launch in run.launches)


def test_the_networks_shapes_run_on_tensor_cores() -> None:
    for size, c, d in [(32, 128, 128), (16, 512, 256), (8, 256, 256), (4, 512, 256), (8, 32, 32), (256, 128, 128)]:
        for precision in ("bf16", "tf32"):
            assert tiles.blocks(128, size, size, c, d, precision, 132)
            assert tiles.gradient_blocks(128, size, size, c, d, precision, 132)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_arrays_may_begin_anywhere(precision: str, stride: int) -> None:
    """Parameters are views of one vector; vector loads want what begins at a multiple of 16 bytes."""
    args = [a.astype(np.float32) for a in cases.normals(4, (2, 8, 8, 32), (3, 3, 32, 32), (32,))]
    results = []
    for place in (HostDevice.to_device, misaligned):
        run = HostDevice(precision=precision)
        y, backward = conv.conv3x3(run, *(place(run, a) for a in args), stride)
        dy = place(run, cases.normals(5, y.shape)[0].astype(np.float32))
        results.append([run.to_host(a).tobytes() for a in (y, *backward(dy))])
    assert results[0] == results[1]

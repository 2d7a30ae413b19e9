"""The dense layer in CUDA, run on the CPU, against NumPy's in float64."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice, bf16_bits, rounded
from cupy_checks import counted_barriers, dtypes, layouts, needs_compiler, orders
from ddpm_ref_cupy import CupyBackend, dense
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from ddpm_ref import backend_bounds as bounds
from ddpm_ref import backend_cases as cases
from ddpm_ref.backend_cases import check_case
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops

pytestmark = needs_compiler


@pytest.mark.parametrize("small", [True, False])
@settings(deadline=None, max_examples=40)
@given(array_shapes(min_dims=2, max_dims=4, max_side=9), st.integers(1, 40), orders, dtypes, layouts)
def test_dense_keeps_the_contract(
    small: bool, shape: tuple[int, ...], d: int, order: str, dtype: Any, layout: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SMALL", 1 << 25 if small else 0)
        run = HostDevice(order)
        check_case(CupyBackend(device=run), cases.dense(shape, d), dtype, layout)
        assert {launch.kernel for launch in run.launches} & {"dense_small.small_adjoint"} or not small


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 400), st.integers(1, 70), st.integers(1, 70), st.sampled_from(["fp32", "tf32", "bf16"]), orders
)  # fmt: skip
def test_a_small_layer_rounds_its_operands_as_a_large_one(
    rows: int, c: int, d: int, precision: str, order: str
) -> None:
    x, W, b, dy = (a.astype(np.float32) for a in cases.normals(rows, (rows, c), (c, d), (d,), (rows, d)))

    def results(smallest: int) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dense, "SMALL", smallest)
            run = HostDevice(order, precision)
            y, backward = dense.dense(run, *map(run.to_device, (x, W, b)))
            return [y, *backward(run.to_device(dy))]

    for ours, theirs in zip(results(1 << 25), results(0), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


@pytest.mark.parametrize("small", [True, False])
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 8), st.booleans(), orders)
def test_bfloat16_in_gives_bfloat16_out_and_float32_gradients_of_parameters(
    small: bool, rows: int, c: int, d: int, plus: bool, order: str
) -> None:
    """A large layer rounds y and a dx that something is added to twice."""
    c, d = 8 * c, 8 * d
    x, W, b, dy, to_y, to_dx = (
        a.astype(np.float32) for a in cases.normals(rows, (rows, c), (c, d), (d,), (rows, d), (rows, d), (rows, c))
    )
    bits = [bf16_bits(a).reshape(a.shape) for a in (x, dy, to_y, to_dx)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SMALL", 1 << 25 if small else 0)
        run = HostDevice(order, "bf16")
        x_, W_, b_, dy_, *more = map(run.to_device, (bits[0], W, b, *bits[1:]))
        y, backward = dense.dense(run, x_, W_, b_, plus=more[0] if plus else None)
        found = [y, *backward(dy_, plus=more[1] if plus else None)]

    def exact(x: Array, W: Array, b: Array, dy: Array, to_y: Array, to_dx: Array) -> list[Array]:
        y, backward = ops.dense(x, W, b)
        dx, dW, db = backward(dy)
        return [y + plus * to_y, dx + plus * to_dx, dW, db]

    x, dy, to_y, to_dx = (rounded(a, "fp32") for a in bits)
    args = [a.astype(np.float64) for a in (x, rounded(W, "bf16"), b, dy, to_y, to_dx)]
    for a, wanted, magnitude in zip(found, exact(*args), exact(*map(np.abs, args)), strict=True):
        assert a.dtype == (np.uint16 if a is found[0] or a is found[1] else np.float32)
        ulp = (np.abs(wanted) + (not small) * magnitude) / 256 if a.dtype == np.uint16 else 0
        off = np.abs(rounded(a, "fp32") - wanted)
        assert (off <= bounds.tolerance(np.float32) * magnitude + ulp).all()


@given(st.integers(1, 60), st.integers(1, 40), orders, dtypes, st.booleans())
def test_what_is_added_has_the_bits_of_an_addition(rows: int, d: int, order: str, dtype: Any, small: bool) -> None:
    x, W, b, dy, to_y, to_dx = (
        a.astype(dtype) for a in cases.normals(rows, (rows, 9), (9, d), (d,), (rows, d), (rows, d), (rows, 9))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SMALL", 1 << 25 if small else 0)
        run = HostDevice(order)
        x, W, b, dy, to_y, to_dx = map(run.to_device, (x, W, b, dy, to_y, to_dx))
        (y, back), (with_y, with_back) = dense.dense(run, x, W, b), dense.dense(run, x, W, b, plus=to_y)
        assert with_y.tobytes() == (y + to_y).tobytes()
        assert with_back(dy, plus=to_dx)[0].tobytes() == (back(dy)[0] + to_dx).tobytes()


def test_the_bits_repeat_whatever_runs_first() -> None:
    x, W, b, dy = (a.astype(np.float32) for a in cases.normals(0, (700, 70), (70, 40), (40,), (700, 40)))

    def results(order: str) -> list[bytes]:
        run = HostDevice(order, "tf32")
        y, backward = dense.dense(run, *map(run.to_device, (x, W, b)))
        assert dense.small_parts(700) > 1
        return [a.tobytes() for a in (y, *backward(run.to_device(dy)), *backward(run.to_device(dy)))]

    first, *others = map(results, ORDERS)
    assert all(other == first for other in others) and first[1:4] == first[4:]


def test_small_layers_are_those_of_small_networks() -> None:
    assert dense.is_small(128 * 64, 64, 32) and dense.is_small(128, 512, 512)
    assert not dense.is_small(128 * 256, 256, 256) and not dense.is_small(1, 4096, 1025)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9000), st.integers(1, 70), orders)
def test_column_sums_add_every_row_once(rows: int, d: int, order: str) -> None:
    run = HostDevice(order)
    dy = cases.normals(rows, (rows, d))[0]
    given = run.to_device(dy)
    for _ in range(2):  # the count of blocks is set back
        np.testing.assert_allclose(dense.column_sums(run, given), dy.sum(axis=0), rtol=1e-12, atol=1e-11)
    parts = dense.part_sums(run, run.to_device(dy), 1)
    np.testing.assert_allclose(parts, dy.sum(axis=0, keepdims=True), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    "file, change", [(f, p.values[0]) for f in ("dense", "dense_small") for p in counted_barriers(f)]
)
def test_a_deleted_barrier_shows(file: str, change: tuple[str, str]) -> None:
    dy, x, W, b = cases.normals(0, (300, 40), (300, 40), (40, 40), (40,))

    def results(order: str, **how: Any) -> list[bytes]:
        run = HostDevice(order, **how)
        y, backward = dense.dense(run, *map(run.to_device, (x, W, b)))
        given = run.to_device(dy)
        sums = dense.part_sums(run, given, 1), dense.column_sums(run, given)
        return [a.tobytes() for a in (y, *backward(given), *sums)]

    def differs(order: str) -> bool:
        try:
            return results(order, replace={file: [change]}) != results(order)
        except RuntimeError:  # not all threads reach a barrier
            return True

    assert any(map(differs, ("warp-greedy-reverse", "warp-greedy", "reverse", "forward", "random")))


@pytest.mark.parametrize("size", [1, 4, 6, 4096])
def test_rounding_to_bfloat16_is_to_nearest_even(size: int) -> None:
    run = HostDevice()
    x = cases.normals(size, (size,))[0].astype(np.float32)
    x[0] = np.float32(1 + 2**-8)  # half way between two: to the even one
    bits = dense.rounded(run, run.to_device(x)).astype(np.uint32) << 16
    found = bits.view(np.float32)
    assert found[0] == 1 and (np.abs(found - x) <= np.abs(x) * 2**-8).all()

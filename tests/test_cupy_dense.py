"""The dense layer in CUDA, run on the CPU, against NumPy's in float64."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import HostDevice
from cupy_checks import OnHost, barriers, dtypes, layouts, needs_compiler, orders
from ddpm_ref_cupy import dense
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend_cases import check_case

pytestmark = needs_compiler


@settings(deadline=None, max_examples=40)
@given(array_shapes(min_dims=2, max_dims=4, max_side=9), st.integers(1, 40), orders, dtypes, layouts)
def test_dense_keeps_the_contract(shape: tuple[int, ...], d: int, order: str, dtype: Any, layout: str) -> None:
    check_case(OnHost(HostDevice(order)), cases.dense(shape, d), dtype, layout)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 500), st.integers(1, 70), orders)
def test_column_sums_add_every_row_once(rows: int, d: int, order: str) -> None:
    run = HostDevice(order)
    dy = cases.normals(rows, (rows, d))[0]
    np.testing.assert_allclose(dense.column_sums(run, run.to_device(dy)), dy.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", barriers("dense"))
def test_a_deleted_barrier_shows(change: tuple[str, str]) -> None:
    dy = cases.normals(0, (40, 5))[0]

    def sums(order: str, **how: Any) -> bytes:
        run = HostDevice(order, **how)
        return dense.part_sums(run, run.to_device(dy), 1).tobytes()

    orders = "warp-greedy-reverse", "warp-greedy", "reverse"
    assert any(sums(order, replace={"dense": [change]}) != sums(order) for order in orders)


@pytest.mark.parametrize("size", [1, 4, 6, 4096])
def test_rounding_to_bfloat16_is_to_nearest_even(size: int) -> None:
    run = HostDevice()
    x = cases.normals(size, (size,))[0].astype(np.float32)
    x[0] = np.float32(1 + 2**-8)  # half way between two: to the even one
    bits = dense.rounded(run, run.to_device(x)).astype(np.uint32) << 16
    found = bits.view(np.float32)
    assert found[0] == 1 and (np.abs(found - x) <= np.abs(x) * 2**-8).all()

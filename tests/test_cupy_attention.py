"""Attention in CUDA, run on the CPU, against NumPy's in float64."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice, bf16_bits, rounded
from cupy_checks import Host, barriers, dtypes, layouts, orders
from ddpm_ref_cupy import CupyBackend, attention
from ddpm_ref_cupy.attention import shared_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend_cases import Case, check_case
from ddpm_ref.nn import ops


def _device(host: Host, order: str = "forward", *, products: bool = False, **options: Any) -> HostDevice:
    """products: always matrix products, never one block an image."""
    run = host(order, **options)
    if products:
        run.shared_limit = 0
    return run


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 21),
    st.integers(1, 21),
    st.integers(0, 99),
    orders,
    dtypes,
    layouts,
    st.booleans(),
)
def test_attention_keeps_the_contract(
    host: Host, n: int, s: int, c: int, seed: int, order: str, dtype: Any, layout: str, products: bool
) -> None:
    check_case(
        CupyBackend(device=_device(host, order, products=products)), cases.attention(n, s, c, seed=seed), dtype, layout
    )


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 5), (1, 3, 64), (1, 65, 3), (1, 2, 65), (1, 100, 8)])
def test_sizes_at_the_border_of_one_block_keep_the_contract(host: Host, shape: tuple[int, int, int]) -> None:
    run = _device(host, "warp-greedy")
    check_case(CupyBackend(device=run), cases.attention(*shape))
    small = max(shape[1:]) <= attention.SMALL
    assert all(("small" in launch.kernel) == small for launch in run.launches)


def _hold(run: HostDevice, n: int, s: int, c: int) -> None:
    """Bfloat16 is off by its roundings alone: P, its gradient and the results are each rounded once, the small kernel's
    P only for the adjoint."""
    bits = [bf16_bits(a).reshape(a.shape) for a in cases.normals(s, *[(n, s, c)] * 4)]
    *args, dy = map(run.to_device, bits)
    y, backward = attention.attention(run, *args)
    found = [y, *backward(dy)]
    q, k, v, dy = (rounded(a, "fp32").astype(np.float64) for a in bits)
    exact, exact_backward = ops.attention(q, k, v)
    P = np.exp(q @ k.swapaxes(1, 2) / c**0.5)
    P /= P.sum(axis=2, keepdims=True)
    d = np.abs(dy) @ np.abs(v).swapaxes(1, 2)
    dA = P * (d + (P * d).sum(axis=2, keepdims=True)) / c**0.5
    turned = P.swapaxes(1, 2), dA.swapaxes(1, 2)
    magnitudes = P @ np.abs(v), 3 * dA @ np.abs(k), 3 * turned[1] @ np.abs(q), turned[0] @ np.abs(dy)
    for a, wanted, magnitude in zip(found, (exact, *exact_backward(dy)), magnitudes, strict=True):
        assert a.dtype == np.uint16
        assert (np.abs(rounded(a, "fp32") - wanted) <= (np.abs(wanted) + magnitude) / 256 + 1e-5 * magnitude).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 4), orders, st.booleans())
def test_bfloat16_is_off_by_its_roundings_alone(host: Host, n: int, s: int, c: int, order: str, products: bool) -> None:
    _hold(_device(host, order, products=products), n, s, 8 * c)


@pytest.mark.parametrize("s", [256, 264, 504, 1024, 1032])
def test_rows_of_bfloat16_that_a_warp_holds_and_longer_ones(host: Host, s: int) -> None:
    _hold(_device(host, "warp-greedy"), 1, s, 8)


@pytest.mark.parametrize(
    "change",
    [
        ("load8(A + first + 256 * c, a[c]);", "load8(A + first, a[c]);"),
        ("a[c][i] /= sum;", ""),
        ("load8(d + first + 256 * c, a[c]);", "load8(d + first, a[c]);"),
        ("(a[c][i] - sum) * v[i]", "a[c][i] * v[i]"),
    ],
)
def test_a_change_of_rows_held_shows(host: Host, change: tuple[str, str]) -> None:
    run = _device(host, products=True, replace={"attention": [change]})
    with pytest.raises(AssertionError):
        _hold(run, 1, 264, 8)


def _results(run: HostDevice, case: Case) -> list[np.ndarray]:
    dy = cases.normals(7, case.args[0].shape)[0].astype(np.float32)
    y, backward = case.call(CupyBackend(device=run), *(run.to_device(a.astype(np.float32)) for a in case.args))
    return [run.to_host(a) for a in (y, *backward(run.to_device(dy)))]


@pytest.mark.parametrize("products", [False, True])
def test_the_bits_do_not_depend_on_which_thread_runs_first(host: Host, products: bool) -> None:
    case = cases.attention(2, 18, 7)
    first, *others = (_results(_device(host, order, products=products), case) for order in ORDERS)
    for other in others:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("change", barriers("attention"))
def test_a_deleted_barrier_shows(host: Host, change: tuple[str, str]) -> None:
    case = cases.attention(1, 37, 30)  # tiles for more than one warp

    def differs(order: str) -> bool:
        found = _results(_device(host, order, replace={"attention": [change]}), case)
        return any(a.tobytes() != b.tobytes() for a, b in zip(found, _results(_device(host, order), case), strict=True))

    assert any(differs(order) for order in reversed(ORDERS))


def test_one_launch_each_way_where_images_are_small(host: Host) -> None:
    run = _device(host)
    _results(run, cases.attention(2, 16, 32))
    assert [launch.kernel for launch in run.launches] == [f"attention.attention_small{way}" for way in ("", "_back")]


@pytest.mark.parametrize("products", [False, True])
def test_scores_of_any_size_neither_overflow_nor_vanish(host: Host, products: bool) -> None:
    """Logits of ±10⁴ leave the largest key alone; equal logits share evenly."""
    run = _device(host, products=products)
    q = np.full((1, 5, 4), 100, np.float32)
    k = np.zeros((1, 5, 4), np.float32)
    k[0, 2] = 50
    v = cases.normals(1, (1, 5, 4))[0].astype(np.float32)
    for sign in (1, -1):
        wanted = v[:, 2:3] if sign == 1 else v[:, [0, 1, 3, 4]].mean(axis=1, keepdims=True)
        y, backward = attention.attention(run, *map(run.to_device, (q, sign * k, v)))
        np.testing.assert_allclose(y, np.broadcast_to(wanted, y.shape), rtol=1e-5, atol=1e-6)
        assert all(np.isfinite(d).all() for d in backward(run.to_device(v)))


@given(st.integers(1, 64), st.integers(1, 64))
def test_an_image_that_takes_one_block_fits_one(s: int, c: int) -> None:
    """In float64, too, on a card with an H200's shared memory."""
    assert shared_bytes(s, c, 4, backward=False) < shared_bytes(s, c, 8, backward=True) <= 227 << 10

"""GroupNorm (+ SiLU) in CUDA, run on the CPU, against NumPy's in float64."""

from math import gcd
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice, bf16_bits, rounded
from cupy_checks import Host, barriers, dtypes, layouts, misaligned, orders
from ddpm_ref_cupy import CupyBackend, norm, pointwise
from ddpm_ref_cupy.device import Device
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend import Backend
from ddpm_ref.backend_bounds import outcome, tolerance
from ddpm_ref.backend_cases import Case, check_case, compared

TIGHT = 3000  # bytes of shared memory that few slabs fit into


@st.composite
def norms(draw: Any, channels: int = 1) -> Case:
    """Odd and tiny images, any groups and any multiple of `channels`, far from 0 or not."""
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    width = draw(st.integers(1, 9))
    groups = draw(st.integers(1, 5 if channels == 1 else 2)) * (channels // gcd(channels, width))
    mean = draw(st.sampled_from([0.5, 30.0]))
    return cases.group_norm(
        n, h, w, width * groups, groups, silu=draw(st.booleans()), mean=mean, seed=draw(st.integers(0, 99))
    )


def _device(host: Host, order: str = "forward", *, tight: bool = False, **options: Any) -> HostDevice:
    run = host(order, **options)
    if tight:
        run.shared_limit = TIGHT
    return run


@settings(deadline=None, max_examples=40)
@given(norms(), orders, dtypes, layouts, st.booleans())
def test_group_norm_keeps_the_contract(
    host: Host, case: Case, order: str, dtype: Any, layout: str, tight: bool
) -> None:
    check_case(CupyBackend(device=_device(host, order, tight=tight)), case, dtype, layout)


LARGE = [(1, 19, 17, 8, 2), (2, 23, 9, 12, 4), (1, 40, 33, 3, 3), (1, 12, 11, 160, 1)]


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images_that_do_not_fit_keep_the_contract(host: Host, shape: tuple[int, ...], dtype: Any) -> None:
    run = _device(host, "warp-greedy", tight=True)
    check_case(CupyBackend(device=run), cases.group_norm(*shape, silu=True, mean=30.0), dtype)
    chunks = {f"norm_chunks.norm_{name}" for name in ("moments", "apply", "sums", "back", "columns")}
    assert {launch.kernel for launch in run.launches} == chunks


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def _in_bf16(run: HostDevice, case: Case, plus: bool) -> float:
    """Hold a case with images of bfloat16 to float64 on the same numbers; the largest error as a share of what may be.

    What is stored is off by half a unit of its last place, at most 2^-8 of it, and by what float32 is off before that.
    plus: something is added, which is all but -dx in two of three places.
    """
    x, gamma, beta = (a.astype(np.float32) for a in case.args)
    images = [bf16_bits(a) for a in (x, *cases.normals(7, x.shape))]
    exact_x, exact_dy = (rounded(a, "bf16").astype(np.float64) for a in images)
    exact_args = [exact_x, gamma.astype(np.float64), beta.astype(np.float64)]
    exact = outcome(case.call, Backend(), exact_args, exact_dy)
    allowed = [tolerance(np.float32) * m for m in case.magnitudes(case.call, exact_args, exact_dy, np.float32)]
    other = np.where(np.arange(x.size).reshape(x.shape) % 3, -exact[1], cases.normals(8, x.shape)[0])
    images.append(bf16_bits(other))
    exact[1] = exact[1] + plus * rounded(images[-1], "bf16")
    for i in (0, 1):
        allowed[i] = allowed[i] + 2.0**-8 * (np.abs(exact[i]) + allowed[i]) + 2.0**-24 * np.abs(exact[i])

    bits, dy, more = map(run.to_device, images)
    y, backward = case.call(CupyBackend(device=run), bits, run.to_device(gamma), run.to_device(beta))
    found = [y, *backward(dy, plus=more if plus else None)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip((bits, dy, more), images, strict=True))
    assert found[0].dtype == found[1].dtype == np.uint16
    found[:2] = (rounded(a, "bf16") for a in found[:2])
    names = ("y", "dx", "dγ", "dβ")
    return max(compared(*of, np.float32) for of in zip(names, found, exact, allowed, strict=True))


@settings(deadline=None, max_examples=40)
@given(norms(8), orders, st.booleans(), st.booleans())
def test_images_stored_as_bfloat16_are_computed_in_float32_and_rounded_once(
    host: Host, case: Case, order: str, tight: bool, plus: bool
) -> None:
    _in_bf16(_device(host, order, tight=tight), case, plus)


@pytest.mark.parametrize("shape", [(2, 12, 13, 16, 4), (1, 16, 16, 128, 32), (2, 20, 17, 24, 3), (2, 1, 1, 2304, 2)])
@pytest.mark.parametrize("tight", [False, True])
def test_larger_images_of_bfloat16_are_rounded_once(host: Host, shape: tuple[int, ...], tight: bool) -> None:
    run = _device(host, "warp-greedy", tight=tight)
    _in_bf16(run, cases.group_norm(*shape, silu=True, mean=3.0), True)
    assert {launch.kernel.split(".")[0] for launch in run.launches} == {"norm_chunks" if tight else "norm"}


WRONG = [
    *[(f"async_wait<{i}>();", "{}") for i in range(4)],
    ("h * s - h * s * s + s", "h * s + s"),
    ("pairs[i] & ~0xffffu", "pairs[i]"),
    ("if (SHORT) offset[k] -= f.mean[k] * slope[k];", ""),
    ("d.v[k] = add_rn(d.v[k], p.v[k])", "d.v[k] = add_rn(from_bf16(to_bf16(d.v[k])), p.v[k])"),
    ("pack_bf16(v[0], v[1])", "(__float_as_uint(v[0]) >> 16 | __float_as_uint(v[1]) & ~0xffffu)"),
]


@pytest.mark.parametrize("change", WRONG, ids=[old for old, _ in WRONG])
def test_a_wrong_kernel_shows_in_bfloat16(host: Host, change: tuple[str, str]) -> None:
    case = cases.group_norm(2, 12, 13, 16, 4, silu=True)
    with pytest.raises(AssertionError, match="off by"):
        _in_bf16(_device(host, replace={"norm": [change]}), case, True)


@pytest.mark.parametrize("tight", [False, True])
def test_the_bits_of_bfloat16_do_not_depend_on_which_thread_runs_first(host: Host, tight: bool) -> None:
    x, gamma, beta = (a.astype(np.float32) for a in cases.group_norm(2, 12, 13, 16, 4, silu=True).args)
    dy = bf16_bits(cases.normals(7, x.shape)[0])

    def results(order: str) -> list[bytes]:
        y, backward = norm.group_norm(_device(host, order, tight=tight), bf16_bits(x), gamma, beta, 4, True)
        return [a.tobytes() for a in (y, *backward(dy, plus=dy))]

    first, *others = map(results, ORDERS)
    assert all(other == first for other in others)


# --- what follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("shape", [(2, 12, 13, 16, 4), (2, 5, 3, 9, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adding_in_the_same_launch_gives_the_bits_of_adding_after_it(
    host: Host, tight: bool, shape: tuple[int, ...], dtype: Any
) -> None:
    run = _device(host, tight=tight)
    x, gamma, beta = (a.astype(dtype) for a in cases.group_norm(*shape, silu=True).args)
    dy, plus = (run.to_device(a.astype(dtype)) for a in cases.normals(7, x.shape, x.shape))
    _, backward = norm.group_norm(run, x, gamma, beta, shape[-1], True)
    first = len(run.launches)
    together, *sums = backward(dy, plus=plus)
    then = len(run.launches)
    dx, *others = backward(dy)
    assert run.launches[first:then] == run.launches[then:]
    assert together.tobytes() == pointwise.add(run, dx, plus)[0].tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(sums, others, strict=True))


def _results(run: HostDevice, case: Case, dtype: Any = np.float32) -> list[np.ndarray]:
    dy = cases.normals(7, case.args[0].shape)[0].astype(dtype)
    y, backward = case.call(CupyBackend(device=run), *(run.to_device(a.astype(dtype)) for a in case.args))
    return [run.to_host(a) for a in (y, *backward(run.to_device(dy)))]


@pytest.mark.parametrize("tight", [False, True])
def test_the_bits_do_not_depend_on_which_thread_runs_first(host: Host, tight: bool) -> None:
    case = cases.group_norm(2, 12, 13, 16, 4, silu=True)
    first, *others = (_results(_device(host, order, tight=tight), case) for order in ORDERS)
    for other in others:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))


def _deleting_shows(host: Host, file: str, change: tuple[str, str], case: Case) -> bool:
    """Whether in some order of threads the results are others than before, or threads wait for each other in vain."""

    def differs(order: str) -> bool:
        tight = file == "norm_chunks"
        try:
            found = _results(_device(host, order, tight=tight, replace={file: [change]}), case)
        except RuntimeError:
            return True
        wanted = _results(_device(host, order, tight=tight), case)
        return any(a.tobytes() != b.tobytes() for a, b in zip(found, wanted, strict=True))

    return any(differs(order) for order in reversed(ORDERS))


@pytest.mark.parametrize("change", barriers("norm"))
def test_a_deleted_barrier_shows_in_slabs(host: Host, change: tuple[str, str]) -> None:
    """Each is there for a reason."""
    assert _deleting_shows(host, "norm", change, cases.group_norm(2, 12, 13, 16, 4, silu=True))


@pytest.mark.parametrize("change", barriers("norm_chunks"))
def test_a_deleted_barrier_shows_in_chunks(host: Host, change: tuple[str, str]) -> None:
    images = 9 if "part[eighth]" in change[0] else 2  # the sum over images has eight parts
    assert _deleting_shows(host, "norm_chunks", change, cases.group_norm(images, 12, 13, 16, 4, silu=True))


def test_one_launch_each_way_where_slabs_fit(host: Host) -> None:
    run = _device(host)
    _results(run, cases.group_norm(2, 4, 4, 8, 2, silu=True))
    assert [launch.kernel for launch in run.launches] == ["norm.norm_slab", "norm.norm_slab_back"]


def test_slabs_are_counted_anew_in_each_launch(host: Host) -> None:
    """Of other numbers of images and slabs, one after another on one device."""
    run = _device(host)
    for n, c in [(3, 16), (1, 40), (5, 8), (2, 16)]:
        case = cases.group_norm(n, 2, 3, c, 4, silu=True)
        first, again = _results(run, case), _results(run, case)
        wanted = _results(_device(host, "reverse"), case)
        for a, b, exact in zip(first, again, wanted, strict=True):
            assert a.tobytes() == b.tobytes() == exact.tobytes()


@pytest.mark.parametrize("shape", [(2, 1, 1, 300, 2), (3, 2, 1, 135, 1)])
def test_a_slab_of_more_channels_than_threads_keeps_the_contract(host: Host, shape: tuple[int, ...]) -> None:
    run = _device(host)
    check_case(CupyBackend(device=run), cases.group_norm(*shape, silu=False))
    assert all(launch.kernel.startswith("norm.") for launch in run.launches)


@pytest.mark.parametrize("tight", [False, True])
def test_views_may_begin_anywhere(host: Host, tight: bool) -> None:
    case = cases.group_norm(2, 12, 13, 8, 2, silu=True)
    run = _device(host, tight=tight)
    x, gamma, beta = (misaligned(run, a.astype(np.float32)) for a in case.args)
    dy = cases.normals(7, x.shape)[0].astype(np.float32)
    y, backward = norm.group_norm(run, x, gamma, beta, 2, True)
    dx, dgamma, dbeta = backward(misaligned(run, dy))
    for a, b in zip((y, dx, dgamma, dbeta), _results(_device(host, tight=tight), case), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e5])
def test_a_mean_far_from_zero_costs_no_more_than_it_costs_numpy_in_float32(host: Host, far: float, tight: bool) -> None:
    """The mean is rounded to far · 6e-8 on both sides; a variance that cancels would lose its square."""
    x, gamma, beta = (a.astype(np.float32) for a in cases.group_norm(2, 16, 16, 8, 8, silu=True).args)
    x += np.float32(far) * np.sign(cases.normals(3, (8,))[0]).astype(np.float32)
    dy = cases.normals(7, x.shape)[0].astype(np.float32)
    run = _device(host, tight=tight)

    def results(on: Backend, *args: Any) -> list[np.ndarray]:
        y, backward = on.group_norm(*args[:3], 8, silu=True)
        return [on.to_host(a) for a in (y, *backward(args[3]))]

    exact = results(Backend(), *(a.astype(np.float64) for a in (x, gamma, beta, dy)))
    ours = results(CupyBackend(device=run), *map(run.to_device, (x, gamma, beta, dy)))
    for a, b, wanted in zip(ours, results(Backend(), x, gamma, beta, dy), exact, strict=True):
        assert np.abs(a - wanted).max() <= 1.5 * np.abs(b - wanted).max()


# --- the plan, which needs no kernel ---------------------------------------------------------------------------------

limits = st.sampled_from([48 << 10, 64 << 10, 99 << 10, 163 << 10, 227 << 10])


@given(
    st.integers(1, 300), st.integers(1, 70_000), st.integers(1, 33), st.integers(1, 40), st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2]), limits, st.sampled_from([1, 30, 132]),
)  # fmt: skip
def test_a_plan_covers_every_channel_and_position_and_fits(
    n: int, s: int, width: int, groups: int, itemsize: int, arrays: int, limit: int, processors: int
) -> None:
    run, c = Device(), width * groups * (8 if itemsize == 2 else 1)
    run.shared_limit, run.processors = limit, processors
    p = norm.plan(run, n, s, c, width, itemsize, arrays=arrays)
    assert p.wide % width == 0 and p.wide % p.vector == 0 and c % p.vector == 0
    assert p.vector == (8 if itemsize == 2 else 1 if c % 4 else 4)
    assert p.slabs * p.wide >= c > (p.slabs - 1) * p.wide
    assert p.chunks * p.chunk >= s > (p.chunks - 1) * p.chunk
    assert p.shared + norm.FLAG <= limit and p.threads % 32 == 0
    assert p.threads <= norm.THREADS


@pytest.mark.parametrize(
    ("n", "side", "c", "groups"),
    [(128, 32, 128, 32), (128, 32, 384, 32), (16, 4, 256, 32), (128, 8, 32, 8), (16, 32, 128, 32)],
)
@pytest.mark.parametrize("arrays", [1, 2])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_an_h200_is_full_and_reads_whole_sectors(
    n: int, side: int, c: int, groups: int, arrays: int, itemsize: int
) -> None:
    """132 processors have work, x is read once, and neighbouring threads read 32 bytes or more."""
    p = norm.plan(Device(), n, side * side, c, c // groups, itemsize, arrays=arrays)
    assert p.held and n * p.slabs >= 128 and p.wide * itemsize % 32 == 0


def test_what_bfloat16_holds_takes_half_the_room() -> None:
    """The adjoint of 48² positions of 16 channels is held, where that of float32 does not fit."""
    halves, wholes = (norm.plan(Device(), 128, 48 * 48, 512, 16, size, arrays=2) for size in (2, 4))
    assert halves.held and not wholes.held


def test_very_large_images_are_cut_into_chunks() -> None:
    for arrays in (1, 2):
        p = norm.plan(Device(), 1, 256 * 256, 128, 4, 4, arrays=arrays)
        assert not p.held and p.slabs * p.chunks >= 4 * 132

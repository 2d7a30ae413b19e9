"""The convolution by Hopper's warpgroup products, run on the CPU, against NumPy's on the operands as rounded."""

from collections.abc import Callable

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from cupy_checks import barriers, leaner, orders
from cupy_conv_checks import arguments, hold, results, stored
from ddpm_ref_cupy import conv, hopper, norm
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref import backend_cases as cases
from ddpm_ref.checks import Array

Host = Callable[..., HostDevice]
precisions = st.sampled_from(["bf16", "tf32"])
ways = st.sampled_from([("bf16", False), ("bf16", True), ("tf32", False)])  # whether images are stored as bfloat16


def _hopper(run: HostDevice, processors: int = 132) -> HostDevice:
    run.capability, run.processors = hopper.CAPABILITY, processors
    return run


def _kernels(run: HostDevice) -> set[str]:
    return {launch.kernel for launch in run.launches}


FITTING = [(1, 8, 8), (2, 8, 8), (5, 8, 8), (9, 7, 8), (2, 16, 16), (1, 16, 32), (1, 30, 20), (2, 13, 16)]


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(FITTING), st.integers(1, 18), st.integers(1, 9), ways, orders, st.booleans(), st.booleans(),
    st.sampled_from([1, 2, 132]),
)  # fmt: skip
def test_products_sum_exactly_the_roundeds(
    host: Host,
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
    each = 8 if precision == "bf16" else 4
    args = arguments(*shape, each * c, each * d, per_image=per_image, bf16=bf16)
    run = _hopper(host(order, precision), processors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "LEAST", 4)
        hold(results(run, *args, bf16=bf16, plus=plus), precision, *args, plus=plus)
    both_ways = [launch.kernel for launch in run.launches if f"conv_hopper.{precision}_" in launch.kernel]
    gradient = precision == "bf16" and hopper.tiling(*shape, 256) is not None
    assert len(both_ways) == 2 + gradient


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("block", hopper.EFFICIENCY)
@pytest.mark.parametrize("shape", [(6, 8, 8), (1, 32, 16)])
def test_every_kernel(
    host: Host, block: tuple[int, int], precision: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopper, "EFFICIENCY", {block: 1.0})
    run = _hopper(host(ORDERS[sum(block) // 64 % 5], precision), 1)
    args = arguments(*shape, 96, 72, per_image=True)
    hold(results(run, *args), precision, *args)
    assert f"conv_hopper.{precision}_{block[0]}x{block[1]}" in _kernels(run)
    assert ("conv_hopper.bf16_gradient" in _kernels(run)) == (precision == "bf16")


def test_the_bits_do_not_depend_on_which_thread_runs_first(host: Host) -> None:
    args = arguments(5, 8, 8, 72, 40, bf16=True)
    first, *others = (results(_hopper(host(order, "bf16"), 1), *args, bf16=True) for order in ORDERS)
    for other in others:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, other, strict=True))


# --- normalising on the way ------------------------------------------------------------------------------------------


def _normalised(run: HostDevice, shape: tuple[int, int, int], c: int, d: int, deferred: bool) -> Array:
    """conv(SiLU(GroupNorm(x))) + b + plus of bfloat16, at once or one after the other."""
    draws = cases.normals(sum(shape), (*shape, c), (3, 3, c, d), (shape[0], d), (*shape, d), (c,), (c,))
    x, W, b, plus, gamma, beta = (a.astype(np.float32) for a in draws)
    x, plus = stored(x), stored(plus)
    x, W, b, plus, gamma, beta = map(run.to_device, (x, W, b, plus, gamma, beta))
    run.kept = {}
    h, _ = norm.group_norm(run, x, gamma, beta, c // 4, True)
    y, _ = conv.conv3x3(run, h if deferred else h.array(), W, b, plus=plus)
    return y


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(FITTING), st.sampled_from([32, 64, 72, 136]), st.sampled_from([32, 40, 72, 136]), orders,
    st.sampled_from([1, 2, 132]),
)  # fmt: skip
def test_normalising_while_reading_has_the_bits_of_norm_and_then_convolution(
    host: Host, shape: tuple[int, int, int], c: int, d: int, order: str, processors: int
) -> None:
    found, wanted = (_hopper(host(order, "bf16"), processors) for _ in range(2))
    y = _normalised(found, shape, c, d, True)
    assert y.tobytes() == _normalised(wanted, shape, c, d, False).tobytes()
    assert any("norm_" in launch.kernel for launch in found.launches if launch.kernel.startswith("conv_hopper"))
    assert not any("conv_hopper.norm_" in launch.kernel for launch in wanted.launches)


@pytest.mark.parametrize("block", hopper.EFFICIENCY)
def test_every_kernel_that_normalises(host: Host, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "EFFICIENCY", {block: 1.0})
    runs = [_hopper(host(ORDERS[sum(block) // 64 % 5], "bf16"), 1) for _ in range(2)]
    for shape in ((6, 8, 8), (1, 32, 16)):
        first, second = (_normalised(run, shape, 96, 72, not number) for number, run in enumerate(runs))
        assert first.tobytes() == second.tobytes()
    assert f"conv_hopper.norm_{block[0]}x{block[1]}" in _kernels(runs[0])


@pytest.mark.parametrize(
    "change",
    [
        ("if (NORM) __syncthreads();", ""),
        ("if (source[buffer * places + place] >= 0) normalise16", "normalise16"),
        ("scale + CHUNK);", "scale);"),
        ("(parity * images + image) * 2 * CHUNK + plane * EACH", "(parity * images) * 2 * CHUNK + plane * EACH"),
        ("find_factors(ends ? next : tile,", "find_factors(tile,"),
        ("norm.beta[c] - ", "norm.beta[c] + "),
        ("if (more && tap > AHEAD) settle", "if (more && tap > AHEAD + 1) settle"),
    ],
    ids=lambda change: change[0][:40],
)
def test_a_mistake_in_normalising_shows(host: Host, change: tuple[str, str]) -> None:
    first = _hopper(host("forward", "bf16"), 1)
    wanted = _normalised(first, (9, 8, 8), 72, 40, True).tobytes()
    replace = [change, *leaner("conv_hopper", first)]

    def differs(order: str) -> bool:
        run = _hopper(host(order, "bf16", replace={"conv_hopper": replace}), 1)
        try:
            return _normalised(run, (9, 8, 8), 72, 40, True).tobytes() != wanted
        except RuntimeError:
            return True

    assert any(map(differs, reversed(ORDERS)))


def test_what_no_kernel_normalises_is_computed_first(host: Host) -> None:
    """On cards before Hopper, and into few channels: the array that the convolution reads is that of GroupNorm."""
    run = host("forward", "bf16")
    y = _normalised(run, (2, 8, 8), 64, 40, True)
    assert y.tobytes() == _normalised(host("forward", "bf16"), (2, 8, 8), 64, 40, False).tobytes()
    assert not any("norm_" in launch.kernel for launch in run.launches if launch.kernel.startswith("conv_"))


CHANGES = [
    *(change for change in barriers("conv_hopper") if "if (NORM)" not in change.values[0][0]),  # above
    pytest.param(("tap / 3 * (Q + 2)", "tap / 3 * (Q + 1)"), id="a tap one place off"),
    pytest.param(("                async_wait<AHEAD - 1>();", ""), id="filters not waited for"),
    pytest.param(("async_wait<0>();", ""), id="a gradient's tile not waited for"),
    pytest.param(("tap - 1);", "tap);"), id="a piece of the next chunk left out"),
    pytest.param(("AHEAD = RING - 2", "AHEAD = RING - 1"), id="filters that overtake"),
    pytest.param(("products_wait<1>();", ""), id="products not waited for"),
    pytest.param(
        ("products_wait<1>();\n            if (stage", "if (stage"), id="a gradient's products not waited for"
    ),
    pytest.param(("(chunk | tap | k) != 0", "true"), id="a tile begun with the last one's sums"),
    pytest.param(("parity = 1 - parity;", ""), id="one buffer for two chunks"),
    pytest.param(("b + 2 * k * BN", "b + 2 * k * (BN + 1)"), id="filters a line off"),
    pytest.param(("? 1 - table : table", "? table : table"), id="the next tile's pixels"),
]


ARGUMENTS = 9, 8, 8, 72, 40


@pytest.fixture(scope="module")
def wanted(host: Host) -> tuple[HostDevice, list[Array]]:
    """The results of the kernel as it is, and where they were made."""
    run = _hopper(host("forward", "bf16"), 1)
    return run, results(run, *arguments(*ARGUMENTS, bf16=True), bf16=True)


@pytest.mark.parametrize("change", CHANGES)
def test_a_mistake_in_the_kernel_shows(
    host: Host, wanted: tuple[HostDevice, list[Array]], change: tuple[str, str]
) -> None:
    """Each barrier, wait and index is there for a reason: changed, some order gives other results or stops."""
    args, replace = arguments(*ARGUMENTS, bf16=True), [change, *leaner("conv_hopper", wanted[0])]

    def differs(order: str) -> bool:
        run = _hopper(host(order, "bf16", replace={"conv_hopper": replace}), 1)
        try:
            return any(
                a.tobytes() != b.tobytes() for a, b in zip(results(run, *args, bf16=True), wanted[1], strict=True)
            )
        except RuntimeError:
            return True

    assert any(map(differs, reversed(ORDERS)))


# --- the rule, which needs no kernel ---------------------------------------------------------------------------------


@given(
    st.integers(1, 300), st.integers(1, 70), st.integers(1, 70), st.integers(1, 150), st.integers(1, 300), precisions,
    st.sampled_from([1, 16, 132]),
)  # fmt: skip
def test_blocks_cover_every_pixel_and_channel_and_fit(
    n: int, h: int, w: int, fours: int, twos: int, precision: str, processors: int
) -> None:
    c, d = 4 * fours, 2 * twos
    for cut in (
        hopper.blocks(n, h, w, c, d, precision, processors),
        hopper.gradient_blocks(n, h, w, c, d, precision, processors),
    ):
        if cut is None:
            continue
        t = cut.tiling
        pixels = t.images * t.rows * t.columns
        assert t.rows % 8 == t.columns % 8 == 0 and pixels in (128, 256)
        assert t.images * t.count >= n if t.images > 1 else t.count == n * -(-h // t.rows) * -(-w // t.columns)
        assert t.images == 1 or (t.rows >= h and t.columns >= w)
        assert cut.shared <= 227 << 10
        if len(cut.grid) == 3:
            # Of the next tile's rows a quarter at a time, eight threads a row, four rows a thread.
            assert t.places + pixels <= 4 * 4 * 384 // 8 and 1 <= cut.grid[2] <= t.count
            assert cut.grid[0] * 64 >= c and cut.grid[1] * 64 >= d
        else:
            assert t.places <= 2 * pixels and 1 <= cut.grid[0] <= processors * max(1, hopper.SHARED // cut.shared)


def test_the_networks_shapes_fill_an_h200() -> None:
    """By far most of the work of the network of CIFAR-10: at least nine tenths of the processors have a block."""
    for size, c, d in [(32, 128, 128), (32, 256, 128), (32, 384, 128), (16, 256, 256), (16, 512, 256), (8, 256, 256)]:
        for precision in ("bf16", "tf32"):
            cut = hopper.blocks(128, size, size, c, d, precision, 132)
            assert cut and cut.grid[0] >= 119
        gradient = hopper.gradient_blocks(128, size, size, c, d, "bf16", 132)
        assert gradient and np.prod(gradient.grid) >= 119
    assert hopper.blocks(128, 4, 4, 256, 256, "bf16", 132) is None


def test_small_or_odd_shapes_are_left_to_others() -> None:
    for c, d in [(3, 128), (30, 64), (64, 33), (64, 30)]:
        assert hopper.blocks(128, 32, 32, c, d, "bf16", 132) is None
    for c, d in [(3, 128), (36, 64), (64, 36), (64, 30)]:
        assert hopper.gradient_blocks(128, 32, 32, c, d, "bf16", 132) is None
    assert hopper.gradient_blocks(128, 32, 32, 64, 64, "tf32", 132) is None

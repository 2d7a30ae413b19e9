"""`plus`, what an operation adds where it writes: the bits of the operation followed by `add`, on any backend.

So with a whole network: its output and gradients have the bits of one whose residual connections are additions of their
own, which stand below.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.backend import Backend
from ddpm_ref.backend_cases import LAYOUTS, placed
from ddpm_ref.checks import Array
from ddpm_ref.discovery import available_backends, get_backend
from ddpm_ref.nn import unet
from ddpm_ref.nn.params import Params, Scope
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet

WAYS = [(name, threads) for name in available_backends() for threads in ((1, 2, 3) if name == "numba" else (None,))]

seeds, layouts = st.integers(0, 2**32 - 1), st.sampled_from(LAYOUTS)
dtypes: Any = st.sampled_from([np.float32, np.float32, np.float64])
images, sizes = st.integers(1, 3), st.integers(1, 9)
widths = st.sampled_from([1, 3, 8, 16, 20, 32, 48, 64])


@pytest.fixture(scope="session", params=WAYS, ids=lambda way: "-".join(str(part) for part in way if part))
def backend(request: pytest.FixtureRequest) -> Backend:
    return get_backend(*request.param)


def several(seed: int, dtype: Any, *shapes: tuple[int, ...]) -> list[Array]:
    """Normal numbers, a few of which are -0, of sizes that rounding tells apart."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3) for shape in shapes]
    for a in arrays:
        a[rng.random(a.shape) < 0.05] = -0.0
    return [a.astype(dtype) for a in arrays]


def bits(backend: Backend, *arrays: Array) -> list[bytes]:
    return [backend.to_host(a).tobytes() for a in arrays]


def hold(backend: Backend, joined: Callable[[Array], Any], parted: Any, plus: Array, layout: str) -> None:
    """joined(plus) is parted with its first array added to plus; plus, on the device, is left as it was."""
    there = placed(backend, plus, layout)
    (first, *others), (y, *rest) = parted, joined(there)
    assert bits(backend, y, *rest) == bits(backend, backend.add(first, placed(backend, plus))[0], *others)
    assert np.array_equal(backend.to_host(there), plus), "plus was written to"


@given(images, sizes, sizes, widths, widths, st.sampled_from([1, 1, 2]), st.booleans(), dtypes, layouts, seeds)
def test_a_convolution_with_plus_has_the_bits_of_one_and_an_addition_and_the_same_adjoint(
    backend: Backend, n: int, h: int, w: int, c: int, d: int, stride: int, per_image: bool, dtype: Any, layout: str,
    seed: int,
) -> None:  # fmt: skip
    y_shape = (n, -(-h // stride), -(-w // stride), d)
    shapes: Any = (n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,), y_shape, y_shape
    *args, dy, plus = several(seed, dtype, *shapes)
    args = [backend.to_device(a) for a in args]

    def outcome(**more: Array) -> tuple[Array, ...]:
        y, backward = backend.conv3x3(*args, stride=stride, **more)
        return y, *backward(backend.to_device(dy))

    hold(backend, lambda there: outcome(plus=there), outcome(), plus, layout)


rows = st.one_of(st.lists(st.integers(1, 7), max_size=3), st.integers(90, 300).map(lambda m: [m]))


@given(rows, widths, widths, dtypes, layouts, seeds)
def test_a_dense_layer_and_its_adjoint_with_plus_have_the_bits_of_one_and_an_addition(
    backend: Backend, shape: list[int], c: int, d: int, dtype: Any, layout: str, seed: int
) -> None:
    x_shape, y_shape = (*shape, c), (*shape, d)
    *args, dy, plus_y, plus_x = several(seed, dtype, x_shape, (c, d), (d,), y_shape, y_shape, x_shape)
    args, dy = [backend.to_device(a) for a in args], backend.to_device(dy)

    def outcome(**more: Array) -> tuple[Array, ...]:
        y, backward = backend.dense(*args, **more)
        return y, *backward(dy)

    hold(backend, lambda there: outcome(plus=there), outcome(), plus_y, layout)
    backward = backend.dense(*args)[1]
    hold(backend, lambda there: backward(dy, plus=there), backward(dy), plus_x, layout)


@given(images, sizes, sizes, widths, st.data(), st.booleans(), dtypes, layouts, seeds)
def test_the_adjoint_of_group_norm_with_plus_has_the_bits_of_it_and_an_addition(
    backend: Backend, n: int, h: int, w: int, c: int, data: Any, silu: bool, dtype: Any, layout: str, seed: int
) -> None:
    groups = data.draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    *args, dy, plus = several(seed, dtype, (n, h, w, c), (c,), (c,), (n, h, w, c), (n, h, w, c))
    backward = backend.group_norm(*map(backend.to_device, args), groups, silu=silu)[1]
    dy = backend.to_device(dy)
    hold(backend, lambda there: backward(dy, plus=there), backward(dy), plus, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plus_may_be_another_argument_of_the_call(backend: Backend, layout: str) -> None:
    """As in a network, where it is x, or dy: what is added is what was given."""
    x, W, V, b = several(0, np.float32, (2, 6, 7, 32), (3, 3, 32, 32), (32, 32), (32,))
    there, (W, V, b) = placed(backend, x, layout), map(backend.to_device, (W, V, b))
    for call in (partial(backend.conv3x3, there, W, b), partial(backend.dense, there, V, b)):
        assert bits(backend, call(plus=there)[0]) == bits(backend, backend.add(call()[0], there)[0])
    for _, backward in (backend.dense(there, V, b), backend.group_norm(there, b, b, 4, silu=True)):
        assert bits(backend, backward(there, plus=there)[0]) == bits(backend, backend.add(backward(there)[0], there)[0])
    assert np.array_equal(backend.to_host(there), x)


# ---- a whole network


def block(p: Scope, x: Array, temb: Array, cfg: UNetConfig, run: Backend, uniforms: Any) -> Any:
    """`unet._block` with every sum an operation of its own."""
    h, norm1 = run.group_norm(x, p["norm1/gamma"], p["norm1/beta"], cfg.groups, silu=True)
    time, temb_proj = run.dense(temb, p["temb_proj/W"], p["temb_proj/b"])
    h, conv1 = run.conv3x3(h, p["conv1/W"], p["conv1/b"] + time)
    h, norm2 = run.group_norm(h, p["norm2/gamma"], p["norm2/beta"], cfg.groups, silu=True)
    h, drop = run.dropout(h, uniforms(h.shape), cfg.dropout)
    y, conv2 = run.conv3x3(h, p["conv2/W"], p["conv2/b"])
    shortcut = None
    if x.shape[-1] != y.shape[-1]:
        residual, shortcut = run.dense(x, p["nin_shortcut/W"], p["nin_shortcut/b"])
        y, _ = run.add(y, residual)
    else:
        y, _ = run.add(y, x)

    def backward(dy: Array, g: Scope, d_temb: Array | None) -> tuple[Array, Array]:
        d, g["conv2/W"], g["conv2/b"] = conv2(dy)
        d, g["norm2/gamma"], g["norm2/beta"] = norm2(drop(d))
        d, g["conv1/W"], d_time = conv1(d)
        d_here, g["temb_proj/W"], d_bias = temb_proj(d_time)
        g["temb_proj/b"] = g["conv1/b"] = d_bias
        d_temb = d_here if d_temb is None else run.add(d_here, d_temb)[0]
        dx, g["norm1/gamma"], g["norm1/beta"] = norm1(d)
        if shortcut is None:
            return run.add(dx, dy)[0], d_temb
        d_residual, g["nin_shortcut/W"], g["nin_shortcut/b"] = shortcut(dy)
        return run.add(dx, d_residual)[0], d_temb

    return y, backward


def attention(p: Scope, x: Array, cfg: UNetConfig, run: Backend) -> Any:
    """`unet._attention` with every sum an operation of its own."""
    n, height, width, c = x.shape
    h, norm = run.group_norm(x, p["norm/gamma"], p["norm/beta"], cfg.groups)
    h = h.reshape(n, height * width, c)
    (q, dense_q), (k, dense_k), (v, dense_v) = (run.dense(h, p[f"{name}/W"], p[f"{name}/b"]) for name in "qkv")
    h, attend = run.attention(q, k, v)
    y, proj_out = run.dense(h, p["proj_out/W"], p["proj_out/b"])
    y, _ = run.add(y.reshape(x.shape), x)

    def backward(dy: Array, g: Scope) -> Array:
        d, g["proj_out/W"], g["proj_out/b"] = proj_out(dy.reshape(n, height * width, c))
        dq, dk, dv = attend(d)
        d_q, g["q/W"], g["q/b"] = dense_q(dq)
        d_k, g["k/W"], g["k/b"] = dense_k(dk)
        d_v, g["v/W"], g["v/b"] = dense_v(dv)
        d, _ = run.add(run.add(d_q, d_k)[0], d_v)
        dx, g["norm/gamma"], g["norm/beta"] = norm(d.reshape(x.shape))
        return run.add(dx, dy)[0]

    return y, backward


CONFIGS = [
    UNetConfig(2, 9, (1, 2, 1), 1, (0, 2), groups=3, dropout=0.3, learned_variance=True),  # channels fill no vectors
    UNetConfig(3, 16, (1, 2), 2, (1,), groups=8, dropout=0.1),
    UNetConfig(1, 64, (1, 1), 1, (0, 1), groups=32, dropout=0.1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"base {config.base}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_has_the_bits_of_one_whose_residuals_are_additions_of_their_own(
    backend: Backend, config: UNetConfig, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, rng = UNet(config), np.random.default_rng(0)
    values = rng.standard_normal(net.size) / np.sqrt(9 * config.base)
    params = Params(backend.to_device(values.astype(dtype)), net.shapes)
    shape = (3, 4 * config.factor, 4 * config.factor, config.channels)
    x, d_output = several(1, dtype, shape, (*shape[:3], config.out_channels))
    x, d_output = backend.to_device(x), backend.to_device(d_output)

    def outcome() -> list[bytes]:
        def uniforms(layer: int, shape: tuple[int, ...]) -> Array:
            return backend.to_device(np.random.default_rng(layer).random(shape, dtype=np.float32))

        output, backward = net(params, x, 7, backend, dropout=uniforms)
        dx, grads = backward(d_output)
        assert np.isfinite(backend.to_host(grads.vector)).all() and np.abs(backend.to_host(output)).max() > 0.01
        return bits(backend, output, dx, grads.vector)

    found = outcome()
    monkeypatch.setattr(unet, "_block", block)
    monkeypatch.setattr(unet, "_attention", attention)
    assert found == outcome()

"""The U-Net: against the released architecture written out by hand, its gradients, and dropout."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.plan import PRESETS, UNetConfig
from ddpm_ref.nn.unet import UNet

BACKEND = Backend()

# Three levels with attention on two, odd width (the time embedding is padded), wider and narrower levels, dropout.
ODD = UNetConfig(2, 9, (1, 2, 1), 1, (0, 2), groups=3, dropout=0.3, learned_variance=True)


def lively(net: UNet, seed: int, dtype: type = np.float64) -> Params:
    """Parameters under which every layer matters: the real initial ones make each block nearly the identity."""
    rng = np.random.default_rng(seed)
    params = Params(np.empty(net.size), net.shapes)
    for name, values in params.views.items():
        inputs = values.size // values.shape[-1] if values.ndim > 1 else 1
        values[...] = rng.standard_normal(values.shape) / np.sqrt(inputs) + name.endswith("/gamma")
    return params.astype(dtype)


def masks(layer: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(layer).random(shape, dtype=np.float32)


def images(net: UNet, seed: int, n: int = 2, h: int = 1, w: int = 2, dtype: type = np.float64) -> Array:
    """n images whose lowest level is h × w."""
    cfg = net.config
    x = np.random.default_rng(seed).standard_normal((n, h * cfg.factor, w * cfg.factor, cfg.channels))
    return x.astype(dtype)


configs = st.builds(
    lambda channels, groups, width, mult, blocks, attention, learned: UNetConfig(
        channels, groups * width, mult, blocks, tuple(i for i in attention if i < len(mult)), groups, 0.2, learned
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(2, 3),
    st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    st.integers(1, 2),
    st.sets(st.integers(0, 2)),
    st.booleans(),
)


# ---- what it computes


def by_hand(p: Params, x: Array, t: Array, cfg: UNetConfig) -> Array:
    """The released network read off its table, level by level; no dropout."""

    def conv(h: Array, name: str, stride: int = 1) -> Array:
        return ops.conv3x3(h, p[f"{name}/W"], p[f"{name}/b"], stride=stride)[0]

    def linear(h: Array, name: str) -> Array:
        return h @ p[f"{name}/W"] + p[f"{name}/b"]

    def norm(h: Array, name: str) -> Array:
        return ops.group_norm(h, p[f"{name}/gamma"], p[f"{name}/beta"], cfg.groups)[0]

    def swish(h: Array) -> Array:
        return h / (1 + np.exp(-h))

    def block(h: Array, name: str) -> Array:
        r = conv(swish(norm(h, f"{name}/norm1")), f"{name}/conv1")
        r = r + linear(swish(temb), f"{name}/temb_proj")[:, None, None, :]
        r = conv(swish(norm(r, f"{name}/norm2")), f"{name}/conv2")
        return r + (linear(h, f"{name}/nin_shortcut") if f"{name}/nin_shortcut/W" in p else h)

    def attend(h: Array, name: str) -> Array:
        z = norm(h, f"{name}/norm").reshape(len(h), -1, h.shape[-1])
        z, _ = ops.attention(*(linear(z, f"{name}/{layer}") for layer in "qkv"))
        return h + linear(z, f"{name}/proj_out").reshape(h.shape)

    def maybe_attend(h: Array, level: int, name: str) -> Array:
        return attend(h, name) if level in cfg.attention_levels else h

    temb = ops.time_embedding(t, cfg.base)
    temb = linear(swish(linear(temb, "temb/dense0")), "temb/dense1")
    levels = len(cfg.mult)
    kept = [conv(x, "conv_in")]
    for i in range(levels):
        for j in range(cfg.blocks):
            kept.append(maybe_attend(block(kept[-1], f"down_{i}/block_{j}"), i, f"down_{i}/attn_{j}"))
        if i + 1 < levels:
            kept.append(conv(kept[-1], f"down_{i}/downsample/conv", stride=2))
    h = block(attend(block(kept[-1], "mid/block_1"), "mid/attn_1"), "mid/block_2")
    for i in reversed(range(levels)):
        for j in range(cfg.blocks + 1):
            h = block(np.concatenate([h, kept.pop()], axis=3), f"up_{i}/block_{j}")
            h = maybe_attend(h, i, f"up_{i}/attn_{j}")
        if i > 0:
            h = conv(h.repeat(2, axis=1).repeat(2, axis=2), f"up_{i}/upsample/conv")
    return conv(swish(norm(h, "norm_out")), "conv_out")


@given(st.integers(0, 2**32 - 1), configs, st.integers(1, 2), st.integers(1, 2))
def test_the_output_is_that_of_the_released_architecture(seed: int, cfg: UNetConfig, h: int, w: int) -> None:
    net = UNet(cfg)
    params, x, t = lively(net, seed), images(net, seed, h=h, w=w), np.array([1, 321])
    output, _ = net(params, x, t, BACKEND)
    assert output.shape == (*x.shape[:3], cfg.channels * (1 + cfg.learned_variance))
    np.testing.assert_allclose(output, by_hand(params, x, t, cfg), rtol=1e-9, atol=1e-9)


def test_a_fresh_network_answers_nearly_0_and_its_blocks_are_nearly_the_identity() -> None:
    net = UNet(PRESETS["digits"])
    params, x = net.init(0), images(net, 0, n=1, h=4, w=4, dtype=np.float32)
    assert 0 < np.abs(net(params, x, 500, BACKEND)[0]).max() < 1e-3
    without = params.astype(np.float32)
    for view in (view for key, view in without.views.items() if key.endswith(("conv2/W", "proj_out/W"))):
        view[...] = 0
    for p in (params, without):
        p["conv_out/W"] = np.random.default_rng(0).standard_normal(p["conv_out/W"].shape)
    found, expected = net(params, x, 500, BACKEND)[0], net(without, x, 500, BACKEND)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_an_images_output_does_not_depend_on_the_other_images_or_their_steps() -> None:
    net = UNet(ODD)
    params, x, t = lively(net, 0), images(net, 0, n=3), np.array([7, 500, 1000])
    together, _ = net(params, x, t, BACKEND)
    for i in range(3):
        np.testing.assert_allclose(net(params, x[i : i + 1], t[i : i + 1], BACKEND)[0][0], together[i], atol=1e-11)
    assert np.abs(net(params, x, t[::-1], BACKEND)[0][0] - together[0]).max() > 1e-3, "time has no effect"


def test_one_step_for_all_is_that_step_for_each_and_bind_is_the_call_without_dropout() -> None:
    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    expected, _ = net(params, x, np.array([37, 37]), BACKEND)
    for t in (37, np.int64(37), np.uint8(37), np.array(37)):
        np.testing.assert_array_equal(net(params, x, t, BACKEND)[0], expected)
        np.testing.assert_array_equal(net.bind(params)(x, t), expected)
        np.testing.assert_array_equal(net.bind(params, BACKEND)(x, t), expected)


def test_bind_uses_the_backend_it_is_given_and_sees_later_changes_of_the_parameters() -> None:
    class Flat(Backend):
        def upsample(self, x: Array) -> tuple[Array, Callable[..., Any]]:
            y, backward = super().upsample(x)
            return 0 * y, backward

    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    model, before = net.bind(params), net(params, x, 5, BACKEND)[0]
    assert np.any(net.bind(params, Flat())(x, 5) != before)
    params["conv_out/b"] += 1
    np.testing.assert_allclose(model(x, 5), before + 1, atol=1e-12)


def test_float32_in_gives_float32_out_near_float64() -> None:
    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    d_output = np.random.default_rng(1).standard_normal((*x.shape[:3], net.config.out_channels))
    results: list[list[Array]] = []
    for dtype in (np.float32, np.float64):
        output, backward = net(params.astype(dtype), x.astype(dtype), 5, BACKEND, dropout=masks)
        dx, grads = backward(d_output.astype(dtype))
        results.append([output, dx, grads.vector])
    for found, exact in zip(*results, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, atol=2e-4 * np.abs(exact).max())


# ---- its gradient


def as_function(net: UNet, t: Any, dropout: Any) -> Callable[[Array, Array], Any]:
    """The network as a function of the flat vector and the images."""

    def call(vector: Array, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
        output, backward = net(Params(vector, net.shapes), x, t, BACKEND, dropout=dropout)

        def gradients(d_output: Array) -> tuple[Array, Array]:
            dx, grads = backward(d_output)
            return grads.vector, dx

        return output, gradients

    return call


def test_the_gradient_of_every_single_parameter_and_the_input_is_a_central_difference(gradient_errors: Any) -> None:
    net, rng = UNet(ODD), np.random.default_rng(4)
    params, x = lively(net, 0), images(net, 0)
    names, directions = list(params), []
    for name in names:
        direction = params.like(np.zeros(net.size))
        direction[name] = rng.standard_normal(direction[name].shape)
        directions.append((0, direction.vector))
    directions.append((0, rng.standard_normal(net.size)))
    directions += [(1, rng.standard_normal(x.shape)) for _ in range(3)]
    function = as_function(net, np.array([3, 700]), masks)
    errors = gradient_errors(function, [params.vector, x], rng, directions)
    wrong = {name: e for name, e in zip([*names, "all", "x", "x", "x"], errors, strict=True) if not e < 1e-8}
    assert not wrong, f"{len(wrong)} gradients are wrong: {wrong}"


@given(st.integers(0, 2**32 - 1), configs, st.integers(1, 2), st.booleans())
def test_the_gradient_of_any_architecture_is_a_central_difference(
    gradient_errors: Any, seed: int, cfg: UNetConfig, w: int, dropout: bool
) -> None:
    net, rng = UNet(cfg), np.random.default_rng(seed)
    params, x = lively(net, seed), images(net, seed, h=2, w=w)
    function = as_function(net, rng.integers(1, 1001, 2), masks if dropout else None)
    errors = gradient_errors(function, [params.vector, x], rng)
    assert max(errors) < 1e-7, dict(zip(("params", "x"), errors, strict=True))


def test_the_inputs_are_left_as_they_were() -> None:
    net = UNet(ODD)
    params, x, t = lively(net, 0), images(net, 0), np.array([3, 700])
    d_output = np.ones((*x.shape[:3], net.config.out_channels))
    copies = [a.copy() for a in (params.vector, x, t, d_output)]
    output, backward = net(params, x, t, BACKEND, dropout=masks)
    kept = output.copy()
    dx, grads = backward(d_output)
    for a, copy in zip((params.vector, x, t, d_output, output), [*copies, kept], strict=True):
        np.testing.assert_array_equal(a, copy)
    assert dx.shape == x.shape and grads.shapes == net.shapes
    assert not np.shares_memory(grads.vector, params.vector)


def test_a_second_call_of_backward_is_an_error_and_so_is_one_that_was_declined() -> None:
    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    output, backward = net(params, x, 1, BACKEND)
    backward(np.ones_like(output))
    same, declined = net(params, x, 1, BACKEND, adjoint=False)
    np.testing.assert_array_equal(same, output)
    for call in (backward, declined):
        with pytest.raises(RuntimeError, match="backward can be called once"):
            call(np.ones_like(output))


class Strict(Backend):
    """Every operation sees float32 alone, and its adjoint an array of the shape of its output."""


def _strictly(name: str) -> Any:
    def operation(self: Backend, *args: Any, **settings: Any) -> Any:
        given = [a for a in (*args, *settings.values()) if isinstance(a, np.ndarray)]
        assert {a.dtype for a in given} == {np.dtype(np.float32)}, name
        y, backward = getattr(Backend, name)(self, *args, **settings)
        assert settings.get("plus", y).shape == y.shape, name

        def strict(dy: Array, **plus: Array | None) -> Any:
            assert dy.shape == y.shape and dy.dtype == y.dtype == np.float32, name
            more = [a for a in plus.values() if a is not None]
            assert all(a.shape == args[0].shape and a.dtype == np.float32 for a in more), name
            return backward(dy, **plus)

        return y, strict

    return operation


for _name in ("conv3x3", "dense", "group_norm", "attention", "upsample", "dropout"):
    setattr(Strict, _name, _strictly(_name))


def test_a_backend_gets_arrays_of_the_networks_dtype_and_adjoints_of_its_outputs_shape() -> None:
    net = UNet(ODD)
    params, x = lively(net, 0, np.float32), images(net, 0, dtype=np.float32)
    output, backward = net(params, x, 5, Strict(), dropout=masks)
    dx, grads = backward(np.ones_like(output))
    assert output.dtype == dx.dtype == grads.vector.dtype == np.float32


@pytest.mark.parametrize("adjoint", [True, False])
def test_adjoints_that_are_declined_are_let_go_as_the_network_runs(adjoint: bool) -> None:
    """What backward would need is most of the memory; `bind` never needs it."""
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Watched(Backend):
        def conv3x3(
            self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None
        ) -> tuple[Array, Callable[..., Any]]:
            y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
            alive.append(sum(ref() is not None for ref in made))
            made.append(weakref.ref(backward))
            return y, backward

    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    output = net(params, x, 5, Watched())[0] if adjoint else net.bind(params, Watched())(x, 5)
    assert output.shape == (*x.shape[:3], 4) and len(alive) > 20
    assert max(alive) == (len(alive) - 1 if adjoint else 2)


# ---- dropout


def test_dropout_asks_for_uniforms_once_per_block_each_under_its_own_number() -> None:
    net, asked = UNet(ODD), []

    def record(layer: int, shape: tuple[int, ...]) -> Array:
        asked.append((layer, shape))
        return masks(layer, shape)

    x = images(net, 0)
    for _ in range(2):
        net(lively(net, 0), x, 1, BACKEND, dropout=record)
    first, second = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    assert first == second, "the numbers of the layers are fixed"
    assert len({layer for layer, _ in first}) == len(first)
    blocks = [piece for piece in net.plan if piece.kind == "block"]
    sizes = [(4, 8), (2, 4), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (2, 4), (2, 4), (4, 8), (4, 8)]
    assert [shape for _, shape in first] == [(2, *size, b.c_out) for size, b in zip(sizes, blocks, strict=True)]


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.0), (0.999, 1 / 0.7)], ids=["all dropped", "none dropped"])
def test_dropout_stands_before_the_second_convolution_and_keeps_the_expectation(uniform: float, factor: float) -> None:
    net = UNet(ODD)
    params, x = lively(net, 0), images(net, 0)
    scaled = params.astype(np.float64)
    for name in scaled:
        scaled[name] *= factor if name.endswith("conv2/W") else 1
    found, _ = net(params, x, 9, BACKEND, dropout=lambda _, shape: np.full(shape, uniform))
    np.testing.assert_allclose(found, net(scaled, x, 9, BACKEND)[0], atol=1e-10)


def test_without_uniforms_or_at_rate_0_nothing_is_dropped() -> None:
    def never(layer: int, shape: tuple[int, ...]) -> Array:
        raise AssertionError("asked for uniforms at rate 0")

    net, still = UNet(ODD), UNet(UNetConfig(2, 9, (1, 2, 1), 1, (0, 2), groups=3, dropout=0.0, learned_variance=True))
    params, x = lively(net, 0), images(net, 0)
    np.testing.assert_array_equal(net(params, x, 9, BACKEND)[0], still(params, x, 9, BACKEND, dropout=never)[0])

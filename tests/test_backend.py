"""The backend contract: how an operation must behave, that NumPy's bodies are the functions named, the choice."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ddpm_ref import random
from ddpm_ref.backend import OPERATIONS as NAMES
from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops, optim
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet
from ddpm_ref.random import Purpose

UNIFORM = np.random.default_rng(1).random((2, 5, 4, 6), dtype=np.float32)


def plus_to_y(operation: Callable[..., Any], *args: Array) -> Any:
    """With the last argument added to y, the gradient of which is dy."""
    y, backward = operation(*args[:-1], plus=args[-1])
    return y, lambda dy: (*backward(dy), dy.copy())


def plus_to_dx(both: tuple[Array, Callable[..., Any]]) -> Any:
    """With dy, here shaped as x, added to dx."""
    y, backward = both
    return y, lambda dy: backward(dy, plus=dy)


# What to call, the shapes of its arrays.
OPERATIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv3x3": (lambda on, *a: on.conv3x3(*a), [(2, 5, 4, 3), (3, 3, 3, 6), (6,)]),
    "conv3x3, a bias per image": (lambda on, *a: on.conv3x3(*a), [(2, 5, 4, 3), (3, 3, 3, 6), (2, 6)]),
    "conv3x3, stride 2": (lambda on, *a: on.conv3x3(*a, stride=2), [(2, 5, 4, 3), (3, 3, 3, 6), (6,)]),
    "conv3x3, plus": (lambda on, *a: plus_to_y(on.conv3x3, *a), [(2, 5, 4, 3), (3, 3, 3, 6), (6,), (2, 5, 4, 6)]),
    "dense": (lambda on, *a: on.dense(*a), [(2, 5, 4, 3), (3, 6), (6,)]),
    "dense, plus": (lambda on, *a: plus_to_y(on.dense, *a), [(2, 5, 4, 3), (3, 6), (6,), (2, 5, 4, 6)]),
    "dense, plus to dx": (lambda on, *a: plus_to_dx(on.dense(*a)), [(2, 5, 4, 6), (6, 6), (6,)]),
    "group_norm": (lambda on, *a: on.group_norm(*a, 2), [(2, 5, 4, 6), (6,), (6,)]),
    "group_norm, silu": (lambda on, *a: on.group_norm(*a, 2, silu=True), [(2, 5, 4, 6), (6,), (6,)]),
    "group_norm, plus to dx": (lambda on, *a: plus_to_dx(on.group_norm(*a, 2)), [(2, 5, 4, 6), (6,), (6,)]),
    "attention": (lambda on, *a: on.attention(*a), [(2, 7, 6), (2, 7, 6), (2, 7, 6)]),
    "upsample": (lambda on, *a: on.upsample(*a), [(2, 5, 4, 6)]),
    "add": (lambda on, *a: on.add(*a), [(2, 5, 4, 6), (2, 5, 4, 6)]),
    "concat": (lambda on, *a: on.concat(*a), [(2, 5, 4, 6), (2, 5, 4, 3)]),
    "dropout": (lambda on, *a: on.dropout(*a, UNIFORM, 0.3), [(2, 5, 4, 6)]),
    "silu": (lambda on, *a: ops.silu(*a), [(2, 5, 4, 6)]),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def prepare(operation: str, dtype: type = np.float64) -> tuple[Callable[..., Any], list[Array], Array]:
    """The operation on the NumPy backend, its arguments and an output gradient, all of dtype and read-only."""
    call, shapes = OPERATIONS[operation]
    rng = np.random.default_rng(0)
    args: list[Array] = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    dy = rng.standard_normal(call(Backend(), *args)[0].shape).astype(dtype)
    for a in (*args, dy):
        a.flags.writeable = False
    return lambda *a: call(Backend(), *a), args, dy


def outcome(call: Callable[..., Any], args: list[Array], dy: Array) -> list[Array]:
    """The output and every gradient."""
    y, backward = call(*args)
    gradients = backward(dy)
    return [y, *gradients] if isinstance(gradients, tuple) else [y, gradients]


def strided(a: Array) -> Array:
    """The same values as a view that is contiguous nowhere: every second element of a transposed array."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1])[::-1], a.dtype).T
    view = wide[..., ::2]
    view[...] = a
    assert not view.flags.c_contiguous or a.size < 2
    return view


# ---- what every operation keeps to


@every_operation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_dtype_and_the_gradients_the_shapes_of_the_inputs(operation: str, dtype: type) -> None:
    call, args, dy = prepare(operation, dtype)
    y, *gradients = outcome(call, args, dy)
    assert all(a.dtype == dtype for a in (y, *gradients))
    assert [g.shape for g in gradients] == [a.shape for a in args]


@every_operation
def test_float32_agrees_with_float64(operation: str) -> None:
    call, args, dy = prepare(operation, np.float32)
    exact = outcome(call, [a.astype(np.float64) for a in args], dy.astype(np.float64))
    for found, expected in zip(outcome(call, args, dy), exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6 * (1 + np.abs(expected).max()))


@every_operation
def test_inputs_are_left_as_they_were_and_results_share_no_memory_with_them(operation: str) -> None:
    call, args, dy = prepare(operation)
    copies = [a.copy() for a in (*args, dy)]
    results = outcome(call, args, dy)  # the inputs are read-only: writing into one raises
    for given, copy in zip((*args, dy), copies, strict=True):
        np.testing.assert_array_equal(given, copy)
        if operation not in ("concat", "add"):  # whose adjoints give dy or views of it
            assert not any(np.shares_memory(given, result) for result in results), "a caller may write into results"
    writable = [a.copy() for a in args]
    y, backward = call(*writable)
    before = y.copy()
    backward(dy.copy())
    np.testing.assert_array_equal(y, before)
    assert all(np.array_equal(a, copy) for a, copy in zip(writable, copies, strict=False))


@every_operation
def test_strided_and_transposed_views_give_what_contiguous_arrays_give(operation: str) -> None:
    call, args, dy = prepare(operation)
    of_views = outcome(call, [strided(a) for a in args], strided(dy))
    for found, expected in zip(of_views, outcome(call, args, dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * (1 + np.abs(expected).max()))


@every_operation
def test_the_same_call_gives_the_same_bits(operation: str) -> None:
    for first, second in zip(outcome(*prepare(operation)), outcome(*prepare(operation)), strict=True):
        np.testing.assert_array_equal(first, second)


# ---- the NumPy backend is the functions it names

WRAPPED: dict[str, Callable[..., Any]] = {
    **{name: getattr(ops, name) for name in NAMES[:8]},
    "update": optim.update,
    "normal": random.normal,
    "uniform": random.uniform,
}
METHODS = [name for name in vars(Backend) if not name.startswith("_") and callable(getattr(Backend, name))]


def test_every_public_method_is_documented_and_known_to_these_tests() -> None:
    assert [name for name in METHODS if not inspect.getdoc(getattr(Backend, name))] == []
    assert set(NAMES) == {*WRAPPED, "q_sample", "p_sample"}
    around = ["describe", "silu", "time_embedding", "training_steps", "reverse_steps", "to_device", "to_host"]
    assert sorted(METHODS) == sorted([*NAMES, *around])


@pytest.mark.parametrize("name", WRAPPED)
def test_a_method_takes_the_arguments_of_its_function(name: str) -> None:
    def plain(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]

    assert plain(getattr(Backend, name)) == plain(WRAPPED[name])


@every_operation
def test_an_operation_equals_its_function(operation: str) -> None:
    call, args, dy = prepare(operation)
    direct = outcome(lambda *a: OPERATIONS[operation][0](ops, *a), args, dy)
    for found, expected in zip(outcome(call, args, dy), direct, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_update_normal_and_uniform_equal_their_functions() -> None:
    ours: Array = np.random.default_rng(2).random((5, 9))
    theirs = ours.copy()
    how: dict[str, Any] = {"step": 2, "settings": optim.AdamSettings(warmup=3)}
    assert Backend().update(*ours, **how) == optim.update(*theirs, **how)
    np.testing.assert_array_equal(ours, theirs)
    for name in ("normal", "uniform"):
        draw = (7, Purpose.EPS, 3, [0, 5], (4, 3))
        found = getattr(Backend(), name)(*draw, layer=2)
        np.testing.assert_array_equal(found, getattr(random, name)(*draw, layer=2))


def test_arrays_move_to_the_device_and_back_unchanged() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = Backend().to_device(x)
    back = Backend().to_host(there)
    assert type(back) is np.ndarray and back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


# ---- a backend in use


class Counting(Backend):
    """Counts what the network asks for, and doubles what attention returns."""

    name = "counting"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            self.calls.append(name)
        return super().__getattribute__(name)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Callable[..., Any]]:
        y, backward = super().attention(q, k, v)
        return 2 * y, lambda dy: backward(2 * dy)


def test_the_network_runs_the_operations_of_the_backend_it_is_given(gradient_errors: Any) -> None:
    net = UNet(UNetConfig(1, 4, (1, 2), 1, (1,), groups=2, dropout=0.5))
    rng = np.random.default_rng(3)
    params = net.init(0, np.float64)
    params.vector[:] = 0.4 * rng.standard_normal(net.size)
    x, backend = rng.standard_normal((2, 4, 4, 1)), Counting()

    def masks(layer: int, shape: tuple[int, ...]) -> Array:
        return np.random.default_rng(layer).random(shape)

    output, _ = net(params, x, 3, backend, dropout=masks)
    blocks, attentions = 2 + 2 + 4, 1 + 1 + 2
    counted = {name: backend.calls.count(name) for name in sorted(set(backend.calls))}
    widened = sum(name.endswith("nin_shortcut/W") for name in net.shapes)
    assert counted == {
        "attention": attentions,
        "concat": 4,
        "conv3x3": 1 + 2 * blocks + 1 + 1 + 1,  # conv_in, the blocks, down, up, conv_out
        "dense": 2 + blocks + widened + 4 * attentions,
        "dropout": blocks,
        "group_norm": 2 * blocks + attentions + 1,
        "silu": 2,
        "time_embedding": 1,
        "to_device": 1,
        "upsample": 1,
    }
    plain, _ = net(params, x, 3, Backend(), dropout=masks)
    assert np.abs(output - plain).max() > 1e-3, "the overridden attention was not used"
    errors = gradient_errors(lambda x: ((r := net(params, x, 3, Counting()))[0], lambda d: r[1](d)[0]), [x], rng)
    assert errors[0] < 1e-8, "the overridden attention's adjoint was not used"

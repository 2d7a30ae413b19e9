"""Whatever NumPy's bodies are given, the Numba backend answers the same: their values, or their kind of exception."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend
from ddpm_ref_numba.launch import guard
from numba_checks import NUMPY, normals

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.nn.optim import AdamSettings

OURS = NumbaBackend(2)
X, WIDE = (2, 6, 4, 16), (2, 6, 4, 32)


def plus_to_y(operation: Callable[..., Any], *args: Array) -> Any:
    """With the last argument added to y."""
    return operation(*args[:-1], plus=args[-1])


# The call, and the shapes of its arrays: as kernels take them.
OPERATIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv3x3": (lambda on, *a: on.conv3x3(*a), [X, (3, 3, 16, 32), (32,)]),
    "conv3x3, a bias per image": (lambda on, *a: on.conv3x3(*a), [X, (3, 3, 16, 32), (2, 32)]),
    "conv3x3, stride 2": (lambda on, *a: on.conv3x3(*a, stride=2), [X, (3, 3, 16, 32), (32,)]),
    "conv3x3, padded": (lambda on, *a: on.conv3x3(*a), [(2, 5, 4, 3), (3, 3, 3, 5), (5,)]),
    "conv3x3, plus": (lambda on, *a: plus_to_y(on.conv3x3, *a), [X, (3, 3, 16, 32), (32,), WIDE]),
    "dense": (lambda on, *a: on.dense(*a), [X, (16, 32), (32,)]),
    "dense, plus": (lambda on, *a: plus_to_y(on.dense, *a), [X, (16, 32), (32,), WIDE]),
    "dense, padded, plus": (lambda on, *a: plus_to_y(on.dense, *a), [(7, 3), (3, 5), (5,), (7, 5)]),
    "dense, padded": (lambda on, *a: on.dense(*a), [(7, 3), (3, 5), (5,)]),
    "group_norm": (lambda on, *a: on.group_norm(*a, 4), [X, (16,), (16,)]),
    "group_norm, silu": (lambda on, *a: on.group_norm(*a, 4, silu=True), [WIDE, (32,), (32,)]),
    "attention": (lambda on, *a: on.attention(*a), [(2, 7, 16)] * 3),
    "attention, padded": (lambda on, *a: on.attention(*a), [(2, 7, 3)] * 3),
    "upsample": (lambda on, *a: on.upsample(*a), [X]),
    "concat": (lambda on, *a: on.concat(*a), [X, WIDE]),
    "add": (lambda on, *a: on.add(*a), [(2, 32, 32, 16)] * 2),
    "dropout": (lambda on, *a: on.dropout(*a, 0.3), [X, X]),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


def mapped(a: Array) -> Array:
    return a.view(np.memmap)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "int64": lambda a: a.astype(np.int64),
    "big-endian": lambda a: a.astype(">f4"),
    "every second of an array": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "a subclass": mapped,
    "fewer channels": lambda a: a[..., :-1].copy(),
    "half the channels": lambda a: a[..., : a.shape[-1] // 2].copy(),
    "one channel": lambda a: a[..., :1].copy(),
    "no channels": lambda a: a[..., :0],
    "more channels": lambda a: np.concatenate([a, a], axis=-1),
    "fewer at the front": lambda a: a[:-1].copy(),
    "none at the front": lambda a: a[:0],
    "fewer in the second axis": lambda a: a[:, :-1].copy() if a.ndim > 1 else a[:-1].copy(),
    "none in the second axis": lambda a: a[:, :0] if a.ndim > 1 else a[:0],
    "an axis more": lambda a: a[None],
    "an axis less": lambda a: a[0].copy(),
    "one number": lambda a: a.reshape(-1)[0].copy(),
}


def answer(on: Backend, call: Callable[..., Any], args: list[Array]) -> list[Array] | type[BaseException]:
    """Output and gradients, or what was raised."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            y, backward = call(on, *args)
            gradients = backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
    except Exception as error:
        return type(error)
    return [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]


def hold(call: Callable[..., Any], args: list[Array]) -> None:
    """Numba answers as NumPy does, to 1e-4 of the largest number, and no kernel leaves its arrays."""
    expected = answer(NUMPY, call, args)
    with guard():
        found = answer(OURS, call, args)
    if isinstance(expected, type) or isinstance(found, type):
        assert found is expected
        return
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(
            a.astype(float), b.astype(float), rtol=0, atol=1e-4 * (1 + np.abs(b.astype(float)).max(initial=0))
        )


OPERANDS = [(name, k) for name, (_, shapes) in OPERATIONS.items() for k in range(len(shapes))]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("operation", "which"), OPERANDS)
def test_an_array_that_is_not_what_a_kernel_takes_is_answered_as_numpy_does(
    operation: str, which: int, change: str
) -> None:
    call, shapes = OPERATIONS[operation]
    args = normals(3, *shapes)
    args[which] = CHANGES[change](args[which])
    hold(call, args)


@every_operation
@pytest.mark.parametrize("change", CHANGES)
def test_all_arrays_changed_alike_are_answered_as_numpy_does(operation: str, change: str) -> None:
    call, shapes = OPERATIONS[operation]
    hold(call, [CHANGES[change](a) for a in normals(4, *shapes)])


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (lambda on, *a: on.conv3x3(*a, stride=3), [X, (3, 3, 16, 32), (32,)]),
        (lambda on, *a: on.conv3x3(*a, stride=0), [X, (3, 3, 16, 32), (32,)]),
        (lambda on, *a: on.conv3x3(*a), [X, (5, 5, 16, 32), (32,)]),
        (lambda on, *a: on.conv3x3(*a), [X, (3, 3, 16, 32), (1, 32)]),
        (lambda on, *a: on.conv3x3(*a), [X, (3, 3, 16, 32), (3, 32)]),
        *((lambda on, *a, g=g: on.group_norm(*a, g), [X, (16,), (16,)]) for g in (-4, 0, 3, 5, 16, 17, 32, 4.0)),
        (lambda on, *a: on.attention(*a), [(2, 7, 16), (2, 5, 16), (2, 5, 16)]),
        (lambda on, *a: on.attention(*a), [(2, 7, 16), (2, 7, 16), (2, 7, 32)]),
        *((lambda on, *a, r=r: on.dropout(*a, r), [X, X]) for r in (0, 1, 1.0, np.float64(1), 1.5, -1.0, np.nan)),
        (lambda on, *a: on.dropout(*a, 0.5), [(), ()]),
        (lambda on, *a: on.add(*a), [(64, 64, 16), (1, 64, 16)]),
        (lambda on, *a: on.concat(*a), [(3,), (4,)]),
        (lambda on, *a: on.group_norm(*a, 4), [(5, 16), (16,), (16,)]),
        (lambda on, *a: on.group_norm(*a, 4), [(16,), (16,), (16,)]),
        (lambda on, *a: on.dense(*a), [(16,), (16, 32), (32,)]),
        (lambda on, *a: on.dense(*a), [(4, 8), (16, 32), (32,)]),
    ],
)
def test_numbers_and_shapes_that_no_kernel_takes_are_answered_as_numpy_does(
    call: Callable[..., Any], shapes: list[tuple[int, ...]]
) -> None:
    hold(call, normals(5, *shapes))


# ---- dy


@every_operation
def test_an_output_gradient_of_any_dtype_and_layout_is_read_as_float32(operation: str) -> None:
    call, shapes = OPERATIONS[operation]
    y, backward = call(OURS, *normals(6, *shapes))
    (dy,) = normals(7, y.shape)
    if operation == "add":
        return  # its adjoint is dy itself
    for change in ("float64", "big-endian", "every second of an array", "a subclass"):
        results = backward(dy), backward(CHANGES[change](dy))
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True):
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(a, b)


@every_operation
def test_an_output_gradient_of_another_shape_is_refused(operation: str) -> None:
    call, shapes = OPERATIONS[operation]
    y, backward = call(OURS, *normals(6, *shapes))
    if operation == "add":
        return
    for shape in ((1, *y.shape[1:]), (*y.shape[:-1], 1), (y.size,), y.shape[::-1], ()):
        with pytest.raises(ValueError) as refused:
            backward(np.ones(shape, np.float32))
        assert str(refused.value) == f"dy: wanted the output's shape, {y.shape}, got {shape}"


@pytest.mark.parametrize("operation", ["dense", "dense, padded", "group_norm"])
def test_a_plus_of_any_dtype_and_layout_is_read_as_float32_and_one_of_another_shape_refused(operation: str) -> None:
    call, shapes = OPERATIONS[operation]
    args = normals(6, *shapes)
    y, backward = call(OURS, *args)
    dy, plus = normals(7, y.shape, args[0].shape)
    for change in ("float64", "big-endian", "every second of an array", "a subclass"):
        for a, b in zip(backward(dy, plus), backward(dy, CHANGES[change](plus)), strict=True):
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(a, b)
    for shape in ((1, *plus.shape[1:]), (*plus.shape[:-1], 1), (plus.size,), ()):
        with pytest.raises(ValueError) as refused:
            backward(dy, np.ones(shape, np.float32))
        assert str(refused.value) == f"plus: wanted the shape of what it is added to, {plus.shape}, got {shape}"


# ---- the update


def vectors(size: int = 100) -> list[Array]:
    return [np.abs(a) for a in normals(8, *[(size,)] * 5)]


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize(
    "change", ["float64", "big-endian", "a subclass", "fewer at the front", "none at the front", "an axis more"]
)
def test_the_update_of_other_vectors_is_numpys(which: int, change: str) -> None:
    outcomes = []
    for on in (OURS, NUMPY):
        given = vectors()
        given[which] = CHANGES[change](given[which])
        try:
            with guard():
                outcomes.append((on.update(*given, 2, AdamSettings()), [a.tobytes() for a in given]))
        except Exception as error:
            outcomes.append((type(error), [a.tobytes() for a in given]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("which", [0, 2, 3, 4])
def test_the_update_does_not_write_to_what_is_read_only(which: int) -> None:
    given = vectors()
    given[which] = np.frombuffer(given[which].tobytes(), np.float32)
    before = given[which].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        OURS.update(*given, 2, AdamSettings())
    assert given[which].tobytes() == before


def test_the_update_writes_to_a_mapped_file(tmp_path: Path) -> None:
    ours, theirs = vectors(), vectors()
    ours[0] = np.memmap(tmp_path / "params", np.float32, "w+", shape=100)
    ours[0][:] = theirs[0]
    assert OURS.update(*ours, 2, AdamSettings()) == NUMPY.update(*theirs, 2, AdamSettings())
    np.testing.assert_array_equal(np.fromfile(tmp_path / "params", np.float32), theirs[0])

"""What each operation with an adjoint is tried on, and the property that every one of them must have on a backend.

A case is an operation with its options and the float64 values of its arguments; `check_case` runs it on a backend in
one dtype and one memory layout. `ddpm_ref.check_backend` runs a fixed list of cases; tests may make their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ddpm_ref import backend_bounds as bounds
from ddpm_ref import backend_manners as manners
from ddpm_ref.backend import Backend
from ddpm_ref.backend_bounds import Call, Magnitudes, outcome, tolerance
from ddpm_ref.checks import Array

LAYOUTS = ("contiguous", "strided")


@dataclass(frozen=True)
class Case:
    """One operation to try: `call(backend, *args) -> y, backward`.

    linear: (k, others) for each argument in which y is linear once the others are 0.  smooth: gradients may also be
    held against differences.
    """

    name: str
    options: str
    call: Call
    args: tuple[Array, ...]
    magnitudes: Magnitudes
    linear: tuple[tuple[int, tuple[int, ...]], ...] = ()
    smooth: bool = False

    def label(self, dtype: Any, layout: str) -> str:
        """What a message calls it."""
        shapes = " ".join("x".join(map(str, a.shape)) for a in self.args)
        return " ".join(filter(None, [self.name, shapes, self.options, np.dtype(dtype).name, layout]))


def normals(seed: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Arguments of these shapes."""
    rng = np.random.RandomState(seed)  # its stream is fixed for good, and faster to import than default_rng
    return tuple(rng.standard_normal(shape) for shape in shapes)


def conv3x3(
    n: int,
    h: int,
    w: int,
    c: int,
    d: int,
    *,
    stride: int = 1,
    per_image: bool = False,
    plus: bool = False,
    seed: int = 0,
) -> Case:
    """Convolution, with one bias or one per image; plus: an array added to y is the last argument."""
    shapes = [(n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,)]
    if plus:
        shapes.append((n, -(-h // stride), -(-w // stride), d))

    def call(on: Any, *a: Array, **more: Array) -> Any:
        return on.conv3x3(*a, stride=stride, **more)

    return Case(
        "conv3x3",
        f"stride {stride}" + ", plus" * plus,
        _added_to_y(call) if plus else call,
        normals(seed, *shapes),
        bounds.of_convolution,
        linear=((0, (2, 3)), (1, (2, 3)), (3, (0, 2))) if plus else ((0, (2,)), (1, (2,))),
    )


def dense(shape: tuple[int, ...], d: int, *, plus: str = "", seed: int = 0) -> Case:
    """y = x W + b on (..., C).

    plus: "y", an array added to y is the last argument; "dx", x is also handed on as it is, and what comes back from
    there is added to dx.
    """
    shapes = [shape, (shape[-1], d), (d,), *([(*shape[:-1], d)] if plus == "y" else [])]

    def call(on: Any, *a: Array, **more: Array) -> Any:
        return on.dense(*a, **more)

    options, whole, linear = {
        "": ("", call, ((0, (2,)), (1, (2,)))),
        "y": ("plus", _added_to_y(call), ((0, (2, 3)), (1, (2, 3)), (3, (0, 2)))),
        "dx": ("plus to dx", _added_to_dx(call), ((0, (2,)),)),
    }[plus]
    return Case("dense", options, whole, normals(seed, *shapes), bounds.of_linear, linear)


def group_norm(
    n: int,
    h: int,
    w: int,
    c: int,
    groups: int,
    *,
    silu: bool,
    mean: float = 0.5,
    plus: bool = False,
    seed: int = 0,
) -> Case:
    """GroupNorm, of images whose mean is not 0; plus: as "dx" of `dense`."""
    x, gamma, beta = normals(seed, (n, h, w, c), (c,), (c,))

    def call(on: Any, *a: Array) -> Any:
        return on.group_norm(*a, groups, silu=silu)

    def magnitudes(_: Call, args: Sequence[Array], dy: Array, dtype: Any) -> list[Array]:
        if not plus:
            return bounds.of_group_norm(args, dy, groups, silu)
        own, other = np.split(dy, 2)
        y, dx, *others = bounds.of_group_norm(args, own.reshape(args[0].shape), groups, silu)
        x = np.abs(args[0])
        return [np.concatenate([y.reshape(-1), x.reshape(-1)]), dx + np.abs(other).reshape(x.shape), *others]

    return Case(
        "group_norm",
        f"groups {groups}" + ", silu" * silu + ", plus to dx" * plus,
        _added_to_dx(call) if plus else call,
        (x + mean, gamma, beta),
        magnitudes,
        smooth=h * w * c // groups >= 8,
    )


def _added_to_y(operation: Call) -> Call:
    """The operation with its last argument as `plus`, the gradient of which is dy."""

    def call(on: Backend, *args: Array) -> Any:
        y, backward = operation(on, *args[:-1], plus=args[-1])
        return y, lambda dy: (*backward(dy), dy.copy())

    return call


def _added_to_dx(operation: Call) -> Call:
    """y and x one behind the other, as one row of numbers: what comes back to x itself is the adjoint's `plus`."""

    def call(on: Backend, x: Array, *args: Array) -> Any:
        y, backward = operation(on, x, *args)
        size, shape = y.size, y.shape

        def adjoint(dy: Array) -> Any:
            return backward(dy[:size].reshape(shape), plus=dy[size:].reshape(x.shape))

        return np.concatenate([y.reshape(-1), x.reshape(-1)]), adjoint

    return call


def attention(n: int, s: int, c: int, *, logit: float = 0.0, size: float = 1.0, seed: int = 0) -> Case:
    """Attention over s positions; linear in v. Logits: around `logit`, `size` times those of normal q and k."""
    q, k, v = normals(seed, *[(n, s, c)] * 3)
    q, k = q * size**0.5, k * size**0.5
    root = (abs(logit) / c**0.5) ** 0.5
    return Case(
        "attention",
        f"logits around {logit:g}" * bool(logit) + f"logits times {size:g}" * (size != 1),
        lambda on, *a: on.attention(*a),
        (q + root, k + (root if logit > 0 else -root), v),
        lambda _, args, dy, dtype: bounds.of_attention(args, dy),
        linear=((2, ()),),
        smooth=not logit and size == 1,
    )


def upsample(n: int, h: int, w: int, c: int, *, seed: int = 0) -> Case:
    """Up-sampling by 2."""
    args = normals(seed, (n, h, w, c))
    return Case("upsample", "", lambda on, *a: on.upsample(*a), args, bounds.of_linear, linear=((0, ()),))


def concat(n: int, h: int, w: int, c: int, d: int, *, seed: int = 0) -> Case:
    """C channels, then D."""
    args = normals(seed, (n, h, w, c), (n, h, w, d))
    return Case("concat", "", lambda on, *a: on.concat(*a), args, bounds.of_linear, linear=((0, (1,)), (1, (0,))))


def add(shape: tuple[int, ...], *, seed: int = 0) -> Case:
    """The residual connection."""
    args = normals(seed, shape, shape)
    return Case("add", "", lambda on, *a: on.add(*a), args, bounds.of_linear, linear=((0, (1,)), (1, (0,))))


def dropout(shape: tuple[int, ...], rate: float, *, seed: int = 0) -> Case:
    """Dropout by float32 uniforms, some of which are the rate itself."""
    uniform = np.random.RandomState((seed + 1) % 2**32).random_sample(shape).astype(np.float32)
    uniform.reshape(-1)[::5] = rate
    return Case(
        "dropout",
        f"rate {rate}",
        lambda on, x: on.dropout(x, on.to_device(uniform), rate),
        normals(seed, shape),
        bounds.of_linear,
        linear=((0, ()),),
    )


# --- one case on one backend -----------------------------------------------------------------------------------------


class _Tried(NamedTuple):
    """One case as it was run on a backend. The last of values and args is dy."""

    label: str
    values: list[Array]
    args: list[Array]
    found: list[Array]
    allowed: list[Array]
    worst: float


def check_case(backend: Backend, case: Case, dtype: Any = np.float32, layout: str = "contiguous") -> float:
    """Hold one case to the contract; returns the largest error as a share of what is allowed.

    Values and gradients, their dtype and shape; the adjoint identity on the backend itself; inputs as they were;
    results that are the caller's to write into and that no other call changes; the same bits again. Raises
    AssertionError.
    """
    label, values, args, found, allowed, worst = _tried(backend, case, dtype, layout)
    manners.unchanged(label, backend, args, values)
    manners.repeats(label, backend, case, args, found)
    manners.owned(label, backend, case, args, values, found)
    others = [placed(backend, (-0.5 * a).astype(dtype), layout) for a in values]
    manners.apart(label, backend, case, args, others, found)
    *args, d = args
    for k, zeros in case.linear:
        what = f"{label}: argument {k + 1}"
        worst = max(worst, _adjoint(what, backend, case, k, zeros, args, d, found, allowed, dtype))
    if case.smooth:
        _differences(label, backend, case, args, d, found, dtype)
    return worst


def check_values(backend: Backend, case: Case, dtype: Any = np.float32, layout: str = "contiguous") -> float:
    """Values and gradients of one case alone, their dtype and shape. Raises AssertionError."""
    return _tried(backend, case, dtype, layout).worst


def _tried(backend: Backend, case: Case, dtype: Any, layout: str) -> _Tried:
    """Run one case, compared with NumPy's float64."""
    label = case.label(dtype, "" if layout == "contiguous" else layout)
    values = [a.astype(dtype) for a in case.args]
    exact_args = [a.astype(np.float64) for a in values]
    y_shape = case.call(Backend(), *exact_args)[0].shape
    dy = normals(len(values), y_shape)[0].astype(dtype)
    exact_dy = dy.astype(np.float64)
    exact = outcome(case.call, Backend(), exact_args, exact_dy)
    allowed = [tolerance(dtype) * m for m in case.magnitudes(case.call, exact_args, exact_dy, dtype)]
    *args, d = (placed(backend, a, layout) for a in (*values, dy))
    found = [backend.to_host(a).copy() for a in outcome(case.call, backend, args, d)]
    names = ["y", *(f"gradient {i} of {len(values)}" for i in range(1, len(found)))]
    assert len(found) == len(exact), f"{label}: wanted {len(exact) - 1} gradients, got {len(found) - 1}"
    worst = 0.0
    for name, got, wanted, bound in zip(names, found, exact, allowed, strict=True):
        worst = max(worst, compared(f"{label}: {name}", got, wanted, bound, dtype))
    return _Tried(label, [*values, dy], [*args, d], found, allowed, worst)


def placed(backend: Backend, x: Array, layout: str = "contiguous") -> Array:
    """A host array on the device: contiguous, or as a view with gaps of a transposed array."""
    if layout == "contiguous":
        return backend.to_device(x.copy())
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    order = tuple(reversed(range(x.ndim)))
    return backend.to_device(np.ascontiguousarray(wide.transpose(order))).transpose(order)[..., ::2]


def compared(what: str, got: Array, wanted: Array, allowed: Array, dtype: Any) -> float:
    """The largest error as a share of what is allowed; AssertionError if that is more than 1 or the kind is wrong."""
    assert got.dtype == dtype, f"{what}: wanted dtype {np.dtype(dtype).name}, got {got.dtype}"
    assert got.shape == wanted.shape, f"{what}: wanted shape {wanted.shape}, got {got.shape}"
    if not got.size:
        return 0.0
    error = np.abs(got.astype(np.float64) - wanted)
    share = np.where(np.isfinite(error), error, np.inf) / np.maximum(allowed, np.finfo(np.float64).tiny)
    at = np.unravel_index(np.argmax(share), share.shape)
    allowed = np.broadcast_to(allowed, share.shape)
    assert share[at] <= 1, (
        f"{what}: off by {error[at]:.3g} where {allowed[at]:.3g} is allowed, at {tuple(map(int, at))}: "
        f"got {got[at]:.8g}, wanted {wanted[at]:.8g} ({(share > 1).mean():.0%} of the values are off)"
    )
    return float(share[at])


def _adjoint(
    label: str,
    backend: Backend,
    case: Case,
    k: int,
    zeros: Sequence[int],
    args: Sequence[Array],
    d: Array,
    found: Sequence[Array],
    allowed: Sequence[Array],
    dtype: Any,
) -> float:
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ for an argument in which the operation is linear, both sides by the backend itself."""
    v = normals(100 + k, case.args[k].shape)[0].astype(dtype)
    moved = list(args)
    moved[k] = backend.to_device(v)
    for other in zeros:
        moved[other] = backend.to_device(np.zeros(case.args[other].shape, dtype))
    values = [backend.to_host(a).astype(np.float64) for a in moved]
    dy = backend.to_host(d).astype(np.float64)
    Jv = backend.to_host(case.call(backend, *moved)[0]).astype(np.float64)
    left, right = np.vdot(dy, Jv), np.vdot(found[1 + k].astype(np.float64), v.astype(np.float64))
    of_Jv = tolerance(dtype) * case.magnitudes(case.call, values, dy, dtype)[0]
    # Each side is off by no more than its elements' errors times what multiplies them (Cauchy and Schwarz).
    norm = np.linalg.norm
    most = norm(dy) * norm(of_Jv) + norm(allowed[1 + k]) * norm(v.astype(np.float64))
    off = abs(left - right)
    assert off <= most, f"{label}: ⟨dy, J v⟩ = {left:.8g} but ⟨Jᵀ dy, v⟩ = {right:.8g}, {most:.3g} apart is allowed"
    return float(off / most) if most else 0.0


def _differences(
    label: str, backend: Backend, case: Case, args: Sequence[Array], d: Array, found: Sequence[Array], dtype: Any
) -> None:
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ where J v is a difference quotient of fourth order, by the backend itself."""
    h = 0.02 if np.dtype(dtype) == np.float32 else 1e-3
    most = 2e-3 if np.dtype(dtype) == np.float32 else 1e-6
    dy = backend.to_host(d).astype(np.float64)
    for k, value in enumerate(args):
        host = backend.to_host(value).astype(np.float64)
        v = normals(200 + k, host.shape)[0]
        v /= max(1.0, float(np.sqrt(np.mean(v * v))))

        def at(step: float, k: int = k, host: Array = host, v: Array = v) -> Array:
            moved = [*args[:k], backend.to_device((host + step * v).astype(dtype)), *args[k + 1 :]]
            return backend.to_host(case.call(backend, *moved)[0]).astype(np.float64)

        Jv = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        left, right = np.vdot(dy, Jv), np.vdot(found[1 + k].astype(np.float64), v)
        scale = np.linalg.norm(dy) * (np.linalg.norm(Jv) + np.linalg.norm(found[0]))
        assert abs(left - right) <= most * scale, (
            f"{label}: argument {k + 1}: ⟨dy, J v⟩ = {left:.8g} by differences but ⟨Jᵀ dy, v⟩ = {right:.8g}"
        )

"""Vectors of float32 as values in Numba kernels: explicit SIMD, so that nothing depends on the auto-vectoriser.

A vector has `WIDTH` lanes: 16 where the processor has AVX-512, 8 elsewhere (LLVM splits those where registers are
narrower). Kernels see memory as typed pointers without lengths; `launch` says how they are checked for overruns.

    f32(args, i)         argument i of a kernel as a float32 pointer; i64 as an integer, real as a float32 number
    load(p, i)           WIDTH numbers from p[i] on         store(p, i, v)     the reverse; both unaligned
    put(p, i, v, q, more)        store v, or v + load(q, i) if more
    each(p, i)           p[i] in every lane                 splat(s), zero()   a number in every lane
    fma(a, b, c)         a b + c, fused where the processor can
    + - * /              lane by lane; with a float32 on one side it is splat first
"""

import operator
import os
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model


def _width() -> int:
    """DDPM_REF_SIMD_WIDTH, or what this processor is best at."""
    given = os.environ.get("DDPM_REF_SIMD_WIDTH") or ("16" if llvm.get_host_cpu_features().get("avx512f") else "8")
    if given not in ("8", "16"):
        raise ImportError(f"DDPM_REF_SIMD_WIDTH: wanted 8 or 16, got {given!r}")
    return int(given)


WIDTH = _width()

F32 = ir.FloatType()
I32 = ir.IntType(32)
VECTOR = ir.VectorType(F32, WIDTH)
INDICES = ir.VectorType(I32, WIDTH)


class Vector(types.Type):
    """WIDTH float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name=f"f32x{WIDTH}")


vector = Vector()
f32_p = types.CPointer(types.float32)
u32_p = types.CPointer(types.uint32)
i64_p = types.CPointer(types.int64)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, VECTOR)


def splat_value(builder: Any, scalar: Any, vector_type: Any = VECTOR) -> Any:
    """A scalar in every lane, in IR."""
    undefined = ir.Constant(vector_type, ir.Undefined)
    lanes = ir.Constant(ir.VectorType(I32, vector_type.count), [0] * vector_type.count)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, ir.Constant(I32, 0)), undefined, lanes)


def call_llvm(builder: Any, name: str, args: list[Any], result: Any = VECTOR) -> Any:
    """Call an LLVM intrinsic on vectors; llvmlite's own declare_intrinsic does not take vector types."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@intrinsic
def load(typing, p, i):
    def codegen(context, builder, sig, args):
        address = builder.gep(args[0], [args[1]])
        return builder.load(builder.bitcast(address, VECTOR.as_pointer()), align=4)

    return vector(f32_p, types.intp), codegen


@intrinsic
def store(typing, p, i, v):
    def codegen(context, builder, sig, args):
        address = builder.gep(args[0], [args[1]])
        builder.store(args[2], builder.bitcast(address, VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(f32_p, types.intp, vector), codegen


@intrinsic
def each(typing, p, i):
    def codegen(context, builder, sig, args):
        return splat_value(builder, builder.load(builder.gep(args[0], [args[1]])))

    return vector(f32_p, types.intp), codegen


@intrinsic
def splat(typing, s):
    return vector(types.float32), lambda context, builder, sig, args: splat_value(builder, args[0])


@intrinsic
def zero(typing):
    return vector(), lambda context, builder, sig, args: ir.Constant(VECTOR, [0.0] * WIDTH)


@intrinsic
def fma(typing, a, b, c):
    name = f"llvm.fmuladd.v{WIDTH}f32"
    return vector(vector, vector, vector), lambda context, builder, sig, args: call_llvm(builder, name, args)


@intrinsic
def at(typing, p, i):
    """The pointer to p[i]."""
    return p(p, types.intp), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


def _argument(kind, width):
    @intrinsic
    def get(typing, args, i):
        def codegen(context, builder, sig, values):
            place = builder.load(builder.gep(values[0], [values[1]]))  # of the data pointer: `launch.Kernel`
            return builder.load(builder.inttoptr(place, context.get_value_type(kind).as_pointer()))

        return kind(i64_p, types.intp), codegen

    return get


f32 = _argument(f32_p, 64)
u32 = _argument(u32_p, 64)
i64s = _argument(i64_p, 64)


@intrinsic
def i64(typing, args, i):
    return types.intp(i64_p, types.intp), lambda context, builder, sig, a: builder.load(builder.gep(a[0], [a[1]]))


@intrinsic
def real(typing, args, i):
    """Argument i, passed as the bits of a float64."""

    def codegen(context, builder, sig, values):
        raw = builder.load(builder.gep(values[0], [values[1]]))
        return builder.bitcast(raw, ir.DoubleType())

    return types.float64(i64_p, types.intp), codegen


def _operator(op: Any, name: str) -> None:
    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            a, b = args
            if isinstance(a, Vector) and isinstance(b, Vector):
                return signature(vector, vector, vector)
            if isinstance(a, Vector) and isinstance(b, types.Float):
                return signature(vector, vector, types.float32)
            if isinstance(b, Vector) and isinstance(a, types.Float):
                return signature(vector, types.float32, vector)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (v if isinstance(t, Vector) else splat_value(builder, v) for v, t in zip(args, sig.args, strict=True))
        return getattr(builder, name)(a, b)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(op, *kinds)(lower)


for _op, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _operator(_op, _name)


def _function(name: str, arity: int) -> Any:
    full = f"llvm.{name}.v{WIDTH}f32"

    def codegen(context, builder, sig, args):
        return call_llvm(builder, full, list(args))

    if arity == 1:

        @intrinsic
        def one(typing, a):
            return vector(vector), codegen

        return one

    @intrinsic
    def two(typing, a, b):
        return vector(vector, vector), codegen

    return two


sqrt, rint = _function("sqrt", 1), _function("rint", 1)
minimum, maximum = _function("minnum", 2), _function("maxnum", 2)


def _fold(combine: Any) -> Any:
    @intrinsic
    def fold(typing, a):
        def codegen(context, builder, sig, args):
            v, half = args[0], WIDTH // 2
            while half:
                lanes = [(i + half) % WIDTH for i in range(WIDTH)]
                v = combine(builder, v, builder.shuffle_vector(v, v, ir.Constant(INDICES, lanes)))
                half //= 2
            return builder.extract_element(v, ir.Constant(I32, 0))

        return types.float32(vector), codegen

    return fold


lane_sum = _fold(lambda builder, a, b: builder.fadd(a, b))
lane_max = _fold(lambda builder, a, b: call_llvm(builder, f"llvm.maxnum.v{WIDTH}f32", [a, b]))


@intrinsic
def between(typing, x, low, high):
    """x held in [low, high]; NaN stays NaN, which `minimum` and `maximum` would lose."""

    def codegen(context, builder, sig, args):
        x, low, high = args
        x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
        return builder.select(builder.fcmp_ordered("<", high, x), high, x)

    return vector(vector, vector, vector), codegen


@intrinsic
def add_to_exponent(typing, p, n):
    """p · 2ⁿ by adding to p's exponent bits; n is an integer plus `ROUNDER`, so that it stands in the lowest bits."""

    def codegen(context, builder, sig, args):
        p, n = (builder.bitcast(a, INDICES) for a in args)
        n = builder.shl(n, ir.Constant(INDICES, [23] * WIDTH))
        return builder.bitcast(builder.add(p, n), VECTOR)

    return vector(vector, vector), codegen


f4 = np.float32
ROUNDER = f4(1.5 * 2**23)  # x + ROUNDER is x rounded to an integer, in the lowest bits


@njit(error_model="numpy")
def exp(x):
    """eˣ for x in [-86, 88], at those ends beyond: 2ⁿ e^r with r = x - n log 2 in two parts and the Cephes polynomial.

    2 units in the last place.
    """
    x = between(x, splat(f4(-86.0)), splat(f4(88.0)))
    rounded = fma(x, splat(f4(1.44269504088896341)), splat(ROUNDER))
    n = rounded - ROUNDER
    r = fma(n, splat(f4(-0.693359375)), x)
    r = fma(n, splat(f4(2.12194440e-4)), r)
    p = splat(f4(1.9875691500e-4))
    p = fma(p, r, splat(f4(1.3981999507e-3)))
    p = fma(p, r, splat(f4(8.3334519073e-3)))
    p = fma(p, r, splat(f4(4.1665795894e-2)))
    p = fma(p, r, splat(f4(1.6666665459e-1)))
    p = fma(p, r, splat(f4(5.0000001201e-1)))
    p = fma(p, r * r, r + f4(1))
    return add_to_exponent(p, rounded)


@njit(error_model="numpy")
def put(p, i, v, plus, more):
    """p[i] = v, + plus[i] if `more`: a rounding of its own, as nothing here may be reassociated or contracted."""
    if more:
        store(p, i, v + load(plus, i))
    else:
        store(p, i, v)


@njit(error_model="numpy")
def sigmoid(x):
    return splat(f4(1)) / (exp(x * f4(-1)) + f4(1))


@intrinsic
def distance(typing, p, q):
    """How many float32 lie from p to q, two pointers into any arrays."""

    def codegen(context, builder, sig, args):
        word = ir.IntType(64)
        start, end = (builder.ptrtoint(a, word) for a in args)
        return builder.ashr(builder.sub(end, start), word(2))

    return types.intp(f32_p, f32_p), codegen


@intrinsic
def transpose(typing, source, row, target, target_row):
    """target[j, i] = source[i, j] of WIDTH x WIDTH numbers; row, target_row: from one row to the next.

    Stage s of log₂ WIDTH exchanges the blocks of side s right of and below the diagonal in each square of side 2s.
    """

    def codegen(context, builder, sig, args):
        source, row, target, target_row = args

        def place(p, stride, i):
            address = builder.gep(p, [builder.mul(stride, stride.type(i))])
            return builder.bitcast(address, VECTOR.as_pointer())

        rows = [builder.load(place(source, row, i), align=4) for i in range(WIDTH)]
        s = 1
        while s < WIDTH:
            upper = ir.Constant(INDICES, [j if not j & s else WIDTH + j - s for j in range(WIDTH)])
            lower = ir.Constant(INDICES, [j + s if not j & s else WIDTH + j for j in range(WIDTH)])
            for i in range(WIDTH):
                if not i & s:
                    a, b = rows[i], rows[i + s]
                    rows[i], rows[i + s] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
            s *= 2
        for i in range(WIDTH):
            builder.store(rows[i], place(target, target_row, i), align=4)
        return context.get_dummy_value()

    n = types.intp
    return types.void(f32_p, n, f32_p, n), codegen

"""Vectors of 32-bit integers beside `simd`'s vectors of float32, and loads and stores of part of a vector.

+ - & | ^ << >>              lane by lane, wrapping; >> fills with zeros; an int on the right is meant for each lane
bits(v), from_bits(w)        the same 32 bits read as the other kind
number(w)                    a signed integer as float32
where_less(a, b, x, y)       x where a < b, else y (also where a or b is NaN)
where_bit(w, n, x, y)        x where bit n of w is set, else y
interleave(a, b, c, d)       four vectors that hold a_0 b_0 c_0 d_0 a_1 b_1 …
load_some(p, i, n)           the first n numbers from p[i] on, zeros behind; nothing else is read
store_some(p, i, v, n)       the reverse; nothing else is written. n may be below 0 or above WIDTH
"""

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from ddpm_ref_numba.simd import I32, INDICES, VECTOR, WIDTH, _argument, call_llvm, f32_p, splat_value, u32_p, vector

MASK = ir.VectorType(ir.IntType(1), WIDTH)


class Words(types.Type):
    """WIDTH lanes of 32 bits."""

    def __init__(self) -> None:
        super().__init__(name=f"u32x{WIDTH}")


words = Words()


@register_model(Words)
class _WordsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, INDICES)


def _operator(op: Any, name: str) -> None:
    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            a, b = args
            if isinstance(a, Words) and isinstance(b, Words):
                return signature(words, words, words)
            if isinstance(a, Words) and isinstance(b, types.Integer):
                return signature(words, words, types.int64)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        b = args[1]
        if not isinstance(sig.args[1], Words):
            b = splat_value(builder, builder.trunc(b, I32), INDICES)
        return getattr(builder, name)(args[0], b)

    lower_builtin(op, Words, Words)(lower)
    lower_builtin(op, Words, types.Integer)(lower)


for _op, _name in (
    (operator.add, "add"),
    (operator.sub, "sub"),
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _operator(_op, _name)


@intrinsic
def bits(typing, v):
    return words(vector), lambda context, builder, sig, args: builder.bitcast(args[0], INDICES)


@intrinsic
def from_bits(typing, w):
    return vector(words), lambda context, builder, sig, args: builder.bitcast(args[0], VECTOR)


@intrinsic
def number(typing, w):
    return vector(words), lambda context, builder, sig, args: builder.sitofp(args[0], VECTOR)


@intrinsic
def where_less(typing, a, b, x, y):
    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return vector(vector, vector, vector, vector), codegen


@intrinsic
def where_bit(typing, w, n, x, y):
    def codegen(context, builder, sig, args):
        one = builder.shl(ir.Constant(I32, 1), builder.trunc(args[1], I32))
        hit = builder.and_(args[0], splat_value(builder, one, INDICES))
        return builder.select(builder.icmp_unsigned("!=", hit, ir.Constant(INDICES, [0] * WIDTH)), args[2], args[3])

    return vector(words, types.intp, vector, vector), codegen


@intrinsic
def interleave(typing, a, b, c, d):
    """The four vectors in memory's order when lane i of a, b, c, d are numbers 4i … 4i+3."""

    def pick(builder, x, y, part, odd):
        # Lanes `odd` and odd + 1 of each four, from x and y; the blend takes the other two from the other pair.
        lanes = [part * WIDTH // 4 + lane // 4 + WIDTH * (lane % 4 - odd == 1) for lane in range(WIDTH)]
        return builder.shuffle_vector(x, y, ir.Constant(INDICES, lanes))

    def codegen(context, builder, sig, args):
        a, b, c, d = args
        blend = ir.Constant(INDICES, [lane + WIDTH * (lane % 4 > 1) for lane in range(WIDTH)])
        parts = [
            builder.shuffle_vector(pick(builder, a, b, part, 0), pick(builder, c, d, part, 2), blend)
            for part in range(4)
        ]
        return context.make_tuple(builder, sig.return_type, parts)

    return types.UniTuple(vector, 4)(vector, vector, vector, vector), codegen


# --- part of a vector -------------------------------------------------------------------------------------------------


def _first(builder: Any, n: Any) -> Any:
    """The mask of the lanes below n."""
    kind = ir.VectorType(n.type, WIDTH)
    return builder.icmp_signed("<", ir.Constant(kind, list(range(WIDTH))), splat_value(builder, n, kind))


@intrinsic
def load_some(typing, p, i, n):
    def codegen(context, builder, sig, args):
        address = builder.bitcast(builder.gep(args[0], [args[1]]), VECTOR.as_pointer())
        rest = [ir.Constant(I32, 4), _first(builder, args[2]), ir.Constant(VECTOR, [0.0] * WIDTH)]
        return call_llvm(builder, f"llvm.masked.load.v{WIDTH}f32.p0", [address, *rest])

    return vector(f32_p, types.intp, types.intp), codegen


@intrinsic
def store_some(typing, p, i, v, n):
    def codegen(context, builder, sig, args):
        address = builder.bitcast(builder.gep(args[0], [args[1]]), VECTOR.as_pointer())
        given = [args[2], address, ir.Constant(I32, 4), _first(builder, args[3])]
        call_llvm(builder, f"llvm.masked.store.v{WIDTH}f32.p0", given, ir.VoidType())
        return context.get_dummy_value()

    return types.void(f32_p, types.intp, vector, types.intp), codegen


# --- one bit a lane ---------------------------------------------------------------------------------------------------

_PACKED = ir.IntType(WIDTH)


@intrinsic
def store_at_least(typing, p, k, a, b):
    """Write WIDTH bits as the k-th group of p: 1 where a >= b."""

    def codegen(context, builder, sig, args):
        p, k, a, b = args
        kept = builder.bitcast(builder.fcmp_ordered(">=", a, b), _PACKED)
        builder.store(kept, builder.gep(builder.bitcast(p, _PACKED.as_pointer()), [k]), align=1)
        return context.get_dummy_value()

    return types.void(u32_p, types.intp, vector, vector), codegen


@intrinsic
def where_stored(typing, p, k, x, y):
    """x where the k-th group of WIDTH bits of p has 1, else y."""

    def codegen(context, builder, sig, args):
        p, k, x, y = args
        kept = builder.load(builder.gep(builder.bitcast(p, _PACKED.as_pointer()), [k]), align=1)
        return builder.select(builder.bitcast(kept, MASK), x, y)

    return vector(u32_p, types.intp, vector, vector), codegen


# --- Philox -----------------------------------------------------------------------------------------------------------

_LANES = ir.VectorType(ir.IntType(64), WIDTH)
_LOW = 0xFFFFFFFF


@intrinsic
def philox4x32_10(typing, block, sample, step, last, k0, k1):
    """Ten Philox rounds on the counters (block + lane, sample, step, last) of all lanes: four words each.

    The words live in lanes of 64 bits, whose upper halves the multiplication of 32 by 32 bits does not read: a round
    is two products, two shifts and two three-way exclusive ors.
    """

    def codegen(context, builder, sig, args):
        def constant(value: int) -> Any:
            return ir.Constant(_LANES, [value] * WIDTH)

        def product(c: Any, multiplier: int) -> Any:
            return builder.mul(builder.and_(c, constant(_LOW)), constant(multiplier))

        def mixed(p: Any, c: Any, k: Any) -> Any:
            return builder.xor(builder.xor(builder.lshr(p, constant(32)), c), splat_value(builder, k, _LANES))

        *counter, k0, k1 = args
        c0, c1, c2, c3 = (splat_value(builder, word, _LANES) for word in counter)
        c0 = builder.add(c0, ir.Constant(_LANES, list(range(WIDTH))))
        word = k0.type
        for _ in range(10):
            p0, p1 = product(c0, 0xD2511F53), product(c2, 0xCD9E8D57)
            c0, c1, c2, c3 = mixed(p1, c1, k0), p1, mixed(p0, c3, k1), p0
            k0 = builder.and_(builder.add(k0, word(0x9E3779B9)), word(_LOW))
            k1 = builder.and_(builder.add(k1, word(0xBB67AE85)), word(_LOW))
        return context.make_tuple(builder, sig.return_type, [builder.trunc(c, INDICES) for c in (c0, c1, c2, c3)])

    n = types.intp
    return types.UniTuple(words, 4)(n, n, n, n, n, n), codegen


# --- sums in float64 --------------------------------------------------------------------------------------------------

_DOUBLES = ir.VectorType(ir.DoubleType(), WIDTH)
f64_p = types.CPointer(types.float64)
f64 = _argument(f64_p, 64)


class Wide(types.Type):
    """WIDTH float64 lanes."""

    def __init__(self) -> None:
        super().__init__(name=f"f64x{WIDTH}")


wide = Wide()


@register_model(Wide)
class _WideModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _DOUBLES)


@intrinsic
def wide_zero(typing):
    return wide(), lambda context, builder, sig, args: ir.Constant(_DOUBLES, [0.0] * WIDTH)


@intrinsic
def partial_squares(typing, sums, v):
    """sums + v² lane by lane; the square of a float32 is exact in float64, so fusing changes nothing."""

    def codegen(context, builder, sig, args):
        x = builder.fpext(args[1], _DOUBLES)
        return call_llvm(builder, f"llvm.fmuladd.v{WIDTH}f64", [x, x, args[0]], _DOUBLES)

    return wide(wide, vector), codegen


@intrinsic
def wide_sum(typing, v):
    """The sum of the lanes, in order."""

    def codegen(context, builder, sig, args):
        total = builder.extract_element(args[0], ir.Constant(I32, 0))
        for lane in range(1, WIDTH):
            total = builder.fadd(total, builder.extract_element(args[0], ir.Constant(I32, lane)))
        return total

    return types.float64(wide), codegen

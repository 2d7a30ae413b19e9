"""The inner loop of every matrix product: a tile of C held in registers while it sums over K.

    tile(rows, vectors)  makes  C[m, n] (+)= Σ_k A[m, k] B[k, n],   m < rows,  n < vectors · WIDTH

Each step k reads `vectors` vectors of B and one number of A for each row; with all of C in registers the loop is bound
by the multipliers, not by loads. Written in IR, since only there can a tile of any size be a loop over registers.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ddpm_ref_numba.simd import VECTOR, WIDTH, call_llvm, f32_p, splat_value

FMA = f"llvm.fmuladd.v{WIDTH}f32"


def make_tile(rows, vectors):
    """The product of one tile, as a function for kernels.

    tile(A, row_stride, k_stride, B, b_stride, C, c_stride, K, start, start_stride, begin): A, B, C point to the tile's
    first elements; the sums begin at 0, or if begin != 0 at start[m, n]: C itself, or a bias with start_stride 0.
    """

    @intrinsic
    def tile(typing, A, ars, aks, B, bs, C, cs, K, start, ss, begin):
        def codegen(context, builder, sig, args):
            A, ars, aks, B, bs, C, cs, K, start, ss, begin = args
            word = ars.type
            count = rows * vectors

            def place(p, stride, r, v):
                offset = builder.add(builder.mul(stride, word(r)), word(v * WIDTH))
                return builder.bitcast(builder.gep(p, [offset]), VECTOR.as_pointer())

            acc = [cgutils.alloca_once(builder, VECTOR) for _ in range(count)]
            zero = ir.Constant(VECTOR, [0.0] * WIDTH)
            for a in acc:
                builder.store(zero, a)
            with builder.if_then(builder.icmp_signed("!=", begin, word(0))):
                for r in range(rows):
                    for v in range(vectors):
                        builder.store(builder.load(place(start, ss, r, v), align=4), acc[r * vectors + v])
            row_offsets = [builder.mul(ars, word(r)) for r in range(rows)]
            with cgutils.for_range(builder, K, intp=word) as loop:
                k = loop.index
                ak = builder.gep(A, [builder.mul(k, aks)])
                bk = builder.gep(B, [builder.mul(k, bs)])
                b = [
                    builder.load(builder.bitcast(builder.gep(bk, [word(v * WIDTH)]), VECTOR.as_pointer()), align=4)
                    for v in range(vectors)
                ]
                for r in range(rows):
                    a = splat_value(builder, builder.load(builder.gep(ak, [row_offsets[r]])))
                    for v in range(vectors):
                        slot = acc[r * vectors + v]
                        builder.store(call_llvm(builder, FMA, [a, b[v], builder.load(slot)]), slot)
            for r in range(rows):
                for v in range(vectors):
                    builder.store(builder.load(acc[r * vectors + v]), place(C, cs, r, v), align=4)
            return context.get_dummy_value()

        n = types.intp
        return types.void(f32_p, n, n, f32_p, n, f32_p, n, n, f32_p, n, n), codegen

    return tile

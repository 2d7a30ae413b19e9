"""The transforms of Winograd's F(4x4, 3x3) in one and two dimensions, on vectors of channels.

For `winograd.py`: Bᵀ d B of a patch, Aᵀ M A to the outputs and its adjoint A dy Aᵀ, G w Gᵀ and Gᵀ dU G of filters.
"""

from numba import njit

from ddpm_ref_numba.simd import f4, fma, load, put, splat, store, zero

inline = njit(error_model="numpy")


# --- one line; the second dimension is the same again ---------------------------------------------------------------


@inline
def b_t(a0, a1, a2, a3, a4, a5):
    """Bᵀ a: 6 inputs to 6."""
    p, q = a4 - a2 * f4(4), a3 - a1 * f4(4)
    r, s = a4 - a2, (a3 - a1) * f4(2)
    first = fma(a2, splat(f4(-5)), fma(a0, splat(f4(4)), a4))
    last = fma(a3, splat(f4(-5)), fma(a1, splat(f4(4)), a5))
    return first, p + q, p - q, r + s, r - s, last


@inline
def a_t(m0, m1, m2, m3, m4, m5):
    """Aᵀ m: 6 products to 4 outputs."""
    s12, d12, s34, d34 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s12 + s34, fma(d34, splat(f4(2)), d12), fma(s34, splat(f4(4)), s12), fma(d34, splat(f4(8)), d12) + m5


@inline
def a_dy(y0, y1, y2, y3):
    """A y: 4 output gradients to 6."""
    e, o = y0 + y2, y1 + y3
    e4, o4 = fma(y2, splat(f4(4)), y0), fma(y3, splat(f4(8)), y1 * f4(2))
    return y0, e + o, e - o, e4 + o4, e4 - o4, y3


@inline
def g_w(w0, w1, w2):
    """G w: 3 taps to 6."""
    s, u = (w0 + w2) * f4(-1 / 6), fma(w2, splat(f4(1 / 6)), w0 * f4(1 / 24))
    c, v = w1 * f4(-1 / 6), w1 * f4(1 / 12)
    return w0 * f4(0.25), s + c, s - c, u + v, u - v, w2


@inline
def g_t(u0, u1, u2, u3, u4, u5):
    """Gᵀ u: 6 to the gradients of 3 taps."""
    s12, d12, s34, d34 = u1 + u2, u1 - u2, u3 + u4, u3 - u4
    return (
        fma(s12, splat(f4(-1 / 6)), fma(s34, splat(f4(1 / 24)), u0 * f4(0.25))),
        fma(d12, splat(f4(-1 / 6)), d34 * f4(1 / 12)),
        fma(s12, splat(f4(-1 / 6)), fma(s34, splat(f4(1 / 6)), u5)),
    )


@inline
def put6(p, i, step, v):
    """Six vectors to p[i], p[i + step], …"""
    store(p, i, v[0])
    store(p, i + step, v[1])
    store(p, i + 2 * step, v[2])
    store(p, i + 3 * step, v[3])
    store(p, i + 4 * step, v[4])
    store(p, i + 5 * step, v[5])


@inline
def put3(p, i, step, v):
    """Three vectors to p[i], p[i + step], p[i + 2 step]."""
    store(p, i, v[0])
    store(p, i + step, v[1])
    store(p, i + 2 * step, v[2])


@inline
def put4(p, i, step, count, shift, v, plus, more):
    """The first `count` of four vectors, plus shift, to p[i], p[i + step], …; more: after that, plus[i], …"""
    put(p, i, v[0] + shift, plus, more)
    if count > 1:
        put(p, i + step, v[1] + shift, plus, more)
    if count > 2:
        put(p, i + 2 * step, v[2] + shift, plus, more)
    if count > 3:
        put(p, i + 3 * step, v[3] + shift, plus, more)


@inline
def a_t_at(p, i, step):
    return a_t(
        load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step), load(p, i + 4 * step),
        load(p, i + 5 * step),
    )  # fmt: skip


@inline
def g_t_at(p, i, step):
    return g_t(
        load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step), load(p, i + 4 * step),
        load(p, i + 5 * step),
    )  # fmt: skip


@inline
def a_at(p, i, step, count):
    """A y of the first `count` of four lines, the rest 0."""
    z = zero()
    y1 = load(p, i + step) if count > 1 else z
    y2 = load(p, i + 2 * step) if count > 2 else z
    y3 = load(p, i + 3 * step) if count > 3 else z
    return a_dy(load(p, i), y1, y2, y3)


# --- a whole patch ---------------------------------------------------------------------------------------------------


# Both passes of a transform keep their numbers in registers: a detour through memory costs as much as the arithmetic.
# Bᵀ d B, 36 numbers, does not fit; there the first pass is made anew for each pair of lines that shares its terms.


@inline
def _line_0(x, o, s):
    """Line 0 of Bᵀ d in one column, from d in steps of s."""
    return fma(load(x, o + 2 * s), splat(f4(-5)), fma(load(x, o), splat(f4(4)), load(x, o + 4 * s)))


@inline
def _lines_1_2(x, o, s):
    p, q = load(x, o + 4 * s) - load(x, o + 2 * s) * f4(4), load(x, o + 3 * s) - load(x, o + s) * f4(4)
    return p + q, p - q


@inline
def _lines_3_4(x, o, s):
    r, q = load(x, o + 4 * s) - load(x, o + 2 * s), (load(x, o + 3 * s) - load(x, o + s)) * f4(2)
    return r + q, r - q


@inline
def transform_patch(x, o, s, n, V, v, step):
    """V = Bᵀ d B of one patch and vector of channels: d_ij at x[o + i s + j n], V_ξ at V[v + ξ step]."""
    a0, a1, a2 = _line_0(x, o, s), _line_0(x, o + n, s), _line_0(x, o + 2 * n, s)
    a3, a4, a5 = _line_0(x, o + 3 * n, s), _line_0(x, o + 4 * n, s), _line_0(x, o + 5 * n, s)
    put6(V, v, step, b_t(a0, a1, a2, a3, a4, a5))
    b0, b1, b2 = _lines_1_2(x, o, s), _lines_1_2(x, o + n, s), _lines_1_2(x, o + 2 * n, s)
    b3, b4, b5 = _lines_1_2(x, o + 3 * n, s), _lines_1_2(x, o + 4 * n, s), _lines_1_2(x, o + 5 * n, s)
    put6(V, v + 6 * step, step, b_t(b0[0], b1[0], b2[0], b3[0], b4[0], b5[0]))
    put6(V, v + 12 * step, step, b_t(b0[1], b1[1], b2[1], b3[1], b4[1], b5[1]))
    c0, c1, c2 = _lines_3_4(x, o, s), _lines_3_4(x, o + n, s), _lines_3_4(x, o + 2 * n, s)
    c3, c4, c5 = _lines_3_4(x, o + 3 * n, s), _lines_3_4(x, o + 4 * n, s), _lines_3_4(x, o + 5 * n, s)
    put6(V, v + 18 * step, step, b_t(c0[0], c1[0], c2[0], c3[0], c4[0], c5[0]))
    put6(V, v + 24 * step, step, b_t(c0[1], c1[1], c2[1], c3[1], c4[1], c5[1]))
    o += s  # line 5 of d_0 … d_5 is line 0 of d_1, d_3, d_5
    a0, a1, a2 = _line_0(x, o, s), _line_0(x, o + n, s), _line_0(x, o + 2 * n, s)
    a3, a4, a5 = _line_0(x, o + 3 * n, s), _line_0(x, o + 4 * n, s), _line_0(x, o + 5 * n, s)
    put6(V, v + 30 * step, step, b_t(a0, a1, a2, a3, a4, a5))

"""3x3 convolution by Winograd's F(4x4, 3x3) (Lavin & Gray 2016): 36 multiplications for 16 outputs in place of 144.

    forward    Y  = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A        d: 6x6 patch of x, Y: 4x4 tile of y, w: one 3x3 filter
    in matrices, for each of the 36 places ξ:  M_ξ = V_ξ U_ξ,   V = Bᵀ d B (tiles, C),   U = G w Gᵀ (C, D)
    adjoints   dx is the convolution of dy with the filters turned by 180° and transposed: the same kernel
               dW = Gᵀ dU G,   dU_ξ = V_ξᵀ dM_ξ,   dM = A dy Aᵀ

Index letters: P tiles of all images in rows of tiles, ξ = 6 i + j, C channels in, D out, K = `panel(·)` lanes.
All sums over C run in tiles of `ROWS` x panel registers. What overlaps the edge is read as zeros and not written.
"""

from numba import njit

from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.simd import WIDTH, at, distance, f4, f32, fma, i64, load, splat, store, transpose, zero
from ddpm_ref_numba.tile import make_tile

ROWS = 8 if WIDTH == 16 else 6  # tiles of the image at a time in a register tile: 32 or 16 registers
D_ROWS = 8 if WIDTH == 16 else 4  # channels at a time in that of dU: divides WIDTH
_tile_2, _tile_1 = make_tile(ROWS, 2), make_tile(ROWS, 1)
_d_tile_2, _d_tile_1 = make_tile(D_ROWS, 2), make_tile(D_ROWS, 1)
SCRATCH = (18 + 9 * WIDTH) * WIDTH  # numbers of scratch a thread needs to transform filters
inline = njit(error_model="numpy")


def panel(channels: int) -> int:
    """Lanes in a panel of these channels (a multiple of WIDTH): two vectors where they divide evenly."""
    return 2 * WIDTH if channels % (2 * WIDTH) == 0 else WIDTH


def apart(size: int) -> int:
    """Numbers from ξ to ξ+1: never a power of two, which would put all 36 into the same sets of the cache."""
    return size + WIDTH


# --- the transforms of one line; their second dimension is the same again ---------------------------------------------


_apart = inline(apart)


@inline
def _b_t(a0, a1, a2, a3, a4, a5):
    """Bᵀ a: 6 inputs to 6."""
    p, q = a4 - a2 * f4(4), a3 - a1 * f4(4)
    r, s = a4 - a2, (a3 - a1) * f4(2)
    first = fma(a2, splat(f4(-5)), fma(a0, splat(f4(4)), a4))
    last = fma(a3, splat(f4(-5)), fma(a1, splat(f4(4)), a5))
    return first, p + q, p - q, r + s, r - s, last


@inline
def _a_t(m0, m1, m2, m3, m4, m5):
    """Aᵀ m: 6 products to 4 outputs."""
    s12, d12, s34, d34 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + s12 + s34, fma(d34, splat(f4(2)), d12), fma(s34, splat(f4(4)), s12), fma(d34, splat(f4(8)), d12) + m5


@inline
def _a(y0, y1, y2, y3):
    """A y: 4 output gradients to 6."""
    e, o = y0 + y2, y1 + y3
    e4, o4 = fma(y2, splat(f4(4)), y0), fma(y3, splat(f4(8)), y1 * f4(2))
    return y0, e + o, e - o, e4 + o4, e4 - o4, y3


@inline
def _g(w0, w1, w2):
    """G w: 3 taps to 6."""
    s, u = (w0 + w2) * f4(-1 / 6), fma(w2, splat(f4(1 / 6)), w0 * f4(1 / 24))
    c, v = w1 * f4(-1 / 6), w1 * f4(1 / 12)
    return w0 * f4(0.25), s + c, s - c, u + v, u - v, w2


@inline
def _g_t(u0, u1, u2, u3, u4, u5):
    """Gᵀ u: 6 to the gradients of 3 taps."""
    s12, d12, s34, d34 = u1 + u2, u1 - u2, u3 + u4, u3 - u4
    return (
        fma(s12, splat(f4(-1 / 6)), fma(s34, splat(f4(1 / 24)), u0 * f4(0.25))),
        fma(d12, splat(f4(-1 / 6)), d34 * f4(1 / 12)),
        fma(s12, splat(f4(-1 / 6)), fma(s34, splat(f4(1 / 6)), u5)),
    )


@inline
def _put6(p, i, step, v):
    """Six vectors to p[i], p[i + step], …"""
    store(p, i, v[0])
    store(p, i + step, v[1])
    store(p, i + 2 * step, v[2])
    store(p, i + 3 * step, v[3])
    store(p, i + 4 * step, v[4])
    store(p, i + 5 * step, v[5])


@inline
def _b_t_at(p, i, step):
    return _b_t(
        load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step), load(p, i + 4 * step),
        load(p, i + 5 * step),
    )  # fmt: skip


@inline
def _a_t_at(p, i, step):
    return _a_t(
        load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step), load(p, i + 4 * step),
        load(p, i + 5 * step),
    )  # fmt: skip


@inline
def _g_t_at(p, i, step):
    return _g_t(
        load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step), load(p, i + 4 * step),
        load(p, i + 5 * step),
    )  # fmt: skip


@inline
def _a_at(p, i, step):
    return _a(load(p, i), load(p, i + step), load(p, i + 2 * step), load(p, i + 3 * step))


# --- filters ----------------------------------------------------------------------------------------------------------


@inline
def _pack(w, C, D, c, d, turned, U, u, row, step, t):
    """U_ξ = G w Gᵀ of WIDTH channels from c and WIDTH from d, at U[u + channel · row + ξ step]; t: SCRATCH numbers.

    w: (3, 3, C, D); turned: the filters of the adjoint, w turned by 180° and transposed. C and D are those of U, so
    that w is then (3, 3, D, C).
    """
    taps = at(t, 18 * WIDTH)
    for k in range(9):  # taps[k, c]: lanes over D
        if turned:
            transpose(at(w, ((8 - k) * D + d) * C + c), C, at(taps, k * WIDTH * WIDTH), WIDTH)
        else:
            for i in range(WIDTH):
                store(taps, (k * WIDTH + i) * WIDTH, load(w, (k * C + c + i) * D + d))
    for i in range(WIDTH):
        o, line_of_taps = i * WIDTH, 3 * WIDTH * WIDTH
        for j in range(3):
            tap = o + j * WIDTH * WIDTH
            line = _g(load(taps, tap), load(taps, tap + line_of_taps), load(taps, tap + 2 * line_of_taps))
            _put6(t, j * WIDTH, 3 * WIDTH, line)
        for j in range(6):
            line = _g(load(t, 3 * j * WIDTH), load(t, (3 * j + 1) * WIDTH), load(t, (3 * j + 2) * WIDTH))
            _put6(U, u + i * row + 6 * j * step, step, line)


@kernel
def pack_filters(thread, threads, args):
    """U as panels [D/K][36][C][K], each ξ `_apart` from the next.  args: w, U, C, D, K, turned, scratch."""
    w, U, C, D, K, turned = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3), i64(args, 4), i64(args, 5)
    t = at(f32(args, 6), thread * SCRATCH)
    step = _apart(C * K)
    items = D // WIDTH * (C // WIDTH)
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        d, c = item // (C // WIDTH) * WIDTH, item % (C // WIDTH) * WIDTH
        _pack(w, C, D, c, d, turned, U, d // K * 36 * step + d % K + c * K, K, step, t)


@kernel
def filter_gradient(thread, threads, args):
    """dW = Gᵀ dU G from dU [36][C][D].  args: dU, dW (3, 3, C, D), C, D, scratch."""
    dU, dW, C, D = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3)
    t = at(f32(args, 4), thread * SCRATCH)
    for c in range(thread * C // threads, (thread + 1) * C // threads):
        for d in range(0, D, WIDTH):
            for j in range(6):
                line = _g_t_at(dU, (j * C + c) * D + d, 6 * C * D)
                store(t, j * WIDTH, line[0])
                store(t, (6 + j) * WIDTH, line[1])
                store(t, (12 + j) * WIDTH, line[2])
            for i in range(3):
                line = _g_t_at(t, 6 * i * WIDTH, WIDTH)
                store(dW, (3 * i * C + c) * D + d, line[0])
                store(dW, ((3 * i + 1) * C + c) * D + d, line[1])
                store(dW, ((3 * i + 2) * C + c) * D + d, line[2])


# --- tiles of the image -----------------------------------------------------------------------------------------------


@inline
def _patch(x, p, H, W, C, empty, t, V, v, step, lanes, next_lanes):
    """V_ξ = Bᵀ d B of tile p at V[v + ξ step + channel], its 6x6 patch read from x, what is outside from `empty`.

    Channels go in groups of `lanes`, of which the next lies next_lanes further.
    """
    across = (W + 3) // 4
    image = p // ((H + 3) // 4 * across)
    tile = p % ((H + 3) // 4 * across)
    top, left = tile // across * 4 - 1, tile % across * 4 - 1
    base = (image * H + top) * W + left
    inside = top >= 0 and left >= 0 and top + 6 <= H and left + 6 <= W
    nothing = distance(x, empty)
    for c in range(0, C, WIDTH):
        if inside:
            for j in range(6):
                _put6(t, j * WIDTH, 6 * WIDTH, _b_t_at(x, (base + j) * C + c, W * C))
        else:
            for j in range(6):
                if left + j < 0 or left + j >= W:
                    z = zero()
                    _put6(t, j * WIDTH, 6 * WIDTH, (z, z, z, z, z, z))
                else:
                    o = (base + j) * C + c
                    line = W * C
                    o0 = o if top >= 0 else nothing
                    o1 = o + line  # a tile has at least one row inside
                    o2 = o + 2 * line if top + 2 < H else nothing
                    o3 = o + 3 * line if top + 3 < H else nothing
                    o4 = o + 4 * line if top + 4 < H else nothing
                    o5 = o + 5 * line if top + 5 < H else nothing
                    _put6(
                        t, j * WIDTH, 6 * WIDTH,
                        _b_t(load(x, o0), load(x, o1), load(x, o2), load(x, o3), load(x, o4), load(x, o5)),
                    )  # fmt: skip
        place = v + c // lanes * next_lanes + c % lanes
        for i in range(6):
            _put6(V, place + 6 * i * step, step, _b_t_at(t, 6 * i * WIDTH, WIDTH))


@inline
def _outputs(M, m, step, y, p, H, W, D, d, lanes, bias, bias_step, t):
    """y = Aᵀ M A + bias of tile p, channels d … d + lanes; M_ξ at M[m + ξ step]; bias_step: 0, or D if per image."""
    across = (W + 3) // 4
    per_image = (H + 3) // 4 * across
    image, tile = p // per_image, p % per_image
    top, left = tile // across * 4, tile % across * 4
    high, wide = min(4, H - top), min(4, W - left)
    for k in range(0, lanes, WIDTH):
        for j in range(6):
            line = _a_t_at(M, m + j * step + k, 6 * step)
            store(t, j * WIDTH, line[0])
            store(t, (6 + j) * WIDTH, line[1])
            store(t, (12 + j) * WIDTH, line[2])
            store(t, (18 + j) * WIDTH, line[3])
        shift = load(bias, image * bias_step + d + k)
        for i in range(high):
            out = _a_t_at(t, 6 * i * WIDTH, WIDTH)
            o = ((image * H + top + i) * W + left) * D + d + k
            store(y, o, out[0] + shift)
            if wide > 1:
                store(y, o + D, out[1] + shift)
            if wide > 2:
                store(y, o + 2 * D, out[2] + shift)
            if wide > 3:
                store(y, o + 3 * D, out[3] + shift)


@inline
def _output_gradients(dy, p, H, W, D, t, dM, m, step, lanes, next_lanes):
    """dM_ξ = A dy Aᵀ of tile p at dM[m + ξ step + channel], groups of channels as in `_patch`."""
    across = (W + 3) // 4
    per_image = (H + 3) // 4 * across
    image, tile = p // per_image, p % per_image
    top, left = tile // across * 4, tile % across * 4
    high, wide = min(4, H - top), min(4, W - left)
    for d in range(0, D, WIDTH):
        z = zero()
        for j in range(4):
            y0, y1, y2, y3 = z, z, z, z
            if j < wide:
                o = ((image * H + top) * W + left + j) * D + d
                y0 = load(dy, o)
                if high > 1:
                    y1 = load(dy, o + W * D)
                if high > 2:
                    y2 = load(dy, o + 2 * W * D)
                if high > 3:
                    y3 = load(dy, o + 3 * W * D)
            _put6(t, j * WIDTH, 4 * WIDTH, _a(y0, y1, y2, y3))
        place = m + d // lanes * next_lanes + d % lanes
        for i in range(6):
            _put6(dM, place + 6 * i * step, step, _a_at(t, 4 * i * WIDTH, WIDTH))


# --- the two products -------------------------------------------------------------------------------------------------


def forward_scratch(block: int, C: int, D: int, once: bool) -> int:
    """Numbers of scratch a thread needs in `forward`: transforms, zeros, V, one panel of M and perhaps one of U."""
    return SCRATCH + C + 36 * (apart(block * C) + apart(block * panel(D)) + once * apart(C * panel(D)))


@kernel
def forward(thread, threads, args):
    """y = conv(x) + bias, a block of tiles at a time: V of the block stays in the second-level cache, U streams by.

    args: x (N, H, W, C), U, bias, bias_step, y (N, H, W, D), N, H, W, C, D, K, block, groups, scratch, its size in
    each thread, once, turned.
    block: tiles at a time, a multiple of ROWS.  Groups of threads share the tiles, threads of a group the panels of D.
    once: U is w itself (see `_pack`), and a panel is packed just before it is used: where a thread has one block.
    """
    x, U, bias, bias_step, y = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3), f32(args, 4)
    N, H, W, C, D, K = i64(args, 5), i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9), i64(args, 10)
    block, groups = i64(args, 11), i64(args, 12)
    t = at(f32(args, 13), thread * i64(args, 14))
    once, turned = i64(args, 15), i64(args, 16)
    empty = at(t, SCRATCH)
    V = at(empty, C)
    v_step, m_step = _apart(block * C), _apart(block * K)
    M = at(V, 36 * v_step)
    ready = at(M, 36 * m_step)
    u_step = _apart(C * K)
    tiles, panels = N * ((H + 3) // 4) * ((W + 3) // 4), D // K
    members = threads // groups
    group, member = thread // members, thread % members
    if group >= groups:
        return
    for c in range(0, C, WIDTH):
        store(empty, c, zero())
    last = (group + 1) * tiles // groups
    for first in range(group * tiles // groups, last, block):
        count = min(block, last - first)
        for p in range(count):
            _patch(x, first + p, H, W, C, empty, t, V, p * C, v_step, C, 0)
        for q in range(member * panels // members, (member + 1) * panels // members):
            if once:
                for c in range(0, C, WIDTH):
                    for d in range(0, K, WIDTH):
                        _pack(U, C, D, c, q * K + d, turned, ready, c * K + d, K, u_step, t)
            for xi in range(36):
                u = at(ready, xi * u_step) if once else at(U, (q * 36 + xi) * u_step)
                for p in range(0, count, ROWS):  # rows past `count` multiply what an earlier block left; never read
                    v, m = at(V, xi * v_step + p * C), at(M, xi * m_step + p * K)
                    if K == WIDTH:
                        _tile_1(v, C, 1, u, K, m, K, C, m, K, 0)
                    else:
                        _tile_2(v, C, 1, u, K, m, K, C, m, K, 0)
            for p in range(count):
                _outputs(M, p * K, m_step, y, first + p, H, W, D, q * K, K, bias, bias_step, t)


@kernel
def gradient_transforms(thread, threads, args):
    """V and dM of tiles first … first + count, as panels [36][C/K][count][K].

    args: x, dy, V, dM, first, count, H, W, C, D, scratch, scratch a thread.
    """
    x, dy, V, dM, first, count = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), i64(args, 4), i64(args, 5)
    H, W, C, D = i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9)
    t = at(f32(args, 10), thread * i64(args, 11))
    empty = at(t, 36 * WIDTH)
    for c in range(0, C, WIDTH):
        store(empty, c, zero())
    kc = 2 * WIDTH if C % (2 * WIDTH) == 0 else WIDTH
    kd = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    for p in range(thread * count // threads, (thread + 1) * count // threads):
        _patch(x, first + p, H, W, C, empty, t, V, p * kc, _apart(count * C), kc, count * kc)
        _output_gradients(dy, first + p, H, W, D, t, dM, p * kd, _apart(count * D), kd, count * kd)


@kernel
def filter_products(thread, threads, args):
    """dU_ξ (+)= V_ξᵀ dM_ξ, and db of each image from dM_7, whose entries are the sums of dy over a tile.

    args: V, dM, dU [36][C][D], db (N, D), first, count, tiles of an image, C, D.
    """
    V, dM, dU, db = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3)
    first, count, per_image, C, D = i64(args, 4), i64(args, 5), i64(args, 6), i64(args, 7), i64(args, 8)
    kc = 2 * WIDTH if C % (2 * WIDTH) == 0 else WIDTH
    kd = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    add = 1 if first else 0
    items = 36 * (C // kc)
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        xi, c = item // (C // kc), item % (C // kc) * kc
        v = at(V, xi * _apart(count * C) + c * count)
        for d in range(0, D, kd):
            m = at(dM, xi * _apart(count * D) + d * count)
            for r in range(0, kc, D_ROWS):
                u = at(dU, (xi * C + c + r) * D + d)
                if kd == WIDTH:
                    _d_tile_1(at(v, r), 1, kc, m, kd, u, D, count, u, D, add)
                else:
                    _d_tile_2(at(v, r), 1, kc, m, kd, u, D, count, u, D, add)
    groups = D // WIDTH
    for group in range(thread * groups // threads, (thread + 1) * groups // threads):
        d = group * WIDTH
        place = 7 * _apart(count * D) + d // kd * kd * count + d % kd
        for p in range(count):
            image = (first + p) // per_image
            s = load(dM, place + p * kd)
            if (first + p) % per_image:
                s = s + load(db, image * D + d)
            store(db, image * D + d, s)

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
from ddpm_ref_numba.simd import WIDTH, at, f32, i64, load, store, transpose, zero
from ddpm_ref_numba.tile import make_tile
from ddpm_ref_numba.transforms import a_at, a_dy, a_t, a_t_at, g_t, g_t_at, g_w, put3, put4, put6, transform_patch

ROWS = 8 if WIDTH == 16 else 6  # tiles of the image at a time in a register tile: 32 or 16 registers
D_ROWS = 8 if WIDTH == 16 else 4  # channels at a time in that of dU: divides WIDTH
_tile_2, _tile_1 = make_tile(ROWS, 2), make_tile(ROWS, 1)
_d_tile_2, _d_tile_1 = make_tile(D_ROWS, 2), make_tile(D_ROWS, 1)
SCRATCH = max(36, 9 * WIDTH) * WIDTH  # numbers of scratch a thread needs for a patch, or for a block of filters
inline = njit(error_model="numpy")


def panel(channels: int) -> int:
    """Lanes in a panel of these channels (a multiple of WIDTH): two vectors where they divide evenly."""
    return 2 * WIDTH if channels % (2 * WIDTH) == 0 else WIDTH


def apart(size: int) -> int:
    """Numbers from ξ to ξ+1: never a power of two, which would put all 36 into the same sets of the cache."""
    return size + WIDTH


_apart = inline(apart)


# --- filters ----------------------------------------------------------------------------------------------------------


@inline
def _pack(w, C, D, c, d, turned, U, u, row, step, t):
    """U_ξ = G w Gᵀ of WIDTH channels from c and WIDTH from d, at U[u + channel · row + ξ step]; t: SCRATCH numbers.

    w: (3, 3, C, D); turned: the filters of the adjoint, w turned by 180° and transposed. C and D are those of U, so
    that w is then (3, 3, D, C).
    """
    taps = t
    for k in range(9):  # taps[k, c]: lanes over D
        if turned:
            transpose(at(w, ((8 - k) * D + d) * C + c), C, at(taps, k * WIDTH * WIDTH), WIDTH)
        else:
            for i in range(WIDTH):
                store(taps, (k * WIDTH + i) * WIDTH, load(w, (k * C + c + i) * D + d))
    for i in range(WIDTH):
        o, one, three = i * WIDTH, WIDTH * WIDTH, 3 * WIDTH * WIDTH
        a = g_w(load(taps, o), load(taps, o + three), load(taps, o + 2 * three))
        b = g_w(load(taps, o + one), load(taps, o + one + three), load(taps, o + one + 2 * three))
        e = g_w(load(taps, o + 2 * one), load(taps, o + 2 * one + three), load(taps, o + 2 * one + 2 * three))
        v, line = u + i * row, 6 * step
        put6(U, v, step, g_w(a[0], b[0], e[0]))
        put6(U, v + line, step, g_w(a[1], b[1], e[1]))
        put6(U, v + 2 * line, step, g_w(a[2], b[2], e[2]))
        put6(U, v + 3 * line, step, g_w(a[3], b[3], e[3]))
        put6(U, v + 4 * line, step, g_w(a[4], b[4], e[4]))
        put6(U, v + 5 * line, step, g_w(a[5], b[5], e[5]))


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
    """dW = Gᵀ dU G from dU [36][C][D].  args: dU, dW (3, 3, C, D), C, D."""
    dU, dW, C, D = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3)
    line, column = 6 * C * D, C * D
    for c in range(thread * C // threads, (thread + 1) * C // threads):
        for d in range(0, D, WIDTH):
            o = c * D + d
            u0, u1, u2 = g_t_at(dU, o, line), g_t_at(dU, o + column, line), g_t_at(dU, o + 2 * column, line)
            o += 3 * column
            u3, u4, u5 = g_t_at(dU, o, line), g_t_at(dU, o + column, line), g_t_at(dU, o + 2 * column, line)
            o = c * D + d
            put3(dW, o, column, g_t(u0[0], u1[0], u2[0], u3[0], u4[0], u5[0]))
            put3(dW, o + 3 * column, column, g_t(u0[1], u1[1], u2[1], u3[1], u4[1], u5[1]))
            put3(dW, o + 6 * column, column, g_t(u0[2], u1[2], u2[2], u3[2], u4[2], u5[2]))


# --- tiles of the image -----------------------------------------------------------------------------------------------


@inline
def _patch(x, p, H, W, C, t, V, v, step, lanes, next_lanes):
    """V of tile p at V[v + ξ step + channel]; a patch that overlaps the edge is first copied to t, with its zeros.

    Channels go in groups of `lanes`, of which the next lies next_lanes further.
    """
    across = (W + 3) // 4
    image = p // ((H + 3) // 4 * across)
    tile = p % ((H + 3) // 4 * across)
    top, left = tile // across * 4 - 1, tile % across * 4 - 1
    base = ((image * H + top) * W + left) * C
    inside = top >= 0 and left >= 0 and top + 6 <= H and left + 6 <= W
    if not inside:
        for k in range(36):
            store(t, k * WIDTH, zero())
    for c in range(0, C, WIDTH):
        place = v + c // lanes * next_lanes + c % lanes
        if inside:
            transform_patch(x, base + c, W * C, C, V, place, step)
        else:
            for i in range(max(0, -top), min(6, H - top)):
                for j in range(max(0, -left), min(6, W - left)):
                    store(t, (6 * i + j) * WIDTH, load(x, base + (i * W + j) * C + c))
            transform_patch(t, 0, 6 * WIDTH, WIDTH, V, place, step)


@inline
def _outputs(M, m, step, y, p, H, W, D, d, lanes, bias, bias_step, plus, more):
    """y = Aᵀ M A + bias, + plus if `more`, of tile p, channels d … d + lanes.

    M_ξ at M[m + ξ step]; bias_step: 0, or D if per image.
    """
    across = (W + 3) // 4
    per_image = (H + 3) // 4 * across
    image, tile = p // per_image, p % per_image
    top, left = tile // across * 4, tile % across * 4
    high, wide = min(4, H - top), min(4, W - left)
    for k in range(0, lanes, WIDTH):
        i = m + k
        m0, m1, m2 = a_t_at(M, i, 6 * step), a_t_at(M, i + step, 6 * step), a_t_at(M, i + 2 * step, 6 * step)
        i += 3 * step
        m3, m4, m5 = a_t_at(M, i, 6 * step), a_t_at(M, i + step, 6 * step), a_t_at(M, i + 2 * step, 6 * step)
        shift = load(bias, image * bias_step + d + k)
        o = ((image * H + top) * W + left) * D + d + k
        put4(y, o, D, wide, shift, a_t(m0[0], m1[0], m2[0], m3[0], m4[0], m5[0]), plus, more)
        if high > 1:
            put4(y, o + W * D, D, wide, shift, a_t(m0[1], m1[1], m2[1], m3[1], m4[1], m5[1]), plus, more)
        if high > 2:
            put4(y, o + 2 * W * D, D, wide, shift, a_t(m0[2], m1[2], m2[2], m3[2], m4[2], m5[2]), plus, more)
        if high > 3:
            put4(y, o + 3 * W * D, D, wide, shift, a_t(m0[3], m1[3], m2[3], m3[3], m4[3], m5[3]), plus, more)


@inline
def _output_gradients(dy, p, H, W, D, dM, m, step, lanes, next_lanes):
    """dM_ξ = A dy Aᵀ of tile p at dM[m + ξ step + channel], groups of channels as in `_patch`."""
    across = (W + 3) // 4
    per_image = (H + 3) // 4 * across
    image, tile = p // per_image, p % per_image
    top, left = tile // across * 4, tile % across * 4
    high, wide = min(4, H - top), min(4, W - left)
    s = W * D
    for d in range(0, D, WIDTH):
        z = zero()
        none = (z, z, z, z, z, z)
        o = ((image * H + top) * W + left) * D + d
        y0 = a_at(dy, o, s, high)
        y1 = a_at(dy, o + D, s, high) if wide > 1 else none
        y2 = a_at(dy, o + 2 * D, s, high) if wide > 2 else none
        y3 = a_at(dy, o + 3 * D, s, high) if wide > 3 else none
        place = m + d // lanes * next_lanes + d % lanes
        line = 6 * step
        put6(dM, place, step, a_dy(y0[0], y1[0], y2[0], y3[0]))
        put6(dM, place + line, step, a_dy(y0[1], y1[1], y2[1], y3[1]))
        put6(dM, place + 2 * line, step, a_dy(y0[2], y1[2], y2[2], y3[2]))
        put6(dM, place + 3 * line, step, a_dy(y0[3], y1[3], y2[3], y3[3]))
        put6(dM, place + 4 * line, step, a_dy(y0[4], y1[4], y2[4], y3[4]))
        put6(dM, place + 5 * line, step, a_dy(y0[5], y1[5], y2[5], y3[5]))


# --- the two products -------------------------------------------------------------------------------------------------


def forward_scratch(block: int, C: int, D: int, once: bool) -> int:
    """Numbers of scratch a thread needs in `forward`: transforms, V, one panel of M and perhaps one of U."""
    return SCRATCH + 36 * (apart(block * C) + apart(block * panel(D)) + once * apart(C * panel(D)))


@kernel
def forward(thread, threads, args):
    """y = conv(x) + bias, + plus, a block of tiles at a time: V of one stays in the second-level cache, U streams by.

    args: x (N, H, W, C), U, bias, bias_step, y (N, H, W, D), N, H, W, C, D, K, block, groups, scratch, its size in
    each thread, once, turned, plus, more (whether there is one: else any array).
    block: tiles at a time, a multiple of ROWS.  Groups of threads share the tiles, threads of a group the panels of D.
    once: U is w itself (see `_pack`), and a panel is packed just before it is used: where a thread has one block.
    """
    x, U, bias, bias_step, y = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3), f32(args, 4)
    N, H, W, C, D, K = i64(args, 5), i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9), i64(args, 10)
    block, groups = i64(args, 11), i64(args, 12)
    t = at(f32(args, 13), thread * i64(args, 14))
    once, turned, plus, more = i64(args, 15), i64(args, 16), f32(args, 17), i64(args, 18)
    V = at(t, SCRATCH)
    v_step, m_step = _apart(block * C), _apart(block * K)
    M = at(V, 36 * v_step)
    ready = at(M, 36 * m_step)
    u_step = _apart(C * K)
    tiles, panels = N * ((H + 3) // 4) * ((W + 3) // 4), D // K
    members = threads // groups
    group, member = thread // members, thread % members
    if group >= groups:
        return
    last = (group + 1) * tiles // groups
    for first in range(group * tiles // groups, last, block):
        count = min(block, last - first)
        for p in range(count):
            _patch(x, first + p, H, W, C, t, V, p * C, v_step, C, 0)
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
                _outputs(M, p * K, m_step, y, first + p, H, W, D, q * K, K, bias, bias_step, plus, more)


@kernel
def gradient_transforms(thread, threads, args):
    """V and dM of tiles first … first + count, as panels [36][C/K][count][K].

    args: x, dy, V, dM, first, count, H, W, C, D, scratch.
    """
    x, dy, V, dM, first, count = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), i64(args, 4), i64(args, 5)
    H, W, C, D = i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9)
    t = at(f32(args, 10), thread * SCRATCH)
    kc = 2 * WIDTH if C % (2 * WIDTH) == 0 else WIDTH
    kd = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    for p in range(thread * count // threads, (thread + 1) * count // threads):
        _patch(x, first + p, H, W, C, t, V, p * kc, _apart(count * C), kc, count * kc)
        _output_gradients(dy, first + p, H, W, D, dM, p * kd, _apart(count * D), kd, count * kd)


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

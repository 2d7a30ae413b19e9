"""Matrix products of any shape for `dense` and `attention`, in register tiles; no BLAS, whose threads would fight ours.

A panel is one or two vectors of columns. Where many rows pass by it is copied first, so that its rows lie side by side:
a power of two from row to row would put all of them into the same few sets of the first-level cache.
"""

from numba import njit

from ddpm_ref_numba.simd import WIDTH, at, load, store
from ddpm_ref_numba.tile import make_tile

ROWS = 8 if WIDTH == 16 else 6
HALF = 4
PANEL = 2 * WIDTH
TALL = 8 if WIDTH == 16 else 4  # rows of a tile that divide WIDTH
_PAYS = 96  # rows from which the copy of a panel pays
_wide, _half_wide, _one_wide = make_tile(ROWS, 2), make_tile(HALF, 2), make_tile(1, 2)
_narrow, _half_narrow, _one_narrow = make_tile(ROWS, 1), make_tile(HALF, 1), make_tile(1, 1)


@njit(error_model="numpy")
def _two_vectors(A, ars, aks, B, bs, C, cs, M, K, start, ss, begin):
    m = 0
    while m + ROWS <= M:
        _wide(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += ROWS
    if m + HALF <= M:
        _half_wide(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += HALF
    while m < M:
        _one_wide(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += 1


@njit(error_model="numpy")
def _one_vector(A, ars, aks, B, bs, C, cs, M, K, start, ss, begin):
    m = 0
    while m + ROWS <= M:
        _narrow(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += ROWS
    if m + HALF <= M:
        _half_narrow(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += HALF
    while m < M:
        _one_narrow(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += 1


_tall_wide, _tall_narrow = (_wide, _narrow) if TALL == ROWS else (_half_wide, _half_narrow)


@njit(error_model="numpy")
def tall(A, ars, aks, B, bs, C, cs, lanes, K, start, ss, begin):
    """`panel` for TALL rows, of which nothing is copied."""
    if lanes > WIDTH:
        _tall_wide(A, ars, aks, B, bs, C, cs, K, start, ss, begin)
    else:
        _tall_narrow(A, ars, aks, B, bs, C, cs, K, start, ss, begin)


@njit(error_model="numpy")
def copy_panel(B, bs, lanes, K, copy):
    """The first `lanes` columns of B, side by side."""
    for k in range(K):
        store(copy, k * lanes, load(B, k * bs))
        if lanes > WIDTH:
            store(copy, k * lanes + WIDTH, load(B, k * bs + WIDTH))


@njit(error_model="numpy")
def panel(A, ars, aks, B, bs, C, cs, M, lanes, K, start, ss, begin, copy):
    """C[m, n] = Σ_k A[m, k] B[k, n] for m < M and the `lanes` (WIDTH or 2 WIDTH) columns from C on.

    A[m, k] lies at m · ars + k · aks, B[k, n] at k · bs + n, C at m · cs + n; start, ss, begin as in `tile`.
    copy: place for K · lanes numbers.
    """
    if M >= _PAYS and bs > lanes:
        copy_panel(B, bs, lanes, K, copy)
        B, bs = copy, lanes
    if lanes > WIDTH:
        _two_vectors(A, ars, aks, B, bs, C, cs, M, K, start, ss, begin)
    else:
        _one_vector(A, ars, aks, B, bs, C, cs, M, K, start, ss, begin)


@njit(error_model="numpy")
def add_rows(C, cs, plus, M, lanes):
    """C += plus, laid out alike, for M rows and `lanes` columns: called while they are still in the cache."""
    for m in range(M):
        for n in range(m * cs, m * cs + lanes, WIDTH):
            store(C, n, load(C, n) + load(plus, n))


@njit(error_model="numpy")
def product(A, ars, aks, B, bs, C, cs, M, N, K, begin, copy):
    """C (+)= A B for N columns, a multiple of WIDTH; copy: place for K · PANEL numbers."""
    for n in range(0, N, PANEL):
        c = at(C, n)
        panel(A, ars, aks, at(B, n), bs, c, cs, M, min(PANEL, N - n), K, c, cs, begin, copy)

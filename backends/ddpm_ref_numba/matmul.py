"""Matrix products of any shape for `dense` and `attention`, in register tiles.

No BLAS: its pool of threads and ours would wait for each other.
"""

from numba import njit

from ddpm_ref_numba.simd import WIDTH, at
from ddpm_ref_numba.tile import make_tile

ROWS = 8 if WIDTH == 16 else 6
_wide, _narrow, _wide_1, _narrow_1 = make_tile(ROWS, 2), make_tile(ROWS, 1), make_tile(1, 2), make_tile(1, 1)


@njit(error_model="numpy")
def columns(A, ars, aks, B, bs, C, cs, M, lanes, K, start, ss, begin):
    """C[m, n] = Σ_k A[m, k] B[k, n] for m < M and the `lanes` (WIDTH or 2 WIDTH) columns from C on.

    A[m, k] lies at m · ars + k · aks, B[k, n] at k · bs + n, C at m · cs + n; start, ss, begin as in `tile`.
    """
    m = 0
    while m + ROWS <= M:
        if lanes == WIDTH:
            _narrow(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        else:
            _wide(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += ROWS
    while m < M:
        if lanes == WIDTH:
            _narrow_1(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        else:
            _wide_1(at(A, m * ars), ars, aks, B, bs, at(C, m * cs), cs, K, at(start, m * ss), ss, begin)
        m += 1


@njit(error_model="numpy")
def product(A, ars, aks, B, bs, C, cs, M, N, K, begin):
    """C (+)= A B for N columns, a multiple of WIDTH."""
    n = 0
    while n < N:
        lanes = 2 * WIDTH if n + 2 * WIDTH <= N else WIDTH
        c = at(C, n)
        columns(A, ars, aks, at(B, n), bs, c, cs, M, lanes, K, c, cs, begin)
        n += lanes

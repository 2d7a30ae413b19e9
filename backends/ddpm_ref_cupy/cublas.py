"""Matrix products by cuBLAS, on an own handle with an own workspace.

CuPy refuses cuBLAS while a CUDA graph is captured; the library itself does not. So these few functions are called by
ctypes in the very libcublas that CuPy loads. One stream and one workspace: the same call gives the same bits.
"""

import ctypes
import ctypes.util
from typing import Any, NamedTuple

import numpy as np

WORKSPACE = 32 << 20  # bytes: what cuBLAS asks for on sm_90
R_32F, R_64F, R_16BF = 0, 1, 14  # cudaDataType
COMPUTE_32F, COMPUTE_64F, FAST_16BF, FAST_TF32 = 68, 70, 75, 77  # cublasComputeType_t
DEFAULT_ALGORITHM = -1
DISALLOW_REDUCED_PRECISION = 16  # cublasMath_t
STATUS = {
    1: "not initialised", 3: "allocation failed", 7: "invalid value", 8: "not supported by this card",
    11: "mapping error", 13: "execution failed", 14: "internal error", 15: "not supported", 16: "licence error",
}  # fmt: skip


class Operand(NamedTuple):
    """A row-major matrix, or a batch of them. stride: elements from one to the next."""

    address: int
    rows: int
    columns: int
    stride: int
    kind: int


class CublasError(RuntimeError):
    """A call that cuBLAS did not carry out."""


class Cublas:
    """out = op(a) op(b) on one stream. workspace: the address of WORKSPACE bytes that outlive this object."""

    def __init__(self, library: Any, stream: int, workspace: int) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
        # Parts of a product are added in float32, whatever the result is stored in.
        self._call("cublasSetMathMode", self._handle, DISALLOW_REDUCED_PRECISION)
        # After the stream, which puts the library's own workspace back.
        self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(workspace), ctypes.c_size_t(WORKSPACE))
        self._float = {add: (ctypes.c_float(1), ctypes.c_float(add)) for add in (False, True)}
        self._double = {add: (ctypes.c_double(1), ctypes.c_double(add)) for add in (False, True)}

    def _call(self, name: str, *args: Any) -> None:
        status = getattr(self._library, name)(*args)
        if status:
            raise CublasError(f"{name}: {STATUS.get(status, 'failed')} (status {status})")

    def version(self) -> str:
        """Of the library that was loaded."""
        number = ctypes.c_int()
        self._call("cublasGetVersion_v2", self._handle, ctypes.byref(number))
        return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"

    def product(
        self, a: Operand, b: Operand, out: Operand, count: int, trans_a: bool, trans_b: bool, add: bool, compute: int
    ) -> None:
        """count products; a, b, out as they lie in memory, row by row.

        cuBLAS reads memory column by column and so sees every matrix transposed: it is asked for outᵀ = op(b)ᵀ op(a)ᵀ.
        """
        inner = a.rows if trans_a else a.columns
        alpha, beta = (self._double if compute == COMPUTE_64F else self._float)[add]
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
        self._call(
            "cublasGemmStridedBatchedEx",
            self._handle, int(trans_b), int(trans_a), integer(out.columns), integer(out.rows), integer(inner),
            ctypes.byref(alpha),
            pointer(b.address), b.kind, integer(b.columns), long(b.stride),
            pointer(a.address), a.kind, integer(a.columns), long(a.stride),
            ctypes.byref(beta),
            pointer(out.address), out.kind, integer(out.columns), long(out.stride),
            integer(count), compute, DEFAULT_ALGORITHM,
        )  # fmt: skip


def compute_type(kind: int, precision: str) -> int:
    """How products of these numbers are computed: bfloat16 and float32 are always summed in float32."""
    if kind == R_64F:
        return COMPUTE_64F
    if kind == R_16BF:
        return COMPUTE_32F
    return {"fp32": COMPUTE_32F, "tf32": FAST_TF32, "bf16": FAST_16BF}[precision]


def checked(
    a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...], trans_a: bool, trans_b: bool
) -> tuple[int, int, int, int]:
    """(count, M, N, K) of a product of arrays of these shapes; ValueError unless they fit."""
    count = out[0] if len(out) == 3 else 1
    fits = len(a) == len(b) == len(out) and len(out) in (2, 3) and (len(out) == 2 or a[0] == b[0] == count)
    if fits:
        m, k = reversed(a[-2:]) if trans_a else a[-2:]
        k_b, n = reversed(b[-2:]) if trans_b else b[-2:]
        if k == k_b and out[-2:] == (m, n):
            return count, m, n, k
    raise ValueError(f"matmul: {a}{'ᵀ' * trans_a} times {b}{'ᵀ' * trans_b} does not give {out}")


KINDS = {np.dtype(np.float32): R_32F, np.dtype(np.float64): R_64F, np.dtype(np.uint16): R_16BF}
"""What the numbers of an array are to cuBLAS; uint16 holds bfloat16."""


def load_library() -> Any:
    """libcublas, from where CuPy takes it: its wheel, a toolkit, or what is loaded already. ImportError if nowhere."""
    tried = []
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:  # whatever the pathfinder raises where it finds nothing
        tried.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
    for name in filter(None, [ctypes.util.find_library("cublas"), "libcublas.so.13", "libcublas.so.12"]):
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
    raise ImportError(f"cuBLAS is not installed ({'; '.join(tried)})")

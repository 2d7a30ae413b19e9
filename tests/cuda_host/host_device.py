"""`HostDevice`: the CuPy backend's device on NumPy arrays, its kernels compiled by g++ and run by fibres.

Each operation of the backend runs here as it is, launch sizes included, so it can be held against NumPy without a GPU.
Arrays lie between guard zones and are NaN when new; a launch checks its arguments' types against the kernel's text, its
arrays' guard zones, barriers, alignment and array bounds. It takes seconds for what a GPU does in microseconds.
"""

import atexit
import ctypes
import functools
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ddpm_ref_cupy.device import PRECISIONS, Device, Launch, real_of

from cuda_host.guarded import check_guard, guarded
from cuda_host.source import KERNELS, Parameter, Program, kernel_text
from ddpm_ref.checks import Array

ORDERS = ("forward", "reverse", "random", "warp-greedy", "warp-greedy-reverse")
"""Which thread runs next: all in turn until each waits, or one warp as far as it gets before the others."""

MAX_SHARED = 227 * 1024  # bytes a block of sm_90; the compile gate checks each card's


class HostDevice(Device):
    """order: which thread runs next, of ORDERS.  build: where compiled kernels are kept, by default until the end of
    this process.  replace: {file: [(old, new), …]}, changes of a kernel's text, each of which must be found in it."""

    def __init__(
        self,
        order: str = "forward",
        precision: str = "fp32",
        *,
        build: Path | None = None,
        seed: int = 0,
        replace: dict[str, list[tuple[str, str]]] | None = None,
        kernels: Path = KERNELS,
    ) -> None:
        if order not in ORDERS or precision not in PRECISIONS:
            raise ValueError(f"order, precision: wanted one of {ORDERS} and of {PRECISIONS}, got {order}, {precision}")
        self.order, self.precision, self.seed = order, precision, seed
        self.build = build or temporary_build()
        self.kernels = kernels
        self.replace = replace or {}
        self.launches: list[Launch] = []

    # --- arrays ---

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """NaN bits, between guard zones, at a multiple of 256 bytes."""
        return guarded(shape, np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros, between guard zones."""
        x = self.empty(shape, dtype)
        x[...] = 0
        return x

    def contiguous(self, x: Array) -> Array:
        """x itself if its elements lie in C order from a multiple of 16 bytes on, else a copy."""
        return x if x.flags.c_contiguous and x.ctypes.data % 16 == 0 else self.to_device(x)

    def to_device(self, x: Array) -> Array:
        """A copy between guard zones."""
        x = np.asarray(x)
        y = self.empty(x.shape, x.dtype)
        y[...] = x
        return y

    def to_host(self, x: Array) -> np.ndarray:
        """A copy."""
        return np.array(x)

    # --- work ---

    def launch(self, launch: Launch, *args: Any) -> None:
        """Run a kernel in the device's order; ValueError for wrong arguments, RuntimeError for what the kernel does."""
        file, name = launch.kernel.split(".")
        program = self.program(file, launch.real)
        if name not in program.kernels:
            raise ValueError(f"{launch.kernel}: there is no such kernel, there are {', '.join(program.kernels)}")
        grid, block = _three(launch.grid), _three(launch.block)
        _check_size(launch, grid, block, program.bounds(name))
        table, _kept = _pointers(launch.kernel, program.kernels[name], args)
        how = _How(_Size(*grid), _Size(*block), launch.shared, ORDERS.index(self.order), self.seed)
        self.launches.append(launch)
        error = getattr(program.library, f"run_{name}")(ctypes.byref(how), table)
        if error:
            raise RuntimeError(f"{launch.kernel}, {self.order} order: {error.decode()}")
        for parameter, arg in zip(program.kernels[name], args, strict=True):
            if parameter.is_array:
                check_guard(f"{launch.kernel}: {parameter.name}", arg)

    def program(self, file: str, real: Any) -> Program:
        """The compiled kernels of a file."""
        text = kernel_text(file, self.kernels)
        for old, new in self.replace.get(file, ()):
            if old not in text:
                raise ValueError(f"replace: {file}.cu does not hold {old!r}")
            text = text.replace(old, new, 1)
        return _program((KERNELS / "prelude.cuh").read_text(), file, text, np.dtype(real), self.build)

    def matmul(
        self, a: Array, b: Array, out: Array, *, trans_a: bool = False, trans_b: bool = False, add: bool = False
    ) -> Array:
        """NumPy's product of operands rounded as the precision says, in float64, rounded to out's dtype, to bfloat16 by
        way of float32."""
        for name, x in (("a", a), ("b", b), ("out", out)):
            if not x.flags.c_contiguous or x.ndim not in (2, 3):
                raise ValueError(f"{name}: wanted a C-contiguous matrix or batch of them, got {x.shape}, {x.strides}")
        if not (a.dtype == b.dtype and out.dtype in (a.dtype, real_of(a.dtype))):
            raise ValueError(
                f"a, b, out: wanted one dtype, or uint16, uint16, float32; got {a.dtype}, {b.dtype}, {out.dtype}"
            )
        x, y = (rounded(z, self.precision).astype(np.float64) for z in (a, b))
        x, y = x.swapaxes(-1, -2) if trans_a else x, y.swapaxes(-1, -2) if trans_b else y
        product = x @ y
        if product.shape != out.shape:
            raise ValueError(f"out: wanted shape {product.shape}, got {out.shape}")
        total = rounded(out, "fp32") + product if add else product
        out[...] = bf16_bits(total).reshape(out.shape) if out.dtype == np.uint16 else total
        return out


def rounded(x: Array, precision: str) -> Array:
    """x as the tensor cores see it: float32 rounded to tf32 or bfloat16, bfloat16 in uint16 as float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    if x.dtype != np.float32 or precision == "fp32":
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    if precision == "tf32":
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)


def bf16_bits(x: Array) -> Array:
    """float32 to the bits of the nearest bfloat16, ties to even, as uint16; finite numbers only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# --- launches --------------------------------------------------------------------------------------------------------


class _Size(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class _How(ctypes.Structure):
    """`cu::Launch`."""

    _fields_ = (
        ("grid", _Size),
        ("block", _Size),
        ("shared", ctypes.c_int),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
    )


def _pointers(kernel: str, params: list[Parameter], args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """The array of pointers that a launch takes, and what must live as long as it."""
    if len(args) != len(params):
        raise ValueError(f"{kernel}: takes {', '.join(p.name for p in params)}, got {len(args)} arguments")
    for p, arg in zip(params, args, strict=True):
        _check_argument(f"{kernel}: {p.name}", p, arg)
    kept = [np.asarray(arg) for arg in args]
    return (ctypes.c_void_p * len(kept))(*(x.ctypes.data for x in kept)), kept


def _check_argument(name: str, p: Parameter, arg: Any) -> None:
    wanted = "a C-contiguous array" if p.is_array else "a NumPy scalar"
    right = isinstance(arg, np.ndarray if p.is_array else np.generic) and arg.dtype == p.dtype
    if not right or (p.is_array and not arg.flags.c_contiguous):
        got = f"{type(arg).__name__} {getattr(arg, 'dtype', '')} {getattr(arg, 'strides', '')}"
        raise ValueError(f"{name}: wanted {wanted} of {p.dtype}, got {got}")
    if p.is_array and not p.is_const and not arg.flags.writeable:
        raise ValueError(f"{name}: the kernel may write to it, and the array is read-only")


def _three(size: tuple[int, ...]) -> tuple[int, int, int]:
    return (*size, 1, 1, 1)[:3]  # type: ignore[return-value]


def _check_size(launch: Launch, grid: tuple[int, ...], block: tuple[int, ...], bound: int) -> None:
    if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
        raise ValueError(f"{launch.kernel}: a grid cannot be {grid}")
    if min(block) < 1 or math.prod(block) > bound or block[2] > 64:
        raise ValueError(f"{launch.kernel}: a block of {block}, of a kernel made for at most {bound} threads")
    if not 0 <= launch.shared <= MAX_SHARED:
        raise ValueError(f"{launch.kernel}: {launch.shared} bytes of shared memory, of at most {MAX_SHARED}")


@functools.cache
def _program(prelude: str, file: str, text: str, real: Any, build: Path) -> Program:
    return Program(prelude, file, text, real, build)


@functools.cache
def temporary_build() -> Path:
    """A folder that lives as long as the process."""
    folder = tempfile.mkdtemp(prefix="ddpm_ref_cuda_host_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

"""How a kernel is compiled, kept on disk, given its arguments, spread over threads, and checked for overruns.

Every kernel is a serial function `kernel(thread, threads, args)` that does its share of the work; args points to 64-bit
words, each an address, an integer or the bits of a float64. With one signature for all, one parallel loop serves them
all: Numba's `parallel=True` costs several seconds of compiling, and is paid once (`_spread`), not once a kernel.
"""

import ctypes
import hashlib
import importlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.ufunc.parallel import _launch_threads

from ddpm_ref import random
from ddpm_ref_numba.simd import WIDTH, i64_p

SIGNATURE = types.void(types.intp, types.intp, i64_p)


# --- the cache on disk ------------------------------------------------------------------------------------------------

FROZEN = (random,)  # modules of the core whose constants kernels compute with


def _stamp() -> str:
    """A hash of all that a compiled kernel has frozen in: this package's files, those in `FROZEN`, the vectors' width.

    Numba's own stamp is of the file that holds the function, so that a constant or an inlined function changed in
    another file would leave stale code; Numba's version and the processor are part of its key already.
    """
    digest = hashlib.sha256(f"width {WIDTH}".encode())
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(module.__file__)) for module in FROZEN)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


_STAMP = _stamp()


def _stamped(locator: type) -> type:
    return type(f"Stamped{locator.__name__}", (locator,), {"get_source_stamp": lambda self: _STAMP})


class _Storage(CompileResultCacheImpl):
    """Numba's places (NUMBA_CACHE_DIR, beside the file, the user's cache folder), with the stamp of all files."""

    _locator_classes = tuple(map(_stamped, (UserProvidedCacheLocator, InTreeCacheLocator, UserWideCacheLocator)))


class _Cache(FunctionCache):
    """On disk, where that works: a full or vanished folder, or a damaged file, costs the compiling, not the run."""

    _impl_class = _Storage

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling what is not what was written raises anything
            with suppress(OSError):
                Path(self._cache_file._index_path).unlink()  # what it leads to is written anew
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


def _cached(compiled: Any, function: Any) -> Any:
    """Give a CFunc or dispatcher the stamped cache; where no folder can be written, leave it without."""
    with suppress(RuntimeError):
        compiled._cache = _Cache(function)
    return compiled


# --- threads ----------------------------------------------------------------------------------------------------------


@intrinsic
def _call(typing, address, thread, threads, args):
    def codegen(context, builder, sig, values):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word, word, word])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    n = types.intp
    return types.void(n, n, n, n), codegen


def _spread_source(address, threads, args):
    for thread in prange(threads):
        _call(address, thread, threads, args)


def check_numba(threads: int) -> None:
    """ImportError where Numba is told not to compile, or to spread over these threads by what is not here."""
    if numba.config.DISABLE_JIT:
        raise ImportError("NUMBA_DISABLE_JIT is set, and without compiling there are no kernels")
    asked = numba.config.THREADING_LAYER
    if threads > 1 and asked != "default":  # by default one of three is taken, of which one is always there
        try:
            if asked == "omp":  # not launched yet, after which the process could not fork
                importlib.import_module("numba.np.ufunc.omppool")
            else:
                _launch_threads()
        except Exception as error:
            raise ImportError(f"NUMBA_THREADING_LAYER={asked} cannot be had here: {error}") from error


_spread: Any = None
_turn = threading.RLock()  # held while a kernel is spread or compiled; a signal's handler may come in between


def _spread_over(address: int, threads: int, args: int) -> None:
    """Run a kernel on so many threads by the one parallel loop, which is compiled or loaded at its first use."""
    global _spread
    with _turn:
        if _spread is None:
            _spread = _cached(njit(parallel=True)(_spread_source), _spread_source)
        _spread(address, threads, args)


# --- kernels ----------------------------------------------------------------------------------------------------------


_BYTES = bytes.__basicsize__ - 1  # from a bytes object to its bytes, of which the last is a 0


def _data_offset() -> int | None:
    """Where CPython's array object keeps its data pointer: reading it there takes a sixth of `a.ctypes.data`."""
    probe = np.zeros(3)
    offset = object.__basicsize__
    at = ctypes.c_void_p.from_address(id(probe) + offset).value
    return offset if sys.implementation.name == "cpython" and at == probe.ctypes.data else None


_OFFSET = _data_offset()
_pointer_at = ctypes.c_void_p.from_address


_ndarray = np.ndarray


def _address_there(a: np.ndarray) -> int:
    """The address of an array's first element."""
    return _pointer_at(id(a) + _OFFSET).value or 0  # type: ignore[operator]


address_of = _address_there if _OFFSET is not None else lambda a: a.ctypes.data


def gradient(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """dy as kernels read it: contiguous float32. Raises ValueError if its shape is not that of the output."""
    if dy.shape != shape:
        raise ValueError(f"dy: wanted the output's shape, {shape}, got {dy.shape}")
    return np.ascontiguousarray(dy, np.float32)


def fits(plus: np.ndarray | None, shape: tuple[int, ...]) -> bool:
    """Whether kernels can add it to a result of this shape: float32 of that shape, or nothing."""
    return plus is None or (plus.dtype == np.float32 and plus.shape == shape)


def addend(plus: np.ndarray | None, to: np.ndarray) -> tuple[np.ndarray, int]:
    """plus as kernels read it, and 1; if there is none, any array, and 0. ValueError if `to` has another shape."""
    if plus is None:
        return to, 0
    if plus.shape != to.shape:
        raise ValueError(f"plus: wanted the shape of what it is added to, {to.shape}, got {plus.shape}")
    return np.ascontiguousarray(plus, np.float32), 1


def _values_there(args: Any) -> tuple[list[Any], None]:
    """Arguments as numbers, an array as the place in its object where its data pointer lies."""
    return [id(a) + _OFFSET if type(a) is _ndarray else a for a in args], None  # type: ignore[operator]


def _values_elsewhere(args: Any) -> tuple[list[Any], list[Any]]:
    """The same with places of our own, which live as long as the list returned."""
    cells = [ctypes.c_void_p(address_of(a)) if type(a) is _ndarray else None for a in args]
    return [a if cell is None else ctypes.addressof(cell) for a, cell in zip(args, cells, strict=True)], cells


_values: Any = _values_there if _OFFSET is not None else _values_elsewhere


class Kernel:
    """A kernel, compiled at its first call: `kernel(threads, *args)`; args are arrays, ints and floats."""

    def __init__(self, function: Any) -> None:
        self.name = function.__name__
        self.function = function
        self.__doc__ = function.__doc__
        self._direct: Any = None
        self._words: struct.Struct | None = None
        self._address = 0

    def compile(self) -> None:
        """Load from the cache, or compile and say so."""
        made = CFunc(self.function, (SIGNATURE.args, SIGNATURE.return_type), {}, {"error_model": "numpy"})
        _cached(made, self.function)
        made.compile()
        if not made.cache_hits:
            _announce()
        self._kept = made
        self._address = made.address
        self._direct = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_char_p)(made.address)

    def __call__(self, threads: int, *args: Any) -> None:
        if self._direct is None:
            with _turn:
                if self._direct is None:
                    self.compile()
        if _guard.on:
            with _guarded(args) as args:
                return self._run(threads, args)
        return self._run(threads, args)

    def _run(self, threads: int, args: Any) -> None:
        if self._words is None:
            self._words = struct.Struct("=" + "".join("d" if type(a) is float else "q" for a in args))
        # An array goes as the place of its data pointer, which the kernel reads: 0.3 µs less for each.
        values, _held = _values(args)
        words = self._words.pack(*values)  # 64 bits each; held until the kernel is done
        if threads == 1:
            self._direct(0, 1, words)
        else:
            _spread_over(self._address, threads, id(words) + _BYTES)


_announced = False


def _announce() -> None:
    """Say once, to whom it may concern, why the first steps take so long."""
    global _announced
    if not _announced and sys.stderr is not None and sys.stderr.isatty():
        print("numba: compiling kernels for this processor, once, in some ten seconds", file=sys.stderr)
    _announced = True


def kernel(function: Any) -> Kernel:
    """Decorator: make a function (thread, threads, args) a kernel."""
    return Kernel(function)


# --- overruns ---------------------------------------------------------------------------------------------------------


class _Guard(threading.local):
    on = os.environ.get("DDPM_REF_GUARD", "") not in ("", "0")


_guard = _Guard()
_ZONE = 4096  # numbers before and after each array
_MARK = 0x7149F2CA  # as a float32 1e30, so that what is read there shows in the result


@contextmanager
def guard(on: bool = True) -> Iterator[None]:
    """Run this thread's kernels on copies of their arrays between guard zones: slow, finds what runs over an end."""
    before, _guard.on = _guard.on, on
    try:
        yield
    finally:
        _guard.on = before


@contextmanager
def _guarded(args: tuple[Any, ...]) -> Iterator[list[Any]]:
    zones, given = {}, []
    for a in args:
        if type(a) is not np.ndarray:
            given.append(a)
            continue
        if not a.flags.c_contiguous or a.itemsize % 4:
            raise AssertionError("a kernel takes contiguous arrays of 4- or 8-byte numbers")
        words = a.nbytes // 4
        if (key := (address_of(a), words)) not in zones:
            whole = np.full(
                words + 2 * _ZONE, _MARK + len(zones), np.uint32
            )  # marks differ: one copied over another shows
            inner = whole[_ZONE : _ZONE + words]
            inner[:] = a.reshape(-1).view(np.uint32)
            zones[key] = (a, whole, inner)
        given.append(zones[key][2])
    yield given
    for mark, (a, whole, inner) in enumerate(zones.values(), _MARK):
        if (whole[:_ZONE] != mark).any() or (whole[-_ZONE:] != mark).any():
            raise AssertionError(f"a kernel wrote outside its array of shape {a.shape}")
        if a.flags.writeable:
            a.reshape(-1).view(np.uint32)[:] = inner


def layer() -> str:
    """Numba's threading layer here: "omp" is fast, "workqueue" costs 50 times more a launch."""
    _spread_over(0, 0, 0)
    return numba.threading_layer()

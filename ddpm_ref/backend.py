"""The contract between the program and what runs it: one class, whose NumPy bodies are the meaning of every hot loop.

A backend subclasses `Backend` and overrides whole operations, never half of one: an operation returns its output and
its adjoint together. Everything else in the project is written once, over any array type.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np

from ddpm_ref import random
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops, optim
from ddpm_ref.nn.ops import Backward
from ddpm_ref.random import Purpose


class Backend:
    """The NumPy backend, and the base of all others. Shapes and equations stand with the functions it calls."""

    name = "numpy"

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1) -> tuple[Array, Backward]:
        """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D)."""
        return ops.conv3x3(x, W, b, stride=stride)

    def dense(self, x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.dense`: (..., C) -> (..., D), the 1x1 convolution."""
        return ops.dense(x, W, b)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        """`ops.group_norm`, fused with SiLU if asked."""
        return ops.group_norm(x, gamma, beta, groups, silu=silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        """`ops.attention`: (N, S, C) each."""
        return ops.attention(q, k, v)

    def upsample(self, x: Array) -> tuple[Array, Backward]:
        """`ops.upsample`: (N, H, W, C) -> (N, 2H, 2W, C)."""
        return ops.upsample(x)

    def dropout(self, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
        """`ops.dropout`."""
        return ops.dropout(x, uniform, rate)

    def update(
        self,
        params: Array,
        grads: Array,
        m: Array,
        v: Array,
        ema: Array,
        step: int,
        settings: optim.AdamSettings,
    ) -> float:
        """`optim.update`: clipping, Adam and EMA in one pass over the flat vectors."""
        return optim.update(params, grads, m, v, ema, step, settings)

    def normal(
        self,
        seed: int,
        purpose: Purpose,
        step: int,
        samples: Array,
        shape: tuple[int, ...],
        *,
        layer: int = 0,
    ) -> Array:
        """`random.normal`: the same bits on every backend."""
        return random.normal(seed, purpose, step, samples, shape, layer=layer)

    def uniform(
        self,
        seed: int,
        purpose: Purpose,
        step: int,
        samples: Array,
        shape: tuple[int, ...],
        *,
        layer: int = 0,
    ) -> Array:
        """`random.uniform`: the same bits on every backend."""
        return random.uniform(seed, purpose, step, samples, shape, layer=layer)

    def to_device(self, x: Array) -> Array:
        """A host array as this backend's array."""
        return np.asarray(x)

    def to_host(self, x: Array) -> np.ndarray:
        """This backend's array as a NumPy array."""
        return np.asarray(x)


_NAMED = {"numba": ("ddpm_ref_numba:NumbaBackend", "Numba's compiled CPU kernels")}
"""The backends with names of their own, beside "numpy": where each is, and what it is. Its extra has its name."""


def available_backends() -> dict[str, str]:
    """The backends that `get_backend` finds by name here, and what each is."""
    here = {name: what for name, (place, what) in _NAMED.items() if _is_here(name, place)}
    return {"numpy": f"NumPy {np.__version__}, the reference"} | here


def _is_here(library: str, place: str) -> bool:
    """Whether a backend's package and its library are installed, without importing them."""
    return all(importlib.util.find_spec(name) for name in (library, place.partition(":")[0]))


def get_backend(name: str = "numpy") -> Backend:
    """The backend of this name, or of "package.module:Class" (any subclass of `Backend` that takes no arguments).

    Raises ValueError for an unknown name or one that cannot be imported, listing what there is.
    """
    if name == "numpy":
        return Backend()
    if name in _NAMED:
        if not _is_here(name, _NAMED[name][0]):
            raise ValueError(f'backend: {name!r} is not installed here; pip install "ddpm-ref[{name}]"')
        return get_backend(_NAMED[name][0])
    module, _, cls = name.partition(":")
    if not cls:
        raise ValueError(f"backend: wanted {', '.join(available_backends())} or 'package.module:Class', got {name!r}")
    try:
        found: Any = getattr(importlib.import_module(module), cls)
    except Exception as error:  # whatever somebody's module raises while it is imported
        raise ValueError(f"backend: cannot load {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ValueError(f"backend: {name!r} is not a subclass of ddpm_ref.Backend")
    return found()

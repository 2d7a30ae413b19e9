"""What every operation of the Numba backend is held to, given its arguments."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="the Numba backend's tests need Numba")

from ddpm_ref_numba import NumbaBackend
from ddpm_ref_numba.launch import guard

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

Call = Callable[[Backend, list[Array]], Any]  # (backend, arrays) -> y, backward

RUNS = {threads: NumbaBackend(threads) for threads in (1, 2, 3)}
NUMPY = Backend()


def normals(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    """float32 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def results(call: Call, run: Backend, arrays: list[Array]) -> list[Array]:
    """y and the gradients; the last array is dy."""
    y, backward = call(run, arrays[:-1])
    return [y, *backward(arrays[-1])]


def agrees(call: Call, run: Backend, arrays: list[Array], tolerance: float) -> bool:
    """Output and gradients within tolerance of NumPy's in float64, measured against the largest number of each."""
    found = results(call, run, arrays)
    wanted = results(call, NUMPY, [a.astype(np.float64) for a in arrays])
    return all(
        a.dtype == np.float32 and a.shape == b.shape and np.abs(a - b).max() <= tolerance * (np.abs(b).max() + 1e-30)
        for a, b in zip(found, wanted, strict=True)
    )


def same_bits(a: list[Array], b: list[Array]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def check_manners(call: Call, run: NumbaBackend, arrays: list[Array]) -> None:
    """The same bits twice, whatever scratch held, in any memory layout, between guard zones; inputs left alone."""
    before = [a.copy() for a in arrays]
    first = results(call, run, arrays)
    assert same_bits(arrays, before)
    assert not any(np.shares_memory(a, b) for a in first for b in arrays)
    for (name, _), buffer in run.workspace._buffers.held.items():
        if name != "zeros":
            buffer.view(np.float32).fill(np.nan)
    assert same_bits(first, results(call, run, arrays))
    strided = [np.repeat(a[..., None], 2, axis=-1)[..., 0] for a in arrays]
    assert same_bits(first, results(call, run, strided))
    with guard():
        assert same_bits(first, results(call, run, arrays))


def slope(call: Call, arrays: list[Array], directions: list[Array], dy: Array) -> float:
    """d ⟨y, dy⟩ along the directions, by central differences of NumPy's float64 forward pass."""
    step = 1e-5
    ends = [
        call(NUMPY, [a.astype(np.float64) + sign * step * d for a, d in zip(arrays, directions, strict=True)])[0]
        for sign in (1, -1)
    ]
    return float(np.sum((ends[0] - ends[1]) * dy) / (2 * step))


def is_gradient(call: Call, run: Backend, arrays: list[Array], tolerance: float, seed: int) -> bool:
    """⟨gradients, directions⟩ is the slope of ⟨y, dy⟩, to a tolerance of the products' sizes."""
    *inputs, dy = arrays
    directions = [d.astype(np.float64) for d in normals(seed, *(a.shape for a in inputs))]
    found = results(call, run, arrays)[1:]
    total = sum(float(np.sum(g.astype(np.float64) * d)) for g, d in zip(found, directions, strict=True))
    size = sum(np.linalg.norm(g.astype(np.float64)) * np.linalg.norm(d) for g, d in zip(found, directions, strict=True))
    return bool(abs(total - slope(call, inputs, directions, dy)) <= tolerance * size + 1e-9)

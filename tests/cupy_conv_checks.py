"""A convolution of the CuPy backend on the device that runs its kernels on the CPU, and what it must come to."""

import numpy as np
from cuda_host.host_device import HostDevice, rounded
from ddpm_ref_cupy import conv

from ddpm_ref import backend_bounds as bounds
from ddpm_ref import backend_cases as cases
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops


def arguments(n: int, h: int, w: int, c: int, d: int, *, per_image: bool = False) -> list[Array]:
    """x, W, b and dy in float32."""
    draws = cases.normals(n + h + w + c, (n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,), (n, h, w, d))
    return [a.astype(np.float32) for a in draws]


def results(run: HostDevice, *args: Array) -> list[Array]:
    """y, dx, dW, db of x, W, b and dy."""
    x, W, b, dy = map(run.to_device, args)
    y, backward = conv.conv3x3(run, x, W, b)
    return [y, *backward(dy)]


def exact(precision: str, x: Array, W: Array, b: Array, dy: Array) -> list[Array]:
    """The same in float64, of x, W and dy rounded once; db of dy itself."""
    rx, rW, rdy = (rounded(a, precision).astype(np.float64) for a in (x, W, dy))
    y, backward = ops.conv3x3(rx, rW, b.astype(np.float64))
    dx, dW, _ = backward(rdy)
    db = dy.astype(np.float64).sum(axis=(1, 2))
    return [y, dx, dW, db if b.ndim == 2 else db.sum(axis=0)]


def hold(found: list[Array], precision: str, *args: Array) -> None:
    """Nothing is off by more than float32 sums of the rounded operands may be."""
    magnitudes = exact(precision, *map(np.abs, args))
    for a, wanted, magnitude in zip(found, exact(precision, *args), magnitudes, strict=True):
        assert a.dtype == np.float32 and a.shape == wanted.shape
        assert (np.abs(a - wanted) <= bounds.tolerance(np.float32) * magnitude).all()

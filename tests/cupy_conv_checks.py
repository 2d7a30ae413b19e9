"""A convolution of the CuPy backend on the device that runs its kernels on the CPU, and what it must come to."""

import numpy as np
from cuda_host.host_device import HostDevice, bf16_bits, rounded
from ddpm_ref_cupy import conv

from ddpm_ref import backend_bounds as bounds
from ddpm_ref import backend_cases as cases
from ddpm_ref.checks import Array
from ddpm_ref.nn import ops


def arguments(n: int, h: int, w: int, c: int, d: int, *, per_image: bool = False, bf16: bool = False) -> list[Array]:
    """x, W, b and dy in float32; bf16: what `stored` gives of x and dy loses nothing."""
    draws = cases.normals(n + h + w + c, (n, h, w, c), (3, 3, c, d), (n, d) if per_image else (d,), (n, h, w, d))
    x, W, b, dy = (a.astype(np.float32) for a in draws)
    return [rounded(stored(x), "fp32"), W, b, rounded(stored(dy), "fp32")] if bf16 else [x, W, b, dy]


def stored(x: Array) -> Array:
    """x as an image of a network that stores bfloat16: so where it has eights of channels."""
    return bf16_bits(x).reshape(x.shape) if x.shape[-1] % 8 == 0 else x


def results(run: HostDevice, *args: Array, bf16: bool = False, plus: bool = False) -> list[Array]:
    """y, dx, dW, db of x, W, b and dy, which is added to y if plus; bf16: x and dy are stored so, and y and dx then."""
    x, W, b, dy = args
    if bf16:
        x, dy = stored(x), stored(dy)
        run.enters_bf16 = x.dtype == np.float32
    x, W, b, dy = map(run.to_device, (x, W, b, dy))
    y, backward = conv.conv3x3(run, x, W, b, plus=dy if plus else None)
    found = [y, *backward(dy)]
    assert not bf16 or [a.dtype == np.uint16 for a in found] == [a.shape[-1] % 8 == 0 for a in (dy, x)] + [False] * 2
    return found


def exact(precision: str, x: Array, W: Array, b: Array, dy: Array, *, plus: bool = False) -> list[Array]:
    """The same in float64, of x, W and dy rounded once; db of dy itself."""
    rx, rW, rdy = (rounded(a, precision).astype(np.float64) for a in (x, W, dy))
    y, backward = ops.conv3x3(rx, rW, b.astype(np.float64))
    dx, dW, _ = backward(rdy)
    db = dy.astype(np.float64).sum(axis=(1, 2))
    return [y + dy if plus else y, dx, dW, db if b.ndim == 2 else db.sum(axis=0)]


def hold(found: list[Array], precision: str, *args: Array, plus: bool = False, twice: bool = False) -> None:
    """Nothing is off by more than float32 sums of the rounded operands may be, and half an ulp where it is bfloat16.

    twice: of the product's too.
    """
    magnitudes = exact(precision, *map(np.abs, args), plus=plus)
    for a, wanted, magnitude in zip(found, exact(precision, *args, plus=plus), magnitudes, strict=True):
        assert a.shape == wanted.shape and a.dtype in (np.float32, np.uint16)
        ulp = (np.abs(wanted) + twice * magnitude) / 256 if a.dtype == np.uint16 else 0
        assert (np.abs(rounded(a, "fp32") - wanted) <= bounds.tolerance(np.float32) * magnitude + ulp).all()

"""Errors at the public borders: each names the argument, what it takes and what came."""

from collections.abc import Collection
from typing import Any

import numpy as np

Array = Any  # a NumPy array, or any array that answers NumPy's functions
Steps = Any  # an int in 1..T, or an integer array (N,): one step per image


def check_step(T: int, t: Steps, x: Array, *, lowest: int = 1) -> None:
    """t must be one integer in lowest..T, or an integer array (N,) of them with N = len(x)."""
    steps = np.asarray(t)
    if steps.dtype.kind not in "iu":
        raise ValueError(f"t: wanted integers in {lowest}..{T}, got dtype {steps.dtype}")
    if steps.ndim > 1 or (steps.ndim == 1 and (x.ndim == 0 or len(steps) != len(x))):
        raise ValueError(f"t: wanted one integer or shape ({len(x) if x.ndim else 'N'},), got shape {steps.shape}")
    if steps.size and not (lowest <= steps.min() and steps.max() <= T):
        raise ValueError(f"t: wanted steps in {lowest}..{T}, got {steps.min()}..{steps.max()}")


def check_float(**arrays: Array) -> None:
    """Arrays must be floating: integer images are almost always unscaled 0..255 data."""
    for name, x in arrays.items():
        dtype = getattr(x, "dtype", None)
        if dtype is None or dtype.kind != "f":
            what = f"dtype {dtype}" if dtype is not None else type(x).__name__
            raise ValueError(f"{name}: wanted a floating array (images in [-1, 1]), got {what}")


def check_same_shape(**arrays: Array) -> None:
    """All arrays must be floating and of one shape: broadcasting here is nearly always a mistake."""
    check_float(**arrays)
    (first, x), *others = arrays.items()
    for name, y in others:
        if y.shape != x.shape:
            raise ValueError(f"{name}: wanted the shape of {first}, {x.shape}, got {y.shape}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """value must be one of the named choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: wanted one of {', '.join(map(repr, choices))}, got {value!r}")


def check_finite(**arrays: Array) -> None:
    """No NaN or infinity: for whole arrays where data, checkpoints and samples enter or leave."""
    for name, x in arrays.items():
        bad = ~np.isfinite(x)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{name}: {int(bad.sum())} of {x.size} values are NaN or infinite, first at {where}")


def check_int(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """value must be an integer in lowest..highest (a bool is not one)."""
    ok = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not ok or value < lowest or (highest is not None and value > highest):  # type: ignore[operator]
        wanted = f">= {lowest}" if highest is None else f"in {lowest}..{highest}"
        raise ValueError(f"{name}: wanted an integer {wanted}, got {value!r}")

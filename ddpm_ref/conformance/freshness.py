"""Whether what a loop adds to its means is σ_t z with z ~ N(0, I): of its size, and independent of all before."""

import math
from dataclasses import dataclass

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.chance import (
    FALSE_ALARM,
    along,
    chi_square_bounds,
    distribution_bound,
    largest_is_likely,
    normal_bound,
    normal_distance,
)

MANY = 1 << 17  # numbers whose distribution function is compared: 1 % is seen
IMAGES, NUMBERS = 64, 2048  # whose pairs are compared, and how many numbers of each
SILENT = 1e-2  # of σ_t: less is no noise


@dataclass(frozen=True)
class Finding:
    """What contradicts N(0, I): the smallest t (None: all steps together show it), what came, what is wanted, why."""

    t: int | None
    got: object
    wanted: object
    words: str = ""


def rms(x: Array) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.vdot(x, x) / max(x.size, 1)))


def not_fresh(residual: Array, sigma: Array, t: Array, directions: dict[str, Array]) -> Finding | None:
    """What of x_{t-1} - μ is not σ z with z ~ N(0, I) independent of the directions, or None; rows are steps.

    At each t: ‖z‖², the mean of z, ⟨z, d⟩ / ‖d‖ for each direction d; and ‖z‖² and ⟨z, d⟩ of all steps together.
    """
    with np.errstate(all="ignore"):
        z = (residual / sigma).reshape(len(t), -1)
    n, k = z.shape
    p = FALSE_ALARM / 2 / ((2 + len(directions)) * n + 1 + len(directions))
    limit, square = normal_bound(p), np.einsum("ij,ij->i", z, z)
    first = _first(~np.isfinite(square), t)
    if first is not None:
        return Finding(int(t[first]), "NaN or infinity", "finite numbers")
    low, high = chi_square_bounds(k, p)
    first = _first(~((low <= square) & (square <= high)), t)
    if first is not None:
        return Finding(int(t[first]), rms(residual[first]), rms(sigma[first]))
    first = _first(np.abs(z.sum(axis=1)) > limit * np.sqrt(k), t)
    if first is not None:
        return Finding(int(t[first]), "noise with a mean", "mean 0", "the noise has a mean")
    for text, d in directions.items():
        first = _first(np.abs(_each_along(z, d.reshape(n, k))) > limit, t)
        if first is not None:
            return Finding(int(t[first]), f"a mean that is off {text}", "μ_θ(x_t, t)")
    low, high = chi_square_bounds(k * n, p)
    if not low <= square.sum() <= high:
        return Finding(None, rms(z), 1.0, "the noise of all steps together, in units of σ_t")
    for text, d in directions.items():
        # ‖d‖² of all steps is itself random, which costs a self-normalised sum a little: half as much again.
        if abs(along(z, d)) > 1.5 * limit:
            return Finding(None, f"means that are off {text}", "μ_θ(x_t, t)")
    return None


def _first(bad: Array, t: Array) -> int | None:
    """The row of the smallest t that is bad."""
    return int(np.flatnonzero(bad)[np.argmin(t[bad])]) if bad.any() else None


def _each_along(z: Array, d: Array) -> Array:
    """`along`, of every row."""
    with np.errstate(all="ignore"):
        result: Array = np.einsum("ij,ij->i", z, d) / np.sqrt(np.einsum("ij,ij->i", d, d))
    return np.nan_to_num(result)


def reused(z: Array, x_t: Array, t: Array) -> Finding | None:
    """Noise of the right size that is a copy of another step's, or of x_t; None if it is not.

    z, x_t: (steps, images, …) in the order of the loop.
    """
    flat, x = z.reshape(len(t), -1), x_t.reshape(len(t), -1)
    if not 0.8 < rms(flat) < 1.25:
        return None
    lengths = np.linalg.norm(flat, axis=1)
    sized = np.abs(lengths / np.sqrt(flat.shape[1]) - 1) < 0.25
    with np.errstate(all="ignore"):
        same = np.einsum("ij,ij->i", flat[:-1], flat[1:]) / (lengths[:-1] * lengths[1:])
        of_x = np.einsum("ij,ij->i", flat, x) / (lengths * np.linalg.norm(x, axis=1))
    bad = np.append(same > 0.9, False) & sized
    if bad.any():
        return Finding(
            int(t[bad].min()), "noise of another step", "fresh noise", "noise is used again at the next step"
        )
    bad = (of_x > 0.9) & sized
    if bad.any():
        return Finding(int(t[bad].min()), "noise that is x_t", "fresh noise", "what x_t was drawn from is used again")
    return None


def alike(z: Array, threshold: float = 0.0, what: str = "noise") -> Finding | None:
    """Numbers that images, or neighbours along an axis of the image, share; z: (steps, images, …). None if none do.

    ⟨a, b⟩ / ‖a‖ is N(0, 1) for independent normals; threshold: of the correlation, for likeness beyond doubt.
    """
    p = FALSE_ALARM / 8
    every = max(1, len(z) * z[0, 0].size // NUMBERS)
    few = np.swapaxes(z[::every, :IMAGES], 0, 1).reshape(min(z.shape[1], IMAGES), -1)
    gram, length = few @ few.T, np.linalg.norm(few, axis=1)
    np.fill_diagonal(gram, 0)
    with np.errstate(all="ignore"):
        shared = 1.2 * normal_bound(p / len(few) ** 2) < np.abs(gram) / length / np.maximum(rms(few), 1e-30)
        correlation = np.abs(gram) / np.outer(length, length)
    shared = (shared & (correlation > threshold)) | ((correlation > 0.999) & (few.shape[1] > 7))
    if shared.any():
        whole = shared.mean() > 0.5
        words = f"the batch shares its {what}" if whole else f"two images of the batch share their {what}"
        return Finding(None, f"{what} that is alike", "every image's own", words)
    z = z[:: max(1, z.size >> 17)]
    for axis in range(2, z.ndim):
        before = (slice(None),) * axis
        one, other = z[*before, :-1], z[*before, 1:]
        product, square = float((one * other).sum()), float((one * one).sum())
        if abs(product) > 1.2 * normal_bound(p / 8) * math.sqrt(square) * rms(z) and abs(product) > threshold * square:
            words = (
                f"neighbours along axis {axis - 1} of the batch share their {what}: correlation {product / square:.2g}"
            )
            return Finding(None, f"{what} that is alike", "every element's own", words)
    return None


def not_normal(z: Array, what: str) -> Finding | None:
    """Whether the distribution of these numbers, whose size is right, is another one than N(0, 1)'s."""
    z = z.reshape(-1)[:: max(1, z.size // MANY)]
    largest = float(np.abs(z).max())
    if not largest_is_likely(largest, z.size, FALSE_ALARM / 8):
        return Finding(None, largest, f"the largest of {z.size} normals", f"the tails of {what} are not a normal's")
    distance = normal_distance(z)
    if distance > 1.2 * distribution_bound(z.size, FALSE_ALARM / 8):
        return Finding(None, distance, 0.0, f"the distance of the distribution function of {what} from a normal's")
    return None

"""Counter-based random numbers: each is a pure function of what it is for, never of what was drawn before it.

Philox4x32-10 (Salmon et al. 2011) turns a key of 64 bits and a counter of four 32-bit words into four random words:

    key      the seed
    counter  (element // 4, place of the image in the whole batch, step, purpose | layer << 8)

So any split of a batch draws the same noise, a resumed run needs only (seed, step), and any machine that does these
integer and float32 operations in this order draws the same bits. Normals are Box-Muller on 24-bit uniforms with the
logarithm and sine of the Cephes float library, every operation rounded on its own: a compiler must not fuse a·b + c
here (it would change 1 % of the draws in their last bit). The tails end at √(2 · 24 · log 2) = 5.77 σ.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_ref.checks import check_int

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]


class Purpose(IntEnum):
    """What a number is for: the low 8 bits of the fourth counter word. Never renumber: old runs must stay resumable."""

    INIT = 1  # initial parameters
    INDEX = 2  # which training image (Algorithm 1, line 2)
    T = 3  # t ~ Uniform{1..T} (Algorithm 1, line 3)
    EPS = 4  # ε (Algorithm 1, line 4)
    FLIP = 5  # horizontal flips
    DROPOUT = 6  # dropout masks, one layer number each
    X_T = 7  # where sampling starts (Algorithm 2, line 1)
    Z = 8  # noise of the reverse step from t, counted as step t (Algorithm 2, line 3)
    EVALUATE = 9  # ε of evaluations
    CODING = 10  # candidates and arrival times of minimal random coding


_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_CHUNK = 8192  # counters at a time: the temporaries stay in cache


def philox4x32_10(counter: tuple[U64, U64, U64, U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """Ten Philox rounds on four counter words (uint64 arrays that hold 32-bit values and broadcast together)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _chunks(
    seed: int, purpose: Purpose, step: int, samples: U64, count: int, layer: int
) -> Iterator[tuple[slice, tuple[U64, U64, U64, U64]]]:
    """Random words for some images at a time: (which images, four arrays (images, ceil(count / 4)))."""
    key = (seed & 0xFFFFFFFF, seed >> 32)
    blocks = np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    last = np.uint64(int(purpose) | layer << 8)
    rows = max(1, _CHUNK // max(1, blocks.size))
    for first in range(0, len(samples), rows):
        part = slice(first, first + rows)
        yield part, philox4x32_10((blocks, samples[part, None], np.uint64(step), last), key)  # type: ignore[arg-type]


def _checked(seed: int, step: int, samples: ArrayLike, layer: int) -> U64:
    check_int("seed", seed, 0, 2**64 - 1)
    check_int("step", step, 0, 2**32 - 1)
    check_int("layer", layer, 0, 2**24 - 1)
    ids = np.asarray(samples)
    if ids.ndim != 1 or (ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= 2**32)):
        raise ValueError(f"samples: wanted a list of image numbers in 0..2^32-1, got {ids.dtype} of shape {ids.shape}")
    return ids.astype(np.uint64)


def words(
    seed: int, purpose: Purpose, step: int, samples: ArrayLike, count: int, *, layer: int = 0
) -> NDArray[np.uint32]:
    """count random 32-bit words for each place in `samples`: (N, count) uint32.

    samples: (N,) places in the step's batch, 0 … batch-1; when sampling, the images' numbers.
    """
    samples = _checked(seed, step, samples, layer)
    out = np.empty((len(samples), -(-count // 4), 4), np.uint32)
    for part, lanes in _chunks(seed, purpose, step, samples, count, layer):
        for lane, word in enumerate(lanes):
            out[part, :, lane] = word
    return out.reshape(len(samples), 4 * out.shape[1])[:, :count]


def integers(seed: int, purpose: Purpose, step: int, samples: ArrayLike, n: int) -> NDArray[np.int64]:
    """One integer in 0..n-1 for each image: ⌊u n / 2³²⌋ of its first word; its bias is under n / 2³²."""
    check_int("n", n, 1, 2**32 - 1)
    u = words(seed, purpose, step, samples, 1)[:, 0].astype(np.uint64)
    return ((u * np.uint64(n)) >> _32).astype(np.int64)


def uniform(
    seed: int, purpose: Purpose, step: int, samples: ArrayLike, shape: tuple[int, ...], *, layer: int = 0
) -> F32:
    """Uniforms in [0, 1), multiples of 2⁻²⁴: (N, *shape) float32."""
    count = int(np.prod(shape))
    u = words(seed, purpose, step, samples, count, layer=layer)
    return ((u >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)).reshape(len(u), *shape)


def normal(
    seed: int, purpose: Purpose, step: int, samples: ArrayLike, shape: tuple[int, ...], *, layer: int = 0
) -> F32:
    """Standard normals: (N, *shape) float32.

    Words (w_0, w_1) of a block make two normals r cos θ, r sin θ with r = √(-2 log u), u = (⌊w_0/2⁸⌋ + 1) / 2²⁴,
    θ = π/2 (⌊w_1/2⁸⌋ + ½) / 2²²; (w_2, w_3) make two more.
    """
    samples = _checked(seed, step, samples, layer)
    count = int(np.prod(shape))
    out = np.empty((len(samples), -(-count // 4), 4), np.float32)
    for part, lanes in _chunks(seed, purpose, step, samples, count, layer):
        for pair in (0, 2):
            r = np.sqrt(np.float32(-2) * _log_u24((lanes[pair] >> np.uint64(8)).astype(np.uint32) + np.uint32(1)))
            sin, cos = _sin_cos_u24((lanes[pair + 1] >> np.uint64(8)).astype(np.uint32))
            out[part, :, pair] = r * cos
            out[part, :, pair + 1] = r * sin
    return out.reshape(len(samples), 4 * out.shape[1])[:, :count].reshape(len(samples), *shape)


# log(1 + f) = f - f²/2 + f³ P(f) for √½ ≤ 1 + f < √2, highest power first; log 2 in two parts. (Cephes logf.)
_LOG_P = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_2 = (np.float32(-2.12194440e-4), np.float32(0.693359375))
_SIN_P = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS_P = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SQRT_HALF = np.float32(0.70710678)


def _polynomial(coefficients: tuple[float, ...], x: F32) -> F32:
    y = np.full_like(x, np.float32(coefficients[0]))
    for c in coefficients[1:]:
        y = y * x + np.float32(c)
    return y


def _log_u24(n: NDArray[np.uint32]) -> F32:
    """log(n / 2²⁴) for n in 1..2²⁴."""
    bits = n.astype(np.float32).view(np.uint32)
    exponent = (bits >> np.uint32(23)).astype(np.int32) - np.int32(126 + 24)
    m = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(np.float32)  # mantissa in [½, 1)
    low = m < _SQRT_HALF
    exponent = exponent - low.astype(np.int32)
    f = np.where(low, m + m, m) + np.float32(-1)
    e = exponent.astype(np.float32)
    f2 = f * f
    y = (_polynomial(_LOG_P, f) * f) * f2
    y = y + _LOG_2[0] * e
    y = y + np.float32(-0.5) * f2
    y = f + y
    log: F32 = y + _LOG_2[1] * e
    return log


def _sin_cos_u24(n: NDArray[np.uint32]) -> tuple[F32, F32]:
    """sin and cos of a uniform angle from 24 bits: 2 choose the quadrant, 22 the angle within ±π/4 of its middle."""
    quadrant = n >> np.uint32(22)
    r = (n & np.uint32(0x3FFFFF)).astype(np.int32) - np.int32(0x200000)
    a = (r.astype(np.float32) + np.float32(0.5)) * np.float32(3.7450702e-7)  # π/2 · 2⁻²²
    a2 = a * a
    s = (_polynomial(_SIN_P, a2) * a2) * a + a
    c = ((_polynomial(_COS_P, a2) * a2) * a2 + np.float32(-0.5) * a2) + np.float32(1)
    # Rotated by π/4 from the middle of the quadrant to its start.
    u, v = _SQRT_HALF * (c + s), _SQRT_HALF * (c - s)
    sin = np.choose(quadrant, (u, v, -u, -v))
    cos = np.choose(quadrant, (v, -u, -v, u))
    return sin, cos

"""Adam and EMA over the flat vector (App. B); clipping and warm-up (released code)."""

import math
from dataclasses import dataclass

import numpy as np

from ddpm_ref.checks import Array, check_int

_CHUNK = 1 << 16  # numbers at a time: five arrays of them stay in cache


@dataclass(frozen=True)
class AdamSettings:
    """Adam's constants and what surrounds it; the defaults are those of CIFAR-10.

    lr, Adam's constants and the EMA are the paper's; warm-up and clipping are in its released code only.

    lr: after `warmup` steps of rising linearly from 0.  clip_norm: of the whole gradient, None for none.
    """

    lr: float = 2e-4
    warmup: int = 5000
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    ema: float = 0.9999

    def __post_init__(self) -> None:
        check_int("warmup", self.warmup, 0)
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"lr: wanted a finite number >= 0, got {self.lr}")
        for name in ("beta_1", "beta_2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted a number in [0, 1), got {getattr(self, name)}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon: wanted a number > 0, got {self.epsilon}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm: wanted a number > 0 or None, got {self.clip_norm}")

    def learning_rate(self, step: int) -> float:
        """The rate of step 1, 2, …: lr · min(step / warmup, 1)."""
        return self.lr * min(step / self.warmup, 1.0) if self.warmup else self.lr


def gradient_norm(grads: Array) -> float:
    """The Euclidean norm of the whole gradient, summed in float64, a chunk at a time."""
    chunks = (grads[i : i + _CHUNK].astype(np.float64) for i in range(0, len(grads), _CHUNK))
    return math.sqrt(sum(float(np.dot(g, g)) for g in chunks))


def update(params: Array, grads: Array, m: Array, v: Array, ema: Array, step: int, settings: AdamSettings) -> float:
    """One step of clipping, Adam (Kingma & Ba 2015) and EMA over the flat vectors, all but grads in place.

        g ← g · min(1, clip_norm / ‖g‖)
        m ← β₁ m + (1-β₁) g     v ← β₂ v + (1-β₂) g²     θ ← θ - lr · m/(1-β₁^k) / (√(v/(1-β₂^k)) + ε)
        ema ← d · ema + (1-d) θ, but ema ← θ at the first step, as in the released code

    params, grads, m, v, ema: (P,) of one dtype.  step: k = 1, 2, ….
    Returns ‖g‖ before clipping; if that is NaN or infinite, nothing is changed.
    """
    s = settings
    norm = gradient_norm(grads)
    if not math.isfinite(norm):
        return norm
    clip = 1.0 if s.clip_norm is None or norm <= s.clip_norm else s.clip_norm / norm
    rate = s.learning_rate(step) / (1 - s.beta_1**step)
    root = 1 / math.sqrt(1 - s.beta_2**step)
    decay = s.ema if step > 1 else 0.0
    for i in range(0, len(params), _CHUNK):
        chunk = slice(i, i + _CHUNK)
        g = grads[chunk] * clip
        m[chunk] *= s.beta_1
        m[chunk] += (1 - s.beta_1) * g
        g *= g
        v[chunk] *= s.beta_2
        v[chunk] += (1 - s.beta_2) * g
        denominator = np.sqrt(v[chunk], out=g)
        denominator *= root
        denominator += s.epsilon
        delta = np.divide(m[chunk], denominator, out=g)
        delta *= rate
        params[chunk] -= delta
        ema[chunk] *= decay
        ema[chunk] += (1 - decay) * params[chunk]
    return norm

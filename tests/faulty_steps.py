"""Backends with one fault each in the random numbers, the update, noising or the reverse step."""

from dataclasses import replace
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule


class WrongNormal(Backend):
    """A stream of NumPy's own."""

    def normal(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return np.random.default_rng([seed, step]).standard_normal((len(samples), *shape), dtype=np.float32)


class LastBit(Backend):
    """One number of a thousand off in its last bit."""

    def uniform(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        u = super().uniform(seed, purpose, step, samples, shape, layer=layer)
        u.reshape(-1)[::1000] = np.nextafter(u.reshape(-1)[::1000], np.float32(2))
        return u


class OnePurpose(Backend):
    """All numbers are those of ε."""

    def uniform(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return super().uniform(seed, Purpose.EPS, step, samples, shape, layer=layer)


class OnePurposeOfNormals(Backend):
    """All normals are those of ε."""

    def normal(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return super().normal(seed, Purpose.EPS, step, samples, shape, layer=layer)


class ShortSteps(Backend):
    """The step is a 16-bit number."""

    def normal(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return super().normal(seed, purpose, step & 0xFFFF, samples, shape, layer=layer)


class ShortSeeds(Backend):
    """The seed is a 32-bit number."""

    def uniform(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return super().uniform(seed & 0xFFFFFFFF, purpose, step, samples, shape, layer=layer)


class NoEpsilon(Backend):
    """Adam's ε is what it usually is."""

    def update(self, params: Any, grads: Any, m: Any, v: Any, ema: Any, step: int, settings: Any) -> float:
        return super().update(params, grads, m, v, ema, step, replace(settings, epsilon=1e-8))


class OneSchedule(Backend):
    """Noising by the paper's schedule, whichever is given."""

    def q_sample(self, schedule: Any, x_0: Any, t: Any, seed: int, step: int, samples: Any) -> Any:
        return super().q_sample(Schedule.linear(), x_0, t, seed, step, samples)


class OneScheduleBack(Backend):
    """The reverse step by the paper's schedule, whichever is given."""

    def p_sample(self, schedule: Any, x_t: Any, t: int, output: Any, seed: int, samples: Any, *, predicts: str = "eps",
                 var: Any = "beta", clip: bool = False, temperature: float = 1.0) -> Any:  # fmt: skip
        how: Any = dict(predicts=predicts, var=var, clip=clip, temperature=temperature)
        return super().p_sample(Schedule.linear(), x_t, t, output, seed, samples, **how)


class NoClipping(Backend):
    """The gradient's norm is returned and not used."""

    def update(self, params: Any, grads: Any, m: Any, v: Any, ema: Any, step: int, settings: Any) -> float:
        return super().update(params, grads, m, v, ema, step, replace(settings, clip_norm=None))


class UpdatesWithNan(Backend):
    """m is changed before the norm is known."""

    def update(self, params: Any, grads: Any, m: Any, v: Any, ema: Any, step: int, settings: Any) -> float:
        norm = super().update(params, grads, m, v, ema, step, settings)
        if not np.isfinite(norm):
            m *= 0.9
        return norm


class OtherNoise(Backend):
    """z of the step before."""

    def p_sample(self, schedule: Any, x_t: Any, t: int, output: Any, seed: int, samples: Any, *, predicts: str = "eps",
                 var: Any = "beta", clip: bool = False, temperature: float = 1.0) -> Any:  # fmt: skip
        how: Any = dict(predicts=predicts, var=var, clip=clip, temperature=temperature)
        return super().p_sample(schedule, x_t, t, output, seed + (t == 2), samples, **how)


class NoiseTwice(Backend):
    """ε is not what made x_t."""

    def q_sample(self, schedule: Any, x_0: Any, t: Any, seed: int, step: int, samples: Any) -> Any:
        x_t, _ = super().q_sample(schedule, x_0, t, seed, step, samples)
        return x_t, super().q_sample(schedule, x_0, t, seed, step + 1, samples)[1]


FAULTS: dict[type[Backend], str] = {
    WrongNormal: r"^normal of 4 images of shape \(3, 5\), layer 0: 100.00% of the numbers differ",
    LastBit: r"^uniform of 9 images of shape \(32, 32, 3\), layer 0: 0\.10% of the numbers differ",
    OnePurpose: r"^uniform of 4 images of shape \(5,\), layer 0, seed 5, DROPOUT, step 65539: 100.00% of the numbers",
    OnePurposeOfNormals: r"^normal of 4 images of shape \(5,\), layer 0, seed 5, DROPOUT, step 65539: 100.00% of",
    ShortSteps: r"^normal of 4 images of shape \(5,\), layer 0, seed 4294967301, Z, step 4294967295: 100.00% of",
    ShortSeeds: r"^uniform of 4 images of shape \(5,\), layer 0, seed 4294967301, Z, step 4294967295: 100.00% of",
    NoEpsilon: r"^update of 75 numbers, step 4, float64, clip_norm 1.0: params: off by",
    OneSchedule: r"^q_sample of \(5, 4, 3, 2\) float64, cosine schedule of 400 steps: x_t: off by",
    OneScheduleBack: r"^p_sample of \(5, 4, 3, 2\) float32, t = 400, .*, cosine schedule of 400 steps: x_\(t-1\): off",
    NoClipping: r"^update of 200003 numbers, step 12, float32, clip_norm 0\.5: params: off by",
    UpdatesWithNan: r"^update with nan in the gradient, float64: m was changed",
    OtherNoise: r"^p_sample of \(5, 3, 5, 3\) float32, t = 2, .*: x_\(t-1\): off by",
    NoiseTwice: r"^q_sample of \(5, 3, 5, 3\) float32: ε: off by",
}
"""What `check_backend` says of each."""

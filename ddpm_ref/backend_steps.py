"""What a backend must keep of the steps around the network: the update, noising, the reverse step, random numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ddpm_ref import random, reverse
from ddpm_ref.backend import Backend
from ddpm_ref.backend_bounds import tolerance
from ddpm_ref.backend_cases import compared, normals
from ddpm_ref.checks import Array
from ddpm_ref.forward import posterior_coefficients
from ddpm_ref.nn import optim
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule, Table

SAMPLES = (3, 0, 2**32 - 1, 7)
"""Places of images: in no order, and the largest there is."""


def check_random(
    backend: Backend,
    name: str,
    samples: Sequence[int],
    shape: tuple[int, ...],
    *,
    seed: int = 2**63 + 5,
    purpose: Purpose = Purpose.EPS,
    step: int = 3,
    layer: int = 0,
) -> float:
    """`normal` or `uniform` gives the bits of ddpm_ref.random, for all images at once and for any of them alone."""
    label = f"{name} of {len(samples)} images of shape {shape}, layer {layer}"
    if (seed, purpose, step) != (2**63 + 5, Purpose.EPS, 3):
        label += f", seed {seed}, {purpose.name}, step {step}"
    draw, ids = getattr(backend, name), np.asarray(samples)
    wanted = getattr(random, name)(seed, purpose, step, ids, shape, layer=layer)
    whole = backend.to_host(draw(seed, purpose, step, ids, shape, layer=layer))
    compared(label, whole, wanted, np.full(wanted.shape, np.inf), np.float32)
    bits = (whole.view(np.uint32) != wanted.view(np.uint32)).mean() if wanted.size else 0.0
    assert not bits, f"{label}: {bits:.2%} of the numbers differ from ddpm_ref.random.{name} in some bit"
    for cut in range(1, len(samples)):
        parts = [
            backend.to_host(draw(seed, purpose, step, part, shape, layer=layer)) for part in (ids[:cut], ids[cut:])
        ]
        split = np.concatenate(parts)
        assert split.tobytes() == whole.tobytes(), f"{label}: other bits when drawn as {cut} and the rest"
    return 0.0


def _places(n: int) -> Array:
    """So many different places of images."""
    return np.array([SAMPLES[i] if i < len(SAMPLES) else 100 + i for i in range(n)])


def _named(schedule: Schedule | None) -> str:
    return f", {schedule.name} schedule of {schedule.T} steps" if schedule else ""


def _five(vectors: Iterable[Array]) -> tuple[Array, Array, Array, Array, Array]:
    params, grads, m, v, ema = vectors
    return params, grads, m, v, ema


def check_update(
    backend: Backend, size: int, step: int, settings: optim.AdamSettings, dtype: Any = np.float32, seed: int = 0
) -> float:
    """`update` does what `optim.update` does to params, m, v and ema, and leaves grads alone.

    Allowed: `tolerance` times the sums of magnitudes that each formula adds up.
    """
    label = f"update of {size} numbers, step {step}, {np.dtype(dtype).name}, clip_norm {settings.clip_norm}"
    start: list[Array] = [a.astype(dtype) for a in normals(seed, *[(size,)] * 5)]
    start[3] = np.square(start[3])
    wanted = _five(a.astype(np.float64) for a in start)
    norm = optim.update(*wanted, step, settings)
    found = _five(backend.to_device(a.copy()) for a in start)
    got_norm = backend.update(*found, step, settings)
    params, grads, m, _, ema = (np.abs(a.astype(np.float64)) for a in start)
    s, tol = settings, tolerance(dtype)
    g = grads * min(1.0, (s.clip_norm or np.inf) / norm)
    of_m = s.beta_1 * m + (1 - s.beta_1) * g
    rate = s.learning_rate(step) / (1 - s.beta_1**step)
    delta = rate * of_m / (np.sqrt(wanted[3] / (1 - s.beta_2**step)) + s.epsilon)
    of_params = params + delta
    decay = s.ema if step > 1 else 0.0
    allowed = [of_params, 0 * g, of_m, wanted[3], decay * ema + (1 - decay) * of_params]
    worst = compared(f"{label}: the norm", np.array(got_norm), np.array(norm), np.array(tol * norm), np.float64)
    for name, a, b, most in zip(("params", "grads", "m", "v", "ema"), found, wanted, allowed, strict=True):
        worst = max(worst, compared(f"{label}: {name}", backend.to_host(a), b, tol * most, dtype))
    again = _five(backend.to_device(a.copy()) for a in start)
    backend.update(*again, step, settings)
    same = all(backend.to_host(a).tobytes() == backend.to_host(b).tobytes() for a, b in zip(found, again, strict=True))
    assert same, f"{label}: the same call gave other bits"
    return worst


def check_update_refuses(backend: Backend, bad: float, dtype: Any = np.float32) -> float:
    """A gradient that is not finite is reported as its norm and changes nothing."""
    label = f"update with {bad} in the gradient, {np.dtype(dtype).name}"
    start = [np.abs(a).astype(dtype) for a in normals(0, *[(70,)] * 5)]
    start[1][33] = bad
    found = _five(backend.to_device(a.copy()) for a in start)
    with np.errstate(all="ignore"):
        norm = backend.update(*found, 2, optim.AdamSettings())
    assert not np.isfinite(norm), f"{label}: returned {norm}"
    for name, a, b in zip(("params", "grads", "m", "v", "ema"), found, start, strict=True):
        assert backend.to_host(a).tobytes() == b.tobytes(), f"{label}: {name} was changed"
    return 0.0


def check_q_sample(
    backend: Backend,
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    one_t: bool = False,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> float:
    """`q_sample` gives ε of the stream and x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, by the paper's schedule unless given."""
    label = f"q_sample of {shape} {np.dtype(dtype).name}" + ", one t" * one_t + _named(schedule)
    schedule, n = schedule or Schedule.linear(), shape[0]
    x_0 = normals(seed, shape)[0].astype(dtype)
    T = schedule.T
    t: Any = 7 * T // 10 if one_t else np.array([1, T, 37, T // 2, 2])[np.arange(n) % 5]
    samples = _places(n)
    given = backend.to_device(x_0.copy())
    x_t, eps = (backend.to_host(a) for a in backend.q_sample(schedule, given, t, seed, 9, samples))
    noise = random.normal(seed, Purpose.EPS, 9, samples, shape[1:]).astype(np.float64)
    compared(f"{label}: ε", eps, noise, 0 * noise, dtype)
    abar = np.broadcast_to(schedule.alpha_bar[t], (n,)).reshape(-1, *[1] * (len(shape) - 1))
    a, b = np.sqrt(abar) * x_0.astype(np.float64), np.sqrt(1 - abar) * noise
    worst = compared(f"{label}: x_t", x_t, a + b, tolerance(dtype) * (np.abs(a) + np.abs(b)), dtype)
    assert np.array_equal(backend.to_host(given), x_0), f"{label}: x_0 was changed"
    return worst


def check_p_sample(
    backend: Backend,
    shape: tuple[int, ...],
    t: int,
    dtype: Any = np.float32,
    *,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
    temperature: float = 1.0,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> float:
    """`p_sample` gives x_{t-1} and x̂_0 of `reverse.p_sample` with z of the stream, none at t = 1.

    schedule: the paper's unless given.
    Allowed: `tolerance` times the magnitudes of x̂_0's terms, of the mean's with this x̂_0, and of σ_t z.
    """
    learned = isinstance(var, str) and var == "learned"
    kind = "a table" if not isinstance(var, str) else var
    label = f"p_sample of {shape} {np.dtype(dtype).name}, t = {t}, predicts {predicts}, var {kind}, clip {clip}"
    label, schedule = label + _named(schedule), schedule or Schedule.linear()
    x_t, output, log_var = (a.astype(dtype) for a in normals(seed, *[shape] * 3))
    samples = _places(shape[0])
    output = np.concatenate([output, -np.abs(log_var)], axis=-1) if learned else output
    how: dict[str, Any] = {"predicts": predicts, "var": var, "clip": clip, "temperature": temperature}
    given = [backend.to_device(a.copy()) for a in (x_t, output)]
    found = [backend.to_host(a) for a in backend.p_sample(schedule, given[0], t, given[1], seed, samples, **how)]
    z = random.normal(seed, Purpose.Z, t, samples, shape[1:]).astype(np.float64) if t > 1 else None
    exact = x_t.astype(np.float64), t, output.astype(np.float64)
    wanted = reverse.p_sample(schedule, *exact, z, **how)
    allowed = [tolerance(dtype) * m for m in _of_p_sample(schedule, *exact, z, how)]
    names = ("x_(t-1)", "x_0 predicted")
    worst = max(
        compared(f"{label}: {name}", a, b, most, dtype)
        for name, a, b, most in zip(names, found, wanted, allowed, strict=True)
    )
    for name, a, b in zip(("x_t", "output"), given, (x_t, output), strict=True):
        assert np.array_equal(backend.to_host(a), b), f"{label}: {name} was changed"
    return worst


def _of_p_sample(
    schedule: Schedule, x_t: Array, t: int, output: Array, z: Array | None, how: dict[str, Any]
) -> list[Array]:
    """The magnitudes of x_{t-1} and of x̂_0, by the slopes of x̂_0 in x_t and in the output."""
    output, log_var = reverse.split_output(output, how["var"])
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    slopes = [
        abs(reverse.output_to_x_0(schedule, *(a, t, b), how["predicts"])[0, 0]) for a, b in ((one, zero), (zero, one))
    ]
    x_0 = slopes[0] * np.abs(x_t) + slopes[1] * np.abs(output)
    c_0, c_t = posterior_coefficients(schedule, t)
    mean = abs(c_0) * x_0 + abs(c_t) * np.abs(x_t) + np.abs(output) * (how["predicts"] == "mu")
    if z is None:
        return [mean, x_0]
    sigma2 = reverse.reverse_variance(schedule, how["var"])[t] if log_var is None else np.exp(log_var)
    log_size = 1 if log_var is None else 1 + np.abs(log_var)
    return [mean + how["temperature"] * np.sqrt(sigma2) * np.abs(z) * log_size, x_0]

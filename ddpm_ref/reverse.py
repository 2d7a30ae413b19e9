"""The reverse process p_θ: parametrisations, σ_t² and Algorithm 2 (§3.2; Eqs. 1, 11)."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array, Steps, check_choice, check_finite, check_int, check_same_shape, check_step
from ddpm_ref.forward import (
    check_eps_predictable,
    per_image,
    posterior_coefficients,
    predict_eps,
    predict_x_0,
    q_posterior,
)
from ddpm_ref.schedule import Schedule, Table

PARAMETRISATIONS = ("eps", "x_0", "mu", "v")
"""What a network may predict: ε, x_0, the mean of x_{t-1} (μ̃), or v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022)."""

Model = Callable[[Array, Steps], Array]
"""model(x_t, t) -> the network's output; samplers call it with one integer t for the whole batch."""

Noise = Callable[[int], Array]
"""noise(t) -> standard normals of the images' shape."""

ReverseMove = Callable[[Array, int, Array], tuple[Array, Array]]
"""move(x_t, t, output) -> x_{t-1}, x̂_0: line 4 of Algorithm 2, noise included."""


def p_mean(schedule: Schedule, x_t: Array, t: Steps, eps: Array) -> Array:
    """The mean of p_θ(x_{t-1} | x_t) of a network that predicts ε (Eq. 11).

        μ_θ = (x_t - β_t / √(1 - ᾱ_t) ε_θ) / √α_t

    x_t: (N, ...) float.  eps: the same shape, the network's ε_θ(x_t, t).
    """
    check_same_shape(x_t=x_t, eps=eps)
    check_step(schedule.T, t, x_t)
    slope = mean_slope(schedule, t, "eps")
    return per_image(1 / np.sqrt(schedule.alpha[t]), x_t) * x_t + per_image(slope, x_t) * eps


# --- what the network predicts ---------------------------------------------------------------------------------------


def output_to_x_0(schedule: Schedule, x_t: Array, t: Steps, output: Array, predicts: str = "eps") -> Array:
    """The x̂_0 that a network's output stands for.

        "eps"   (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t  (Eq. 15)       "x_0"   the output itself
        "mu"    (μ - c_t x_t) / c_0  (Eq. 7)                "v"     √ᾱ_t x_t - √(1 - ᾱ_t) v

    with c_0, c_t of `posterior_coefficients`.
    x_t, output: (N, ...) float.  Raises ValueError where x_0 cannot be had from ε or μ (ᾱ_t or ᾱ_{t-1} is 0).
    """
    check_choice("predicts", predicts, PARAMETRISATIONS)
    if predicts == "eps":
        return predict_x_0(schedule, x_t, t, output)
    check_same_shape(x_t=x_t, output=output)
    check_step(schedule.T, t, x_t)
    if predicts == "x_0":
        return output
    if predicts == "mu":
        c_0, c_t = posterior_coefficients(schedule, t)
        if not np.all(c_0):
            raise ValueError(
                f"t: alpha_bar_(t-1) = 0 in schedule {schedule.name!r}, where a mean of x_(t-1) cannot give x_0"
            )
        return per_image(1 / c_0, x_t) * output - per_image(c_t / c_0, x_t) * x_t
    abar = schedule.alpha_bar[t]
    return per_image(np.sqrt(abar), x_t) * x_t - per_image(np.sqrt(1 - abar), x_t) * output


def output_from_x_0(schedule: Schedule, x_t: Array, t: Steps, x_0: Array, predicts: str = "eps") -> Array:
    """What the network should have put out for this x_0: the inverse of `output_to_x_0`."""
    check_choice("predicts", predicts, PARAMETRISATIONS)
    check_same_shape(x_t=x_t, x_0=x_0)
    if predicts == "x_0":
        return x_0
    if predicts == "mu":
        return q_posterior(schedule, x_0, x_t, t)[0]
    eps = predict_eps(schedule, x_t, t, x_0)
    if predicts == "eps":
        return eps
    abar = schedule.alpha_bar[t]
    return per_image(np.sqrt(abar), x_t) * eps - per_image(np.sqrt(1 - abar), x_t) * x_0


def mean_slope(schedule: Schedule, t: Steps, predicts: str = "eps") -> Array:
    """d μ_θ / d output: how far the reverse mean moves with what the network predicts; float64, shaped as t.

        "eps"  -β_t / √(α_t (1 - ᾱ_t))  (Eq. 11)     "mu"  1     "x_0"  c_0 (Eq. 7)     "v"  -c_0 √(1 - ᾱ_t)

    Its square over 2σ_t² is the weight of Eq. 12.
    """
    check_choice("predicts", predicts, PARAMETRISATIONS)
    check_step(schedule.T, t, np.asarray(t))
    beta, alpha, abar = schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]
    if predicts == "eps":
        check_eps_predictable(schedule, t)
        return -beta / np.sqrt(alpha * (1 - abar))
    if predicts == "mu":
        return np.ones_like(beta)
    c_0 = posterior_coefficients(schedule, t)[0]
    return c_0 if predicts == "x_0" else -c_0 * np.sqrt(1 - abar)


def split_output(output: Array, var: str | Table) -> tuple[Array, Array | None]:
    """A network's output as (prediction, log σ_t²): with var="learned" the second half of the channels is log σ_t²."""
    if not _is_learned(var):
        return output, None
    if output.shape[-1] % 2:
        raise ValueError(f'output: var="learned" wants twice the channels of x_t, got shape {output.shape}')
    half = output.shape[-1] // 2
    return output[..., :half], output[..., half:]


# --- σ_t² ------------------------------------------------------------------------------------------------------------


def reverse_variance(schedule: Schedule, var: str | Table = "beta") -> Table:
    """The fixed σ_t² as a table of T+1 (§3.2): "beta" (β_t), "beta_tilde" (β̃_t), or a table of the user's.

    With β̃_1 = 0, L_0 would be infinite; the released code puts β̃_2 at t = 1 for both choices, and so does this. (T = 1
    has no β̃_2; there it is β_1.) Sampling does not see it: z = 0 at t = 1.
    """
    if isinstance(var, str):
        check_choice("var", var, ("beta", "beta_tilde"))
        table = (schedule.beta if var == "beta" else schedule.beta_tilde).copy()
        table[1] = schedule.beta_tilde[2] if schedule.T > 1 else schedule.beta[1]
        return table
    table = np.asarray(var, dtype=np.float64)
    if table.shape != (schedule.T + 1,):
        raise ValueError(f"var: wanted a name or a table of T + 1 = {schedule.T + 1} values, got shape {table.shape}")
    if not (np.isfinite(table[1:]) & (table[1:] >= 0)).all():
        raise ValueError("var: wanted finite variances >= 0 for t = 1..T")
    return table


def mixed_variance(schedule: Schedule, weight: float, *, geometric: bool = False) -> Table:
    """σ_t² between the two extremes of §3.2, a table of T+1: weight 1 is β_t, weight 0 is β̃_t.

    linear  w β_t + (1-w) β̃_t        geometric  exp(w log β_t + (1-w) log β̃_t)
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: wanted a number in [0, 1], got {weight}")
    beta, beta_tilde = reverse_variance(schedule, "beta"), reverse_variance(schedule, "beta_tilde")
    if geometric:
        return beta**weight * beta_tilde ** (1 - weight)
    return weight * beta + (1 - weight) * beta_tilde


def _is_learned(var: str | Table) -> bool:
    return isinstance(var, str) and var == "learned"


# --- p_θ(x_{t-1} | x_t) ----------------------------------------------------------------------------------------------


class ReverseStep(NamedTuple):
    """p_θ(x_{t-1} | x_t) = N(mean, diag(var)) and the x̂_0 it rests on."""

    mean: Array
    var: Array
    x_0_hat: Array


def p_mean_var(
    schedule: Schedule,
    x_t: Array,
    t: Steps,
    output: Array,
    *,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
) -> ReverseStep:
    """Mean and variance of p_θ(x_{t-1} | x_t) from a network's output (Eq. 1).

    The mean is Eq. 11 for a network that predicts ε, the output itself for μ, and Eq. 7 at x̂_0 otherwise; with
    clip, x̂_0 is first clipped to [-1, 1] and the mean is always Eq. 7 at it (the released code's sampler).
    x_t: (N, ...) float.  output: the same, or with twice the channels (last axis) for var="learned".
    Returns mean and x_0_hat, shaped as x_t, and var, which broadcasts against them; all in x_t's dtype.
    """
    output, log_var = split_output(output, var)
    x_0_hat = output_to_x_0(schedule, x_t, t, output, predicts)
    if clip:
        x_0_hat = np.clip(x_0_hat, -1, 1)
        mean = q_posterior(schedule, x_0_hat, x_t, t)[0]
    elif predicts == "eps":
        mean = p_mean(schedule, x_t, t, output)
    else:
        mean = output if predicts == "mu" else q_posterior(schedule, x_0_hat, x_t, t)[0]
    sigma2 = per_image(reverse_variance(schedule, var)[t], x_t) if log_var is None else np.exp(log_var)
    return ReverseStep(mean, sigma2, x_0_hat)


# --- Algorithm 2 -----------------------------------------------------------------------------------------------------


def p_sample(
    schedule: Schedule,
    x_t: Array,
    t: int,
    output: Array,
    z: Array | None,
    *,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """One reverse step, x_{t-1} = μ_θ + temperature σ_t z, from the network's output (Algorithm 2, line 4).

    x_t, z: (N, ...) float; z None is z = 0, as at t = 1.  Returns x_{t-1} and x̂_0 in x_t's dtype, whatever z's is.
    """
    step = p_mean_var(schedule, x_t, t, output, predicts=predicts, var=var, clip=clip)
    if z is None:
        return step.mean, step.x_0_hat
    z = np.asarray(z, dtype=x_t.dtype, like=x_t)
    check_same_shape(x_t=x_t, z=z)
    return step.mean + float(temperature) * np.sqrt(step.var) * z, step.x_0_hat


def check_temperature(temperature: float) -> None:
    """ValueError unless it is a finite number >= 0."""
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature: wanted a finite number >= 0, got {temperature}")


def sample_steps(
    schedule: Schedule,
    model: Model,
    x_T: Array,
    noise: Noise,
    *,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
    temperature: float = 1.0,
    start: int | None = None,
    every: int = 1,
) -> Iterator[tuple[int, Array, Array]]:
    """Algorithm 2 as a generator that yields (t, x_t, x̂_0) for t = T … 1 and at last (0, x_0, x_0).

        1  x_T ~ N(0, I)    (the caller's)
        2  for t = T, …, 1:
        3      z ~ N(0, I) if t > 1, else z = 0
        4      x_{t-1} = 1/√α_t (x_t - (1 - α_t)/√(1 - ᾱ_t) ε_θ(x_t, t)) + σ_t z

    Line 4 is μ_θ (Eq. 11) plus noise; `p_mean_var` has the mean of other parametrisations. model(x_t, t) is called with
    one integer t. noise(t) gives z, shaped as x_t, for the step from t to t-1; it is not asked at t = 1.
    temperature multiplies σ_t z alone (scale x_T yourself); clip is the released code's, not the printed algorithm's.
    start: the step that x_T belongs to, T unless told.  every: yield only multiples of it, `start` and 0.
    Raises ValueError before the first step for bad arguments, and at the end if the sample holds NaN or infinity.
    """
    start = schedule.T if start is None else start
    table = check_sampler(schedule, x_T, start, every, predicts=predicts, var=var, temperature=temperature)

    def move(x_t: Array, t: int, output: Array) -> tuple[Array, Array]:
        z = noise(t) if t > 1 else None
        return p_sample(schedule, x_t, t, output, z, predicts=predicts, var=table, clip=clip, temperature=temperature)

    return reverse_chain(model, x_T, move, start, every)


def check_sampler(
    schedule: Schedule,
    x_T: Array,
    start: int,
    every: int,
    *,
    predicts: str,
    var: str | Table,
    temperature: float,
) -> str | Table:
    """The arguments of a sampler, before its first step; returns var as a table, unless it is "learned"."""
    check_int("start", start, 1, schedule.T)
    check_int("every", every, 1)
    check_same_shape(x_T=x_T)
    check_choice("predicts", predicts, PARAMETRISATIONS)
    check_temperature(temperature)
    if predicts == "eps":
        check_eps_predictable(schedule, np.arange(1, start + 1))
    return var if _is_learned(var) else reverse_variance(schedule, var)


def reverse_chain(
    model: Model, x_T: Array, move: ReverseMove, start: int, every: int
) -> Iterator[tuple[int, Array, Array]]:
    """The loop of Algorithm 2, lines 2-4, with line 4 as an argument; yields as `sample_steps`, which checks first."""
    x_t = x_T
    for t in range(start, 0, -1):
        x_prev, x_0_hat = move(x_t, t, model(x_t, t))
        if t % every == 0 or t == start:
            yield t, x_t, x_0_hat
        x_t = x_prev
    check_finite(sample=x_t)
    yield 0, x_t, x_t


def sample(
    schedule: Schedule,
    model: Model,
    x_T: Array,
    noise: Noise,
    *,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
    temperature: float = 1.0,
) -> Array:
    """Algorithm 2 run to its end: x_0 of the shape and dtype of x_T. Arguments and errors as `sample_steps`."""
    steps = sample_steps(
        schedule,
        model,
        x_T,
        noise,
        predicts=predicts,
        var=var,
        clip=clip,
        temperature=temperature,
        every=schedule.T,
    )
    for _t, x_t, _x_0_hat in steps:  # noqa: B007
        pass
    return x_t

"""The forward process q, its posterior, and what x_t says of x_0 (§2, §3.1, §4.3; Eqs. 2, 4, 6, 7, 15).

Images are (N, ...) floats in [-1, 1], results keep their dtype; t is one integer in 1..T or an integer array (N,).
"""

import numpy as np

from ddpm_ref.checks import Array, Steps, check_float, check_same_shape, check_step
from ddpm_ref.schedule import Schedule


def per_image(coefficient: Array, x: Array) -> Array:
    """A float64 coefficient, one number or one per image (N,), in x's dtype and shaped to multiply x."""
    c = np.asarray(coefficient, dtype=x.dtype, like=x)
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim)) if c.ndim else c


def q_step(schedule: Schedule, x_prev: Array, t: Steps, eps: Array) -> Array:
    """One step of the forward process, a draw of q(x_t | x_{t-1}) (Eq. 2).

        x_t = √(1 - β_t) x_{t-1} + √β_t ε

    x_prev, eps: (N, ...) float, eps ~ N(0, I).  Returns x_t.
    """
    check_same_shape(x_prev=x_prev, eps=eps)
    check_step(schedule.T, t, x_prev)
    beta = schedule.beta[t]
    return per_image(np.sqrt(1 - beta), x_prev) * x_prev + per_image(np.sqrt(beta), x_prev) * eps


def q_mean_var(schedule: Schedule, x_0: Array, t: Steps) -> tuple[Array, Array]:
    """Mean and variance of q(x_t | x_0) (Eq. 4): √ᾱ_t x_0, and 1 - ᾱ_t.

    Returns mean, shaped as x_0, and var, (N, 1, ...), or one number if t is one integer.
    """
    check_float(x_0=x_0)
    check_step(schedule.T, t, x_0)
    abar = schedule.alpha_bar[t]
    return per_image(np.sqrt(abar), x_0) * x_0, per_image(1 - abar, x_0)


def q_sample(schedule: Schedule, x_0: Array, t: Steps, eps: Array) -> Array:
    """t steps of the forward process at once, a draw of q(x_t | x_0) (Eq. 4).

        x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε

    x_0, eps: (N, ...) float, eps ~ N(0, I).  Returns x_t.
    """
    check_same_shape(x_0=x_0, eps=eps)
    check_step(schedule.T, t, x_0)
    abar = schedule.alpha_bar[t]
    return per_image(np.sqrt(abar), x_0) * x_0 + per_image(np.sqrt(1 - abar), x_0) * eps


def posterior_coefficients(schedule: Schedule, t: Steps) -> tuple[Array, Array]:
    """c_0 and c_t of the posterior mean μ̃_t = c_0 x_0 + c_t x_t (Eq. 7), float64, shaped as t.

        c_0 = √ᾱ_{t-1} β_t / (1 - ᾱ_t)      c_t = √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t)

    At t = 1 they are 1 (up to rounding) and 0: ᾱ_0 = 1 says so, no branch needed.
    """
    t = np.asarray(t)
    beta, alpha = schedule.beta[t], schedule.alpha[t]
    abar, abar_prev = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    return np.sqrt(abar_prev) * beta / (1 - abar), np.sqrt(alpha) * (1 - abar_prev) / (1 - abar)


def q_posterior(schedule: Schedule, x_0: Array, x_t: Array, t: Steps) -> tuple[Array, Array]:
    """Mean and variance of q(x_{t-1} | x_t, x_0), the target of each reverse step (Eqs. 6-7).

        mean = √ᾱ_{t-1} β_t / (1 - ᾱ_t) x_0  +  √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) x_t
        var  = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t

    x_0, x_t: (N, ...) float.  Returns mean, shaped as x_t, and var, (N, 1, ...), or one number if t is one integer.
    """
    check_same_shape(x_t=x_t, x_0=x_0)
    check_step(schedule.T, t, x_t)
    c_0, c_t = posterior_coefficients(schedule, t)
    return per_image(c_0, x_t) * x_0 + per_image(c_t, x_t) * x_t, per_image(schedule.beta_tilde[t], x_t)


def predict_x_0(schedule: Schedule, x_t: Array, t: Steps, eps: Array) -> Array:
    """The x_0 that x_t came from if its noise was ε: Eq. 4 solved for x_0 (Eq. 15).

        x̂_0 = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t

    x_t: (N, ...) float.  eps: the same shape, the true ε or the network's ε_θ(x_t, t).  Returns x̂_0, not clipped.
    Raises ValueError where ᾱ_t = 0 (the end of `jsd`): x_t is then pure noise and says nothing of x_0.
    """
    check_same_shape(x_t=x_t, eps=eps)
    check_step(schedule.T, t, x_t)
    check_eps_predictable(schedule, t)
    abar = schedule.alpha_bar[t]
    # √ᾱ divides in float64 and multiplies in x_t's dtype: one rounding less than dividing the arrays.
    return per_image(1 / np.sqrt(abar), x_t) * x_t - per_image(np.sqrt(1 - abar) / np.sqrt(abar), x_t) * eps


def predict_eps(schedule: Schedule, x_t: Array, t: Steps, x_0: Array) -> Array:
    """The noise that takes x_0 to x_t: Eq. 4 solved for ε.

    ε = (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t)
    """
    check_same_shape(x_t=x_t, x_0=x_0)
    check_step(schedule.T, t, x_t)
    abar = schedule.alpha_bar[t]
    noise = np.sqrt(1 - abar)
    return per_image(1 / noise, x_t) * x_t - per_image(np.sqrt(abar) / noise, x_t) * x_0


def check_eps_predictable(schedule: Schedule, t: Steps) -> None:
    """ValueError where ᾱ_t = 0, naming the cause: there no prediction of ε gives x_0 or the reverse mean."""
    steps = np.atleast_1d(np.asarray(t))
    lost = steps[schedule.alpha_bar[steps] == 0]
    if lost.size:
        first = int(np.argmax(schedule.beta == 1))
        raise ValueError(
            f"t = {lost.min()}: alpha_bar_t = 0 in schedule {schedule.name!r} (beta_{first} = 1), so x_t is pure noise "
            "and a prediction of eps cannot give x_0 there; predict 'x_0' or 'v', or use a schedule with beta_T < 1"
        )

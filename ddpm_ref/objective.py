"""What Algorithm 1 descends: L_simple and the variational bound, each with its gradient (§3.2-3.4; Eqs. 8-10, 12, 14).

One kind of thing is passed around, `Losses`: the loss of every image and its gradient with respect to the network's
output. Errors make it (`squared_error`, `absolute_error`, `huber_error`, `bound_term`), conversions change it
(`weighted`, `combine`, `log_variance_weighted`), and `batch_mean` ends it. So L_simple weighted as in Eq. 12 is

    batch_mean(weighted(squared_error(output, eps), bound_weights(schedule)[t]))

The paper's ‖·‖² is a sum; here all losses are means over an image's D elements, so that bounds are in nats per
dimension. (The scale matters to the clipping of the gradient.) Losses are float64; gradients keep the output's dtype.
The paper's own choices are the squared error with weight 1 (L_simple) and the bound; the rest are later ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array, Steps, check_choice, check_float, check_int, check_same_shape, check_step
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.forward import per_image, q_posterior
from ddpm_ref.gaussian import normal_kl
from ddpm_ref.reverse import (
    PARAMETRISATIONS,
    mean_slope,
    output_from_x_0,
    p_mean_var,
    reverse_variance,
    split_output,
)
from ddpm_ref.schedule import Schedule, Table


class Losses(NamedTuple):
    """The loss of each image, (N,) float64, and its own gradient, d loss_n / d output_n, shaped as the output."""

    per_image: Array
    d_output: Array


Error = Callable[[Array, Array], Losses]


def _mean_per_image(values: Array) -> Array:
    return values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)


def _elements(x: Array) -> int:
    return int(np.prod(x.shape[1:]))


# --- errors ----------------------------------------------------------------------------------------------------------


def squared_error(output: Array, target: Array) -> Losses:
    """r², r = output - target, the mean over each image (Eq. 14); gradient 2r / D."""
    check_same_shape(output=output, target=target)
    r = output - target
    return Losses(_mean_per_image(r * r), r * (2 / _elements(r)))


def absolute_error(output: Array, target: Array) -> Losses:
    """|r|, the mean over each image; gradient sign(r) / D, 0 at r = 0."""
    check_same_shape(output=output, target=target)
    r = output - target
    return Losses(_mean_per_image(np.abs(r)), np.sign(r) * (1 / _elements(r)))


def huber_error(output: Array, target: Array, delta: float = 1.0) -> Losses:
    """½r² for |r| ≤ δ, δ(|r| - δ/2) beyond, the mean over each image; gradient clip(r, ±δ) / D."""
    if not delta > 0:
        raise ValueError(f"delta: wanted a number > 0, got {delta}")
    check_same_shape(output=output, target=target)
    r = output - target
    slope = np.clip(r, -delta, delta)
    return Losses(_mean_per_image(slope * (r - slope / 2)), slope * (1 / _elements(r)))


ERRORS: dict[str, Error] = {"squared": squared_error, "l1": absolute_error, "huber": huber_error}


def bound_term(
    schedule: Schedule,
    x_0: Array,
    x_t: Array,
    t: Steps,
    output: Array,
    *,
    levels: int,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
) -> Losses:
    """The term of the bound that belongs to each image's own t, in nats per dimension (Eq. 5).

        t > 1   L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t))
        t = 1   L_0 = -log p_θ(x_0 | x_1)  (Eq. 13)

    One drawn term, not multiplied by T: T times its mean over t, plus L_T, estimates L.
    x_0, x_t: (N, ...) float, x_0 on a grid of `levels` grey levels.
    output: as x_t, or twice its channels (var="learned").
    Computed in float64. With clip, x̂_0 is clipped first and no gradient flows where it was.
    """
    check_same_shape(x_t=x_t, x_0=x_0)
    check_float(output=output)
    x_0, x_t, y = (np.asarray(a, dtype=np.float64) for a in (x_0, x_t, output))
    check_step(schedule.T, t, x_t)
    check_int("levels", levels, 2)
    steps = np.broadcast_to(np.asarray(t), (len(x_t),))
    fixed = var if isinstance(var, str) and var == "learned" else reverse_variance(schedule, var)
    if not isinstance(fixed, str) and not (fixed[1:] > 0).all():
        raise ValueError("var: the bound wants every sigma_t^2 > 0, since it divides by them")
    step = p_mean_var(schedule, x_t, steps, y, predicts=predicts, var=fixed, clip=clip)
    # A learned variance that underflows gives an infinite loss, which training reports; it is no bad argument.
    mean, var_p = step.mean, np.maximum(np.broadcast_to(step.var, x_t.shape), np.finfo(np.float64).tiny)

    # Images at t = 1 and at t > 1 are computed apart: the KL at t = 1 would need log β̃_1 = log 0.
    loss, d_mean, d_var = np.empty_like(x_t), np.empty_like(x_t), np.empty_like(x_t)
    last = steps == 1
    rest = ~last if last.any() else slice(None)  # in training t = 1 is rare, and a slice copies nothing
    if last.any():
        log_p, backward = discretized_gaussian_log_likelihood(x_0[last], mean[last], var_p[last], levels)
        loss[last], (d_mean[last], d_var[last]) = -log_p, backward(np.full_like(log_p, -1))
    mean_q, var_q = q_posterior(schedule, x_0[rest], x_t[rest], steps[rest])
    gap, sigma2 = mean[rest] - mean_q, var_p[rest]
    loss[rest] = normal_kl(mean_q, var_q, mean[rest], sigma2)
    d_mean[rest], d_var[rest] = gap / sigma2, 0.5 * (1 - (var_q + gap * gap) / sigma2) / sigma2

    d_prediction = d_mean * per_image(mean_slope(schedule, steps, predicts), x_t)
    if clip:
        d_prediction = d_prediction * (np.abs(step.x_0_hat) < 1)
    # The network gives log σ_t², and d/d log σ² = σ² d/dσ².
    parts = [d_prediction] if split_output(y, var)[1] is None else [d_prediction, d_var * var_p]
    d_output = np.concatenate(parts, axis=-1) / _elements(x_t)
    return Losses(_mean_per_image(loss), d_output.astype(output.dtype))


# --- conversions -----------------------------------------------------------------------------------------------------


def bound_weights(schedule: Schedule, predicts: str = "eps", var: str | Table = "beta") -> Table:
    """The weights of ‖target - output‖² in L_{t-1} - C, in nats: a table of T+1 (Eqs. 8, 12).

        "mu"   1 / (2σ_t²)  (Eq. 8)        "eps"  β_t² / (2σ_t² α_t (1 - ᾱ_t))  (Eq. 12)
        "x_0"  c_0² / (2σ_t²)              "v"    c_0² (1 - ᾱ_t) / (2σ_t²)

    C is what does not depend on θ; at t = 1, σ_1² is that of `reverse_variance`.
    Times the mean over elements (what the errors here give) they are nats per dimension. L_simple sets them to 1.
    """
    t = np.arange(1, schedule.T + 1)
    sigma2 = reverse_variance(schedule, var)[1:]
    if not (sigma2 > 0).all():
        raise ValueError("var: the weights of the bound want every sigma_t^2 > 0, since they divide by them")
    return np.concatenate([[0.0], mean_slope(schedule, t, predicts) ** 2 / (2 * sigma2)])


def weighted(losses: Losses, weight: Array) -> Losses:
    """Each image's loss times its weight, one number or (N,)."""
    return Losses(losses.per_image * weight, losses.d_output * per_image(weight, losses.d_output))


def combine(*parts: tuple[float, Losses]) -> Losses:
    """The weighted sum of losses of one output, as w_simple · L_simple + w_elbo · L_{t-1}."""
    per_image_sum = sum(w * losses.per_image for w, losses in parts)
    return Losses(per_image_sum, sum(losses.d_output * losses.d_output.dtype.type(w) for w, losses in parts))


def log_variance_weighted(losses: Losses, log_variance: Array, t: Steps) -> tuple[Losses, Array]:
    """ℓ e^{-s_t} + s_t with a learned s_t for each step, a table of T+1; also d / d s_t of each image, (N,).

    At its optimum s_t = log E[ℓ_t]: every t's loss is divided by its own mean (an option of latent diffusion's code).
    """
    check_step(len(log_variance) - 1, t, losses.per_image)
    s = np.asarray(log_variance, dtype=np.float64)[t]
    scale = np.exp(-s)
    scaled = weighted(losses, scale)
    return Losses(scaled.per_image + s, scaled.d_output), 1 - losses.per_image * scale


def widened(losses: Losses, output: Array) -> Losses:
    """The same losses of an output that also has log-variance channels, on which they do not depend."""
    extra = output.shape[-1] - losses.d_output.shape[-1]
    d = np.pad(losses.d_output, [(0, 0)] * (output.ndim - 1) + [(0, extra)]) if extra else losses.d_output
    return Losses(losses.per_image, d)


def batch_mean(losses: Losses) -> tuple[float, Array]:
    """The mean over the batch, and its gradient."""
    return float(losses.per_image.mean()), losses.d_output * (1 / len(losses.per_image))


def simple_loss(output: Array, target: Array) -> tuple[float, Array]:
    """L_simple (Eq. 14): the mean of (target - output)² over all elements, and its gradient.

    output, target: (N, ...) float; the target is ε unless the network predicts something else.
    """
    return batch_mean(squared_error(output, target))


# --- the objective of a training run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What one training run minimises: w_simple · error(output, target) · weight_t + w_elbo · L_{t-1}.

    L_{t-1} is `bound_term` in nats per dimension, not multiplied by T: over uniform t its mean is (L - L_T) / T.

    predicts: "eps", "x_0", "mu" or "v".  var: "beta", "beta_tilde" or "learned" (needs w_elbo > 0: only L sees σ_t²).
    error: "squared", "l1" or "huber".  weight: "simple" (1) or "bound" (Eq. 12).
    learned_weights: each t's loss is divided by e^{s_t} with s_t learned (`log_variance_weighted`).

    The rows of Table 2: L_simple is the default; L with fixed Σ is w_simple=0, w_elbo=1; with learned Σ, also
    var="learned". Those of μ̃: the same with predicts="mu", L_simple being its unweighted MSE. The paper found two of
    the six unstable: μ̃ with the MSE, and ε with learned Σ.
    """

    predicts: str = "eps"
    var: str = "beta"
    error: str = "squared"
    weight: str = "simple"
    w_simple: float = 1.0
    w_elbo: float = 0.0
    learned_weights: bool = False

    def __post_init__(self) -> None:
        check_choice("predicts", self.predicts, PARAMETRISATIONS)
        check_choice("var", self.var, ("beta", "beta_tilde", "learned"))
        check_choice("error", self.error, ERRORS)
        check_choice("weight", self.weight, ("simple", "bound"))
        if self.w_simple < 0 or self.w_elbo < 0 or not self.w_simple + self.w_elbo > 0:
            raise ValueError(f"w_simple, w_elbo: wanted >= 0 and not both 0, got {self.w_simple} and {self.w_elbo}")
        if self.var == "learned" and (self.w_elbo == 0 or (self.weight == "bound" and self.w_simple > 0)):
            raise ValueError(
                'var: "learned" wants w_elbo > 0 and weight "simple": only the bound itself trains sigma_t^2'
            )

    def __call__(
        self,
        schedule: Schedule,
        x_0: Array,
        x_t: Array,
        t: Steps,
        eps: Array,
        output: Array,
        *,
        levels: int,
        log_variance: Array | None = None,
    ) -> tuple[Losses, Array | None]:
        """The losses of a batch, and d / d s_t of each image if log_variance (the table of s_t) is given."""
        check_step(schedule.T, t, x_t)
        parts = []
        if self.w_simple:
            prediction, _ = split_output(output, self.var)
            target = eps if self.predicts == "eps" else output_from_x_0(schedule, x_t, t, x_0, self.predicts)
            simple = ERRORS[self.error](prediction, target)
            if self.weight == "bound":
                simple = weighted(simple, bound_weights(schedule, self.predicts, self.var)[t])
            parts.append((self.w_simple, widened(simple, output)))
        if self.w_elbo:
            elbo = bound_term(schedule, x_0, x_t, t, output, levels=levels, predicts=self.predicts, var=self.var)
            parts.append((self.w_elbo, elbo))
        losses = combine(*parts)
        return (losses, None) if log_variance is None else log_variance_weighted(losses, log_variance, t)

"""What the sender and the receiver of Algorithms 3 and 4 share, and what each step is expected to cost them (§4.3)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ddpm_ref import entropy_coding as code
from ddpm_ref.checks import Array, check_choice, check_float, check_int
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.forward import check_eps_predictable, posterior_coefficients, q_sample
from ddpm_ref.objective import bound_term
from ddpm_ref.reverse import PARAMETRISATIONS, Model, Noise, ReverseStep, p_mean_var, reverse_variance
from ddpm_ref.schedule import Schedule, Table

LARGEST_KL = 12  # bits expected of a block
CANDIDATES = 16  # log₂ of the candidates expected of one: tens of milliseconds
_CHUNK = 2**17  # probabilities of grey levels held at a time, 1 MiB


@dataclass(frozen=True, eq=False)
class Codebook:
    """p_θ, and the distortion by which blocks are cut and index codes set.

    shape: of one copy, D elements.  levels: grey levels of x_0's grid.  predicts, var, clip: as in `p_mean_var`;
    var "beta" or a table with σ_t² > β̃_t for t > 1: q/p has no maximum otherwise, nor one known beforehand if learned.
    distortion: E‖x_0 - x̂_0(x_t)‖² of one copy for t = 1 … T, a table of T+2 whose last row is E‖x_0‖², for a receiver
    who has nothing yet (`expected_distortion`); row 0 is not used. A wrong one costs bits and time, never exactness.

    What follows: kl and log_ratio_max, tables of T+1, bits expected when x_t of one copy is sent (row 0 is 0); sigma2.
    """

    schedule: Schedule
    model: Model
    shape: tuple[int, ...]
    levels: int
    distortion: Table
    predicts: str = "eps"
    var: str | Table = "beta"
    clip: bool = False
    sigma2: Table = field(init=False)
    kl: Table = field(init=False)
    log_ratio_max: Table = field(init=False)

    def __post_init__(self) -> None:
        schedule, T = self.schedule, self.schedule.T
        check_int("levels", self.levels, 2, code.MOST_SYMBOLS)
        check_choice("predicts", self.predicts, PARAMETRISATIONS)
        sigma2 = reverse_variance(schedule, self.var)
        if not (sigma2[2:] > schedule.beta_tilde[2:]).all() or not sigma2[1] > 0:
            raise ValueError("var: wanted sigma_t^2 > beta_tilde_t for t > 1 and sigma_1^2 > 0, or q/p has no maximum")
        if self.predicts == "eps":
            check_eps_predictable(schedule, np.arange(1, T + 1))
        distortion = np.asarray(self.distortion, dtype=np.float64)
        if distortion.shape != (T + 2,) or not (np.isfinite(distortion[1:]) & (distortion[1:] >= 0)).all():
            raise ValueError(f"distortion: wanted T + 2 = {T + 2} finite numbers >= 0, got shape {distortion.shape}")
        kl, log_ratio_max = _expected(schedule, sigma2, distortion, self.D)
        tables = dict(distortion=distortion, sigma2=sigma2, kl=kl, log_ratio_max=log_ratio_max)
        for name, value in tables.items():
            object.__setattr__(self, name, value)

    @property
    def D(self) -> int:
        """Elements of one copy."""
        return int(np.prod(self.shape))

    def step(self, x_t: Array, t: int) -> ReverseStep:
        """Mean and variance of p_θ(x_{t-1} | x_t), and x̂_0, of n copies."""
        output = self.model(x_t, t)
        return p_mean_var(self.schedule, x_t, t, output, predicts=self.predicts, var=self.sigma2, clip=self.clip)

    def decoder(self, p: ReverseStep) -> Iterator[Array]:
        """p_θ(x_0 | x_1) of every element over all grey levels (Eq. 13), as whole numbers.

        (N, levels) at a time, of at most 2^17 numbers; N are n·D in all.
        """
        mean = p.mean.reshape(-1, 1)
        var = np.broadcast_to(p.var, p.mean.shape).reshape(-1, 1)
        step = max(1, _CHUNK // self.levels)
        for which in (slice(first, first + step) for first in range(0, len(mean), step)):
            grid = np.broadcast_to(self.scaled(np.arange(self.levels)), (len(mean[which]), self.levels))
            log_p, _ = discretized_gaussian_log_likelihood(grid, mean[which], var[which], self.levels)
            yield code.frequencies(np.exp(log_p))

    def scaled(self, grey: Array) -> Array:
        """Grey levels 0 … levels-1 as x in [-1, 1]."""
        return grey * (2 / (self.levels - 1)) - 1

    def blocks(self, n: int, t: int) -> list[slice]:
        """How the n·D coordinates of x_t are cut: as few equal blocks as keep to what is expected of one."""
        wanted = n * max(self.kl[t] / LARGEST_KL, self.log_ratio_max[t] / CANDIDATES)
        count = min(max(int(np.ceil(wanted)), 1), n * self.D)
        cuts = [n * self.D * k // count for k in range(count + 1)]
        return [slice(a, b) for a, b in pairwise(cuts)]


def _expected(schedule: Schedule, sigma2: Table, distortion: Table, D: int) -> tuple[Table, Table]:
    """KL and log₂ max q/p expected of one copy when x_t is sent, t = 0 … T, in bits.

    q and p have variances v < s (or v = s at T, where both are N(0, I)) and means c (x_0 - x̂_0) apart, so with the
    distortion Δ:   KL = ½ [D (log s/v + v/s - 1) + c² Δ / s]      log max = ½ [D log s/v + c² Δ / (s - v)]
    """
    T, rows = schedule.T, np.arange(2, schedule.T + 1)
    v = np.r_[schedule.beta_tilde[2:], 1 - schedule.alpha_bar[T]]
    s = np.r_[sigma2[2:], 1.0]
    apart = np.r_[posterior_coefficients(schedule, rows)[0], np.sqrt(schedule.alpha_bar[T])] ** 2 * distortion[2:]
    kl = 0.5 * (D * (np.log(s / v) + v / s - 1) + apart / s)
    log_ratio_max = 0.5 * (D * np.log(s / v) + np.divide(apart, s - v, out=np.zeros_like(s), where=s > v))
    return np.r_[0.0, kl] / np.log(2), np.r_[0.0, log_ratio_max] / np.log(2)


def expected_distortion(
    schedule: Schedule, model: Model, x_0: Array, noise: Noise, *, predicts: str = "eps", clip: bool = False
) -> Table:
    """The table that `Codebook` wants, from one draw of each x_t for some data x_0 (N, *shape); noise(t) gives ε."""
    check_float(x_0=x_0)
    squares = np.zeros(schedule.T + 2)
    for t in range(1, schedule.T + 1):
        x_t = q_sample(schedule, x_0, t, noise(t))
        x_0_hat = p_mean_var(schedule, x_t, t, model(x_t, t), predicts=predicts, clip=clip).x_0_hat
        squares[t] = np.sum((x_0 - x_0_hat) ** 2, dtype=np.float64)
    squares[-1] = np.sum(x_0**2, dtype=np.float64)
    return squares / len(x_0)


def step_kl(book: Codebook, x_0: Array, x_t: Array, t: int) -> Array:
    """What the step from x_t costs each copy, L_{t-1} of Eq. 5 in bits, (N,): a KL, at t = 1 -log₂ p_θ(x_0 | x_1)."""
    term = bound_term(
        book.schedule, x_0, x_t, t, book.model(x_t, t),
        levels=book.levels, predicts=book.predicts, var=book.sigma2, clip=book.clip,
    )  # fmt: skip
    return term.per_image * (book.D / np.log(2))

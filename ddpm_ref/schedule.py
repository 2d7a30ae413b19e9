"""The noise schedule: β_t, α_t, ᾱ_t and β̃_t as tables (§2, §4).

Every table has T+1 entries and is indexed by the paper's t: β[0] = 0 and ᾱ[0] = 1, so that formulas with
t-1 need no special case. All are float64: in float32, 1 - ᾱ_1 is already off by 2 parts in 10,000.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddpm_ref.checks import check_int

Table = NDArray[np.float64]

# Largest L_T in bits/dim, for data at the edge of [-1, 1], that counts as p(x_T) = N(0, I). The paper's schedules
# stay under 6e-4; the linear one cut to T = 500 without rescaling β has 5e-3, cut to T = 100 it has 0.33.
L_T_WARNING = 1e-3


@dataclass(frozen=True, eq=False)
class Schedule:
    """The variances β_1 … β_T of the forward process and what follows from them (§2).

        α_t = 1 - β_t      ᾱ_t = ∏_{s≤t} α_s      β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t      (Eqs. 4, 7)

    beta: (T+1,) float64 with beta[0] = 0; build one with a named constructor or `from_beta`.
    Two schedules are equal when their tables are; `name` only says where β came from.

    Warns when L_T of `prior_gap` is over 1e-3 bits/dim: x_T then still shows x_0, but sampling starts from N(0, I).
    """

    beta: Table
    name: str = "custom"
    alpha: Table = field(init=False, repr=False)
    alpha_bar: Table = field(init=False, repr=False)
    beta_tilde: Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        beta = _checked_beta(self.beta)
        alpha = 1 - beta
        alpha_bar = np.cumprod(alpha)
        beta_tilde = np.zeros_like(beta)
        beta_tilde[1:] = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
        for name, table in dict(beta=beta, alpha=alpha, alpha_bar=alpha_bar, beta_tilde=beta_tilde).items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        if (gap := self.prior_gap()) > L_T_WARNING:
            warnings.warn(
                f"schedule {self.name!r} with T = {self.T}: L_T is {gap:.3g} bits/dim at |x_0| = 1 (the paper's: "
                f"2.9e-05) and alpha_bar_T = {alpha_bar[-1]:.3g}, so x_T is not close to N(0, I). "
                "If T was changed, rescale beta.",
                stacklevel=3,
            )

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    def L_T(self, x_0_squared: ArrayLike = 1.0) -> Table:
        """L_T = KL(q(x_T | x_0) ‖ N(0, I)) in nats per dimension, for data with this mean of x_0² (Eq. 5).

        L_T = ½ (ᾱ_T (x_0² - 1) - log(1 - ᾱ_T))
        """
        abar = self.alpha_bar[-1]
        gap: Table = 0.5 * (abar * (np.asarray(x_0_squared, dtype=np.float64) - 1) - np.log1p(-abar))
        return gap

    def prior_gap(self, x_0_squared: float = 1.0) -> float:
        """`L_T` in bits per dimension."""
        return float(self.L_T(x_0_squared) / np.log(2))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and np.array_equal(self.beta, other.beta)

    def __hash__(self) -> int:
        return hash(self.beta.tobytes())

    @classmethod
    def from_beta(cls, beta: ArrayLike, name: str = "custom") -> "Schedule":
        """The schedule of any β_1 … β_T in (0, 1], given in that order (T values, the first being β_1)."""
        values = np.asarray(beta, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"beta: wanted a 1-D list beta_1 ... beta_T, got shape {values.shape}")
        return cls(np.concatenate([[0.0], values]), name)

    @classmethod
    def from_alpha_bar(cls, alpha_bar: ArrayLike, name: str = "custom", beta_max: float = 1.0) -> "Schedule":
        """The schedule of a falling ᾱ_0 = 1, ᾱ_1 … ᾱ_T (T+1 values): β_t = min(1 - ᾱ_t / ᾱ_{t-1}, beta_max)."""
        abar = np.asarray(alpha_bar, dtype=np.float64)
        if abar.ndim != 1 or len(abar) < 2 or abar[0] != 1 or not (np.diff(abar) < 0).all() or abar[-1] < 0:
            raise ValueError("alpha_bar: wanted T+1 values that fall strictly from 1 and end at 0 or above")
        return cls.from_beta(np.minimum(1 - abar[1:] / abar[:-1], beta_max), name)

    @classmethod
    def linear(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> "Schedule":
        """β_t evenly spaced from β_1 to β_T: the paper's choice (§4)."""
        check_int("T", T, 1)
        return cls.from_beta(np.linspace(beta_1, beta_T, T), "linear")

    @classmethod
    def quadratic(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> "Schedule":
        """√β_t evenly spaced from √β_1 to √β_T (compared in §4)."""
        check_int("T", T, 1)
        return cls.from_beta(np.linspace(beta_1**0.5, beta_T**0.5, T) ** 2, "quadratic")

    @classmethod
    def constant(cls, T: int = 1000, beta: float = 0.02) -> "Schedule":
        """β_t = β for all t (compared in §4)."""
        check_int("T", T, 1)
        return cls.from_beta(np.full(T, beta), "constant")

    @classmethod
    def warmup(cls, fraction: float, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> "Schedule":
        """β_t rises linearly from β_1 to β_T over the first ⌊fraction·T⌋ steps, then stays (released code)."""
        check_int("T", T, 1)
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction: wanted a number in [0, 1], got {fraction}")
        rise = int(T * fraction)
        beta = np.full(T, beta_T)
        beta[:rise] = np.linspace(beta_1, beta_T, rise)
        return cls.from_beta(beta, f"warmup{round(100 * fraction)}")

    @classmethod
    def warmup10(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> "Schedule":
        """`warmup` over the first tenth."""
        return cls.warmup(0.1, T, beta_1, beta_T)

    @classmethod
    def warmup50(cls, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> "Schedule":
        """`warmup` over the first half."""
        return cls.warmup(0.5, T, beta_1, beta_T)

    @classmethod
    def jsd(cls, T: int = 1000) -> "Schedule":
        """β_t = 1 / (T - t + 1), so ᾱ_t = (T - t) / T (Sohl-Dickstein et al. 2015; released code).

        It ends at β_T = 1 and ᾱ_T = 0: x_T holds nothing of x_0, and predicting ε at T is an error.
        """
        check_int("T", T, 1)
        return cls.from_beta(1 / np.arange(T, 0, -1), "jsd")

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> "Schedule":
        """ᾱ_t = f(t) / f(0), f(t) = cos²(π/2 (t/T + s) / (1 + s)), β_t ≤ beta_max (Nichol & Dhariwal 2021)."""
        check_int("T", T, 1)
        f = np.cos(np.pi / 2 * (np.arange(T + 1) / T + s) / (1 + s)) ** 2
        return cls.from_alpha_bar(f / f[0], "cosine", beta_max)

    @classmethod
    def sigmoid(
        cls, T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999
    ) -> "Schedule":
        """ᾱ_t = (S(end) - S(u_t)) / (S(end) - S(start)), S(u) = 1 / (1 + e^{-u/τ}), u_t from start to end evenly.

        (Jabri et al. 2022.)  β_t ≤ beta_max.
        """
        check_int("T", T, 1)
        S = 1 / (1 + np.exp(-np.linspace(start, end, T + 1) / tau))
        return cls.from_alpha_bar((S[-1] - S) / (S[-1] - S[0]), "sigmoid", beta_max)


def _checked_beta(beta: ArrayLike) -> Table:
    """A float64 copy of the table, or an error that names the first β_t outside (0, 1]."""
    table = np.array(beta, dtype=np.float64)
    if table.ndim != 1 or len(table) < 2 or table[0] != 0:
        raise ValueError(f"beta: wanted a table 0, beta_1 ... beta_T with T >= 1, got shape {table.shape}")
    # 1 - β must see β: at 1e-17 it would not, and β̃ would be 0/0.
    bad = ~((1 - table[1:] < 1) & (table[1:] <= 1))
    if bad.any():
        t = int(np.argmax(bad)) + 1
        raise ValueError(f"beta: wanted every beta_t in (0, 1], not below 1e-16, got beta_{t} = {table[t]}")
    return table


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": Schedule.linear,
    "quadratic": Schedule.quadratic,
    "constant": Schedule.constant,
    "warmup10": Schedule.warmup10,
    "warmup50": Schedule.warmup50,
    "jsd": Schedule.jsd,
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
}
"""The named schedules; each takes T."""

"""How far a right implementation may be off: rounding of the tables, carried through the formula by perturbing them."""

from collections.abc import Callable, Iterator

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.schedule import Schedule

Formula = Callable[..., Array]
"""formula(schedule, t, *inputs) -> what is wanted; it may not change its inputs."""

SAFETY = 2.0
INPUT_ULPS = 4.0  # roundings of each input: a product, a sum, a conversion or two


def epsilon(precision: str) -> float:
    """The machine precision of "float32" or "float64"."""
    return float(np.finfo(precision).eps)


def process_of(beta: Array, alpha: Array | None = None, alpha_bar: Array | None = None, name: str = "own") -> Schedule:
    """A `Schedule` whose tables need not fit together: β_1 … β_T, and α_t, ᾱ_t of their own if given, (T,) each.

    What the functions of ddpm_ref compute from it is then what an implementation with such tables should compute.
    """
    s = object.__new__(Schedule)
    beta = np.concatenate([[0.0], beta])
    alpha = 1 - beta if alpha is None else np.concatenate([[1.0], alpha])
    alpha_bar = np.cumprod(alpha) if alpha_bar is None else np.concatenate([[1.0], alpha_bar])
    beta_tilde = np.zeros_like(beta)
    with np.errstate(all="ignore"):
        beta_tilde[1:] = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
    tables = dict(beta=beta, alpha=alpha, alpha_bar=alpha_bar, beta_tilde=beta_tilde, name=name)
    for key, value in tables.items():
        object.__setattr__(s, key, value)
    return s


def perturbed(s: Schedule, eps: float) -> Iterator[Schedule]:
    """The process with each table off by its worst rounding in turn, ᾱ_t and ᾱ_{t-1} apart.

    β_t, α_t: ε absolute (each may be held as 1 minus the other, β_t also as 1 - ᾱ_t/ᾱ_{t-1})
    ᾱ_t: Σ_{s≤t} ε max(1, β_s/α_s) + ε relative (t factors, each rounded, and their products): (t+1) ε unless some
         β_s is near 1; so 1 - ᾱ_t by that times ᾱ_t absolute; and by the smallest normal number, below which digits
         are lost
    """
    beta, alpha, abar = s.beta[1:], s.alpha[1:], s.alpha_bar[1:]
    drift = np.minimum(np.cumsum(eps * np.maximum(1, beta / np.maximum(alpha, eps))) + eps, 1)
    least = float(np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny)
    low = np.maximum(abar * (1 - drift) - least, abar / 1000)  # not 0: where ᾱ_t = 0, ε says nothing
    odd = np.arange(s.T) % 2 == 0
    yield process_of(beta + eps * np.maximum(beta, 1 - beta), alpha, abar)
    yield process_of(beta, np.maximum(alpha - eps * np.maximum(alpha, beta), 0), abar)
    # Downwards: upwards 1 - ᾱ_1 might become negative.
    yield process_of(beta, alpha, np.where(odd, low, abar))
    yield process_of(beta, alpha, np.where(odd, abar, low))


def tolerance(s: Schedule, eps: float, formula: Formula, t: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    """What is wanted, formula(s, t, *inputs), and how far from it rounding in this precision can lead.

    tolerance = 2 (Σ_k |f(table_k off) - f| + Σ_i |f(input_i (1 + 4ε)) - f|) + 4ε |f|
    """
    with np.errstate(all="ignore"):
        wanted = formula(s, t, *inputs)
        off = np.zeros_like(wanted)
        for p in perturbed(s, eps):
            off = off + np.abs(formula(p, t, *inputs) - wanted)
        for i, x in enumerate(inputs):
            moved = (*inputs[:i], x * (1 + INPUT_ULPS * eps), *inputs[i + 1 :])
            off = off + np.abs(formula(s, t, *moved) - wanted)
        return wanted, SAFETY * off + INPUT_ULPS * eps * np.abs(wanted) + 1e-300


def schedule_drift(beta: Array, eps: float, schedule: object, s: float = 0.008) -> Array:
    """How far β_t of a declared schedule may be off when its formula is evaluated in this precision, (T,).

    Held as 1 - α_t it is off by ε. Where ᾱ comes first (cosine, sigmoid) so are cos and the logistic function, of
    absolute size near 1, while ᾱ_t falls to 0: relative to f = √ᾱ_t the error grows as ε/f.
    """
    off = 2 * eps * np.maximum(beta, 1 - beta) + 4 * eps * beta
    if schedule in ("cosine", "sigmoid"):
        abar = np.maximum(np.cumprod(1 - beta), 1e-30)
        before = np.concatenate([[1.0], abar[:-1]])
        size = 0.5 if schedule == "cosine" else 1.0
        off = off + (1 - beta) * 8 * eps * (abar**-size + before**-size)
    return off

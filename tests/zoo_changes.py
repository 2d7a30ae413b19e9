"""How to make a defect: one thing of the right implementation in `zoo.py` is changed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from zoo import Animal


@dataclass(frozen=True)
class Mistake:
    """A defect, the conventions it is declared under, exactly the properties it breaks, and words of the diagnosis.

    first: the t (the paper's) at which the property named first breaks.
    """

    name: str
    change: Callable[[Animal], None]
    breaks: tuple[str, ...]
    words: str
    first: int | None = None
    conventions: dict = field(default_factory=dict)


def tables(**new: Callable[[Animal], np.ndarray]) -> Callable[[Animal], None]:
    """Replace tables by functions of the animal; everything it computes from them follows."""

    def change(a: Animal) -> None:
        made = {name: np.asarray(make(a)).astype(a.tables) for name, make in new.items()}
        for name, table in made.items():
            setattr(a, name, table)

    return change


def method(name: str, new: Callable) -> Callable[[Animal], None]:
    """Replace a method; the new one is given the animal and the old method first."""

    def change(a: Animal) -> None:
        old = getattr(a, name)
        setattr(a, name, lambda *args: new(a, old, *args))

    return change


def new_beta(make: Callable[[Animal], np.ndarray]) -> Callable[[Animal], None]:
    """Another β, with all tables after it."""

    def change(a: Animal) -> None:
        a.b = np.asarray(make(a)).astype(a.tables)
        a.a = 1 - a.b
        a.A = np.cumprod(a.a, dtype=a.tables)
        a.A_prev = np.concatenate([np.ones(1, a.tables), a.A[:-1]])
        with np.errstate(invalid="ignore"):
            a.tilde = a.b * (1 - a.A_prev) / (1 - a.A)

    return change


def noisy_last_step(a, old, x_t, t, output, z, *more):
    mean, var = a.p_mean_var(x_t, t, output, *more)
    return mean + np.sqrt(var).astype(a.float) * z


def step_with(sigma):
    """A reverse step whose noise is scaled by sigma(animal, var)."""

    def step(a, old, x_t, t, output, z, *more):
        mean, var = a.p_mean_var(x_t, t, output, *more)
        last = (t == a.c["t_first"]).reshape(-1, 1, 1, 1)
        return (mean + np.where(last, 0, sigma(var) * z)).astype(a.float)

    return step


def mean_with(formula):
    """p_mean_var with another mean, formula(animal, x_t, t, output)."""
    return method("p_mean_var", lambda a, old, x_t, t, y, *more: (formula(a, x_t, t, y), old(x_t, t, y, *more)[1]))


def posterior_with(c_0=None, c_t=None):
    def posterior(a, old, x_0, x_t, t):
        first = a.b * np.sqrt(a.A_prev) / (1 - a.A) if c_0 is None else c_0(a)
        second = (1 - a.A_prev) * np.sqrt(a.a) / (1 - a.A) if c_t is None else c_t(a)
        return a.at(first, t, x_0) * x_0 + a.at(second, t, x_0) * x_t, a.at(a.tilde, t, x_0).reshape(-1)

    return method("q_posterior", posterior)


def half(table, kind):
    """Rounded to float16, or to bfloat16 by cutting bits."""
    if kind == "float16":
        return table.astype(np.float16)
    return (table.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def early_decoding(a, old, model, x_a, x_b, t, lam):
    steps = np.full(len(x_a), t)
    x_a, x_b = (a.q_sample(x, steps, a.normal(x.shape)) for x in (x_a, x_b))
    return a.run(model, (1 - a.float(lam)) * x_a + a.float(lam) * x_b, t - a.c["t_first"])


def stop_early(a, model, n):
    x = a.normal((n, 3, 4, 4))
    for step in range(1000, 1, -1):
        t = np.full(n, step)
        x = a.reverse_step(x, t, model(x, t), a.normal(x.shape))
    return x


def forget(a, x):
    weight, a.c["loss_weight"] = a.c["loss_weight"], "simple"
    value = Animal.loss(a, *x)
    a.c["loss_weight"] = weight
    return value


def closed_ends(a, x_0, mean, var):
    sigma = np.sqrt(var)
    return np.log(np.maximum(a.cdf((x_0 + 1 / 255 - mean) / sigma) - a.cdf((x_0 - 1 / 255 - mean) / sigma), 1e-12))


def turned_kl(a, old, x_0, x_t, t, output):
    true_mean, _ = a.q_posterior(x_0, x_t, t)
    mean, var = a.p_mean_var(x_t, t, output)
    q = a.at(np.concatenate([a.tilde[1:2], a.tilde[1:]]), t, x_t)
    kl = 0.5 * (np.log(q) - np.log(var) - 1 + var / q + (true_mean - mean) ** 2 / q)
    return np.where(t == 1, old(x_0, x_t, t, output), kl.reshape(len(t), -1).mean(axis=1))


def loop(*, steps=range(1000, 0, -1), z=None, begin=None, take=None, asked=lambda step: step):
    """A sampling loop of its own.

    z(animal, step, x): the noise; begin(animal, n): x_T; take(animal, x, step, output, z): the step; asked: the t told.
    """

    def sample(a, old, model, n):
        x = a.normal((n, 3, 4, 4)) if begin is None else begin(a, n)
        for step in steps:
            noise = a.normal(x.shape) if z is None else z(a, step, x).astype(a.float)
            t, output = np.full(n, step), model(x, np.full(n, asked(step)))
            x = a.reverse_step(x, t, output, noise) if take is None else take(a, x, t, output, noise)
        return x

    return method("sample", sample)


def variance_as_deviation(a, x, t, output, z):
    mean, var = a.p_mean_var(x, t, output)
    return (mean + (t[0] > 2) * var * z).astype(a.float)


def throws_away(a, x, t, output, z):
    return a.reverse_step(x, t, output, z) if t[0] > 1 else x


def first_row_decides(a, old, x_t, t, output, z, *more):
    mean, var = a.p_mean_var(x_t, t, output, *more)
    return mean + (np.sqrt(var) * z if t[0] > 1 else 0 * z)


def alike_once(a, n):
    x = a.normal((n, 3, 4, 4))
    x[2] = x[0]
    return x


def mixed(weights, noised=True):
    """interpolate with other weights of the two images: of λ."""

    def interpolate(a, old, model, x_a, x_b, t, lam):
        steps = np.full(len(x_a), t)
        first = a.q_sample(x_a, steps, a.normal(x_a.shape))
        second = a.q_sample(x_b, steps, a.normal(x_b.shape)) if noised else x_b
        one, other = (a.float(w) for w in weights(lam))
        return a.run(model, one * first + other * second, t)

    return method("interpolate", interpolate)


def quiet_decoding(a, old, model, x_a, x_b, t, lam):
    steps = np.full(len(x_a), t)
    x_a, x_b = (a.q_sample(x, steps, a.normal(x.shape)) for x in (x_a, x_b))
    x = (1 - a.float(lam)) * x_a + a.float(lam) * x_b
    for step in range(t, 0, -1):
        x = a.reverse_step(x, np.full(len(x), step), model(x, np.full(len(x), step)), 0 * x)
    return x


def clipped_to(clip):
    """x̂_0 clipped by another function; clip is declared."""

    def mean(a, x, t, y):
        return a.q_posterior(clip(a.from_eps(x, t, y)), x, t)[0].astype(a.float)

    return mean_with(mean)


def largest_to_one(x_0):
    return x_0 / np.maximum(np.abs(x_0).max(axis=(1, 2, 3), keepdims=True), 1)


def weighted_alike(a: Animal) -> None:
    table = 0.5 * np.sqrt(a.A) / (2 - a.A)
    a.weights = lambda: table


def other_bins(half):
    def decoder(a, old, x_0, mean, var):
        s = np.sqrt(var)
        up = np.where(x_0 > 0.999, 1, a.cdf((x_0 + half - mean) / s))
        return np.log(np.maximum(up - np.where(x_0 < -0.999, 0, a.cdf((x_0 - half - mean) / s)), 1e-12))

    return method("decoder", decoder)

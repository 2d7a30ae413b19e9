"""Mistakes that public implementations make, and their like, with what the checker must say of each."""

import numpy as np
from zoo import Animal
from zoo_changes import (
    Mistake,
    alike_once,
    clipped_to,
    first_row_decides,
    largest_to_one,
    loop,
    mean_with,
    method,
    mixed,
    new_beta,
    other_bins,
    posterior_with,
    quiet_decoding,
    throws_away,
    variance_as_deviation,
    weighted_alike,
)

DOUBLE = {"precision": "float64"}
CLIP = {"clip": True}
STEPS = ("sample-steps",)

UNSEEN = (
    # --- loops
    Mistake(
        "σ² for σ, and t = 1 left out",
        loop(steps=range(1000, 1, -1), take=variance_as_deviation),
        ("sample-visits", *STEPS),
        "variance is used as the standard deviation",
        3,
    ),
    Mistake("x_1 is returned", loop(take=throws_away), ("sample-last",), "x_1 is returned", 1),
    Mistake(
        "tables of t - 1",
        loop(
            asked=lambda step: step,
            take=lambda a, x, t, y, z: a.reverse_step(x, np.maximum(t - 1, 1), y, z * (t[0] > 1)),
        ),
        STEPS,
        "the values of t - 1, of mean and noise",
    ),
    Mistake(
        "noise shared by the channels",
        loop(z=lambda a, step, x: np.repeat(a.normal((len(x), 1, 4, 4)), 3, 1)),
        STEPS,
        "neighbours along axis 1 of the batch share their noise",
    ),
    Mistake(
        "uniform noise",
        loop(z=lambda a, step, x: a.rng.uniform(-(3**0.5), 3**0.5, x.shape)),
        STEPS,
        "tails of the noise",
    ),
    Mistake(
        "one z for the whole chain",
        loop(z=lambda a, step, x: np.random.default_rng(1).standard_normal(x.shape)),
        STEPS,
        "used again",
    ),
    Mistake(
        "x_T's noise again",
        loop(z=lambda a, step, x: x if step == 1000 else a.normal(x.shape)),
        STEPS,
        "what x_t was drawn from is used again",
        1000,
    ),
    Mistake(
        "no noise at t = 2",
        loop(z=lambda a, step, x: a.normal(x.shape) * (step > 2)),
        STEPS,
        "no noise is added at t = 2",
        2,
    ),
    Mistake(
        "no noise at t = T",
        loop(z=lambda a, step, x: a.normal(x.shape) * (step < 1000)),
        STEPS,
        "no noise is added at t = 1000",
        1000,
    ),
    Mistake("noise 5 % too small", loop(z=lambda a, step, x: 0.95 * a.normal(x.shape)), STEPS, "all steps together"),
    Mistake(
        "one step twice",
        loop(steps=(*range(1000, 499, -1), *range(500, 0, -1))),
        ("sample-visits",),
        "asked twice at t = 500",
        499,
    ),
    Mistake(
        "one step left out",
        loop(steps=(*range(1000, 500, -1), *range(499, 0, -1))),
        ("sample-visits",),
        "t = 500 is left out",
        500,
    ),
    Mistake("the first step left out", loop(steps=range(999, 0, -1)), ("sample-visits",), "begins at t = 999", 1000),
    Mistake(
        "x_T 2 % too small",
        loop(begin=lambda a, n: a.float(0.98) * a.normal((n, 3, 4, 4))),
        ("sample-start",),
        "the variance of x_T",
        1000,
    ),
    Mistake(
        "x_T shared by the channels",
        loop(begin=lambda a, n: np.repeat(a.normal((n, 1, 4, 4)), 3, 1)),
        ("sample-start",),
        "neighbours along axis 1",
        1000,
    ),
    Mistake("x_T of two images alike", loop(begin=alike_once), ("sample-start",), "two images", 1000),
    # --- interpolation
    Mistake(
        "x_0' mixed in", mixed(lambda lam: (1 - lam, lam), noised=False), ("interpolation-mix",), "as §4.4 is printed"
    ),
    Mistake(
        "spherical weights", mixed(lambda lam: ((1 - lam**2) ** 0.5, lam)), ("interpolation-mix",), "√(1 - λ²) and λ"
    ),
    Mistake(
        "decoding without noise", method("interpolate", quiet_decoding), ("interpolation-chain",), "no noise is added"
    ),
    # --- one step
    Mistake(
        "the first image's t decides of noise", method("reverse_step", first_row_decides), ("rows",), "reverse_step"
    ),
    Mistake(
        "x̂_0 clipped from above only",
        clipped_to(lambda x: np.minimum(x, 1)),
        ("clip", *STEPS, "sample-last"),
        "from above only",
        None,
        CLIP,
    ),
    Mistake(
        "x̂_0 divided by its largest value",
        clipped_to(largest_to_one),
        ("clip", *STEPS, "sample-last"),
        "divided by its largest value",
        None,
        CLIP,
    ),
    Mistake(
        "the mean itself clipped",
        mean_with(lambda a, x, t, y: np.clip(a.q_posterior(a.from_eps(x, t, y), x, t)[0], -1, 1)),
        ("clip", "reverse-mean", "step-mean", *STEPS),
        "the mean itself is clipped",
        None,
        CLIP,
    ),
    Mistake(
        "x̂_0 clipped to [0, 1]",
        clipped_to(lambda x: np.clip(x, 0, 1)),
        ("reverse-mean", "step-mean"),
        "clipped to [0, 1]",
        None,
        CLIP,
    ),
    Mistake(
        "ᾱ_t for ᾱ_{t-1} in the posterior",
        posterior_with(c_0=lambda a: a.b * np.sqrt(a.A) / (1 - a.A), c_t=lambda a: np.sqrt(a.a)),
        ("posterior-mean", *STEPS, "sample-last"),
        "ᾱ_t for ᾱ_{t-1}",
        1,
        {"form": "detour"},
    ),
    Mistake(
        "√α_t multiplies",
        mean_with(lambda a, x, t, y: (x - a.at(a.b / np.sqrt(1 - a.A), t, x) * y) * a.at(np.sqrt(a.a), t, x)),
        ("reverse-mean", "step-mean", *STEPS),
        "√α_t multiplies",
    ),
    Mistake(
        "x̂_0 not divided, and used",
        method("predict_x_0", lambda a, old, x, t, y: x - a.at(np.sqrt(1 - a.A), t, x) * y),
        ("predict-x-0",),
        "not divided by √ᾱ_t",
        1,
        {"form": "detour"},
    ),
    # --- q and what is trained
    Mistake(
        "√ᾱ before ε",
        method("q_sample", lambda a, old, x, t, e: a.at(np.sqrt(a.A), t, x) * (x + e)),
        ("q-sample", "q-composes"),
        "√ᾱ_t for √(1 - ᾱ_t) before ε",
        1,
    ),
    Mistake(
        "flow matching's line",
        method(
            "q_sample",
            lambda a, old, x, t, e: (
                a.at(1 - np.arange(1, 1001) / 1000, t, x) * x + a.at(np.arange(1, 1001) / 1000, t, x) * e
            ),
        ),
        ("q-sample", "q-composes"),
        "flow matching",
    ),
    Mistake(
        "ᾱ for its root in ε",
        method("predict_eps", lambda a, old, x, t, x_0: (x - a.at(a.A, t, x) * x_0) / a.at(np.sqrt(1 - a.A), t, x)),
        ("predict-eps",),
        "ᾱ_t for √ᾱ_t",
        1,
    ),
    Mistake(
        "the noise as it is added",
        method("target", lambda a, old, x, t, e: a.at(np.sqrt(1 - a.A), t, x) * e),
        ("target",),
        "the noise as it is added",
        1,
    ),
    Mistake(
        "v the wrong way round",
        method("target", lambda a, old, x, t, e: Animal.target(a, e, t, x)),
        ("target",),
        "x_0 and ε are swapped",
        1,
        {"predicts": "v"},
    ),
    Mistake(
        "weights without parentheses, in the loss too",
        weighted_alike,
        ("loss-weights",),
        "parentheses are missing",
        2,
        {"loss_weight": "bound"},
    ),
    Mistake(
        "β alone without its end point",
        method("betas", lambda a, old: np.linspace(1e-4, 0.02, 1000, endpoint=False)),
        ("beta",),
        "β_T = 0.0199801",
        13,
    ),
    Mistake(
        "β itself a sigmoid",
        new_beta(lambda a: 1e-4 + 0.0199 / (1 + np.exp(-np.linspace(-6, 6, 1000)))),
        ("beta",),
        "a sigmoid from -6 to 6",
        None,
        {"schedule": "sigmoid"},
    ),
    Mistake(
        "t rounded to steps",
        method("draw_t", lambda a, old, n: 1 + np.rint(a.rng.uniform(0, 999, n)).astype(int)),
        ("draw-t",),
        "not drawn uniformly",
    ),
    Mistake(
        "L_T of T - 1",
        method(
            "prior_kl",
            lambda a, old, x: (
                0.5 * (-np.log(1 - a.A[-2]) - a.A[-2] + a.A[-2] * (x**2).reshape(len(x), -1).mean(axis=1))
            ),
        ),
        ("prior-kl",),
        "",
        1000,
    ),
    Mistake("decay twice", method("ema", lambda a, old, x, v, d, k: old(old(x, v, d, k), v, d, k)), ("ema",), "twice"),
    Mistake(
        "Adam's averages", method("ema", lambda a, old, x, v, d, k: old(x, v, d, k) / (1 - d**k)), ("ema",), "as Adam's"
    ),
    # --- the decoder: L_0 only follows
    Mistake(
        "bins shifted by half",
        method("decoder", lambda a, old, x, m, v: old(x, m - a.float(1 / 255), v)),
        ("decoder",),
        "bins shifted by half",
    ),
    Mistake("bins twice as wide", other_bins(2 / 255), ("decoder", "decoder-sum"), "twice as wide", None, DOUBLE),
    Mistake("bins of 2/256", other_bins(1 / 256), ("decoder", "decoder-sum"), "/ levels, not", None, DOUBLE),
    Mistake("var as σ", method("decoder", lambda a, old, x, m, v: old(x, m, v**2)), ("decoder",), "var is taken for σ"),
)

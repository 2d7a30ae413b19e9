"""Known mistakes in the loop, the losses, the likelihoods and what surrounds them, with what the checker must say."""

import numpy as np
from zoo_changes import Mistake, closed_ends, early_decoding, forget, method, stop_early, turned_kl


def upwards(a, old, model, n):
    x = a.normal((n, 3, 4, 4))
    for step in range(1, 1001):
        t = np.full(n, step)
        x = a.reverse_step(x, t, model(x, t), a.normal(x.shape))
    return x


def once_more(a, old, model, n):
    x = old(model, n)
    model(x, np.zeros(n, int))
    return x


def negative_at_first(t, mean, var):
    return mean, np.where((t == 1).reshape(-1, 1, 1, 1), -1, var)


def every_second(a, old, model, n):
    return old(lambda x, t: model(x, t - 1) if t[0] % 2 == 0 else x, n)


AROUND_IT = (
    # --- the loop
    Mistake(
        "x_T scaled down",
        method("sample", lambda a, old, model, n: a.run(model, 0.8 * a.normal((n, 3, 4, 4)), 1000)),
        ("sample-start",),
        "variance of x_T",
        1000,
    ),
    Mistake(
        "x_T shared by the batch",
        method("sample", lambda a, old, model, n: a.run(model, np.repeat(a.normal((1, 3, 4, 4)), n, 0), 1000)),
        ("sample-start",),
        "shares",
        1000,
    ),
    Mistake(
        "the loop stops before t = 1",
        method("sample", lambda a, old, model, n: stop_early(a, model, n)),
        ("sample-visits", "sample-last"),
        "ends at t = 2",
    ),
    Mistake(
        "the network is told t - 1",
        method("sample", lambda a, old, model, n: old(lambda x, t: model(x, t - 1), n)),
        ("sample-visits",),
        "t - 1",
        1000,
    ),
    Mistake(
        "noise shared by the batch",
        method("normal", lambda a, old, shape: np.repeat(old((1, *shape[1:])), shape[0], 0)),
        ("sample-start", "sample-steps", "interpolation-mix"),
        "shares",
        None,
    ),
    # --- training
    Mistake("half of the loss", method("loss", lambda a, old, *x: old(*x) / 2), ("loss",), "half", 1),
    Mistake(
        "the sum for the mean", method("loss", lambda a, old, *x: old(*x) * 48), ("loss",), 'loss_reduction="sum"', 1
    ),
    Mistake(
        "the weight is forgotten",
        method("loss", lambda a, old, *x: forget(a, x)),
        ("loss",),
        "weight of t is forgotten",
        2,
        {"loss_weight": "bound"},
    ),
    Mistake("L1 for L2", lambda a: a.c.update(error="l1"), ("loss",), 'error="l1"', 1),
    Mistake(
        "weights of the other variance",
        method("loss_weights", lambda a, old: a.b**2 / (2 * np.append(a.tilde[1], a.tilde[1:]) * a.a * (1 - a.A))),
        ("loss-weights",),
        'var="beta_tilde"',
        2,
        {"loss_weight": "bound", "var": "beta"},
    ),
    Mistake(
        "the last step is never drawn",
        method("draw_t", lambda a, old, n: a.rng.integers(1, 1000, n)),
        ("draw-t",),
        "last step is never",
        1000,
    ),
    Mistake(
        "a step 0 is drawn",
        method("draw_t", lambda a, old, n: a.rng.integers(0, 1001, n)),
        ("draw-t",),
        "does not exist",
    ),
    Mistake(
        "t drawn like a triangle",
        method("draw_t", lambda a, old, n: 1 + np.minimum(*a.rng.integers(0, 1000, (2, n)))),
        ("draw-t",),
        "",
    ),
    Mistake("decay swapped", method("ema", lambda a, old, x, v, d, k: (1 - d) * x + d * v), ("ema",), "swapped"),
    Mistake("a warm-up, not declared", lambda a: a.c.update(ema_warmup=True), ("ema",), "ema_warmup=True"),
    # --- likelihoods
    Mistake(
        "bits for nats",
        lambda a: a.c.update(units="bits"),
        ("prior-kl", "bound-term", "decoder", "decoder-sum"),
        "bits",
    ),
    Mistake("tanh, not declared", lambda a: a.c.update(decoder_cdf="tanh"), ("decoder",), 'decoder_cdf="tanh"'),
    Mistake(
        "the end bins are not open",
        method("log_p", lambda a, old, x, m, v: closed_ends(a, x, m, v)),
        ("decoder", "decoder-sum"),
        "ends do not reach",
    ),
    Mistake(
        "density times bin width",
        method("decoder", lambda a, old, x, m, v: -0.5 * ((x - m) ** 2 / v + np.log(2 * np.pi * v)) + np.log(2 / 255)),
        ("decoder", "decoder-sum"),
        "density times bin width",
    ),
    Mistake(
        "KL the wrong way round",
        method("bound_term", lambda a, old, x, y, t, o: turned_kl(a, old, x, y, t, o)),
        ("bound-term",),
        "other way round",
        2,
    ),
    Mistake("L_T summed", method("prior_kl", lambda a, old, x: old(x) * 48), ("prior-kl",), "sum over an image", 1000),
    # --- surroundings
    Mistake("divided by 256", method("scale", lambda a, old, x: 2 * (x / np.float32(256)) - 1), ("scale",), "256"),
    Mistake(
        "scaled to [0, 1]", method("scale", lambda a, old, x: x / np.float32(255)), ("scale",), "data_range=(0, 1)"
    ),
    Mistake(
        "truncated bytes",
        method("unscale", lambda a, old, x: ((x + 1) * 127.5 - 1e-3).clip(0, 255).astype(np.uint8)),
        ("unscale",),
        "truncated",
    ),
    Mistake(
        "bytes wrap around",
        method("unscale", lambda a, old, x: np.rint((x + 1) * 127.5).astype(np.int64).astype(np.uint8)),
        ("unscale",),
        "wraps around",
    ),
    Mistake(
        "cos before sin",
        lambda a: a.c.update(embedding_order="cos_sin"),
        ("time-embedding",),
        'embedding_order="cos_sin"',
        1,
    ),
    Mistake(
        "embedded from 1",
        lambda a: a.c.update(embedding_counts_from=1),
        ("time-embedding",),
        "embedding_counts_from=1",
        1,
    ),
    Mistake(
        "decoded from t - 1",
        method("interpolate", early_decoding),
        ("interpolation-mix",),
        "the mix is that of t = 500",
        500,
    ),
    Mistake(
        "λ on the other image",
        method("interpolate", lambda a, old, m, x, y, t, lam: old(m, y, x, t, lam)),
        ("interpolation-mix",),
        "swapped",
        500,
    ),
    # --- more of the loop
    Mistake(
        "the loop runs upwards",
        method("sample", upwards),
        ("sample-visits", "sample-last"),
        "runs upwards",
    ),
    Mistake("the loop goes on below t = 1", method("sample", once_more), ("sample-visits",), "goes on after t = 1"),
    Mistake(
        "every second step", method("sample", every_second), ("sample-visits", "sample-last"), "takes 500 steps", 1000
    ),
    Mistake(
        "t between 0 and 1",
        method("sample", lambda a, old, m, n: old(lambda x, t: m(x, t / 1000), n)),
        ("sample-visits",),
        "scaled before it reaches",
    ),
    Mistake(
        "one image's t differs",
        method("sample", lambda a, old, m, n: old(lambda x, t: m(x, np.append(t[1:], 1)), n)),
        ("sample-visits",),
        "different t",
        1000,
    ),
    Mistake(
        "x_T uniform",
        method(
            "sample",
            lambda a, old, m, n: a.run(m, a.float(3**0.5) * a.rng.uniform(-1, 1, (n, 3, 4, 4)).astype(a.float), 1000),
        ),
        ("sample-start",),
        "tails of x_T are not",
        1000,
    ),
    Mistake(
        "x_T off zero",
        method("sample", lambda a, old, m, n: a.run(m, a.normal((n, 3, 4, 4)) + a.float(0.2), 1000)),
        ("sample-start",),
        "the mean of x_T",
        1000,
    ),
    Mistake(
        "noise with a mean",
        method("reverse_step", lambda a, old, x, t, y, z: old(x, t, y, z + a.float(0.25) * (np.abs(z).max() > 0))),
        ("sample-steps",),
        "noise has a mean",
        None,
    ),
    Mistake(
        "images in [0, 1] returned",
        method("sample", lambda a, old, m, n: (old(m, n) + 1) / 2),
        ("sample-last",),
        "rescaled to [0, 1]",
        1,
    ),
    Mistake("NaN at the end", method("sample", lambda a, old, m, n: old(m, n) * np.nan), ("sample-last",), "", 1),
    # --- more of the rest
    Mistake("an average that stays", method("ema", lambda a, old, x, v, d, k: x), ("ema",), "does not move"),
    Mistake("an average that is added", method("ema", lambda a, old, x, v, d, k: d * x + v), ("ema",), "added whole"),
    Mistake(
        "a warm-up the wrong way round",
        method("ema", lambda a, old, x, v, d, k: x + a.float(1 - d / k) * (v - x)),
        ("ema",),
        "at step 2",
        None,
        {"ema_warmup": True},
    ),
    Mistake("an infinite loss", method("loss", lambda a, old, *x: np.inf), ("loss",), "", 1),
    Mistake(
        "infinite weights",
        method("loss_weights", lambda a, old: np.where(np.arange(1000) == 4, np.inf, old())),
        ("loss-weights",),
        "",
        5,
    ),
    Mistake(
        "NaN from the decoder", method("decoder", lambda a, old, *x: old(*x) * np.nan), ("decoder", "decoder-sum"), ""
    ),
    Mistake(
        "NaN from the bound",
        method("bound_term", lambda a, old, *x: np.where(x[2] == 9, np.nan, old(*x))),
        ("bound-term",),
        "",
        9,
    ),
    Mistake(
        "noise of another size in the mix",
        lambda a: a.c.update(interpolation_noise="shared"),
        ("interpolation-mix",),
        'interpolation_noise="shared"',
        500,
    ),
    Mistake(
        "a negative first variance",
        method("p_mean_var", lambda a, old, x, t, y, *v: negative_at_first(t, *old(x, t, y, *v))),
        ("reverse-var", "bound-last"),
        "",
        1,
    ),
)

"""Known mistakes in the loop, the losses, the likelihoods and what surrounds them, with what the checker must say."""

import numpy as np
from zoo_changes import Mistake, closed_ends, early_decoding, forget, method, stop_early, turned_kl

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
        ("sample-visits",),
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
        ("prior-kl", "bound-term", "bound-last", "decoder", "decoder-sum"),
        "bits",
    ),
    Mistake(
        "tanh, not declared", lambda a: a.c.update(decoder_cdf="tanh"), ("bound-last", "decoder"), 'decoder_cdf="tanh"'
    ),
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
        ("interpolation-mix", "interpolation-chain"),
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
)

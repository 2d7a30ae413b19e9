"""A right implementation of the paper written out in plain NumPy, in any precision, numbering and algebraic form.

Nothing here comes from ddpm_ref: the checker is tried on code it does not share. Animals with a defect are made in
`test_conformance_mistakes.py` by changing one thing of it.
"""

import math

import numpy as np


class Animal:
    """One implementation: tables in its own precision, functions of an adapter, every convention a keyword.

    form: "direct" uses Eq. 11 and cumulative products; "detour" goes through x̂_0, logarithms and reciprocals.
    """

    def __init__(self, form="direct", tables=None, **conventions):
        c = {"T": 1000, "t_first": 1, "schedule": "linear", "predicts": "eps", "var": "beta", "clip": False,
             "data_range": (-1, 1), "levels": 256, "shape": (3, 4, 4), "loss_reduction": "mean", "error": "squared",
             "loss_weight": "simple", "units": "nats", "decoder_cdf": "exact", "embedding_order": "sin_cos",
             "embedding_spacing": "half-1", "embedding_max_period": 10000.0, "embedding_counts_from": 0,
             "ema_warmup": False, "interpolation_noise": "independent", "precision": "float32"}  # fmt: skip
        c |= conventions
        self.conventions, self.c, self.form = dict(c), c, form
        self.float = np.dtype(c["precision"]).type
        self.tables = np.dtype(tables or c["precision"]).type
        self.rng = np.random.default_rng(7)
        self.b = self.make_betas()
        self.a = 1 - self.b
        if form == "direct":
            self.A = np.cumprod(self.a, dtype=self.tables)
        else:
            with np.errstate(divide="ignore"):  # log 0 at the end of jsd
                self.A = np.exp(np.cumsum(np.log(self.a), dtype=self.tables))
        self.A_prev = np.concatenate([np.ones(1, self.tables), self.A[:-1]])
        self.tilde = self.b * (1 - self.A_prev) / (1 - self.A)

    def make_betas(self):
        f, T, name = self.tables, self.c["T"], self.c["schedule"]
        args = self.c.get("schedule_args", {})
        low, high = args.get("beta_1", 1e-4), args.get("beta_T", 0.02)
        if name == "linear":
            beta = np.linspace(f(low), f(high), T, dtype=f)
        elif name == "quadratic":
            beta = np.linspace(f(low) ** f(0.5), f(high) ** f(0.5), T, dtype=f) ** 2
        elif name == "constant":
            beta = np.full(T, 0.02, f)
        elif name in ("warmup10", "warmup50"):
            beta = np.full(T, high, f)
            rise = T // 10 if name == "warmup10" else T // 2
            beta[:rise] = np.linspace(f(low), f(high), rise, dtype=f)
        elif name == "jsd":
            beta = 1 / np.arange(T, 0, -1).astype(f)
        elif name == "cosine":
            s = f(args.get("s", 0.008))
            x = np.linspace(0, T, T + 1, dtype=f)
            bar = np.cos((x / f(T) + s) / (1 + s) * f(math.pi) * f(0.5)) ** 2
            bar = bar / bar[0]
            beta = 1 - bar[1:] / bar[:-1]
            beta = np.clip(beta, f(args.get("beta_min", 0)), f(args.get("beta_max", 0.999)))
        elif name == "sigmoid":
            u = np.linspace(f(-3), f(3), T + 1, dtype=f)
            sig = 1 / (1 + np.exp(-u))
            bar = (sig[-1] - sig) / (sig[-1] - sig[0])
            beta = np.clip(1 - bar[1:] / bar[:-1], f(0), f(0.999))
        else:
            beta = np.asarray(name, f)
        return beta.astype(f)

    # --- tables

    def betas(self):
        return self.b

    def alpha_bar(self):
        return self.A

    def beta_tilde(self):
        return self.tilde

    def log_beta_tilde(self):
        return np.log(np.maximum(self.tilde, 1e-20)).astype(self.tables)

    def at(self, table, t, x):
        """One number per image."""
        return table[t - self.c["t_first"]].astype(self.float).reshape(-1, *[1] * (x.ndim - 1))

    # --- q

    def q_step(self, x_prev, t, eps):
        return self.at(np.sqrt(self.a), t, eps) * x_prev + self.at(np.sqrt(self.b), t, eps) * eps

    def q_sample(self, x_0, t, eps):
        return self.at(np.sqrt(self.A), t, eps) * x_0 + self.at(np.sqrt(1 - self.A), t, eps) * eps

    def q_mean_var(self, x_0, t):
        return self.at(np.sqrt(self.A), t, x_0) * x_0, self.at(1 - self.A, t, x_0)

    def q_posterior(self, x_0, x_t, t):
        c_0 = self.b * np.sqrt(self.A_prev) / (1 - self.A)
        c_t = (1 - self.A_prev) * np.sqrt(self.a) / (1 - self.A)
        return self.at(c_0, t, x_0) * x_0 + self.at(c_t, t, x_0) * x_t, self.at(self.tilde, t, x_0).reshape(-1)

    def from_eps(self, x_t, t, eps):
        if self.form == "direct":
            return (x_t - self.at(np.sqrt(1 - self.A), t, x_t) * eps) / self.at(np.sqrt(self.A), t, x_t)
        with np.errstate(divide="ignore", invalid="ignore"):
            r, m = np.sqrt(1 / self.A), np.sqrt(1 / self.A - 1)
        return self.at(r, t, x_t) * x_t - self.at(m, t, x_t) * eps

    def predict_x_0(self, x_t, t, output):
        kind = self.c["predicts"]
        if kind == "eps":
            return self.from_eps(x_t, t, output)
        if kind == "x_0":
            return output
        if kind == "v":
            return self.at(np.sqrt(self.A), t, x_t) * x_t - self.at(np.sqrt(1 - self.A), t, x_t) * output
        c_0 = self.b * np.sqrt(self.A_prev) / (1 - self.A)
        c_t = (1 - self.A_prev) * np.sqrt(self.a) / (1 - self.A)
        return (output - self.at(c_t, t, x_t) * x_t) / self.at(c_0, t, x_t)

    def predict_eps(self, x_t, t, x_0):
        return (x_t - self.at(np.sqrt(self.A), t, x_t) * x_0) / self.at(np.sqrt(1 - self.A), t, x_t)

    def target(self, x_0, t, eps):
        kind = self.c["predicts"]
        if kind == "v":
            return self.at(np.sqrt(self.A), t, eps) * eps - self.at(np.sqrt(1 - self.A), t, eps) * x_0
        return (
            {"eps": eps, "x_0": x_0}[kind] if kind != "mu" else self.q_posterior(x_0, self.q_sample(x_0, t, eps), t)[0]
        )

    # --- p

    def variance(self, x_t, t, more):
        kind = self.c["var"]
        if kind == "learned_var":
            return more
        if kind == "learned_log":
            return np.exp(more)
        first = np.concatenate([self.tilde[1:2], self.tilde[1:]])
        if kind == "learned_range":
            share = (more + 1) / 2
            return np.exp(share * self.at(np.log(self.b), t, x_t) + (1 - share) * self.at(np.log(first), t, x_t))
        if kind == "beta":
            return self.at(np.concatenate([self.tilde[1:2], self.b[1:]]), t, x_t)
        return self.at(first if kind == "beta_tilde" else np.asarray(kind), t, x_t)

    def p_mean_var(self, x_t, t, output, more=None):
        kind = self.c["predicts"]
        if self.form == "direct" and kind == "eps" and not self.c["clip"]:
            slope = self.at(self.b / np.sqrt(1 - self.A), t, x_t)
            mean = (x_t - slope * output) / self.at(np.sqrt(self.a), t, x_t)
        elif kind == "mu":
            mean = output
        else:
            x_0 = self.predict_x_0(x_t, t, output)
            mean = self.q_posterior(np.clip(x_0, *self.c["data_range"]) if self.c["clip"] else x_0, x_t, t)[0]
        return mean, self.variance(x_t, t, more)

    def reverse_step(self, x_t, t, output, z, more=None):
        mean, var = self.p_mean_var(x_t, t, output, more)
        last = (t == self.c["t_first"]).reshape(-1, *[1] * (x_t.ndim - 1))
        return mean + np.where(last, self.float(0), np.sqrt(var) * z).astype(self.float)

    def normal(self, shape):
        return self.rng.standard_normal(shape).astype(self.float)

    def run(self, model, x, start):
        """From x_t at the paper's t = start to x_0."""
        for step in range(start, 0, -1):
            t = np.full(len(x), step - 1 + self.c["t_first"])
            said = model(x, t)
            output, *more = said if isinstance(said, tuple) else (said,)
            x = self.reverse_step(x, t, output, self.normal(x.shape), *more)
        return x

    def sample(self, model, n):
        return self.run(model, self.normal((n, *self.c["shape"])), self.c["T"])

    def interpolate(self, model, x_a, x_b, t, lam):
        noise = [self.normal(x_a.shape), self.normal(x_a.shape)]
        if self.c["interpolation_noise"] == "shared":
            noise[1] = noise[0]
        steps = np.full(len(x_a), t)
        x_a, x_b = self.q_sample(x_a, steps, noise[0]), self.q_sample(x_b, steps, noise[1])
        return self.run(model, (1 - self.float(lam)) * x_a + self.float(lam) * x_b, t - self.c["t_first"] + 1)

    # --- losses

    def weights(self):
        kind = self.c["loss_weight"]
        predicts = self.c["predicts"]
        if kind == "simple":
            return np.ones(self.c["T"], self.tables)
        if kind == "eps":
            return {"eps": np.ones_like(self.A), "x_0": self.A / (1 - self.A), "v": self.A,
                    "mu": self.a * (1 - self.A) / self.b**2}[predicts]  # fmt: skip
        if not isinstance(kind, str):
            return np.asarray(kind)
        sigma2 = np.concatenate([self.tilde[1:2], (self.b if self.c["var"] == "beta" else self.tilde)[1:]])
        c_0 = self.b * np.sqrt(self.A_prev) / (1 - self.A)
        return {"eps": self.b**2 / (2 * sigma2 * self.a * (1 - self.A)), "mu": 1 / (2 * sigma2),
                "x_0": c_0**2 / (2 * sigma2), "v": c_0**2 * (1 - self.A) / (2 * sigma2)}[predicts]  # fmt: skip

    def loss_weights(self):
        return self.weights()

    def loss(self, x_0, t, eps, output):
        r = self.target(x_0, t, eps) - output
        small = np.abs(r) < 1
        error = {"squared": r * r, "l1": np.abs(r), "huber": np.where(small, 0.5 * r * r, np.abs(r) - 0.5)}[
            self.c["error"]
        ]
        error = error * self.at(self.weights(), t, error)
        if self.c["loss_reduction"] == "sum":
            return error.reshape(len(t), -1).sum(axis=1)
        return error.sum() if self.c["loss_reduction"] == "total" else error.mean()

    # --- likelihoods, in nats until the end

    def cdf(self, x):
        if self.c["decoder_cdf"] == "tanh":
            return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.reshape(-1)], self.float).reshape(x.shape)

    def log_p(self, x_0, mean, var):
        low, high = self.c["data_range"]
        half = (high - low) / (self.c["levels"] - 1) / 2
        sigma = np.sqrt(var)
        up, down = self.cdf((x_0 + half - mean) / sigma), self.cdf((x_0 - half - mean) / sigma)
        inside = np.log(np.maximum(up - down, 1e-12))
        ends = np.where(x_0 < low + half, np.log(np.maximum(up, 1e-12)), np.log(np.maximum(1 - down, 1e-12)))
        return np.where((x_0 < low + half) | (x_0 > high - half), ends, inside)

    @property
    def unit(self):
        return 1 / math.log(2) if self.c["units"] == "bits" else 1

    def decoder(self, x_0, mean, var):
        return self.log_p(x_0, mean, var) * self.unit

    def prior_kl(self, x_0):
        abar = self.A[-1]
        kl = 0.5 * (-1 - np.log(1 - abar) + (1 - abar) + abar * x_0**2)
        return kl.reshape(len(x_0), -1).mean(axis=1) * self.unit

    def bound_term(self, x_0, x_t, t, output, more=None):
        true_mean, _ = self.q_posterior(x_0, x_t, t)
        mean, var = self.p_mean_var(x_t, t, output, more)
        true_var = self.at(np.concatenate([self.tilde[1:2], self.tilde[1:]]), t, x_t)
        var = np.broadcast_to(var, x_t.shape)
        kl = 0.5 * (np.log(var) - np.log(true_var) - 1 + true_var / var + (true_mean - mean) ** 2 / var)
        first = (t == self.c["t_first"]).reshape(-1, *[1] * (x_t.ndim - 1))
        if first.any():
            kl = np.where(first, -self.log_p(x_0, mean, var), kl)
        return kl.reshape(len(t), -1).mean(axis=1) * self.unit

    # --- the rest

    def draw_t(self, n):
        return self.rng.integers(self.c["t_first"], self.c["T"] + self.c["t_first"], n)

    def scale(self, images):
        low, high = self.c["data_range"]
        return (images.astype(self.float) / self.float(255)) * self.float(high - low) + self.float(low)

    def unscale(self, x):
        low, high = self.c["data_range"]
        return np.clip(np.rint((x - low) / (high - low) * 255), 0, 255).astype(np.uint8)

    def time_embedding(self, t, dim):
        half = dim // 2
        last = half - 1 if self.c["embedding_spacing"] == "half-1" else half
        omega = np.exp(np.arange(half, dtype=self.float) * self.float(-math.log(self.c["embedding_max_period"]) / last))
        number = (t - self.c["t_first"] + self.c["embedding_counts_from"]).astype(self.float)
        sin, cos = np.sin(number[:, None] * omega), np.cos(number[:, None] * omega)
        if self.c["embedding_order"] == "interleaved":
            return np.stack([sin, cos], axis=-1).reshape(len(t), dim)
        return np.concatenate([sin, cos] if self.c["embedding_order"] == "sin_cos" else [cos, sin], axis=1)

    def ema(self, average, value, decay, step):
        if self.c["ema_warmup"]:
            decay = min(decay, (1 + step) / (10 + step))
        return average + self.float(1 - decay) * (value - average)

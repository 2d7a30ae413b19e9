"""ddpm_ref itself behind the checker's functions: everything offered, every convention it has a parameter of.

    ddpm-ref check examples/adapters/ours.py

Other conventions are other objects: `check(Ours(predicts="v", var="beta_tilde", clip=True))`.
"""

import warnings

import numpy as np

import ddpm_ref as ddpm
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.files.data import ImageData, to_bytes
from ddpm_ref.nn.ops import time_embedding
from ddpm_ref.nn.optim import AdamSettings, update
from ddpm_ref.objective import ERRORS
from ddpm_ref.random import integers


class Ours:
    """Our library; its tables are float64, its network's output has the log-variances in the last channels."""

    def __init__(self, **conventions):
        self.conventions = {"precision": "float64", "shape": (4, 4, 3), **conventions}
        get = self.conventions.get
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a short schedule leaves x_T far from N(0, I)
            self.s = ddpm.SCHEDULES[get("schedule", "linear")](get("T", 1000), **get("schedule_args", {}))
        var = get("var", "beta")
        self.predicts, self.clip, self.error = get("predicts", "eps"), get("clip", False), get("error", "squared")
        self.weight, self.levels = get("loss_weight", "simple"), get("levels", 256)
        if isinstance(var, str):
            self.var = "learned" if var == "learned_log" else var
        else:
            self.var = np.concatenate([[0.0], var])
        self.rng = np.random.default_rng(0)

    # §2, Eqs. 2, 4

    def betas(self):
        return self.s.beta[1:]

    def alpha_bar(self):
        return self.s.alpha_bar[1:]

    def beta_tilde(self):
        return self.s.beta_tilde[1:]

    def log_beta_tilde(self):
        return np.log(ddpm.reverse_variance(self.s, "beta_tilde")[1:])

    def q_step(self, x_prev, t, eps):
        return ddpm.q_step(self.s, x_prev, t, eps)

    def q_sample(self, x_0, t, eps):
        return ddpm.q_sample(self.s, x_0, t, eps)

    def q_mean_var(self, x_0, t):
        return ddpm.q_mean_var(self.s, x_0, t)

    # Eqs. 7, 15, 11

    def q_posterior(self, x_0, x_t, t):
        return ddpm.q_posterior(self.s, x_0, x_t, t)

    def predict_x_0(self, x_t, t, output):
        return ddpm.output_to_x_0(self.s, x_t, t, output, self.predicts)

    def predict_eps(self, x_t, t, x_0):
        return ddpm.predict_eps(self.s, x_t, t, x_0)

    def target(self, x_0, t, eps):
        if self.predicts == "eps":
            return eps
        return ddpm.output_from_x_0(self.s, self.q_sample(x_0, t, eps), t, x_0, self.predicts)

    def p_mean_var(self, x_t, t, output, log_var=None):
        output = output if log_var is None else np.concatenate([output, log_var], axis=-1)
        step = ddpm.p_mean_var(self.s, x_t, t, output, predicts=self.predicts, var=self.var, clip=self.clip)
        return step.mean, step.var

    # Algorithm 2

    def reverse_step(self, x_t, t, output, z, log_var=None):
        rows = []
        for i, step in enumerate(t):  # p_sample takes one t; at t = 1 z is None
            row = slice(i, i + 1)
            out = output[row] if log_var is None else np.concatenate([output[row], log_var[row]], axis=-1)
            noise = z[row] if step > 1 else None
            settings = dict(predicts=self.predicts, var=self.var, clip=self.clip)
            rows.append(ddpm.p_sample(self.s, x_t[row], int(step), out, noise, **settings)[0])
        return np.concatenate(rows)

    def _run(self, model, x_t, start):
        def network(x_t, t):
            said = model(x_t, t)
            return np.concatenate(said, axis=-1) if isinstance(said, tuple) else said

        settings = dict(predicts=self.predicts, var=self.var, clip=self.clip, start=start, every=start)
        for _, x, _ in ddpm.sample_steps(self.s, network, x_t, lambda t: self._normal(x_t.shape), **settings):  # noqa: B007
            pass
        return x

    def _normal(self, shape):
        return self.rng.standard_normal(shape)

    def sample(self, model, n):
        return self._run(model, self._normal((n, *self.conventions["shape"])), self.s.T)

    def interpolate(self, model, x_a, x_b, t, lam):
        x_a, x_b = (ddpm.q_sample(self.s, x, t, self._normal(x.shape)) for x in (x_a, x_b))
        return self._run(model, (1 - lam) * x_a + lam * x_b, t)

    # Eqs. 12, 14, 5, 13

    def loss_weights(self):
        if self.weight == "bound":
            return ddpm.bound_weights(self.s, self.predicts, self.var)[1:]
        return np.ones(self.s.T)

    def loss(self, x_0, t, eps, output):
        losses = ERRORS[self.error](output, self.target(x_0, t, eps))
        return ddpm.batch_mean(ddpm.weighted(losses, self.loss_weights()[t - 1]))[0]

    def decoder(self, x_0, mean, var):
        return discretized_gaussian_log_likelihood(x_0, mean, var, self.levels)[0]

    def prior_kl(self, x_0):
        return ddpm.prior_kl(self.s, x_0)

    def bound_term(self, x_0, x_t, t, output, log_var=None):
        output = output if log_var is None else np.concatenate([output, log_var], axis=-1)
        settings = dict(levels=self.levels, predicts=self.predicts, var=self.var, clip=self.clip)
        return ddpm.bound_term(self.s, x_0, x_t, t, output, **settings).per_image

    # §3.3, Algorithm 1, App. B

    def draw_t(self, n):
        return 1 + integers(0, ddpm.Purpose.T, 1, np.arange(n), self.s.T)

    def scale(self, images):
        return ImageData(images, 256, "bytes").x_0(dtype=np.float64)

    def unscale(self, images):
        return to_bytes(images)

    def time_embedding(self, t, dim):
        return time_embedding(t, dim)

    def ema(self, average, value, decay, step):
        average, zero = average.copy(), np.zeros_like(value)
        # No gradient: Adam leaves the parameters where they are, and only the average moves.
        update(value.copy(), zero, zero.copy(), zero.copy(), average, step, AdamSettings(ema=decay))
        return average

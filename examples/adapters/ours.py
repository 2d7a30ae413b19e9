"""ddpm_ref itself behind the checker's functions: every one offered, every convention a parameter.

    ddpm-ref check examples/adapters/ours.py:Ours
"""

import numpy as np

import ddpm_ref as ddpm


class Ours:
    """Our library under any conventions; float64, since its tables are."""

    def __init__(self, **conventions):
        self.conventions = {"precision": "float64", "shape": (8, 8, 3), **conventions}
        c = self.conventions
        self.s = ddpm.SCHEDULES[c.get("schedule", "linear")](c.get("T", 1000), **c.get("schedule_args", {}))
        self.predicts, self.var, self.clip = c.get("predicts", "eps"), c.get("var", "beta"), c.get("clip", False)

    def betas(self):
        return self.s.beta[1:]

    def alpha_bar(self):
        return self.s.alpha_bar[1:]

    def beta_tilde(self):
        return self.s.beta_tilde[1:]

    def q_step(self, x_prev, t, eps):
        return ddpm.q_step(self.s, x_prev, t, eps)

    def q_sample(self, x_0, t, eps):
        return ddpm.q_sample(self.s, x_0, t, eps)

    def q_mean_var(self, x_0, t):
        return ddpm.q_mean_var(self.s, x_0, t)

    def q_posterior(self, x_0, x_t, t):
        return ddpm.q_posterior(self.s, x_0, x_t, t)

    def predict_x_0(self, x_t, t, output):
        return ddpm.output_to_x_0(self.s, x_t, t, output, self.predicts)

    def predict_eps(self, x_t, t, x_0):
        return ddpm.predict_eps(self.s, x_t, t, x_0)

    def target(self, x_0, t, eps):
        if self.predicts == "eps":
            return eps
        return ddpm.output_from_x_0(self.s, ddpm.q_sample(self.s, x_0, t, eps), t, x_0, self.predicts)

    def p_mean_var(self, x_t, t, output):
        step = ddpm.p_mean_var(self.s, x_t, t, output, predicts=self.predicts, var=self.var, clip=self.clip)
        return step.mean, step.var

    def reverse_step(self, x_t, t, output, z):
        mean, var = self.p_mean_var(x_t, t, output)
        return mean + np.sqrt(var) * z * (t > 1).reshape(-1, 1, 1, 1)

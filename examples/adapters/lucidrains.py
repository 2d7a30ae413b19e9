"""lucidrains' denoising_diffusion_pytorch as adapters of `ddpm-ref check`.

    ddpm-ref check examples/adapters/lucidrains.py:pred_noise     (pred_x0, pred_v, learned: see the end of this file)

Nothing of the mathematics is written here: each function hands arrays to a method of theirs. Where their method asks
its network, the network is a stand-in that gives the checker's answer; where it draws noise, `torch.randn_like` gives
the checker's z for the length of the call.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch


def _import_package() -> types.ModuleType:
    """Their package, also where torchvision is absent or belongs to another torch: only their Trainer uses it."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        stand_in: Any = types.ModuleType("torchvision")
        stand_in.transforms = stand_in.utils = None
        sys.modules["torchvision"] = stand_in
        try:
            return importlib.import_module("denoising_diffusion_pytorch")
        finally:
            del sys.modules["torchvision"]
    return importlib.import_module("denoising_diffusion_pytorch")


package = _import_package()
gaussian = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
learned_gaussian = importlib.import_module("denoising_diffusion_pytorch.learned_gaussian_diffusion")

Array = np.ndarray
PREDICTS = {"pred_noise": "eps", "pred_x0": "x_0", "pred_v": "v"}


def tensor(x: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A copy: they clamp some arguments in place."""
    return torch.tensor(np.asarray(x), dtype=dtype)


def steps(t: Any) -> torch.Tensor:
    return tensor(t, torch.int64)


def stacked(outputs: Any) -> Array:
    """A network's output, with that for the variance, where there is one, in further channels."""
    return np.concatenate(outputs, axis=1) if isinstance(outputs, tuple) else np.asarray(outputs)


class Network(torch.nn.Module):
    """Stands where their U-Net would: answers with whatever `answer(x, t)` gives, NumPy in and out."""

    self_condition = False
    answer: Callable[[Array, Array], Array]

    def __init__(self, channels: int, out_dim: int) -> None:
        super().__init__()
        self.channels, self.out_dim = channels, out_dim

    def forward(self, x: torch.Tensor, t: torch.Tensor, x_self_cond: None = None) -> torch.Tensor:
        return tensor(stacked(self.answer(x.numpy().copy(), t.numpy().copy())))


class Adapter:
    """GaussianDiffusion(objective, beta_schedule, timesteps, **options); images (3, 8, 8), already in [-1, 1]."""

    kind = package.GaussianDiffusion
    outputs = 3
    var = "beta_tilde"

    def __init__(self, objective: str = "pred_v", schedule: str = "sigmoid", T: int = 1000, **options: Any) -> None:
        self.network = Network(3, self.outputs)
        self.diffusion = self.kind(
            self.network,
            image_size=8,
            objective=objective,
            beta_schedule=schedule,
            timesteps=T,
            auto_normalize=False,
            **options,
        )
        # Their linear schedule is the paper's at T = 1000 and scales its end points by 1000 / T otherwise.
        ends = {"beta_1": 1e-4 * 1000 / T, "beta_T": 0.02 * 1000 / T}
        self.conventions = {
            "name": f"lucidrains {self.kind.__name__} {objective} {schedule}",
            "T": T,
            "t_first": 0,
            "schedule": schedule,
            "schedule_args": ends if schedule == "linear" else {},
            "predicts": PREDICTS[objective],
            "var": self.var,
            "clip": True,  # p_sample always clips
            "loss_weight": "eps",  # errors of x_0 and v are weighted into those of ε
            "ema_warmup": True,
        }

    @contextmanager
    def answering(self, answer: Callable[[Array, Array], Array]) -> Iterator[None]:
        """Their network answers so; their progress bars stay silent."""
        self.network.answer = answer
        with patch.object(gaussian, "tqdm", lambda loop, **_: loop):
            yield

    # the forward process

    def betas(self) -> torch.Tensor:
        return self.diffusion.betas

    def alpha_bar(self) -> torch.Tensor:
        return self.diffusion.alphas_cumprod

    def beta_tilde(self) -> torch.Tensor:
        return self.diffusion.posterior_variance

    def log_beta_tilde(self) -> torch.Tensor:
        return self.diffusion.posterior_log_variance_clipped

    def q_sample(self, x_0: Array, t: Array, eps: Array) -> torch.Tensor:
        return self.diffusion.q_sample(tensor(x_0), steps(t), noise=tensor(eps))

    def q_posterior(self, x_0: Array, x_t: Array, t: Array) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var, _ = self.diffusion.q_posterior(tensor(x_0), tensor(x_t), steps(t))
        return mean, var

    def predict_eps(self, x_t: Array, t: Array, x_0: Array) -> torch.Tensor:
        return self.diffusion.predict_noise_from_start(tensor(x_t), steps(t), tensor(x_0))

    def predict_x_0(self, x_t: Array, t: Array, output: Array) -> torch.Tensor:
        with self.answering(lambda x, t: output):
            return self.diffusion.model_predictions(tensor(x_t), steps(t)).pred_x_start

    # the reverse process

    def p_mean_var(self, x_t: Array, t: Array, output: Array) -> tuple[torch.Tensor, torch.Tensor]:
        with self.answering(lambda x, t: output):
            mean, var, *_ = self.diffusion.p_mean_variance(x=tensor(x_t), t=steps(t), clip_denoised=True)
        return mean, var

    def reverse_step(self, x_t: Array, t: Array, output: Array, z: Array) -> Array:
        """p_sample takes one t for a batch: row by row."""
        rows = []
        for i in range(len(x_t)):
            with (
                self.answering(lambda x, t, i=i: output[i : i + 1]),
                patch.object(torch, "randn_like", lambda x, i=i: tensor(z[i : i + 1])),
            ):
                rows.append(self.diffusion.p_sample(tensor(x_t[i : i + 1]), int(t[i]))[0].numpy())
        return np.concatenate(rows)

    def sample(self, model: Callable[[Array, Array], Array], n: int) -> torch.Tensor:
        with self.answering(model):
            return self.diffusion.sample(n)

    def interpolate(self, model: Any, x_a: Array, x_b: Array, t: Any, lam: float) -> torch.Tensor:
        with self.answering(model):
            return self.diffusion.interpolate(tensor(x_a), tensor(x_b), t=int(np.ravel(t)[0]), lam=lam)

    # training

    def loss(self, x_0: Array, t: Array, eps: Array, output: Array) -> float:
        with self.answering(lambda x, t: output):
            return float(self.diffusion.p_losses(tensor(x_0), steps(t), noise=tensor(eps)))

    def loss_weights(self) -> torch.Tensor:
        return self.diffusion.loss_weight

    def draw_t(self, n: int) -> torch.Tensor:
        return self.diffusion.random_times(n)

    def time_embedding(self, t: Array, dim: int) -> torch.Tensor:
        return gaussian.SinusoidalPosEmb(dim)(steps(t))

    def ema(self, average: Array, value: Array, decay: float, step: int) -> Array:
        """The `step`-th update by ema_pytorch (their dependency), without its pause of 100 steps at the start."""
        model = torch.nn.ParameterList([torch.nn.Parameter(tensor(value))])
        ema = gaussian.EMA(model, beta=decay, update_after_step=0, update_every=1)
        ema.ema_model[0].data.copy_(tensor(average))
        ema.step.fill_(int(step) - 1)
        ema.initted.fill_(int(step) > 1)
        ema.update()
        return ema.ema_model[0].detach().numpy()


class PredictsV(Adapter):
    """The target of a network that predicts v has a function of its own; the others' are inside p_losses."""

    def target(self, x_0: Array, t: Array, eps: Array) -> torch.Tensor:
        return self.diffusion.predict_v(tensor(x_0), steps(t), tensor(eps))


class Learned(Adapter):
    """LearnedGaussianDiffusion: twice the channels, the second half a variance between β̃_t and β_t, and L_vb."""

    kind = package.LearnedGaussianDiffusion
    outputs = 6
    loss_weights = None  # its p_losses weights nothing

    def __init__(self, objective: str = "pred_noise", schedule: str = "linear", T: int = 1000, **options: Any) -> None:
        super().__init__(objective, schedule, T, **options)
        self.conventions |= {"var": "learned_range", "units": "bits", "decoder_cdf": "tanh"}

    def p_mean_var(self, x_t: Array, t: Array, output: Array, var_output: Array) -> tuple[torch.Tensor, torch.Tensor]:
        return super().p_mean_var(x_t, t, stacked((output, var_output)))

    def reverse_step(self, x_t: Array, t: Array, output: Array, z: Array, var_output: Array) -> Array:
        return super().reverse_step(x_t, t, stacked((output, var_output)), z)

    def predict_x_0(self, x_t: Array, t: Array, output: Array) -> torch.Tensor:
        """From p_mean_variance: their model_predictions raises NameError in this class."""
        with self.answering(lambda x, t: stacked((output, output))):
            return self.diffusion.p_mean_variance(x=tensor(x_t), t=steps(t), clip_denoised=False)[3]

    def loss(self, x_0: Array, t: Array, eps: Array, output: Array) -> float:
        """Its first part, L_simple: without the bound."""
        with patch.object(self.diffusion, "vb_loss_weight", 0.0):
            return super().loss(x_0, t, eps, stacked((output, np.zeros_like(output))))

    def bound_term(self, x_0: Array, x_t: Array, t: Array, output: Array, var_output: Array) -> torch.Tensor:
        """Its second part: p_losses is L_simple + weight · L_vb, so L_vb is the difference of two weights."""
        eps = self.diffusion.predict_noise_from_start(tensor(x_t), steps(t), tensor(x_0))
        parts = []
        with self.answering(lambda x, t: stacked((output, var_output))):
            for weight in (0.0, WEIGHT):
                with patch.object(self.diffusion, "vb_loss_weight", weight):
                    parts.append(self.diffusion.p_losses(tensor(x_0), steps(t), noise=eps, loss_reduction="none"))
        return (parts[1] - parts[0]) / WEIGHT

    def decoder(self, x_0: Array, mean: Array, var: Array) -> torch.Tensor:
        """In nats there, in bits (by their NAT) where p_losses uses it."""
        log_scales = 0.5 * tensor(np.broadcast_to(var, x_0.shape)).log()
        nats = learned_gaussian.discretized_gaussian_log_likelihood(
            tensor(x_0), means=tensor(mean), log_scales=log_scales
        )
        return nats * learned_gaussian.NAT


WEIGHT = 1e4  # large, so that L_simple's rounding does not show in L_vb


pred_noise = Adapter("pred_noise", "linear")  # the paper's parametrisation and schedule
pred_x0 = Adapter("pred_x0", "cosine")
pred_v = PredictsV()  # their defaults
learned = Learned()

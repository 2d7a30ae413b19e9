"""The DDPMScheduler of huggingface diffusers, and what belongs to it, as adapters of `ddpm-ref check`.

    ddpm-ref check examples/adapters/diffusers_ddpm.py:fixed_large     (others: the end of this file)

Nothing of the mathematics is written here: each function hands arrays to theirs. `step` takes one t, so rows go in one
by one; the noise it draws comes from `randn_tensor`, which gives the checker's z for the length of the call.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.schedulers import scheduling_ddpm
from diffusers.training_utils import EMAModel
from PIL import Image

Array = np.ndarray
PREDICTS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "beta_tilde",
    "fixed_small_log": "beta_tilde",
    "fixed_large": "beta",
    "fixed_large_log": "beta",
    "learned": "learned_var",
    "learned_range": "learned_range",
}
SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine"}


def tensor(x: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=torch.float32)


def stacked(outputs: Any) -> Array:
    """A network's output, with that for the variance, where there is one, in further channels."""
    return np.concatenate(outputs, axis=1) if isinstance(outputs, tuple) else np.asarray(outputs)


class Network(torch.nn.Module):
    """Stands where their U-Net would: answers with whatever `answer(x, t)` gives, NumPy in and out."""

    config = SimpleNamespace(sample_size=8, in_channels=3)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, answer: Callable[[Array, Array], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> SimpleNamespace:
        output = self.answer(x.numpy().copy(), np.full(len(x), int(t)))
        return SimpleNamespace(sample=tensor(stacked(output)))


class Adapter:
    """DDPMScheduler(variance_type, prediction_type, **config); images (3, 8, 8).

    inference_steps: run the chain over so many of its steps, as `set_timesteps` picks them, rather than all; the
    adapter's t then counts the steps visited, 0 being the last of the chain.
    embedding: arguments of their `get_timestep_embedding`.
    """

    def __init__(
        self,
        variance_type: str = "fixed_small",
        prediction_type: str = "epsilon",
        inference_steps: int | None = None,
        embedding: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        self.scheduler = DDPMScheduler(variance_type=variance_type, prediction_type=prediction_type, **config)
        unclipped = {"clip_sample": False, "variance_type": "fixed_small"}
        self.unclipped = DDPMScheduler.from_config(self.scheduler.config, **unclipped)
        self.visited = torch.arange(len(self.scheduler.betas))
        if inference_steps is not None:
            self.scheduler.set_timesteps(inference_steps)
            self.unclipped.set_timesteps(inference_steps)
            self.visited = self.scheduler.timesteps.flip(0)
            self.betas = None  # those of the visited chain are nowhere a table
        self.embedding = embedding or {}  # of UNet2DModel: flip_sin_to_cos=True, downscale_freq_shift=0
        known = self.scheduler.config
        named = SCHEDULES.get(known.beta_schedule)
        if known.rescale_betas_zero_snr or inference_steps is not None:
            named = None
        ends = {"beta_1": known.beta_start, "beta_T": known.beta_end}
        self.conventions = {
            "name": f"diffusers DDPMScheduler {variance_type} {prediction_type}",
            "T": len(self.visited),
            "t_first": 0,
            "schedule": named,
            "schedule_args": ends if named in ("linear", "quadratic") else {},
            "predicts": PREDICTS[prediction_type],
            "var": VARIANCES[variance_type],
            "clip": known.clip_sample,
            "embedding_order": "cos_sin" if self.embedding.get("flip_sin_to_cos") else "sin_cos",
            "embedding_spacing": "half" if self.embedding.get("downscale_freq_shift") == 0 else "half-1",
            "ema_warmup": True,
        }
        if prediction_type == "v_prediction":
            self.target = self._target_v  # the other targets are ε and x_0 themselves, written in the user's own loop

    # the forward process

    def betas(self) -> torch.Tensor:
        return self.scheduler.betas

    def alpha_bar(self) -> torch.Tensor:
        return self.scheduler.alphas_cumprod[self.visited]

    def beta_tilde(self) -> list[float]:
        return [float(self.scheduler._get_variance(t, variance_type="fixed_small")) for t in self.visited]

    def q_sample(self, x_0: Array, t: Array, eps: Array) -> torch.Tensor:
        return self.scheduler.add_noise(tensor(x_0), tensor(eps), self.visited[t])

    def _target_v(self, x_0: Array, t: Array, eps: Array) -> torch.Tensor:
        return self.scheduler.get_velocity(tensor(x_0), tensor(eps), self.visited[t])

    # the reverse process

    def reverse_step(self, x_t: Array, t: Array, output: Array, z: Array, var_output: Array | None = None) -> Array:
        output = output if var_output is None else stacked((output, var_output))
        rows = []
        for i, step in enumerate(self.visited[t]):
            with patch.object(scheduling_ddpm, "randn_tensor", lambda shape, i=i, **_: tensor(z[i : i + 1])):
                row = self.scheduler.step(tensor(output[i : i + 1]), step, tensor(x_t[i : i + 1]))
            rows.append(row.prev_sample.numpy())
        return np.concatenate(rows)

    def p_mean_var(self, x_t: Array, t: Array, output: Array, var_output: Array | None = None) -> tuple[Array, Array]:
        """The mean is a step without noise; the variance is what `_get_variance` returns, "the computed variance"."""
        mean = self.reverse_step(x_t, t, output, np.zeros_like(x_t), var_output)
        predicted = [None] * len(t) if var_output is None else tensor(var_output)
        var = [
            self.scheduler._get_variance(step, predicted_variance=predicted[i])
            for i, step in enumerate(self.visited[t])
        ]
        return mean, np.stack([v.numpy() for v in var])

    def predict_x_0(self, x_t: Array, t: Array, output: Array) -> Array:
        rows = [
            self.unclipped.step(tensor(output[i : i + 1]), step, tensor(x_t[i : i + 1])).pred_original_sample
            for i, step in enumerate(self.visited[t])
        ]
        return torch.cat(rows).numpy()

    def sample(self, model: Callable[[Array, Array], Any], n: int) -> torch.Tensor:
        """DDPMPipeline, whose last act is to map [-1, 1] to [0, 1] and clamp: mapped back here."""
        pipeline = DDPMPipeline(
            Network(lambda x, t: model(x, np.searchsorted(self.visited.numpy(), t))), self.scheduler
        )
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=n, num_inference_steps=len(self.visited), output_type="pt").images
        return VaeImageProcessor.normalize(images)

    # around them

    def time_embedding(self, t: Array, dim: int) -> torch.Tensor:
        return get_timestep_embedding(torch.tensor(t), dim, **self.embedding)

    def ema(self, average: Array, value: Array, decay: float, step: int) -> torch.Tensor:
        ema = EMAModel([torch.nn.Parameter(tensor(average))], decay=decay)
        ema.optimization_step = int(step) - 1
        ema.step([torch.nn.Parameter(tensor(value))])
        return ema.shadow_params[0]

    def scale(self, images: Array) -> torch.Tensor:
        pictures = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
        return VaeImageProcessor(do_resize=False).preprocess(pictures)

    def unscale(self, x: Array) -> Array:
        pictures = VaeImageProcessor().postprocess(tensor(x), output_type="pil")
        return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)


fixed_small = Adapter("fixed_small")  # their defaults: x̂_0 clipped, σ_t² = β̃_t
fixed_small_log = Adapter("fixed_small_log")
fixed_large = Adapter("fixed_large")  # the paper's for CIFAR-10
fixed_large_log = Adapter("fixed_large_log")
learned = Adapter("learned")
learned_range = Adapter("learned_range")
predicts_x_0 = Adapter("fixed_small", "sample")
predicts_v = Adapter("fixed_small", "v_prediction")

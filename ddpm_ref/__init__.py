"""The executable form of one paper: Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models (2020).

The names below stand in the paper's order. Steps t run from 1 to T; images are (N, H, W, C) floats in [-1, 1].
"""

from ddpm_ref.schedule import SCHEDULES, Schedule  # isort: skip
from ddpm_ref.forward import predict_eps, predict_x_0, q_mean_var, q_posterior, q_sample, q_step  # isort: skip
from ddpm_ref.reverse import (  # isort: skip
    PARAMETRISATIONS,
    ReverseStep,
    mean_slope,
    mixed_variance,
    output_from_x_0,
    output_to_x_0,
    p_mean,
    p_mean_var,
    p_sample,
    reverse_variance,
    sample,
    sample_steps,
)
from ddpm_ref.decoder import discretized_gaussian_log_likelihood  # isort: skip
from ddpm_ref.objective import (  # isort: skip
    Losses,
    Objective,
    absolute_error,
    batch_mean,
    bound_term,
    bound_weights,
    combine,
    huber_error,
    log_variance_weighted,
    simple_loss,
    squared_error,
    weighted,
)
from ddpm_ref.likelihood import BoundTerms, bits_per_dim, bound_terms, prior_kl  # isort: skip
from ddpm_ref.random import Purpose, normal, uniform  # isort: skip
from ddpm_ref.backend import Backend  # isort: skip
from ddpm_ref.discovery import available_backends, get_backend  # isort: skip
from ddpm_ref.nn.params import Params  # isort: skip
from ddpm_ref.nn.plan import PRESETS, UNetConfig, preset  # isort: skip
from ddpm_ref.nn.unet import UNet  # isort: skip
from ddpm_ref.nn.optim import AdamSettings  # isort: skip
from ddpm_ref.train import Trainer, TrainSettings, TrainState  # isort: skip
from ddpm_ref.dataset_likelihood import DatasetBound, dataset_bound  # isort: skip
from ddpm_ref.sampling import generate_steps  # isort: skip

from importlib import import_module  # isort: skip
from typing import TYPE_CHECKING, Any  # isort: skip

if TYPE_CHECKING:
    from ddpm_ref.backend_check import check_backend
    from ddpm_ref.files.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from ddpm_ref.gaussian_oracle import GaussianOracle
    from ddpm_ref.oracles import EmpiricalOracle, MixtureOracle, Oracle

__version__ = "0.1.0"

__all__ = [
    "PARAMETRISATIONS",
    "PRESETS",
    "SCHEDULES",
    "AdamSettings",
    "Backend",
    "BoundTerms",
    "Checkpoint",
    "DatasetBound",
    "EmpiricalOracle",
    "GaussianOracle",
    "Losses",
    "MixtureOracle",
    "Objective",
    "Oracle",
    "Params",
    "Purpose",
    "ReverseStep",
    "Schedule",
    "TrainSettings",
    "TrainState",
    "Trainer",
    "UNet",
    "UNetConfig",
    "absolute_error",
    "available_backends",
    "batch_mean",
    "bits_per_dim",
    "bound_term",
    "bound_terms",
    "bound_weights",
    "check_backend",
    "combine",
    "dataset_bound",
    "discretized_gaussian_log_likelihood",
    "generate_steps",
    "get_backend",
    "huber_error",
    "load_checkpoint",
    "log_variance_weighted",
    "mean_slope",
    "mixed_variance",
    "normal",
    "output_from_x_0",
    "output_to_x_0",
    "p_mean",
    "p_mean_var",
    "p_sample",
    "predict_eps",
    "predict_x_0",
    "preset",
    "prior_kl",
    "q_mean_var",
    "q_posterior",
    "q_sample",
    "q_step",
    "reverse_variance",
    "sample",
    "sample_steps",
    "save_checkpoint",
    "simple_loss",
    "squared_error",
    "uniform",
    "weighted",
]


# Imported when first used: the files, and numpy.random behind the oracles, would double the cost of importing this.
_LATER = {
    "files.checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "backend_check": ("check_backend",),
    "gaussian_oracle": ("GaussianOracle",),
    "oracles": ("EmpiricalOracle", "MixtureOracle", "Oracle"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"ddpm_ref.{module}"), name)
    raise AttributeError(f"module 'ddpm_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

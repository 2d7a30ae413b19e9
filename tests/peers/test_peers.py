"""What `ddpm-ref check` finds in released versions of other people's code: exactly what FINDINGS.md records.

A finding that goes away, and a new one, both fail here, so a new release (or a change of the checker) is noticed.
"""

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from ddpm_ref.conformance import check

pytestmark = pytest.mark.peers

RECORDED = {"diffusers": "0.42.1", "denoising-diffusion-pytorch": "2.3.4", "ema-pytorch": "0.8.3"}

NAN_STEP = {"reverse-mean", "reverse-var", "clip", "step-mean", "step-noise", "sample-steps"}
LAST_NOISE = {"last-step", "sample-last"}
OFF_BY_ONE = {"interpolation-mix"}


def min_snr(T: int = 1000, gamma: float = 5.0) -> list[float]:
    """Min-SNR weights of a network that predicts ε (Hang et al. 2023), min(SNR, γ) / SNR, for the linear schedule."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, T))
    snr = alpha_bar / (1 - alpha_bar)
    return list(np.minimum(snr, gamma) / snr)


def laplace(T: int = 1000) -> list[float]:
    """β of the Laplace schedule as Hang & Gu (2024) define it: log SNR(u) = -½ sgn(½ - u) log(1 - 2|½ - u|)."""

    def alpha_bar(u: float) -> float:
        log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
        return 1 / (1 + math.exp(-log_snr))

    return [min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)]


def declaring(adapter: Any, **conventions: Any) -> Any:
    adapter.conventions |= conventions
    return adapter


Instance = tuple[Callable[[Any], Any], set[str]]

DIFFUSERS: dict[str, Instance] = {
    "fixed_small": (lambda d: d.Adapter("fixed_small"), set()),
    "fixed_small_log": (lambda d: d.Adapter("fixed_small_log"), {"reverse-var"}),
    "fixed_large": (lambda d: d.Adapter("fixed_large"), set()),
    "fixed_large_log": (lambda d: d.Adapter("fixed_large_log"), NAN_STEP),
    "learned": (lambda d: d.Adapter("learned"), set()),
    "learned_range": (lambda d: d.Adapter("learned_range"), {"reverse-var"}),
    "x_0": (lambda d: d.Adapter("fixed_small", "sample"), set()),
    "x_0, fixed_large": (lambda d: d.Adapter("fixed_large", "sample"), set()),
    "v": (lambda d: d.Adapter("fixed_small", "v_prediction"), set()),
    "v, fixed_large": (lambda d: d.Adapter("fixed_large", "v_prediction"), set()),
    "not clipped": (lambda d: d.Adapter("fixed_large", clip_sample=False), set()),
    "x_0, not clipped": (lambda d: d.Adapter("fixed_small", "sample", clip_sample=False), set()),
    "v, not clipped": (lambda d: d.Adapter("fixed_small", "v_prediction", clip_sample=False), set()),
    "cosine": (lambda d: d.Adapter(beta_schedule="squaredcos_cap_v2"), set()),
    "latent diffusion's schedule": (
        lambda d: d.Adapter(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        set(),
    ),
    "sigmoid": (lambda d: d.Adapter(beta_schedule="sigmoid"), set()),
    "laplace": (lambda d: declaring(d.Adapter(beta_schedule="laplace"), schedule=laplace()), {"beta"}),
    "zero terminal SNR": (lambda d: d.Adapter(rescale_betas_zero_snr=True), {"sample-steps"}),
    "zero terminal SNR, v": (
        lambda d: d.Adapter("fixed_small", "v_prediction", rescale_betas_zero_snr=True),
        set(),
    ),
    "U-Net's default embedding": (
        lambda d: d.Adapter(embedding={"flip_sin_to_cos": True, "downscale_freq_shift": 0}),
        set(),
    ),
    "50 steps, leading": (lambda d: d.Adapter("fixed_large", inference_steps=50), set()),
    "50 steps, linspace": (
        lambda d: d.Adapter("fixed_large", inference_steps=50, timestep_spacing="linspace"),
        set(),
    ),
    "50 steps, trailing": (
        lambda d: d.Adapter("fixed_large", inference_steps=50, timestep_spacing="trailing"),
        LAST_NOISE,
    ),
    "50 steps, offset": (lambda d: d.Adapter("fixed_large", inference_steps=50, steps_offset=1), LAST_NOISE),
    "50 steps, trailing, learned_range": (
        lambda d: d.Adapter("learned_range", inference_steps=50, timestep_spacing="trailing"),
        {"reverse-var"} | LAST_NOISE,
    ),
    "50 steps, trailing, fixed_small": (
        lambda d: d.Adapter("fixed_small", inference_steps=50, timestep_spacing="trailing"),
        set(),
    ),
}

LUCIDRAINS: dict[str, Instance] = {
    "pred_noise, linear": (lambda p: p.Adapter("pred_noise", "linear"), OFF_BY_ONE),
    "pred_noise, cosine": (lambda p: p.Adapter("pred_noise", "cosine"), OFF_BY_ONE),
    "pred_noise, sigmoid": (lambda p: p.Adapter("pred_noise", "sigmoid"), OFF_BY_ONE),
    "pred_x0, cosine": (lambda p: p.Adapter("pred_x0", "cosine"), OFF_BY_ONE),
    "pred_v, sigmoid": (lambda p: p.PredictsV("pred_v", "sigmoid"), OFF_BY_ONE),
    "pred_v, linear": (lambda p: p.PredictsV("pred_v", "linear"), OFF_BY_ONE),
    "linear, T = 250": (lambda p: p.Adapter("pred_noise", "linear", 250), OFF_BY_ONE),
    "immiscible": (lambda p: p.Adapter("pred_noise", "linear", immiscible=True), {"q-sample", "rows"} | OFF_BY_ONE),
    "min-SNR": (
        lambda p: declaring(p.Adapter("pred_noise", "linear", min_snr_loss_weight=True), loss_weight=min_snr()),
        OFF_BY_ONE,
    ),
    "learned": (lambda p: p.Learned("pred_noise", "linear"), OFF_BY_ONE),
    "learned, cosine": (lambda p: p.Learned("pred_noise", "cosine"), OFF_BY_ONE),
}


def found(peer: Any, build: Callable[[Any], Any]) -> set[str]:
    """The ids of what is broken; fails, with the whole report, where one of the adapter's functions raised."""
    peer.torch.manual_seed(0)  # their sampling loops and q_sample draw for themselves
    adapter = build(peer)
    report = check(adapter)
    print(report.table())  # shown when the test fails
    assert not report.errors
    assert sum(result.status == "holds" for result in report) >= 14
    return {result.id for result in report.broken}


@pytest.mark.parametrize("instance", DIFFUSERS)
def test_the_checker_finds_in_diffusers_exactly_what_is_recorded(diffusers_ddpm, instance):
    build, broken = DIFFUSERS[instance]
    assert found(diffusers_ddpm, build) == broken


@pytest.mark.parametrize("instance", LUCIDRAINS)
def test_the_checker_finds_in_lucidrains_exactly_what_is_recorded(lucidrains, instance):
    build, broken = LUCIDRAINS[instance]
    assert found(lucidrains, build) == broken


@pytest.mark.parametrize("package", RECORDED)
def test_the_release_installed_is_the_one_recorded(package, diffusers_ddpm, lucidrains):
    assert version(package) == RECORDED[package], "hold the new release to the checker and bring FINDINGS.md up to date"

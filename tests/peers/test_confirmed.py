"""Each finding of FINDINGS.md by a few lines against the library itself: no checker, no function of an adapter.

The numbers in the assertions come from the paper's formulas, written out here. A new release that mends one of these
fails its test: then FINDINGS.md and test_peers.py are to be brought up to date.
"""

import importlib
import math

import numpy as np
import pytest

pytestmark = pytest.mark.peers

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)
BETA_TILDE = BETA * (1 - np.append(1.0, ALPHA_BAR[:-1])) / (1 - ALPHA_BAR)


@pytest.fixture
def torch(diffusers_ddpm):
    return diffusers_ddpm.torch


# --- diffusers 0.42.1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDPMParallelScheduler"])
def test_diffusers_fixed_large_log_gives_nan_in_every_step_but_the_last(diffusers_ddpm, torch, kind):
    x = torch.zeros(1, 3, 8, 8)
    scheduler = getattr(importlib.import_module("diffusers"), kind)(variance_type="fixed_large_log")
    nan = [bool(scheduler.step(x, t, x).prev_sample.isnan().all()) for t in range(1000)]
    assert nan == [False] + [True] * 999


def test_diffusers_get_variance_is_a_variance_for_three_of_six_types_only(diffusers_ddpm, torch):
    def given(variance_type):
        scheduler = diffusers_ddpm.DDPMScheduler(variance_type=variance_type)
        return float(scheduler._get_variance(500, predicted_variance=torch.tensor(0.5)))

    beta, beta_tilde = BETA[500], BETA_TILDE[500]
    assert given("fixed_small") == pytest.approx(beta_tilde, rel=1e-4)
    assert given("fixed_large") == pytest.approx(beta, rel=1e-4)
    assert given("learned") == 0.5
    assert given("fixed_small_log") == pytest.approx(math.sqrt(beta_tilde), rel=1e-4)
    assert given("fixed_large_log") == pytest.approx(math.log(beta), rel=1e-4)
    assert given("learned_range") == pytest.approx(0.75 * math.log(beta) + 0.25 * math.log(beta_tilde), rel=1e-4)


def test_diffusers_learned_variance_is_taken_as_the_variance_and_its_root_drawn_unguarded(diffusers_ddpm, torch):
    scheduler = diffusers_ddpm.DDPMScheduler(variance_type="learned")
    x = torch.zeros(1, 3, 8, 8)
    for variance, spread in ((4.0, 2.0), (-4.0, math.nan)):
        torch.manual_seed(0)
        output = torch.cat([x, torch.full_like(x, variance)], dim=1)
        step = scheduler.step(output, 500, x).prev_sample
        torch.manual_seed(0)
        np.testing.assert_allclose(step, spread * torch.randn(1, 3, 8, 8), rtol=1e-5)


@pytest.mark.parametrize(
    ("last", "options"), [(0, {}), (1, {"steps_offset": 1}), (19, {"timestep_spacing": "trailing"})]
)
def test_diffusers_adds_noise_in_the_last_of_fewer_steps_unless_that_is_step_0(diffusers_ddpm, torch, last, options):
    scheduler = diffusers_ddpm.DDPMScheduler(variance_type="fixed_large", **options)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[-1] == last
    x = torch.zeros(1, 3, 64, 64)
    torch.manual_seed(0)
    noise = scheduler.step(x, scheduler.timesteps[-1], x).prev_sample.std()
    assert float(noise) == pytest.approx(np.sqrt(1 - ALPHA_BAR[last]) if last else 0, rel=0.03)


def test_diffusers_zero_terminal_snr_leaves_epsilon_without_an_x_0_at_the_first_step(diffusers_ddpm, torch):
    scheduler = diffusers_ddpm.DDPMScheduler(rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    x, eps = torch.tensor([[[[1.0, -1.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0]]]])
    x_0 = scheduler.step(eps, 999, x).pred_original_sample.flatten().tolist()
    assert x_0[:2] == [1, -1]  # (x - ε) / 0 = ±∞, clipped
    assert math.isnan(x_0[2])  # 0 / 0


@pytest.mark.parametrize(("dtype", "lost"), [("float16", 2), ("bfloat16", 10)])
def test_diffusers_add_noise_adds_none_in_the_first_steps_of_half_precision(diffusers_ddpm, torch, dtype, lost):
    noise = torch.ones(1000, 1, 1, 1, dtype=getattr(torch, dtype))
    scale = diffusers_ddpm.DDPMScheduler().add_noise(0 * noise, noise, torch.arange(1000)).flatten().double()
    assert (scale[:lost] == 0).all() and (scale[lost:] > 0).all()
    assert np.sqrt(1 - ALPHA_BAR[lost - 1]) > 0.0148  # what it should be in the last of them


def test_diffusers_laplace_schedule_takes_the_root_of_the_alpha_bar_it_means(diffusers_ddpm):
    """Hang & Gu 2024: log SNR(t) = -½ sgn(½ - t) log(1 - 2|½ - t|), so SNR = 1 and ᾱ = ½ half-way."""
    alpha_bar = diffusers_ddpm.DDPMScheduler(beta_schedule="laplace").alphas_cumprod
    assert float(alpha_bar[499]) == pytest.approx(math.sqrt(0.5), rel=2e-3)


def test_diffusers_ema_warms_up_though_warmup_is_off(diffusers_ddpm, torch):
    ema = diffusers_ddpm.EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999, use_ema_warmup=False)
    assert ema.get_decay(1) == 0
    assert ema.get_decay(1000) == 1000 / 1009
    assert next(step for step in range(80_000, 100_000) if ema.get_decay(step) == 0.9999) == 89_991


# --- denoising-diffusion-pytorch 2.3.4 -------------------------------------------------------------------------------


class Watched:
    """Their GaussianDiffusion with a stand-in network that answers `answer(x, t)` and notes the t it is asked at."""

    def __init__(self, lucidrains, answer, kind="GaussianDiffusion", outputs=3, **options):
        self.asked = []
        network = lucidrains.Network(3, outputs)
        network.answer = lambda x, t: (self.asked.append(int(t[0])), answer(x, t))[1]
        self.diffusion = getattr(lucidrains.package, kind)(network, image_size=8, **options)


def test_lucidrains_interpolate_begins_one_step_below_the_one_it_noised_to(lucidrains):
    torch = lucidrains.torch
    they = Watched(lucidrains, lambda x, t: 0 * x)
    noised, q_sample = [], they.diffusion.q_sample
    they.diffusion.q_sample = lambda x, t: (noised.append(int(t[0])), q_sample(x, t))[1]
    they.diffusion.interpolate(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), t=5)
    assert noised == [5, 5]
    assert they.asked == [4, 3, 2, 1, 0]


def test_lucidrains_interpolate_takes_and_gives_another_range_than_sample(lucidrains):
    torch = lucidrains.torch
    they = Watched(lucidrains, lambda x, t: np.full_like(x, -1), objective="pred_x0")  # black in [-1, 1]
    assert float(they.diffusion.sample(1).mean()) == 0
    black = torch.zeros(1, 3, 8, 8)
    assert float(they.diffusion.interpolate(black, black, t=5).mean()) == -1
    noised, q_sample = [], they.diffusion.q_sample
    they.diffusion.q_sample = lambda x, t: (noised.append(float(x.mean())), q_sample(x, t))[1]
    they.diffusion.interpolate(black, black, t=5)
    assert noised == [0, 0]  # not -1: q_sample wants [-1, 1], but nothing has normalised


@pytest.mark.parametrize(("immiscible", "low", "high"), [(False, 0, 1e-9), (True, 1, 3)])
def test_lucidrains_immiscible_trains_against_noise_that_is_not_in_the_image(lucidrains, immiscible, low, high):
    torch = lucidrains.torch
    torch.manual_seed(0)
    x_0, eps, t = torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.full((8,), 500)
    they = Watched(
        lucidrains,
        lambda x, t: (x - math.sqrt(ALPHA_BAR[500]) * x_0.numpy()) / math.sqrt(1 - ALPHA_BAR[500]),  # the noise in x
        objective="pred_noise",
        beta_schedule="linear",
        immiscible=immiscible,
    )
    assert low <= they.diffusion.p_losses(x_0, t, noise=eps.clone()).item() <= high


@pytest.mark.parametrize("objective", ["pred_x0", "pred_v"])
def test_lucidrains_learned_variance_ignores_the_objective(lucidrains, objective):
    torch = lucidrains.torch
    they = Watched(lucidrains, None, "LearnedGaussianDiffusion", 6, objective=objective, beta_schedule="linear")
    x, output, t = torch.randn(1, 3, 8, 8), 0.1 * torch.randn(1, 6, 8, 8), torch.tensor([100])
    x_0 = they.diffusion.p_mean_variance(x=x, t=t, clip_denoised=False, model_output=output)[3]
    from_eps = (x - math.sqrt(1 - ALPHA_BAR[100]) * output[:, :3]) / math.sqrt(ALPHA_BAR[100])
    np.testing.assert_allclose(x_0, from_eps, rtol=1e-4, atol=1e-5)


def test_lucidrains_learned_variance_weighs_one_term_as_the_whole_bound(lucidrains):
    """λ = 0.001 of Nichol & Dhariwal multiplies the sum of T terms; here it multiplies one of them."""
    torch = lucidrains.torch
    x_0, eps, t = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.tensor([500])
    they = Watched(
        lucidrains,
        lambda x, t: np.concatenate([eps.numpy(), np.ones_like(x)], axis=1),  # ε exact, σ² = β_t
        "LearnedGaussianDiffusion",
        6,
        objective="pred_noise",
        beta_schedule="linear",
    )
    ratio = BETA_TILDE[500] / BETA[500]
    one_term = 0.5 * (ratio - 1 - math.log(ratio)) / math.log(2)  # KL(N(μ, β̃_t) ‖ N(μ, β_t)) in bits
    loss = float(they.diffusion.p_losses(x_0, t, noise=eps))
    assert loss == pytest.approx(0.001 * one_term, rel=0.1)


@pytest.mark.parametrize(("v", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_lucidrains_learned_variance_has_no_gradient_at_t_1_where_training_starts(lucidrains, v, share):
    """At v = 0 half-way between log 1e-20 and log β_1, σ_1 is 1e-6: every probability falls to the floor, or is 1."""
    torch = lucidrains.torch
    torch.manual_seed(0)
    x_0, eps = torch.rand(1, 3, 8, 8).mul(255).round() / 127.5 - 1, torch.randn(1, 3, 8, 8)
    they = Watched(lucidrains, None, "LearnedGaussianDiffusion", 6, objective="pred_noise", beta_schedule="linear")
    log_var = torch.full_like(eps, v, requires_grad=True)
    they.diffusion.model.forward = lambda x, t: torch.cat([eps + torch.randn_like(eps), log_var], dim=1)
    they.diffusion.p_losses(x_0, torch.tensor([0]), noise=eps).backward()
    assert float((log_var.grad == 0).float().mean()) == share


def test_lucidrains_learned_variance_cannot_sample_by_ddim(lucidrains):
    zeros = lambda x, t: np.zeros((1, 6, 8, 8), dtype=np.float32)  # noqa: E731
    they = Watched(lucidrains, zeros, "LearnedGaussianDiffusion", 6, sampling_timesteps=10)
    with pytest.raises(NameError, match="partial"):
        they.diffusion.sample(1)


def test_lucidrains_weighted_objective_cannot_sample(lucidrains):
    zeros = lambda x, t: np.zeros((1, 8, 8, 8), dtype=np.float32)  # noqa: E731
    they = Watched(lucidrains, zeros, "WeightedObjectiveGaussianDiffusion", 8)
    with pytest.raises(TypeError, match="x_self_cond"):
        they.diffusion.sample(1)


@pytest.mark.parametrize(("T", "last"), [(19, "nan"), (20, "inf")])
def test_lucidrains_linear_schedule_leaves_the_unit_interval_below_21_steps(lucidrains, T, last):
    they = Watched(lucidrains, None, beta_schedule="linear", timesteps=T)
    assert float(they.diffusion.betas[-1]) >= 1
    assert str(float(they.diffusion.sqrt_recip_alphas_cumprod[-1])) == last

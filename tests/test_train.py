"""Algorithm 1: what it descends, and that a run is a function of its settings and nothing else."""

import ctypes
import math
import platform
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import (
    CONFIG,
    SCHEDULE,
    SETTINGS,
    VARIANTS,
    VECTORS,
    after,
    copied,
    differences,
    pictures,
    scattered,
    trainer,
    variant,
)
from strategies import short

from ddpm_ref import PRESETS, AdamSettings, Objective, Schedule, memory, squared_error
from ddpm_ref.checks import Array
from ddpm_ref.train import RECIPES, Diverged, TrainSettings, TrainState, recipe

# ---- a run is a function of its settings


@pytest.mark.parametrize("name", VARIANTS)
def test_two_runs_with_one_seed_agree_in_every_bit(name):
    assert differences(after(2, variant(name)).state, after(2, variant(name)).state) == []


def test_runs_with_different_seeds_differ_from_the_first_parameter_on():
    one, other = trainer(), trainer(settings=replace(SETTINGS, seed=SETTINGS.seed + 1))
    assert differences(one.state, other.state) == ["params"]
    # From equal parameters they still part, since they draw other images, steps and noise.
    other.state.params[:] = one.state.params
    assert differences(after(1, one).state, after(1, other).state) == ["params", "ema", "adam_m", "adam_v"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_trainer_given_the_state_after_any_step_goes_on_bit_for_bit(name):
    one, states = variant(name), []
    for _ in range(4):
        states.append(copied(one.state))
        one.step()
    for state in states:
        again = variant(name, state=copied(state))
        assert differences(after(4 - state.step, again).state, one.state) == [], f"resumed after step {state.step}"


def test_every_part_of_the_state_matters_to_how_the_run_goes_on():
    """So that the test above would notice one that is not kept."""
    state = copied(after(2, trainer()).state)
    end = after(1, trainer(state=copied(state))).state
    for name in VECTORS:
        changed = copied(state)
        getattr(changed, name)[:] += 0.01
        assert name in differences(after(1, trainer(state=changed)).state, end)
    later = replace(copied(state), step=7)
    assert "params" in differences(after(1, trainer(state=later)).state, end)


def test_asking_for_the_gradient_changes_nothing():
    one = after(1, variant("dropout"))
    before = copied(one.state)
    first, again = one.gradient(2)[1], one.gradient(2)[1]
    assert differences(one.state, before) == [] and first.tobytes() == again.tobytes()


@pytest.mark.parametrize("operation", ["update", "normal", "uniform"])
def test_the_hot_loops_run_on_the_backend_that_was_asked_for(monkeypatch, operation):
    one, calls = variant("dropout"), []
    original = getattr(one.backend, operation)
    monkeypatch.setattr(one.backend, operation, lambda *args, **more: calls.append(1) or original(*args, **more))
    one.step()
    assert calls


# ---- line 5: the loss and its gradient


@pytest.mark.parametrize("T", [1, 3, 10, 20])
def test_the_loss_is_the_mean_error_of_eps_and_its_quarters_are_by_t(T):
    one = scattered(trainer(settings=replace(SETTINGS, batch=40, micro_batch=16), schedule=short(T)))
    report, _ = one.gradient(1)
    x_0, t, eps, _ = one.draw(1, np.arange(40))
    abar = one.schedule.alpha_bar[t].reshape(-1, 1, 1, 1).astype(np.float32)
    output, _ = one.net(one.params(), np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * eps, t, one.backend)
    losses = squared_error(output, eps).per_image
    np.testing.assert_allclose(report.loss, losses.mean(), rtol=1e-5)
    sums, counts = report.quarters
    for q in range(4):
        here = (q * T < 4 * t) & (4 * t <= (q + 1) * T)
        assert counts[q] == here.sum()
        np.testing.assert_allclose(sums[q], losses[here].sum(), rtol=1e-5)
    assert counts.sum() == 40
    np.testing.assert_allclose(sums.sum() / 40, report.loss, rtol=1e-12)


OBJECTIVES = {
    "L_simple": Objective(),
    "l1": Objective(error="l1"),
    "huber": Objective(error="huber"),
    "v": Objective("v"),
    "x_0": Objective("x_0"),
    "mu, weighted as in the bound": Objective("mu", weight="bound"),
    "the bound, fixed variance": Objective(w_simple=0, w_elbo=1, var="beta_tilde"),
    "the bound, learned variance": Objective(w_simple=0, w_elbo=1, var="learned"),
    "both": Objective("v", "learned", w_simple=0.7, w_elbo=0.3),
    "learned weights": Objective(learned_weights=True),
    "learned weights of both": Objective(learned_weights=True, w_elbo=0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_of_the_whole_step_is_that_of_its_loss(name):
    """Against central differences of fourth order, with dropout, flips and unequal micro-batches."""
    objective = OBJECTIVES[name]
    config = replace(CONFIG, dropout=0.3, learned_variance=objective.var == "learned")
    how = replace(SETTINGS, batch=5, micro_batch=3, flips=True, objective=objective)
    one = scattered(trainer(config, how, dtype=np.float64), 0.1)
    _, gradient = one.gradient(1)
    assert gradient.dtype == np.float64 and gradient.shape == one.state.params.shape
    at, rng = one.state.params.copy(), np.random.default_rng(1)
    table = np.arange(len(at)) >= one.net.size
    for only in [np.ones(len(at), bool), ~table, *([table] if table.any() else [])]:
        v = np.where(only, rng.standard_normal(len(at)), 0.0)
        v /= np.linalg.norm(v)

        def loss(h: float, v: Array = v) -> float:
            one.state.params[:] = at + h * v
            return one.gradient(1)[0].loss

        h = 1e-5
        slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        assert abs(gradient @ v - slope) < 1e-7 * np.linalg.norm(gradient)


@given(micro_batch=st.integers(1, 7), name=st.sampled_from(sorted(VARIANTS)))
@settings(max_examples=25)
def test_the_gradient_is_the_same_in_micro_batches_of_any_size(micro_batch, name):
    changes, how = VARIANTS[name]
    config, whole = replace(CONFIG, **changes), replace(SETTINGS, **{**how, "batch": 7, "micro_batch": None})
    report, gradient = scattered(trainer(config, whole, dtype=np.float64), 0.1).gradient(4)
    parts = scattered(trainer(config, replace(whole, micro_batch=micro_batch), dtype=np.float64), 0.1)
    report_in_parts, in_parts = parts.gradient(4)
    np.testing.assert_allclose(in_parts, gradient, rtol=0, atol=1e-12 * np.linalg.norm(gradient))
    np.testing.assert_allclose(report_in_parts.loss, report.loss, rtol=1e-12)
    np.testing.assert_allclose(report_in_parts.quarters, report.quarters, rtol=1e-12)


def test_float64_and_float32_runs_see_the_same_gradient_up_to_rounding_and_keep_their_dtype():
    single, double = scattered(trainer(), 0.1), trainer(dtype=np.float64)
    double.state.params[:] = single.state.params
    (_, g32), (_, g64) = single.gradient(1), double.gradient(1)
    assert (g32.dtype, g64.dtype) == (np.float32, np.float64)
    assert np.linalg.norm(g32 - g64) < 1e-5 * np.linalg.norm(g64)
    for one in (single, double):
        assert {getattr(after(1, one).state, name).dtype for name in VECTORS} == {np.dtype(one.dtype)}


def test_the_first_step_copies_the_parameters_into_their_average_and_later_steps_average():
    one = after(1, trainer())
    first = one.state.params.copy()
    assert np.array_equal(one.state.ema, first)
    one.step()
    np.testing.assert_allclose(one.state.ema, 0.9 * first + 0.1 * one.state.params, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(one.state.ema, one.state.params)


def test_params_are_views_of_the_state_without_the_table_of_weights():
    one = after(2, variant("learned weights"))
    assert len(one.state.params) == one.net.size + SCHEDULE.T + 1
    for weights, vector in (("raw", one.state.params), ("ema", one.state.ema)):
        assert np.shares_memory(one.params(weights).vector, vector)
        assert np.array_equal(one.params(weights).vector, vector[: one.net.size])


def test_the_weights_learned_for_each_t_tend_to_the_log_of_its_loss():
    """With a network that does not learn, s_t must move to the log of the loss at t; s_0, never drawn, must not."""
    how = replace(SETTINGS, batch=32, objective=Objective(learned_weights=True), adam=AdamSettings(lr=0.1, warmup=0))
    one = trainer(settings=how, schedule=short(2))
    start, size = one.state.params[: one.net.size].copy(), one.net.size
    one.state.params[size:] = 1.0
    for _ in range(30):
        one.step()
        one.state.params[:size] = start
    # The untrained network gives nearly 0, so its loss is the mean of ε², nearly 1, and its logarithm 0.
    assert one.state.params[size] == 1 and (abs(one.state.params[size + 1 :]) < 0.2).all()


def test_the_loss_falls_on_a_small_data_set_within_sixty_steps():
    data = pictures(count=4, levels=2)
    one = trainer(settings=replace(SETTINGS, batch=8, adam=AdamSettings(lr=5e-3, warmup=5, ema=0.9)), data=data)
    losses = [one.step().loss for _ in range(60)]
    assert 0.9 < np.mean(losses[:4]) < 1.1, "an untrained network predicts 0, whose error is the variance of ε"
    assert np.mean(losses[-10:]) < 0.6


# ---- what goes wrong


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["conv_in/W", "conv_out/b"])
def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_state(poison, where):
    one = after(2, trainer())
    one.params()[where].ravel()[0] = poison
    before = copied(one.state)
    with np.errstate(all="ignore"), pytest.raises(Diverged, match=r"step 3: loss .*the state is that of step 2"):
        one.step()
    assert differences(one.state, before) == []


def test_a_gradient_that_is_not_finite_though_the_loss_is_leaves_the_state_too(monkeypatch):
    one = after(2, trainer())
    before, gradient = copied(one.state), one.gradient

    def poisoned(step: int) -> tuple[Any, Array]:
        report, grads = gradient(step)
        grads[-1] = math.inf
        return report, grads

    monkeypatch.setattr(one, "gradient", poisoned)
    with np.errstate(all="ignore"), pytest.raises(Diverged, match=r"step 3: loss 0?1?\.\d+, gradient norm (inf|nan)"):
        one.step()
    assert differences(one.state, before) == []


LEARNED = Objective(var="learned", w_elbo=1.0)
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "channels": (dict(data=pictures(channels=3)), r"data: wanted 1 channels .* got 4x4x3"),
    "an odd size": (dict(data=pictures(size=5)), r"data: .* divisible by 2 .* got 5x5x1"),
    "a learned variance without channels for it": (
        dict(settings=replace(SETTINGS, objective=LEARNED)), r"objective: var='learned' wants .* learned_variance=True",
    ),
    "channels for a variance that is fixed": (
        dict(config=replace(CONFIG, learned_variance=True)), r"objective: var='beta' wants .* learned_variance=False",
    ),
    "eps at the end of jsd": (dict(schedule=Schedule.jsd(20)), r"t = 20: alpha_bar_t = 0 .*predict 'x_0' or 'v'"),
    "a state of another network": (
        dict(state=TrainState(0, *np.zeros((4, 7), np.float32))), r"state: wanted 11621 parameters .* got \(7,\)",
    ),
    "a state without the table": (
        dict(settings=replace(SETTINGS, objective=Objective(learned_weights=True)), state=copied(trainer().state)),
        r"state: wanted 11642 parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_together_is_an_error_before_the_first_step(name):
    arguments, message = MISFITS[name]
    with pytest.raises(ValueError, match=message):
        trainer(**arguments)


def test_jsd_trains_with_what_it_can_serve():
    settings = replace(SETTINGS, objective=Objective("x_0"))
    assert math.isfinite(after(2, trainer(settings=settings, schedule=Schedule.jsd(20))).gradient(3)[0].loss)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(batch=0), "batch: wanted an integer >= 1, got 0"),
        (dict(batch=2.0), "batch: wanted an integer"),
        (dict(seed=-1), "seed: wanted an integer in 0"),
        (dict(seed=2**64), "seed: wanted an integer in 0"),
        (dict(batch=4, micro_batch=5), r"micro_batch: wanted an integer in 1\.\.4, got 5"),
        (dict(micro_batch=0), "micro_batch: wanted"),
    ],
)
def test_settings_that_make_no_sense_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**wrong)


def test_every_preset_has_a_recipe_and_the_papers_are_the_papers():
    assert set(RECIPES) == set(PRESETS)
    for name, (steps, how) in RECIPES.items():
        assert steps > 0 and how.objective == Objective(), name
    steps, how = recipe("cifar10")
    assert (steps, how.batch, how.flips, how.adam) == (800_000, 128, True, AdamSettings())
    assert (how.adam.lr, how.adam.ema, how.adam.warmup, how.adam.clip_norm) == (2e-4, 0.9999, 5000, 1.0)
    steps, how = recipe("celebahq256", seed=9)
    assert (steps, how.batch, how.flips, how.adam.lr, how.seed) == (500_000, 64, True, 2e-5, 9)


# ---- memory


def test_a_trainer_asks_for_freed_memory_to_be_kept_for_the_next_step(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr("ddpm_ref.train.keep_freed_memory", lambda: asked.append(True))
    trainer()
    assert asked == [True]


def test_freed_memory_can_be_kept_with_glibc_and_is_nothing_to_fail_about_elsewhere(monkeypatch):
    assert memory.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    assert not memory.keep_freed_memory()
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()


@pytest.mark.parametrize("poison", [math.nan, -1e4])
def test_a_learned_variance_that_is_lost_stops_the_run_by_its_step(poison):
    """NaN, or a log-variance whose exponential is 0: no bad argument, a run that diverged."""
    config, changes = VARIANTS["learned variance"]
    one = after(2, trainer(replace(CONFIG, **config), replace(SETTINGS, **changes)))
    one.params()["conv_out/b"][1] = poison
    with pytest.raises(Diverged, match="step 3: loss "):
        one.step()

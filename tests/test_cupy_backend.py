"""The CuPy backend as a whole, its kernels run on the CPU: the contract, and training and sampling loops of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cupy_checks import Host
from ddpm_ref_cupy import CupyBackend
from ddpm_ref_cupy import step as whole_step
from small_run import (
    ADAM,
    CONFIG,
    SCHEDULE,
    SETTINGS,
    SOURCE,
    VARIANTS,
    VECTORS,
    after,
    copied,
    differences,
    pictures,
    trainer,
    variant,
)  # fmt: skip
from strategies import short

from ddpm_ref import backend_check, check_backend, generate_steps
from ddpm_ref.files.checkpoint import load_checkpoint
from ddpm_ref.files.data import ImageData
from ddpm_ref.files.run import RunSettings, read_log, run_training, save
from ddpm_ref.nn.unet import UNet
from ddpm_ref.train import Diverged, Trainer, TrainState

EIGHTS = replace(CONFIG, base=8, groups=4, dropout=0.3)
OWN = [name for name in VARIANTS if "learned" not in name and name != "the bound alone"]


class Plain(CupyBackend):
    """Without the loops of its own: the trainer's and the sampler's, over its operations."""

    def training_steps(self, trainer: Trainer) -> None:
        return None

    def reverse_steps(self, *_: Any, **__: Any) -> None:
        return None


def test_it_does_what_numpy_does(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_check, "LARGE_CASES", [])  # they are for a GPU: tests/gpu
    report = check_backend(CupyBackend(device=host()))
    assert report.backend.own and not report.backend.inherited


@pytest.mark.parametrize("name", OWN)
def test_whole_steps_on_the_device_are_the_trainers_bit_for_bit(host: Host, name: str) -> None:
    own, plain = variant(name, backend=CupyBackend(device=host())), variant(name, backend=Plain(device=host()))
    reports = own.steps(3)
    for mine in reports:
        theirs = plain.step()
        assert mine.step == theirs.step and np.isclose(mine.loss, theirs.loss, rtol=1e-12)
        assert mine.gradient_norm == theirs.gradient_norm
        assert np.allclose(mine.quarters, theirs.quarters, rtol=1e-12)
    assert [r.step for r in reports] == [1, 2, 3]
    assert differences(own.host_state(), plain.host_state()) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_numpys_up_to_rounding(host: Host, name: str) -> None:
    here, there = after(2, variant(name)), after(2, variant(name, backend=CupyBackend(device=host())))
    for vector in VECTORS:
        a, b = getattr(here.state, vector), getattr(there.host_state(), vector)
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max(), vector


def test_float64_too(host: Host) -> None:
    here = after(2, variant("dropout", dtype=np.float64))
    there = after(2, variant("dropout", dtype=np.float64, backend=CupyBackend(device=host())))
    for vector in VECTORS:
        a, b = getattr(here.state, vector), getattr(there.host_state(), vector)
        assert b.dtype == np.float64 and np.abs(a - b).max() <= 1e-12 * np.abs(a).max(), vector


def test_objectives_and_data_it_has_no_steps_for_are_left_to_the_trainer(host: Host) -> None:
    backend = CupyBackend(device=host())
    floats = ImageData(pictures().x_0(), 17, "floats")
    others = [variant(name) for name in VARIANTS if name not in OWN] + [trainer(data=floats)]
    assert [whole_step.training_steps(backend, one) for one in others] == [None] * len(others)
    assert all(whole_step.training_steps(backend, variant(name)) for name in OWN)


@pytest.mark.parametrize(("lr", "scale"), [(1e30, 1.0), (1e-3, 1e25)])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(host: Host, lr: float, scale: float) -> None:
    adam = replace(ADAM, lr=lr, clip_norm=None)
    one = trainer(CONFIG, replace(SETTINGS, adam=adam), backend=CupyBackend(device=host()))
    one.steps(1)
    one.state.params *= np.float32(scale)
    before = copied(one.host_state())
    with np.errstate(all="ignore"):
        for _ in range(2):
            with pytest.raises(Diverged, match=r"step 2: loss .*, gradient norm .*; the state is that of step 1"):
                one.steps(3)
    assert differences(before, one.host_state()) == []


def test_more_steps_than_the_ring_holds_are_not_run_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_step, "RING", 3)
    own, plain = variant("flips", backend=CupyBackend(device=host())), variant("flips", backend=Plain(device=host()))
    steps = [[r.step for r in own.steps(5)] for _ in range(3)]
    assert steps == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert differences(own.host_state(), after(9, plain).host_state()) == []


def test_a_trainer_that_is_put_back_goes_on_from_there(host: Host) -> None:
    """Another state, or another number of the step: the counter on the device follows."""
    one = variant("as in the paper", backend=CupyBackend(device=host()))
    one.steps(2)
    kept = copied(one.host_state())
    wanted = copied(after(2, one).host_state())
    one.state = TrainState(2, *(one.backend.to_device(getattr(kept, name)) for name in VECTORS))
    assert differences(after(2, one).host_state(), wanted) == []
    for name in VECTORS:
        getattr(one.state, name)[...] = getattr(kept, name)
    one.state.step = 2
    assert differences(after(2, one).host_state(), wanted) == []


def test_a_run_in_a_folder_is_the_same_run_and_goes_on_elsewhere(host: Host, tmp_path: Path) -> None:
    """Its log counts every step once, whatever is run at a time; its checkpoint is any backend's."""
    logs = []
    for number, backend in enumerate((None, CupyBackend(device=host()))):
        one, folder = variant("dropout", backend=backend), tmp_path / str(number)
        folder.mkdir()
        run_training(one, SOURCE, folder, RunSettings(steps=7, log_every=3, save_every=5))
        logs.append(read_log(folder / "log.csv"))
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == [3, 6, 7]
    for row, other in zip(*logs, strict=True):
        assert np.allclose(
            [row[c] for c in ("loss", "gradient_norm")], [other[c] for c in ("loss", "gradient_norm")], 1e-4
        )
    state = load_checkpoint(save(one, SOURCE, tmp_path)).state
    here = after(2, variant("dropout", state=copied(state)))
    there = after(2, variant("dropout", state=copied(state), backend=CupyBackend(device=host())))
    assert np.abs(here.state.params - there.host_state().params).max() < 1e-5


@pytest.mark.parametrize(
    "how",
    [{}, {"predicts": "v"}, {"predicts": "x_0", "clip": False}, {"predicts": "mu"}, {"var": "beta_tilde"}],
    ids=str,
)
def test_whole_reverse_steps_on_the_device_are_the_samplers_bit_for_bit(host: Host, how: dict[str, Any]) -> None:
    one, kept = after(2, variant("as in the paper")), []
    for backend in (CupyBackend(device=host()), Plain(device=host()), None):
        steps = generate_steps(
            one.net, one.params(), SCHEDULE, [3, 8], (4, 4, 1), seed=6, every=5, backend=backend, temperature=0.9, **how
        )
        kept.append(list(steps))
    own, plain, numpy = kept
    assert [t for t, *_ in own] == [20, 15, 10, 5, 0]
    for (t, *mine), (s, *theirs), (r, *exact) in zip(own, plain, numpy, strict=True):
        assert t == s == r and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(mine, exact, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chain_goes_on_from_x_t_of_the_device_or_of_the_host_bit_for_bit(host: Host, precision: str) -> None:
    one, backend = after(2, trainer(EIGHTS)), CupyBackend(device=host(precision=precision))
    how: Any = dict(samples=[3, 8], shape=(4, 4, 1), seed=6, every=5, backend=backend)
    whole = list(generate_steps(one.net, one.params(), SCHEDULE, **how))
    for start, x_t, _ in whole[:-1]:
        for x_start in (x_t, backend.to_host(x_t)):
            part = generate_steps(one.net, one.params(), SCHEDULE, x_start=x_start, start=start, **how)
            for (t, *ours), (s, *theirs) in zip(part, whole[-1 - start // 5 :], strict=True):
                assert t == s and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_filters_are_packed_once_for_all_reverse_steps_and_anew_for_other_parameters(host: Host) -> None:
    net, schedule, runs = UNet(replace(CONFIG, base=32, groups=4)), short(3), []
    for kind in (CupyBackend, Plain):
        backend, pictures = kind(device=host(precision="tf32")), []
        for seed in (0, 1):
            params = net.init(seed)
            steps = generate_steps(net, params, schedule, [3], (4, 4, 1), seed=6, backend=backend)
            pictures.append(list(steps)[-1][1])
        packs = [launch.kernel for launch in backend.run.launches].count("conv_tensor.pack_tf32_filters")
        runs.append((pictures, packs))
    (own, once), (plain, always) = runs
    assert all(np.array_equal(a, b) for a, b in zip(own, plain, strict=True)) and not np.array_equal(*own)
    assert always > 8 * 2 * schedule.T and always == once * schedule.T


def test_a_table_of_embeddings_serves_the_longest_schedule_seen(host: Host) -> None:
    backend = CupyBackend(device=host())
    for T in (5, 12, 7):
        one = trainer(schedule=short(T), backend=backend)
        other = trainer(schedule=short(T), backend=Plain(device=host()))
        assert differences(after(2, one).host_state(), after(2, other).host_state()) == []


# --- images stored as bfloat16 ---------------------------------------------------------------------------------------


def _stored(run: Any) -> set[tuple[str, bool]]:
    """Which files' kernels ran, and whether on bfloat16."""
    return {(launch.kernel.split(".")[0], launch.real == np.uint16) for launch in run.launches}


@pytest.mark.parametrize("channels", [1, 8])
def test_whole_training_steps_at_bf16_store_images_so_and_learn_the_same(host: Host, channels: int) -> None:
    """Gradients of the whole network are off by about the roundings of some twenty layers."""
    config, backend = replace(EIGHTS, channels=channels), CupyBackend(device=host(precision="bf16"))
    here, there = trainer(config), trainer(config, backend=backend)
    ours, exact = there.steps(1)[0], here.step()
    assert np.isclose(ours.loss, exact.loss, rtol=1e-3)
    assert np.isclose(ours.gradient_norm, exact.gradient_norm, rtol=2e-2)
    gradient, wanted = there.host_state().adam_m, here.state.adam_m
    assert np.linalg.norm(gradient - wanted) <= 3e-2 * np.linalg.norm(wanted)
    ran = _stored(backend.run)
    assert {(file, True) for file in ("norm", "pointwise", "conv_tensor", "attention", "noise")} <= ran
    assert ("norm", False) not in ran and ("attention", False) not in ran
    widened = "conv.widened" in {launch.kernel for launch in backend.run.launches}
    assert widened == (channels == 8)


def test_a_network_without_eights_of_channels_keeps_float32(host: Host) -> None:
    run = host(precision="bf16")
    variant("dropout", backend=CupyBackend(device=run)).steps(1)
    assert not any(bf16 for file, bf16 in _stored(run) if file != "conv")


def test_outside_of_whole_steps_images_are_float32_at_any_precision(host: Host) -> None:
    run = host(precision="bf16")
    trainer(EIGHTS, backend=Plain(device=run)).steps(1)
    assert not any(bf16 for file, bf16 in _stored(run) if file != "conv")


def test_float64_stays_what_it_is_at_any_precision(host: Host) -> None:
    here, there = (
        after(1, trainer(EIGHTS, dtype=np.float64, backend=backend))
        for backend in (None, CupyBackend(device=host(precision="bf16")))
    )
    a, b = here.state.adam_m, there.host_state().adam_m
    assert np.linalg.norm(a - b) <= 1e-10 * np.linalg.norm(a)


@pytest.mark.parametrize("channels", [1, 8])
def test_pictures_drawn_through_bfloat16_are_the_same_to_the_eye(host: Host, channels: int) -> None:
    one = after(2, trainer(replace(EIGHTS, channels=channels)))
    how: dict[str, Any] = dict(samples=[3, 8], shape=(4, 4, channels), seed=6, every=5)
    ours, exact = (
        list(generate_steps(one.net, one.params(), SCHEDULE, backend=backend, **how))
        for backend in (CupyBackend(device=host(precision="bf16")), None)
    )
    for (_, x, _), (_, wanted, _) in zip(ours, exact, strict=True):
        assert x.dtype == np.float32 and np.abs(x - wanted).max() < 0.02


def test_on_hopper_a_chains_convolutions_normalise_what_they_read(host: Host) -> None:
    config = replace(EIGHTS, base=32, image_size=8)
    one = trainer(config, data=pictures(size=8))
    how: dict[str, Any] = dict(samples=[3], shape=(8, 8, 1), seed=6, every=2)
    drawn, kernels = [], []
    for capability in ((8, 0), (9, 0)):
        backend = CupyBackend(device=host(precision="bf16"))
        backend.run.capability = capability
        drawn.append(list(generate_steps(one.net, one.params(), short(2), backend=backend, **how))[-1][1])
        kernels.append({launch.kernel.split("_")[1] for launch in backend.run.launches if "conv_" in launch.kernel})
    assert np.abs(drawn[0] - drawn[1]).max() < 0.02
    assert "hopper.norm" in kernels[1] and "hopper.norm" not in kernels[0]


def test_the_bits_of_a_step_at_bf16_do_not_depend_on_which_thread_runs_first(host: Host) -> None:
    states = []
    for order in ("forward", "warp-greedy-reverse"):
        one = trainer(EIGHTS, backend=CupyBackend(device=host(order, "bf16")))
        one.steps(2)
        states.append(one.host_state())
    assert differences(*states) == []

"""Whole runs: graphs beside the eager path, curves and pictures beside the CPU's, memory that does not grow."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import CONFIG, SCHEDULE, SOURCE, VARIANTS, after, copied, differences, pictures, trainer, variant

from ddpm_ref import Schedule, UNet, generate_steps
from ddpm_ref.discovery import get_backend
from ddpm_ref.files.checkpoint import load_checkpoint
from ddpm_ref.files.data import load_data
from ddpm_ref.files.run import save
from ddpm_ref.nn.plan import PRESETS
from ddpm_ref.train import Diverged, Trainer, recipe

Cuda = Callable[..., Any]
WIDE = replace(CONFIG, base=32, groups=8, dropout=0.3, image_size=8)  # for whose channels every kernel is made


def digits(backend: Any = None, **settings: Any) -> Trainer:
    return Trainer(
        UNet(PRESETS["digits"]), Schedule.linear(), load_data("digits"), recipe("digits", **settings)[1], backend
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if "learned" not in name and name != "the bound alone"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_replayed_graph_gives_the_bits_of_the_eager_path(cuda: Cuda, name: str, precision: str) -> None:
    graph, eager = (variant(name, backend=cuda(precision, graphs=g)) for g in (True, False))
    for most in (1, 1, 1, 7):
        assert [r.loss for r in graph.steps(most)] == [r.loss for r in eager.steps(most)]
    assert differences(graph.host_state(), eager.host_state()) == []


def test_also_where_images_are_stored_as_bfloat16(cuda: Cuda) -> None:
    graph, eager = (trainer(WIDE, data=pictures(size=8), backend=cuda("bf16", graphs=g)) for g in (True, False))
    for most in (1, 1, 1, 7):
        assert [r.loss for r in graph.steps(most)] == [r.loss for r in eager.steps(most)]
    assert differences(graph.host_state(), eager.host_state()) == []


def test_and_those_of_the_trainers_own_steps(cuda: Cuda) -> None:
    class Plain(type(cuda())):  # type: ignore[misc]
        def training_steps(self, trainer: Trainer) -> None:
            return None

    graph, own = digits(cuda(), batch=16), digits(Plain(device=cuda().run), batch=16)
    graph.steps(8), after(8, own)
    assert graph.state.step == own.state.step == 8
    assert differences(graph.host_state(), own.host_state()) == []


def test_a_resumed_run_goes_on_bit_for_bit_and_on_the_cpu_too(cuda: Cuda, tmp_path: Path) -> None:
    one = variant("dropout", backend=cuda())
    one.steps(5)
    state = load_checkpoint(save(one, SOURCE, tmp_path)).state
    again = variant("dropout", backend=cuda(), state=copied(state))
    here = variant("dropout", state=copied(state))
    for each in (one, again):
        each.steps(6)
    after(6, here)
    assert differences(one.host_state(), again.host_state()) == []
    assert np.abs(one.host_state().params - here.state.params).max() < 1e-4


def test_a_run_that_diverges_keeps_the_state_before(cuda: Cuda) -> None:
    one = variant("as in the paper", backend=cuda())
    one.steps(5)
    one.state.params[...] *= 1e30
    before = one.host_state()
    with pytest.raises(Diverged, match=r"step 6: .* the state is that of step 5"):
        one.steps(4)
    assert differences(before, one.host_state()) == []


@pytest.fixture(scope="module")
def cpu_curve() -> list[float]:
    one = digits(get_backend(), batch=16)
    return [one.step().loss for _ in range(200)]


def test_the_loss_curve_of_two_hundred_steps_is_the_cpus(cuda: Cuda, cpu_curve: list[float]) -> None:
    one, losses = digits(cuda(), batch=16), []
    while len(losses) < 200:
        losses += [report.loss for report in one.steps(200 - len(losses))]
    off = np.abs(np.array(losses) / cpu_curve - 1)
    print(f"loss beside the CPU's: first 20 within {off[:20].max():.1e}, all within {off.max():.1e}")
    assert off[:20].max() < 1e-3 and off.max() < 0.1
    assert np.isclose(np.mean(losses[150:]), np.mean(cpu_curve[150:]), rtol=0.01)


def test_ten_thousand_steps_take_no_more_memory_than_ten_and_draw_the_cpus_picture(cuda: Cuda) -> None:
    import cupy

    backend = cuda()
    one = digits(backend)
    one.steps(20)
    pool, free = cupy.get_default_memory_pool(), cupy.cuda.runtime.memGetInfo()[0]
    held = pool.total_bytes()
    while one.state.step < 10_000:
        one.steps(10_000 - one.state.step)
    assert pool.total_bytes() <= held and cupy.cuda.runtime.memGetInfo()[0] >= free - (4 << 20)

    params = one.state.network(one.net, "ema")
    host = params.like(backend.to_host(params.vector))
    how: dict[str, Any] = dict(samples=np.arange(4), shape=(8, 8, 1), seed=3, every=1000)
    *_, (_, ours, _) = generate_steps(one.net, params, one.schedule, backend=backend, **how)
    *_, (_, theirs, _) = generate_steps(one.net, host, one.schedule, **how)
    off = np.abs(backend.to_host(ours) - theirs).max()
    print(f"the same picture to within {off:.1e}")
    assert off < 2 / 255


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_reverse_step_gives_the_bits_of_the_eager_one(cuda: Cuda, precision: str) -> None:
    one = after(1, trainer(WIDE, data=pictures(size=8)))
    how: dict[str, Any] = dict(samples=[3, 8], shape=(8, 8, 1), seed=6, every=5)
    graph, eager = (
        list(generate_steps(one.net, one.params(), SCHEDULE, backend=cuda(precision, graphs=g), **how))
        for g in (True, False)
    )
    for (t, *ours), (s, *theirs) in zip(graph, eager, strict=True):
        assert t == s and all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_out_of_memory_says_what_was_needed_and_what_would_fit(cuda: Cuda) -> None:
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    one = digits(cuda(), batch=4096)
    pool.set_limit(pool.total_bytes() + (256 << 20))
    try:
        with pytest.raises(
            MemoryError, match=r"4096 images at a time need .* GiB, free are .*; \d+ at a time would fit"
        ):
            one.steps(1)
    finally:
        pool.set_limit(0)

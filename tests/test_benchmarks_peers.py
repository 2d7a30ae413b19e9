"""The peers timed beside ours compute what ours computes, output and every gradient, where they are installed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import loops, ours, runs
from benchmarks.agreement import compared, relative_gap
from benchmarks.cases import Job
from benchmarks.contestant import median_clock, one_clock
from benchmarks.problem import make_problem
from benchmarks.work import Loop, Work
from ddpm_ref.backend import Backend
from ddpm_ref.nn.plan import PRESETS, UNetConfig
from ddpm_ref.schedule import Schedule

TINY = UNetConfig(3, 8, (1, 2), 1, (1,), groups=4, dropout=0.1, image_size=8)


def job(what: str, config: UNetConfig = TINY, batch: int = 2, dtype: str = "float64") -> Job:
    return Job("steps", what, what, "tiny", config, batch, (("", Work(1, 1)),), (), 1, dtype=dtype, precision=dtype)


def make(name: str, of: Job) -> Any:
    """A peer in this process."""
    if name == "jax jit":
        pytest.importorskip("jax", reason="JAX is not installed")
        from benchmarks.peers import jax_side

        return jax_side.contestant(of)
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.peers import pytorch_side

    return pytorch_side.contestant(of, name)


@pytest.mark.filterwarnings("default")  # those of other people's libraries are theirs
@pytest.mark.parametrize("name", ["torch contiguous", "torch channels_last", "jax jit"])
def test_a_peers_output_and_gradient_are_ours(name: str) -> None:
    of = job("train")
    peer = make(name, of)
    expected = dict(ours.contestant(of, Backend(), median_clock).results)
    assert set(peer.results) == set(expected) == {"output", "gradient", "update", "ema"}
    names = list(make_problem(of).net.shapes)
    exact = [name for name in names if compared(name)]
    labels = {"output": ["output"], "gradient": names, "update": exact, "ema": exact}
    for what in ("output", "gradient", "update", "ema"):
        found, wanted = list(peer.results[what]), list(expected[what])
        assert [a.shape for a in found] == [a.shape for a in wanted]
        # Adam's first step is g / (|g| + 1e-8) nearly: what g's rounding is of 1e-8 is the update's.
        most = 1e-9 if what in ("output", "gradient") else 1e-6
        for label, a, b in zip(labels[what], found, wanted, strict=True):
            if compared(label):
                assert np.linalg.norm(b) > 0 and relative_gap(b.ravel(), a.ravel()) < most, (what, label)
    peer.draw(1)
    assert peer.clock(peer.calls[""], 0.0) > 0
    assert 0 < peer.last_loss() < 10


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["torch contiguous", "torch channels_last", "jax jit"])
def test_a_peers_reverse_step_is_ours_and_its_chains_run(name: str) -> None:
    of = replace(job("images"), whole=True, T=5)
    peer, mine = make(name, of), ours.contestant(of, Backend(), median_clock)
    for what in ("output", "step"):
        (found,), (wanted,) = peer.results[what], mine.results[what]
        assert np.linalg.norm(wanted) > 0 and relative_gap(wanted.ravel(), found.ravel()) < 1e-9
    peer.draw(1)
    assert peer.clock is mine.clock is one_clock and peer.clock(peer.calls[""], 0.0) > 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "loop",
    [
        Loop("conv3x3", (2, 6, 4, 3), 5), Loop("conv3x3", (2, 6, 4, 3), 5, "stride 2"),
        Loop("conv3x3", (2, 5, 3, 3), 5, "stride 2"), Loop("group_norm", (2, 3, 4, 6), 3, "silu"),
        Loop("group_norm", (2, 3, 4, 6), 3), Loop("attention", (2, 5, 4)), Loop("dense", (6, 3), 4),
    ],
    ids=lambda loop: loop.name,
)  # fmt: skip
def test_a_peers_loop_and_its_adjoint_are_ours(loop: Loop, layout: str) -> None:
    of = replace(job("loop"), loop=loop, parts=(("", Work(1, 1)), (", adjoint", Work(1, 1))))
    peer, mine = make(f"torch {layout}", of), loops.contestant(of, Backend(), median_clock)
    for what in ("output", "gradient"):
        for a, b in zip(peer.results[what], mine.results[what], strict=True):
            assert a.shape == b.shape and relative_gap(b.ravel(), a.ravel()) < 1e-9
    peer.draw(1)
    assert set(peer.calls) == {"", ", adjoint"}
    for call in peer.calls.values():
        assert peer.clock(call, 0.0) > 0


def test_the_step_that_a_graph_repeats_counts_down_as_the_other_does() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.peers.pytorch_chain import Chain
    from benchmarks.peers.pytorch_side import Shape, embedder, network

    shape = Shape(2, TINY, "cpu", torch.float64, torch.channels_last)
    model = network(make_problem(job("images")), shape).eval()
    chain = Chain(model, shape, embedder(TINY.base, "cpu", torch.float64), Schedule.linear(), T=5)
    chain.rows = chain.rows * torch.tensor([1.0, 1, 1, 1, 0])  # the noise off
    wanted = chain.x.clone()
    for t in (5, 4, 3):
        wanted = chain.from_t(wanted, t, temperature=0.0)[0]
        chain.advance()
    assert int(chain.at) == 2
    torch.testing.assert_close(chain.x, wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pytorch_trains_on_images_that_lie_as_its_contender_says(layout: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.peers.pytorch_side import Shape, Training

    kind = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    other = torch.channels_last if layout == "contiguous" else torch.contiguous_format
    shape = Shape(2, TINY, "cpu", torch.float32, kind)
    data = torch.zeros((4, 8, 8, 3), dtype=torch.uint8)
    step = Training(torch.nn.Linear(1, 1), None, shape, None, Schedule.linear(), data)
    for array in (step.draw()[0], step.draw()[2]):
        assert array.is_contiguous(memory_format=kind) and not array.is_contiguous(memory_format=other)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["torch contiguous", "jax jit"])
def test_a_peers_first_losses_on_the_digits_are_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST", 4)
    monkeypatch.setattr(runs, "LIMIT", 4)
    of = job("reach", PRESETS["digits"], 64, "float32")
    (found,), (wanted,) = (
        list(one.results["output"]) for one in (make(name, of), runs.reach(of, Backend(), median_clock))
    )
    assert len(wanted) == 4
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # Losses of weights that stay as they began are others: it is a peer's descent that is seen too.
    trainer = runs.make_trainer(of)
    frozen = [trainer.gradient(step)[0].loss for step in range(1, 5)]
    assert frozen[0] == pytest.approx(wanted[0], rel=1e-6)
    assert np.all(np.abs(np.array(frozen) - wanted)[2:] > 1e-4 * np.array(wanted)[2:])


def test_a_run_ends_at_its_target_and_says_in_how_many_steps() -> None:
    falling = [1.0] * 20 + [0.0] * 200
    side = runs.contest(job("reach"), "x", lambda: iter(falling), median_clock)
    side.calls[""]()
    smoothed = runs.Smoothed()
    means = [smoothed.add(loss) for loss in falling]
    assert side.facts["steps"] == 1 + next(k for k, mean in enumerate(means) if mean <= runs.TARGET)
    with pytest.raises(RuntimeError, match="within"):
        runs.contest(job("reach"), "x", lambda: iter([1.0] * 50), median_clock).calls[""]()

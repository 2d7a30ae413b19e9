"""The peers timed beside ours compute what ours computes, output and every gradient, where they are installed."""

from typing import Any

import numpy as np
import pytest

from benchmarks import ours, rounds, runs
from benchmarks.cases import Job
from benchmarks.contestant import median_clock
from benchmarks.problem import make_problem
from benchmarks.work import Work
from ddpm_ref.backend import Backend
from ddpm_ref.nn.plan import PRESETS, UNetConfig

TINY = UNetConfig(3, 8, (1, 2), 2, (1,), groups=4, dropout=0.1, image_size=8)


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
    expected = ours.gradients(make_problem(of), Backend())
    names = make_problem(of).net.shapes
    for what in ("output", "gradient"):
        found, wanted = list(peer.results[what]), list(expected[what])
        assert [a.shape for a in found] == [a.shape for a in wanted]
        for label, a, b in zip(names if what == "gradient" else ["output"], found, wanted, strict=True):
            # Of k's bias the gradient is 0 but for rounding: softmax does not see a constant added to its row.
            if not label.endswith("/k/b"):
                assert rounds.relative_gap(b.ravel(), a.ravel()) < 1e-9, label
    peer.draw(1)
    assert peer.clock(peer.calls[""], 0.0) > 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["torch contiguous", "jax jit"])
def test_a_peers_first_losses_on_the_digits_are_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST", 4)
    monkeypatch.setattr(runs, "LIMIT", 4)
    of = job("reach", PRESETS["digits"], 64, "float32")
    (found,), (wanted,) = (
        list(one.results["output"]) for one in (make(name, of), runs.reach(of, Backend(), median_clock))
    )
    assert len(wanted) == 4 and np.ptp(wanted) > 1e-4
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_run_ends_at_its_target_and_says_in_how_many_steps() -> None:
    falling = [1.0] * 20 + [0.0] * 200
    side = runs.contest(job("reach"), "x", lambda: iter(falling), median_clock)
    side.calls[""]()
    smoothed = runs.Smoothed()
    means = [smoothed.add(loss) for loss in falling]
    assert side.facts["steps"] == 1 + next(k for k, mean in enumerate(means) if mean <= runs.TARGET)
    with pytest.raises(RuntimeError, match="within"):
        runs.contest(job("reach"), "x", lambda: iter([1.0] * 50), median_clock).calls[""]()

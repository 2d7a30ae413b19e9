"""A backend with arrays of its own: training, sampling, checkpoints and the contract's check move what must move."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device import Device, DeviceArray
from small_run import SCHEDULE, SOURCE, VARIANTS, VECTORS, after, differences, variant

from ddpm_ref import check_backend, generate_steps
from ddpm_ref.backend import Backend
from ddpm_ref.files.checkpoint import load_checkpoint
from ddpm_ref.files.run import save


def test_the_device_of_these_tests_refuses_arrays_of_the_host() -> None:
    there, here = Device().to_device(np.ones(3)), np.ones(3)
    mixtures: list[Any] = [
        lambda: there + here, lambda: here * there, lambda: np.concatenate([there, here]), lambda: np.asarray(there),
        lambda: there.__setitem__(slice(None), here), lambda: np.add(there, there, out=here),
        lambda: Device().to_host(here), lambda: Device().concat(there, here),
    ]  # fmt: skip
    for mixture in mixtures:
        with pytest.raises(TypeError):
            mixture()
    assert type(np.sqrt(there) * 2 + np.float32(1)) is DeviceArray and float((there + there).sum()) == 6
    assert type(np.asarray(here, dtype=np.float32, like=there)) is DeviceArray


def test_it_keeps_the_contract() -> None:
    check_backend(Device())


@pytest.mark.parametrize("name", VARIANTS)
def test_training_on_a_device_is_training_on_the_host(name: str) -> None:
    here, there = after(3, variant(name)), after(3, variant(name, backend=Device()))
    assert all(type(getattr(there.state, vector)) is DeviceArray for vector in VECTORS)
    assert differences(here.state, there.host_state()) == []


def test_a_run_goes_on_between_host_and_device_by_its_checkpoint(tmp_path: Path) -> None:
    there = after(2, variant("as in the paper", backend=Device()))
    path = save(there, SOURCE, tmp_path)
    checkpoint = load_checkpoint(path)
    here = variant("as in the paper", state=checkpoint.state)
    again = variant("as in the paper", backend=Device(), state=load_checkpoint(path).state)
    assert differences(after(2, here).state, after(2, again).host_state()) == []
    assert differences(after(2, there).host_state(), here.state) == []


def test_on_the_host_the_state_for_files_is_the_state() -> None:
    one = after(1, variant("as in the paper"))
    assert all(np.shares_memory(getattr(one.host_state(), name), getattr(one.state, name)) for name in VECTORS)


def test_samples_drawn_on_a_device_are_those_of_the_host() -> None:
    one = after(2, variant("as in the paper"))
    how: Any = dict(samples=[3, 8], shape=(4, 4, 1), seed=6, every=5)
    device = Device()
    here = list(generate_steps(one.net, one.params(), SCHEDULE, **how))
    there = list(generate_steps(one.net, one.params(), SCHEDULE, **how, backend=device))
    assert [t for t, *_ in here] == [t for t, *_ in there] == [20, 15, 10, 5, 0]
    for (_, *ours), (_, *theirs) in zip(here, there, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert type(b) is DeviceArray and np.array_equal(a, device.to_host(b))


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_the_noise_of_sampling_and_training_is_the_backends_own(predicts: str) -> None:
    """So that a fused kernel is used wherever there is one."""
    asked: list[str] = []

    class Asked(Backend):
        def q_sample(self, *args: Any) -> Any:
            asked.append("q_sample")
            return super().q_sample(*args)

        def p_sample(self, *args: Any, **how: Any) -> Any:
            asked.append(f"p_sample {how['predicts']}")
            return super().p_sample(*args, **how)

    one = after(1, variant("micro-batches", backend=Asked()))
    assert asked == ["q_sample"] * 2
    asked.clear()
    steps = generate_steps(one.net, one.params(), SCHEDULE, [0], (4, 4, 1), seed=0, backend=Asked(), predicts=predicts)
    assert len(list(steps)) == 21 and asked == [f"p_sample {predicts}"] * 20

"""Algorithm 2 gone on with from a given x_t: `generate_steps` with `x_start`."""

from typing import Any, ClassVar

import numpy as np
import pytest
from device import Device
from small_run import SCHEDULE, VARIANTS, scattered, variant

from ddpm_ref import generate_steps
from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.random import Purpose, normal
from ddpm_ref.reverse import sample_steps

SHAPE, NUMBERS = (4, 4, 1), [3, 8, 5]


def backend_of(name: str) -> Backend:
    if name == "device":
        return Device()
    if name == "numba":
        return pytest.importorskip("ddpm_ref_numba").NumbaBackend()
    return Backend()


def steps_of(one: Any, backend: Backend, samples: Any = NUMBERS, **more: Any) -> dict[int, tuple[Array, Array]]:
    how = dict(seed=6, temperature=0.9, predicts=one.settings.objective.predicts, var=one.settings.objective.var)
    steps = generate_steps(one.net, one.params(), SCHEDULE, samples, SHAPE, backend=backend, **{**how, **more})
    return {t: (x_t, x_0) for t, x_t, x_0 in steps}


def host(backend: Backend, pair: tuple[Array, Array]) -> list[Array]:
    return [backend.to_host(a) for a in pair]


@pytest.mark.parametrize("name", ["numpy", "device", "numba"])
@pytest.mark.parametrize("kind", ["as in the paper", "learned variance", "the bound alone"])
def test_with_the_same_seed_and_numbers_the_chain_goes_on_bit_for_bit(name: str, kind: str) -> None:
    assert kind in VARIANTS
    backend, one = backend_of(name), scattered(variant(kind))
    whole = steps_of(one, backend)
    for start in (20, 19, 7, 1):
        kept = backend.to_host(whole[start][0]).copy()
        before = kept.copy()
        for x_start in (whole[start][0], kept):  # of the backend, of the host
            part = steps_of(one, backend, x_start=x_start, start=start)
            assert list(part) == list(range(start, -1, -1))
            for t, pair in part.items():
                for ours, theirs in zip(host(backend, pair), host(backend, whole[t]), strict=True):
                    assert ours.tobytes() == theirs.tobytes()
        assert np.array_equal(kept, before) and np.array_equal(backend.to_host(whole[start][0]), before)
    unsaid = steps_of(one, backend, x_start=whole[20][0], every=20)
    assert host(backend, unsaid[0])[0].tobytes() == host(backend, whole[0])[0].tobytes(), "start is T unless given"


def test_other_numbers_or_another_seed_give_other_pictures_and_equal_numbers_equal_ones() -> None:
    one, backend = scattered(variant("as in the paper")), Backend()
    x_7 = np.repeat(steps_of(one, backend, [3])[7][0], 4, axis=0)
    ours = steps_of(one, backend, [3, 3, 4, 5], x_start=x_7, start=7)[0][0]
    other = steps_of(one, backend, [3, 3, 4, 5], x_start=x_7, start=7, seed=7)[0][0]
    assert np.array_equal(ours[0], ours[1]) and len({image.tobytes() for image in (*ours, *other)}) == 6


def test_the_noise_of_a_continuation_is_the_streams_at_its_steps_and_numbers() -> None:
    one = scattered(variant("as in the paper"))
    x_7 = normal(1, Purpose.EVALUATE, 0, NUMBERS, SHAPE)
    ours = steps_of(one, Backend(), x_start=x_7, start=7, clip=True)[0][0]
    model = one.net.bind(one.params(), Backend())
    noise = dict((t, normal(6, Purpose.Z, t, NUMBERS, SHAPE)) for t in range(2, 8))
    *_, (_, expected, _) = sample_steps(SCHEDULE, model, x_7, noise.pop, start=7, clip=True, temperature=0.9)
    assert np.array_equal(ours, expected) and noise == {}


def test_a_backends_own_loop_is_asked_for_every_chain_and_told_where_it_begins() -> None:
    class Own(Backend):
        asked: ClassVar[list[int]] = []

        def reverse_steps(self, *args: Any, start: int, **how: Any) -> Any:
            Own.asked.append(start)

    one, x = variant("as in the paper"), np.zeros((3, *SHAPE), np.float32)
    for more in ({}, dict(x_start=x), dict(x_start=x, start=20), dict(x_start=x, start=19)):
        steps_of(one, Own(), every=20, **more)
    assert Own.asked == [20, 20, 20, 19]


GOOD = np.zeros((3, *SHAPE), np.float32)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(start=7), "start: wanted x_start with it, got 7 alone"),
        (dict(x_start=GOOD, start=0), r"start: wanted an integer in 1\.\.20, got 0"),
        (dict(x_start=GOOD, start=21), r"start: wanted an integer in 1\.\.20, got 21"),
        (dict(x_start=GOOD[:1], start=7), r"x_start: wanted float32 \(3, 4, 4, 1\), .* got float32 \(1, 4, 4, 1\)"),
        (dict(x_start=GOOD.astype(np.float64)), r"x_start: wanted float32 .* got float64 \(3, 4, 4, 1\)"),
        (dict(x_start=[0.0], start=7), "x_start: wanted float32 .* got list"),
        (dict(x_start=np.full_like(GOOD, np.nan), start=7), "x_start: 48 of 48 values are NaN"),
    ],
)
def test_a_start_that_is_none_is_an_error_before_any_step(bad: Any, message: str) -> None:
    one = variant("as in the paper")
    with pytest.raises(ValueError, match=message):
        generate_steps(one.net, one.params(), SCHEDULE, NUMBERS, SHAPE, seed=0, **bad)

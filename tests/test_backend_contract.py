"""Every backend that can be used here against NumPy: the functions of `check_backend` over shapes drawn at random."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref import PARAMETRISATIONS, AdamSettings
from ddpm_ref import backend_cases as cases
from ddpm_ref.backend import Backend
from ddpm_ref.backend_cases import LAYOUTS, Case, check_case
from ddpm_ref.backend_steps import check_p_sample, check_q_sample, check_random, check_update
from ddpm_ref.discovery import available_backends, get_backend

sizes, images, seeds = st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1)
widths = st.one_of(st.integers(1, 40), st.sampled_from([16, 32, 48]))
dtypes, layouts = st.sampled_from([np.float32, np.float64]), st.sampled_from(LAYOUTS)
maps = st.tuples(images, sizes, sizes)
batches = st.tuples(images, sizes, sizes, st.integers(1, 4))


@pytest.fixture(scope="session", params=available_backends())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of them in turn, NumPy first."""
    return get_backend(request.param)


def conv3x3s(draw: Any) -> Case:
    how: Any = dict(per_image=draw(st.booleans()), plus=draw(st.booleans()), seed=draw(seeds))
    return cases.conv3x3(*draw(maps), draw(widths), draw(widths), stride=draw(st.sampled_from([1, 2])), **how)


def denses(draw: Any) -> Case:
    rows = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    plus = draw(st.sampled_from(["", "y", "dx"]))
    return cases.dense((*rows, draw(widths)), draw(widths), plus=plus, seed=draw(seeds))


def group_norms(draw: Any) -> Case:
    groups, of = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    mean = draw(st.sampled_from([0.0, 0.5, -20.0]))
    how: Any = dict(silu=draw(st.booleans()), mean=mean, plus=draw(st.booleans()), seed=draw(seeds))
    return cases.group_norm(*draw(maps), groups * of, groups, **how)


def attentions(draw: Any) -> Case:
    return cases.attention(draw(images), draw(st.integers(1, 40)), draw(widths), seed=draw(seeds))


def upsamples(draw: Any) -> Case:
    return cases.upsample(*draw(maps), draw(widths), seed=draw(seeds))


def concats(draw: Any) -> Case:
    return cases.concat(*draw(maps), draw(widths), draw(widths), seed=draw(seeds))


def adds(draw: Any) -> Case:
    return cases.add((*draw(maps), draw(widths)), seed=draw(seeds))


def dropouts(draw: Any) -> Case:
    return cases.dropout((*draw(maps), draw(widths)), draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])), seed=draw(seeds))


@pytest.mark.parametrize("made", [conv3x3s, denses, group_norms, attentions, upsamples, concats, adds, dropouts])
@given(data=st.data(), dtype=dtypes, layout=layouts)
def test_values_gradients_and_manners_are_those_of_numpy(
    backend: Backend, made: Any, data: Any, dtype: type, layout: str
) -> None:
    check_case(backend, made(data.draw), dtype, layout)


samples = st.lists(st.integers(0, 2**32 - 1), max_size=5)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


@given(name=st.sampled_from(["normal", "uniform"]), samples=samples, shape=shapes, seed=st.integers(0, 2**64 - 1),
       step=st.integers(0, 2**32 - 1), layer=st.integers(0, 2**24 - 1))  # fmt: skip
def test_random_numbers_have_the_same_bits_on_every_backend_and_in_every_split(
    backend: Backend, name: str, samples: list[int], shape: tuple[int, ...], **counted: int
) -> None:
    check_random(backend, name, samples, shape, **counted)


adams = st.builds(
    AdamSettings, lr=st.floats(1e-6, 0.1), warmup=st.integers(0, 20), beta_1=st.floats(0, 0.99),
    beta_2=st.floats(0.5, 0.9999), epsilon=st.floats(1e-8, 1e-3), clip_norm=st.none() | st.floats(0.01, 1e3),
    ema=st.floats(0, 0.9999),
)  # fmt: skip


@given(size=st.integers(1, 3000), step=st.integers(1, 10_000), adam=adams, dtype=dtypes, seed=seeds)
def test_the_update_is_numpys(
    backend: Backend, size: int, step: int, adam: AdamSettings, dtype: type, seed: int
) -> None:
    check_update(backend, size, step, adam, dtype, seed)


@given(shape=batches, dtype=dtypes, one_t=st.booleans(), seed=seeds)
def test_noising_is_numpys(backend: Backend, shape: tuple[int, ...], dtype: type, one_t: bool, seed: int) -> None:
    check_q_sample(backend, shape, dtype, one_t=one_t, seed=seed)


variances = st.sampled_from(["beta", "beta_tilde", "learned", np.linspace(0, 0.02, 1001)])


@given(shape=batches, t=st.integers(1, 1000), dtype=dtypes, predicts=st.sampled_from(PARAMETRISATIONS), var=variances,
       clip=st.booleans(), temperature=st.sampled_from([0.0, 0.7, 1.0]), seed=seeds)  # fmt: skip
def test_the_reverse_step_is_numpys(backend: Backend, shape: tuple[int, ...], t: int, dtype: type, **how: Any) -> None:
    check_p_sample(backend, shape, t, dtype, **how)

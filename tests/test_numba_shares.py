"""Every kernel on several threads where each has little or nothing to do: the thresholds are lifted.

Which sizes go to one thread is a matter of speed; shares that begin and end anywhere, and empty ones, must be right.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import short

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend, attention, dense, launch, matmul, noise, norm, pointwise
from ddpm_ref_numba.simd import WIDTH

from ddpm_ref import backend_cases as cases
from ddpm_ref import forward, random, reverse
from ddpm_ref.backend_cases import Case, check_case
from ddpm_ref.checks import Array
from ddpm_ref.random import Purpose

THRESHOLDS = [(attention, "_SMALL"), (dense, "_SMALL"), (dense, "_SMALL_W"), (noise, "SERIAL"), (norm, "_SMALL"),
              (pointwise, "SMALL")]  # fmt: skip
RUNS = [NumbaBackend(threads) for threads in (2, 3, 5)]
SCHEDULE = short(50)
runs, seeds = st.sampled_from(RUNS), st.integers(0, 2**32 - 1)
images, sizes = st.integers(1, 4), st.integers(1, 7)
vectors = st.integers(1, 4).map(lambda k: k * WIDTH)
widths = st.integers(1, 40) | vectors
maps = st.tuples(images, sizes, sizes)


@contextmanager
def all_threads() -> Iterator[Counter[str]]:
    """Every kernel runs on all threads, between guard zones; counts those that do."""
    seen: Counter[str] = Counter()
    run = launch.Kernel._run

    def counted(self: launch.Kernel, threads: int, args: Any) -> None:
        seen[self.name] += threads > 1
        run(self, threads, args)

    patches = [patch.object(module, name, 0) for module, name in THRESHOLDS]
    with patch.object(launch.Kernel, "_run", counted), launch.guard():
        for threshold in patches:
            threshold.start()
        try:
            yield seen
        finally:
            for threshold in patches:
                threshold.stop()


def denses(draw: Any) -> Case:
    c, d = draw(widths), draw(widths)
    whole = c % WIDTH == d % WIDTH == 0  # a padded layer adds afterwards, by another kernel
    plus = draw(st.sampled_from(["", "y", "dx"])) if whole else ""
    return cases.dense((draw(st.integers(1, 60)), c), d, plus=plus, seed=draw(seeds))


def group_norms(draw: Any) -> Case:
    c = draw(vectors)
    groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    how: Any = dict(silu=draw(st.booleans()), plus=draw(st.booleans()), seed=draw(seeds))
    return cases.group_norm(*draw(maps), c, groups, **how)


def attentions(draw: Any) -> Case:
    return cases.attention(draw(images), draw(st.integers(2, 40)), draw(widths), seed=draw(seeds))


def upsamples(draw: Any) -> Case:
    return cases.upsample(*draw(maps), draw(vectors), seed=draw(seeds))


def concats(draw: Any) -> Case:
    return cases.concat(*draw(maps), draw(widths), draw(widths), seed=draw(seeds))


def adds(draw: Any) -> Case:
    return cases.add((*draw(maps), draw(widths)), seed=draw(seeds))


def dropouts(draw: Any) -> Case:
    return cases.dropout((*draw(maps), draw(widths)), draw(st.sampled_from([0.0, 0.1, 0.5])), seed=draw(seeds))


@pytest.mark.parametrize(
    ("made", "kernels"),
    [
        (denses, {"rows_times", "gradients"}),
        (group_norms, {"normalise", "normalise_back"}),
        (attentions, {"attend", "attend_back"}),
        (upsamples, {"doubled", "summed"}),
        (concats, {"joined", "parted"}),
        (adds, {"added"}),
        (dropouts, {"dropped", "dropped_again"}),
    ],
)
@given(data=st.data(), run=runs)
def test_operations_are_numpys_in_any_shares(made: Any, kernels: set[str], data: Any, run: NumbaBackend) -> None:
    with all_threads() as seen:
        check_case(run, made(data.draw))
    assert {name for name, count in seen.items() if count} == kernels


def same(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


batches = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)
shapes = st.tuples(sizes, st.integers(1, 3 * WIDTH))


@pytest.mark.parametrize("draw", ["normal", "uniform"])
@given(seeds, batches, shapes, runs)
def test_draws_are_numpys_in_any_shares(
    draw: str, seed: int, samples: list[int], shape: tuple[int, int], run: NumbaBackend
) -> None:
    kind = (seed, Purpose.DROPOUT, 3, samples, shape)
    with all_threads() as seen:
        found = getattr(run, draw)(*kind, layer=7)
    same(found, getattr(random, draw)(*kind, layer=7))
    assert seen[f"{draw}_kernel"]


@given(seeds, batches, shapes, runs)
def test_noising_with_a_step_for_each_image_is_numpys_in_any_shares(
    seed: int, samples: list[int], shape: tuple[int, int], run: NumbaBackend
) -> None:
    rng = np.random.default_rng(seed)
    x_0, t = rng.standard_normal((len(samples), *shape)).astype(np.float32), rng.integers(1, 51, len(samples))
    with all_threads() as seen:
        x_t, eps = run.q_sample(SCHEDULE, x_0, t, seed, 4, samples)
    same(eps, random.normal(seed, Purpose.EPS, 4, samples, shape))
    same(x_t, forward.q_sample(SCHEDULE, x_0, t, eps))
    assert seen["q_sample_kernel"]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("t", [1, 2, 50])
@given(seeds, batches, shapes, runs)
def test_the_first_the_last_and_the_last_noisy_reverse_step_are_numpys_in_any_shares(
    t: int, clip: bool, seed: int, samples: list[int], shape: tuple[int, int], run: NumbaBackend
) -> None:
    x_t, output = np.random.default_rng(seed).standard_normal((2, len(samples), *shape)).astype(np.float32)
    with all_threads() as seen:
        found = run.p_sample(SCHEDULE, x_t, t, output, seed, samples, clip=clip)
    z = random.normal(seed, Purpose.Z, t, samples, shape) if t > 1 else None
    for a, b in zip(found, reverse.p_sample(SCHEDULE, x_t, t, output, z, clip=clip), strict=True):
        same(a, b)
    assert seen["p_sample_kernel"]


# ---- how work is cut


@given(st.integers(1, 100_000), vectors, vectors, st.integers(1, 64))
def test_rows_of_the_dense_layer_are_whole_register_tiles_few_enough_for_the_cache(
    m: int, c: int, d: int, threads: int
) -> None:
    rows = dense._rows(m, c, d, threads)
    assert rows > 0 and rows % matmul.ROWS == 0 and rows < m + matmul.ROWS
    assert rows * c < 2 * dense._PART + matmul.ROWS * c


@given(st.integers(1, 64), st.integers(1, 5000), st.integers(1, 64))
def test_queries_at_a_time_are_whole_register_tiles_few_enough_for_the_cache(n: int, s: int, threads: int) -> None:
    rows = attention._rows(n, s, threads)
    assert rows > 0 and rows % matmul.ROWS == 0 and rows < min(s, attention._ROWS) + matmul.ROWS


@given(st.integers(1, 64), st.integers(1, 32), st.integers(1, 64), st.integers(1, 64))
def test_slices_of_group_norm_are_whole_groups_and_whole_vectors(n: int, k: int, of: int, threads: int) -> None:
    c = k * of * WIDTH
    for width in {of, of * WIDTH, c}:
        wide = norm._slice(n, c, width, threads)
        least = int(np.lcm(WIDTH, width))
        assert c % wide == wide % width == wide % WIDTH == 0
        assert wide == least or (wide <= norm._WIDE and n * (c // wide) % threads == 0)

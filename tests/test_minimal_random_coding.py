"""Minimal random coding: the winner against a search of everything, its law against q, its index against theory.

Statistical tests fail a right program less than once in a million times (p-values under 1e-6, means off by 5 standard
errors).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ddpm_ref.checks import Array
from ddpm_ref.entropy_coding import index_bits, mean_log_index
from ddpm_ref.minimal_random_coding import Choice, GaussianBlock, Stream, choose, choose_from
from ddpm_ref.random import Purpose, normal


def block_of(gap: float, ratio: float, d: int = 1) -> GaussianBlock:
    """q = N(gap, ratio I) beside p = N(0, I)."""
    return GaussianBlock(np.full(d, gap), np.full(d, ratio), np.zeros(d), np.ones(d))


@st.composite
def blocks(draw: Any) -> GaussianBlock:
    """Any few coordinates of different moments."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.integers(1, 4))
    var_p = rng.uniform(0.5, 2, d)
    return GaussianBlock(rng.normal(0, 0.4, d), var_p * rng.uniform(0.4, 0.9, d), rng.normal(0, 0.4, d), var_p)


BLOCKS = {"far": block_of(1.2, 0.5), "near": block_of(0.05, 0.95), "narrow": block_of(0.0, 0.05),
          "wide": block_of(0.5, 0.5, d=3), "equal": block_of(0.0, 1.0)}  # fmt: skip
every_block = pytest.mark.parametrize("name", BLOCKS)


@functools.cache
def many(name: str, n: int = 1500) -> tuple[Array, Array]:
    """K (n,) and the z of the winner (n, d), each from a seed of its own."""
    d = len(BLOCKS[name].mean_q)
    K, z = np.empty(n, np.int64), np.empty((n, d))
    for seed in range(n):
        stream = Stream(seed, 1, 0, d)
        K[seed] = choose_from(BLOCKS[name], stream).K
        z[seed] = stream.candidates(K[seed] - 1, 1)[0]
    return K, z


# --- the two densities -----------------------------------------------------------------------------------------------


@given(blocks(), st.integers(0, 2**32 - 1))
def test_log_ratio_is_that_of_the_densities_and_never_over_its_maximum(block: GaussianBlock, seed: int) -> None:
    z = np.random.default_rng(seed).normal(0, 2, (50, len(block.mean_q)))
    x = block.mean_p + np.sqrt(block.var_p) * z
    log_q = stats.norm.logpdf(x, block.mean_q, np.sqrt(block.var_q)).sum(axis=1)
    log_p = stats.norm.logpdf(x, block.mean_p, np.sqrt(block.var_p)).sum(axis=1)
    np.testing.assert_allclose(block.log_ratio(z), log_q - log_p, rtol=1e-9, atol=1e-9)
    r, a = block.var_p / block.var_q, (block.mean_p - block.mean_q) / np.sqrt(block.var_q)
    top = block.log_ratio(-(a * np.sqrt(r) / (r - 1))[None])[0]
    np.testing.assert_allclose(block.log_ratio_max(), top, rtol=1e-9, atol=1e-12)
    assert (block.log_ratio(z) <= top + 1e-9).all()


@given(blocks())
def test_kl_is_the_mean_log_ratio_in_bits(block: GaussianBlock) -> None:
    """Along each axis by quadrature, exact for a quadratic."""
    u, weight = np.polynomial.hermite_e.hermegauss(4)
    total = 0.0
    for k in range(len(block.mean_q)):
        one = block.part(slice(k, k + 1))
        x = one.mean_q + np.sqrt(one.var_q) * u[:, None]
        total += weight @ one.log_ratio((x - one.mean_p) / np.sqrt(one.var_p)) / weight.sum()
    np.testing.assert_allclose(block.kl(), total / np.log(2), rtol=1e-9, atol=1e-12)


def test_where_p_is_not_wider_there_is_no_maximum() -> None:
    assert block_of(0.1, 1.0).log_ratio_max() == np.inf
    assert block_of(0.0, 1.1).log_ratio_max() == np.inf
    assert block_of(0.0, 1.0).log_ratio_max() == 0


# --- the search ------------------------------------------------------------------------------------------------------


def lookup(table: Array) -> Callable[[int, int], Array]:
    def read(first: int, count: int) -> Array:
        assert first + count <= len(table), "the search went further than the test prepared for"
        return table[first : first + count]

    return read


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 6), st.integers(1, 500))
def test_the_winner_is_that_of_all_candidates_and_no_later_one_could_have_won(
    seed: int, log_max: float, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(size=60_000)
    log_w = np.minimum(rng.normal(0, 2, len(gaps)), log_max)
    log_w[0] = log_max - 5  # somebody has to have weight
    found = choose(lookup(log_w), log_max, lookup(gaps), chunk)
    scores = np.log(np.cumsum(gaps)) - log_w
    assert scores.argmin() + 1 == found.K
    assert np.log(gaps[: found.tried].sum()) - log_max >= scores.min() - 1e-9, "stopped too early"


def test_it_does_not_stop_before_a_late_candidate_of_the_largest_weight_is_out_of_reach() -> None:
    gaps, log_w = np.ones(2000), np.zeros(2000)
    log_w[998] = np.log(1000)  # T = 999, T / w < 1: just before T_1 / w_1 = 1
    assert choose(lookup(log_w), np.log(1000), lookup(gaps), 64).K == 999
    log_w[998], log_w[1001] = 0, np.log(1000)
    assert choose(lookup(log_w), np.log(1000), lookup(gaps), 64) == Choice(1, 1024)


@every_block
def test_neither_the_chunk_nor_a_looser_bound_changes_the_winner(name: str) -> None:
    block = BLOCKS[name]
    for seed in range(20):
        stream = Stream(seed, 2, 5, len(block.mean_q))

        def log_ratio(first: int, count: int, stream: Stream = stream) -> Array:
            return block.log_ratio(stream.candidates(first, count))

        top = block.log_ratio_max()
        first = choose(log_ratio, top, stream.gaps, 7)
        assert first.K == choose(log_ratio, top, stream.gaps).K == choose(log_ratio, top + 2, stream.gaps).K
        assert first.K == choose_from(block, stream).K


def test_the_number_of_candidates_looked_at_is_about_the_largest_ratio() -> None:
    """It is under 2 (max w · Θ) + 64, Θ ~ Exp(1), with the doubling of chunks."""
    block = block_of(1.0, 0.3)
    tried = [choose_from(block, Stream(seed, 1, 0, 1)).tried for seed in range(300)]
    assert np.mean(tried) < 2 * (np.exp(block.log_ratio_max()) * 1.5) + 64


def test_streams_are_those_of_the_counted_generator_and_differ() -> None:
    stream = Stream(3, 4, 5, 6)
    np.testing.assert_array_equal(stream.candidates(7, 2), normal(3, Purpose.CODING, 4, [7, 8], (6,), layer=10))
    others = [Stream(2, 4, 5, 6), Stream(3, 5, 5, 6), Stream(3, 4, 6, 6)]
    draws = [s.candidates(0, 1).tobytes() for s in (stream, *others)]
    times = [s.gaps(0, 8).tobytes() for s in (stream, *others)]
    assert len(set(draws)) == len(set(times)) == 4
    np.testing.assert_array_equal(stream.gaps(3, 5), stream.gaps(0, 8)[3:])


def test_gaps_are_exponential() -> None:
    gaps = Stream(1, 1, 0, 1).gaps(0, 200_000)
    assert gaps.min() >= 0 and stats.kstest(gaps, "expon").pvalue > 1e-6


# --- the law of what is sent -----------------------------------------------------------------------------------------


@every_block
def test_what_is_sent_is_a_draw_of_q(name: str) -> None:
    block, (_, z) = BLOCKS[name], many(name)
    u = (block.mean_p + np.sqrt(block.var_p) * z - block.mean_q) / np.sqrt(block.var_q)
    for k in range(u.shape[1]):
        assert stats.kstest(u[:, k], "norm").pvalue > 1e-6
    assert stats.kstest((u**2).sum(axis=1), stats.chi2(u.shape[1]).cdf).pvalue > 1e-6


def test_a_discrete_q_is_drawn_exactly(rng: np.random.Generator) -> None:
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.1, 0.3, 0.5])
    log_w, counts = np.log(q / p), np.zeros(4)
    for _ in range(5000):
        candidates, gaps = rng.choice(4, size=4096, p=p), rng.exponential(size=4096)
        found = choose(lookup(log_w[candidates]), log_w.max(), lookup(gaps), 64)
        counts[candidates[found.K - 1]] += 1
    assert stats.chisquare(counts, 5000 * q).pvalue > 1e-6


def mean_index(block: GaussianBlock) -> float:
    """E K = 1 + E_{z ~ q} E_p (w(z) - w)_+, in one dimension, by sums over a fine grid."""
    z = np.linspace(-9, 9, 6001)
    p = stats.norm.pdf(z) * (z[1] - z[0])
    w = np.exp(block.log_ratio(z[:, None]))
    order = np.argsort(w)
    w, p = w[order], p[order]
    mass, below = np.cumsum(p), np.cumsum(p * w)
    return float(1 + (p * w) @ (w * mass - below))


@pytest.mark.parametrize("name", ["far", "near", "narrow", "equal"])
def test_the_mean_index_is_what_the_poisson_process_says(name: str) -> None:
    K, _ = many(name)
    error = K.std() / len(K) ** 0.5
    assert abs(K.mean() - mean_index(BLOCKS[name])) <= 5 * error + 1e-9


@every_block
def test_the_index_and_its_code_keep_to_their_bounds(name: str) -> None:
    K, _ = many(name)
    D, log_K = BLOCKS[name].kl(), np.log2(K)
    assert log_K.mean() <= mean_log_index(D) + 5 * log_K.std() / len(K) ** 0.5
    for expected in (D, 0.5 * D, 2 * D):  # what both sides believe D to be
        bits = np.array([index_bits(int(k), expected) for k in K])
        assert bits.mean() <= D + np.log2(D + 1) + 3.32 + 0.45 * (expected != D) + 5 * bits.std() / len(K) ** 0.5


def test_no_D_costs_over_3_32_bits_beside_its_kl_and_logarithm() -> None:
    """E bits ≤ M + M log₂(1 + 1/M) + log₂(1 + M), over all D; a wrong D costs little."""
    D = np.logspace(-8, 3, 5000)
    M = np.array([mean_log_index(d) for d in D])
    over = M + M * np.log2(1 + 1 / M) + np.log2(1 + M) - D - np.log2(D + 1)
    assert 3.30 < over.max() < 3.32
    assert mean_log_index(0.0) == 0
    for factor in (0.5, 2):
        other = np.array([mean_log_index(factor * d) for d in D])
        cost = M * np.log2(1 + 1 / other) + np.log2(1 + other) - M * np.log2(1 + 1 / M) - np.log2(1 + M)
        assert cost.max() < 0.45

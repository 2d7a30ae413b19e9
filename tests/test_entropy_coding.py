"""Bytes: every sequence of symbols comes back, and is as long as its probabilities say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref import entropy_coding as code
from ddpm_ref.checks import Array

BIT = 1 << code.PRECISION


@st.composite
def symbols(draw: Any) -> list[tuple[int, int, int]]:
    """Any (start, freq, bits), the nearly certain and the nearly impossible among them."""
    out = []
    for _ in range(draw(st.integers(0, 60))):
        bits = draw(st.sampled_from([1, 5, 16, 31]))
        freq = draw(st.one_of(st.integers(1, 1 << bits), st.just(1), st.just((1 << bits) - 1)))
        out.append((draw(st.integers(0, (1 << bits) - freq)), freq, bits))
    return out


def written(sequence: list[tuple[int, int, int]]) -> bytes:
    writer = code.Writer()
    for one in sequence:
        writer.put(*one)
    return writer.message()


@given(symbols(), st.integers(0, 2**32 - 1))
def test_every_sequence_comes_back_from_a_message_of_its_information(sequence: Any, seed: int) -> None:
    message = written(sequence)
    ideal = sum(bits - np.log2(freq) for _, freq, bits in sequence)
    assert 8 * len(message) <= ideal + code.CONTAINER
    reader = code.Reader(message)
    for start, freq, bits in sequence:
        assert start <= reader.peek(bits) < start + freq
        reader.take(start, freq, bits)
    reader.finish()


def test_messages_are_no_longer_than_their_probabilities_on_average(rng: np.random.Generator) -> None:
    """Skewed bits: 3,000 of them, each under 0.3 bits; the coder adds less than two bytes in all."""
    flags = rng.random(3000) < 0.05
    writer = code.Writer()
    for flag in flags:
        code.put_flag(writer, bool(flag), round(0.05 * BIT))
    p = round(0.05 * BIT) / BIT
    ideal = -np.log2(np.where(flags, p, 1 - p)).sum()
    message = writer.message()
    assert ideal - 1 <= 8 * len(message) <= ideal + 16
    reader = code.Reader(message)
    assert [code.take_flag(reader, round(0.05 * BIT)) for _ in flags] == flags.tolist()


def test_carries_run_through_the_whole_message() -> None:
    """The top of the interval again and again, then what pushes it over."""
    sequence = [(BIT - 1, 1, 16)] * 40 + [(0, 1, 16), (BIT - 2, 2, 16)] * 3
    reader = code.Reader(written(sequence))
    for one in sequence:
        assert one[0] <= reader.peek() < one[0] + one[1]
        reader.take(*one)
    reader.finish()


def test_nothing_is_an_empty_message() -> None:
    assert written([]) == b""
    code.Reader(b"").finish()


@given(st.lists(st.integers(2**30, 2**31 - 1), min_size=9, max_size=12))
def test_a_message_that_was_cut_or_went_on_is_noticed(values: list[int]) -> None:
    message = written([(v | 1, 1, 31) for v in values])  # odd: zeros at the end need not be sent

    def read(message: bytes) -> None:
        reader = code.Reader(message)
        for _ in values:
            code.take_uniform(reader, 31)
        reader.finish()

    read(message)
    with pytest.raises(ValueError, match="message: wanted"):
        read(message[:8])
    with pytest.raises(ValueError, match="message: wanted"):
        read(message + b"\1")
    with pytest.raises(ValueError, match="message: wanted"):
        read(message + b"\0")


@pytest.mark.parametrize("bad", ["text", 3, None, [1]])
def test_what_is_not_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="message: wanted bytes"):
        code.Reader(bad)


# --- the index -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2**32 - 1), max_size=20), st.one_of(st.none(), st.floats(0, 100)))
def test_indices_come_back(indices: list[int], kl: float | None) -> None:
    writer = code.Writer()
    for K in indices:
        code.put_index(writer, K, kl)
        code.put_count(writer, K)
    reader = code.Reader(writer.message())
    for K in indices:
        assert code.take_index(reader, kl) == K == code.take_count(reader)
    reader.finish()


def test_counts_have_the_lengths_of_elias_gamma() -> None:
    lengths = []
    for count in (1, 2, 3, 4, 7, 8, 1023, 1024):
        writer = code.Writer()
        for _ in range(800):
            code.put_count(writer, count)
        lengths.append(8 * len(writer.message()) / 800)
    assert np.round(lengths).tolist() == [1, 3, 3, 5, 5, 7, 19, 21]


@pytest.mark.parametrize("kl", [0.0, 0.01, 1.0, 8.0, 30.0])
def test_index_bits_are_a_complete_code_and_the_length_in_the_message(kl: float) -> None:
    """Kraft's sum over K < 2^12 is 1 - ρ^12, the rest being the larger K's; ρ = M / (1 + M)."""
    M = code.mean_log_index(kl)
    rho = min(max(round(BIT * M / (1 + M)), 1), BIT - 1) / BIT
    total = sum(2.0 ** -code.index_bits(K, kl) for K in range(1, 2**12))
    np.testing.assert_allclose(total, 1 - rho**12, rtol=1e-12)
    for K in (1, 2, 3, 100):
        writer = code.Writer()
        for _ in range(300):
            code.put_index(writer, K, kl)
        ideal = 300 * code.index_bits(K, kl)
        # Zero bytes at the end, of which a message of equal symbols may have several, are not sent.
        assert ideal - 8 * 9 <= 8 * len(writer.message()) <= ideal + code.CONTAINER


def test_a_bound_on_the_mean_logarithm_that_is_known() -> None:
    """With v = 1 it is Li & El Gamal's D + e^-1 log₂ e + 1."""
    for D in (3.0, 10.0):
        np.testing.assert_allclose(code.mean_log_index(D), D + np.log2(np.e) / np.e + 1, rtol=1e-12)


def test_an_index_of_too_many_digits_is_no_index() -> None:
    writer = code.Writer()
    for _ in range(40):
        code.put_flag(writer, True, code._go_on(1.0))
    with pytest.raises(ValueError, match="message: wanted"):
        code.take_index(code.Reader(writer.message()), 1.0)


# --- tables ----------------------------------------------------------------------------------------------------------


def random_tables(rng: np.random.Generator, n: int, K: int) -> Array:
    return rng.dirichlet(np.full(K, 0.3), size=n)


@pytest.mark.parametrize("K", [2, 17, 256, 4096])
def test_frequencies_are_whole_positive_and_near_the_probabilities(K: int, rng: np.random.Generator) -> None:
    p = np.vstack([random_tables(rng, 20, K), np.eye(K)[:2], np.full((1, K), 1 / K)])
    freq = code.frequencies(p)
    assert freq.dtype == np.int64 and freq.min() >= 1 and (freq.sum(axis=1) == BIT).all()
    loss = (p * np.log2(np.where(p > 0, p, 1) * BIT / freq)).sum(axis=1)
    assert loss.max() < 1.6 * K / BIT


@given(st.integers(0, 2**32 - 1), st.integers(2, 300))
def test_symbols_come_back(seed: int, K: int) -> None:
    rng = np.random.default_rng(seed)
    freq = code.frequencies(random_tables(rng, 30, K))
    chosen = rng.integers(0, K, 30)
    writer = code.Writer()
    code.put_symbols(writer, chosen, freq)
    message = writer.message()
    assert 8 * len(message) <= -np.log2(freq[np.arange(30), chosen] / BIT).sum() + code.CONTAINER
    np.testing.assert_array_equal(code.take_symbols(code.Reader(message), freq), chosen)


@pytest.mark.parametrize("K", [1, 4097])
def test_tables_must_not_be_too_fine(K: int) -> None:
    with pytest.raises(ValueError, match=f"p: wanted 2..4096 symbols, got {K}"):
        code.frequencies(np.full((1, K), 1 / K))

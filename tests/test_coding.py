"""Algorithms 3 and 4: what was sent arrives, x_t follows q, messages are as long as they may be, damage is noticed.

Statistical tests fail a right program less than once in a million times (p-values under 1e-6, means off by 5 standard
errors); a damaged message is taken for a right one once in 65,536 times.
"""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import schedule_of, short

from ddpm_ref import GaussianOracle, Schedule, bits_per_dim, bound_terms, prior_kl
from ddpm_ref.checks import Array
from ddpm_ref.codebook import CANDIDATES, LARGEST_KL, Codebook, expected_distortion, step_kl
from ddpm_ref.coding import MOST_CANDIDATES, OVERHEAD, Transmission, receive, send, transmit
from ddpm_ref.forward import q_posterior
from ddpm_ref.minimal_random_coding import GaussianBlock


def codebook(
    D: int = 2, T: int = 4, levels: int = 17, var: float = 0.2, shape: tuple[int, ...] | None = None, **kind: Any
) -> Codebook:
    """That of N(0, var I), whose distortion is exact; the data of the tests lie on the grid near its draws."""
    schedule = Schedule.cosine(T)
    oracle = GaussianOracle(np.zeros(shape or (D,)), var, schedule)
    distortion = [0.0, *(oracle.D * oracle.irreducible_loss(t, "x_0") for t in range(1, T + 1)), oracle.D * var]
    return Codebook(schedule, oracle, oracle.shape, levels, np.array(distortion), **kind)


def draw(book: Codebook, n: int, seed: int = 0, width: float = 0.45) -> Array:
    x = np.random.default_rng(seed).normal(0, width, (n, *book.shape)).clip(-1, 1)
    return book.scaled(np.rint((x + 1) / 2 * (book.levels - 1)))


BOOK = codebook()


def received(book: Codebook, message: bytes, seed: int) -> list[tuple[int, Array, Array]]:
    return list(receive(book, message, seed))


# --- there and back --------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(1,), (3,), (2, 2, 1)]),
    n=st.integers(1, 5),
    T=st.integers(2, 8),
    levels=st.sampled_from([2, 17, 256]),
    seed=st.integers(0, 2**64 - 1),
)
def test_what_was_sent_arrives(shape: tuple[int, ...], n: int, T: int, levels: int, seed: int) -> None:
    book = codebook(T=T, levels=levels, shape=shape)
    x_0 = draw(book, n, seed % 2**32)
    sent = transmit(book, x_0, seed)
    assert send(book, x_0, seed) == sent.message
    steps = received(book, sent.message, seed)
    assert [t for t, _, _ in steps] == list(range(T, -1, -1))
    for (t, x_t, x_0_hat), (_, sent_x_t, sent_x_0_hat) in zip(steps, sent.steps, strict=True):
        np.testing.assert_array_equal(x_t, sent_x_t)
        np.testing.assert_array_equal(x_0_hat, sent_x_0_hat)
        if t:
            np.testing.assert_array_equal(x_0_hat, book.step(x_t, t).x_0_hat)
    np.testing.assert_array_equal(steps[-1][1], x_0)


def test_it_arrives_from_one_step_and_under_every_parametrisation() -> None:
    schedule = schedule_of([0.6])
    oracle = GaussianOracle(np.zeros(2), 0.2, schedule)
    one = Codebook(schedule, oracle, (2,), 17, np.array([0, 0.3, 0.4]))
    x_0 = draw(one, 3)
    np.testing.assert_array_equal(received(one, send(one, x_0, 1), 1)[-1][1], x_0)
    messages = []
    for predicts in ("eps", "x_0", "mu", "v"):
        book = changed(BOOK, model=BOOK.model.model(predicts), predicts=predicts)
        messages.append(send(book, draw(book, 4), 3))
        np.testing.assert_array_equal(received(book, messages[-1], 3)[-1][1], draw(book, 4))
    assert len({len(m) for m in messages}) == 1, "the same p_θ, whatever the network is said to predict"


def changed(book: Codebook, **changes: Any) -> Codebook:
    fields = {f.name: getattr(book, f.name) for f in dataclasses.fields(book) if f.init}
    return Codebook(**fields | changes)


def test_grey_levels_coded_some_at_a_time_make_the_same_message(monkeypatch: pytest.MonkeyPatch) -> None:
    x_0 = draw(BOOK, 9)
    whole = transmit(BOOK, x_0, 4)
    for chunk in (1, 3 * BOOK.levels, 18 * BOOK.levels):
        monkeypatch.setattr("ddpm_ref.codebook._CHUNK", chunk)
        step = BOOK.step(whole.steps[-2][1], 1)
        assert max(freq.size for freq in BOOK.decoder(step)) <= max(chunk, BOOK.levels)
        in_parts = transmit(BOOK, x_0, 4)
        assert in_parts.message == whole.message
        np.testing.assert_allclose(in_parts.grey_bits, whole.grey_bits, rtol=1e-12)
        np.testing.assert_array_equal(received(BOOK, whole.message, 4)[-1][1], x_0)


def test_float32_data_arrive_as_float64_on_the_same_grid() -> None:
    x_0 = draw(BOOK, 3)
    assert send(BOOK, x_0.astype(np.float32), 5) == send(BOOK, x_0, 5)


def test_a_surprising_x_0_is_cut_into_more_blocks_and_arrives() -> None:
    """The model is sure of 0 and gets ±1: no block may cost over 2^20 candidates."""
    book = codebook(D=3, var=0.05)
    x_0 = np.ones((4, 3))
    sent = transmit(book, x_0, 2)
    planned = sum(len(book.blocks(4, t)) for t in range(1, 5))
    assert len(sent.blocks) > planned
    assert {b.d for b in sent.blocks} <= {12, 6, 3, 2, 1}, "halves"
    assert max(b.tried for b in sent.blocks) < 20 * 2**MOST_CANDIDATES
    np.testing.assert_array_equal(received(book, sent.message, 2)[-1][1], x_0)


def test_every_block_has_candidates_of_its_own() -> None:
    """Eight equal copies, each coordinate a block: equal candidates would make x_t equal."""
    book = changed(BOOK, distortion=np.full(6, 1e6))
    sent = transmit(book, np.full((8, 2), 0.25), 1)
    assert [b.d for b in sent.blocks] == [1] * (4 * 16)
    for t, x_t, _ in sent.steps:
        assert len(np.unique(x_t)) == (16 if t else 1)


def test_an_x_0_that_the_model_rules_out_is_refused_before_it_takes_for_ever() -> None:
    schedule = schedule_of([0.001, 0.01, 0.1, 0.9])
    book = Codebook(schedule, GaussianOracle([0.0], 1e-4, schedule), (1,), 17, np.full(6, 1e-4))
    with pytest.raises(ValueError, match=r"x_0: one coordinate of x_. would take 2\^\d+ candidates"):
        send(book, np.ones((1, 1)), 0)


def test_the_seed_and_the_codebook_must_be_the_senders() -> None:
    message = send(BOOK, draw(BOOK, 8), 7)
    with pytest.raises(ValueError, match="message: wanted"):
        received(BOOK, message, 8)
    with pytest.raises(ValueError, match="message: wanted"):
        received(codebook(var=0.1), message, 7)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_message_cut_short_or_gone_on_with_is_refused() -> None:
    message = send(BOOK, draw(BOOK, 6), 3)
    for length in range(len(message)):
        with pytest.raises(ValueError, match="message: wanted"):
            received(BOOK, message[:length], 3)
    for more in (b"\1", b"\0\0\0", b"abc"):
        with pytest.raises(ValueError, match="message: wanted"):
            received(BOOK, message + more, 3)


@given(st.data())
def test_a_flipped_bit_is_noticed(data: Any) -> None:
    message = bytearray(send(BOOK, draw(BOOK, 3), 4))
    place = data.draw(st.integers(0, 8 * len(message) - 1))
    message[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match="message: wanted"):
        received(BOOK, bytes(message), 4)


@given(st.binary(max_size=60))
def test_noise_is_refused_without_hanging(noise: bytes) -> None:
    """The first bytes say how many copies: those that say thousands would only be slow."""
    book = codebook(D=1, T=2)
    with pytest.raises(ValueError, match="message: wanted"):
        received(book, b"\x60" + noise, 0)


def test_a_message_of_more_copies_than_there_can_be_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="message: wanted one of at most 4194304 copies, got"):
        receive(BOOK, b"\xff\xff\xff\x00\x00\x00\x00\x00", 0)


# --- what is sent follows q, and costs its KL ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent() -> list[tuple[Array, Transmission]]:
    """40 messages of 12 copies."""
    out = []
    for seed in range(40):
        x_0 = draw(BOOK, 12, seed)
        out.append((x_0, transmit(BOOK, x_0, seed)))
    return out


@pytest.mark.parametrize("t", range(1, 5))
def test_x_t_is_a_draw_of_q(sent: list[tuple[Array, Transmission]], t: int) -> None:
    """x_t ~ N(√ᾱ_t x_0, 1 - ᾱ_t) (Eq. 4), and x_t given x_{t+1} by Eq. 7; standardised, N(0, 1), each on its own."""
    s, T = BOOK.schedule, BOOK.schedule.T
    x_0 = np.concatenate([x for x, _ in sent])
    chain = [np.concatenate([one.steps[T - k][1] for _, one in sent]) for k in range(T + 1)]
    u = (chain[t] - np.sqrt(s.alpha_bar[t]) * x_0) / np.sqrt(1 - s.alpha_bar[t])
    assert stats.kstest(u.ravel(), "norm").pvalue > 1e-6
    if t < T:
        mean, var = q_posterior(s, x_0, chain[t + 1], t + 1)
        v = (chain[t] - mean) / np.sqrt(var)
        assert stats.kstest(v.ravel(), "norm").pvalue > 1e-6
        for other in (chain[t + 1], x_0):  # the noise of a step knows nothing of what went before
            assert abs(np.corrcoef(v.ravel(), other.ravel())[0, 1]) < 5 / v.size**0.5
    between = np.corrcoef(u[:, 0], u[:, 1])[0, 1]
    assert abs(between) < 5 / len(u) ** 0.5


def test_the_kl_of_the_blocks_is_that_of_the_bound(sent: list[tuple[Array, Transmission]]) -> None:
    s, T = BOOK.schedule, BOOK.schedule.T
    for x_0, one in sent[:5]:
        by_step = {t: sum(b.kl for b in one.blocks if b.t == t) for t in range(1, T + 1)}
        x = {t: x_t for t, x_t, _ in one.steps}
        np.testing.assert_allclose(by_step[T], bits_per_dim(prior_kl(s, x_0)).sum() * 2, rtol=1e-9)
        for t in range(1, T):
            np.testing.assert_allclose(by_step[t], step_kl(BOOK, x_0, x[t + 1], t + 1).sum(), rtol=1e-9)
        np.testing.assert_allclose(one.x_0_bits, step_kl(BOOK, x_0, x[1], 1))
        assert sum(b.d for b in one.blocks) == T * x_0.size


def test_messages_keep_to_the_bound_on_average_and_to_their_parts_each(sent: list[tuple[Array, Transmission]]) -> None:
    slack = []
    for x_0, one in sent:
        bits = 8 * len(one.message)
        assert abs(one.grey_bits - one.x_0_bits.sum()) < 0.01 * x_0.size
        parts = sum(b.bits for b in one.blocks) + one.x_0_bits.sum()
        # Not to halve a block costs 0.09 bits; grey levels are coded with 16 bits of precision.
        assert parts - 80 <= bits <= parts + 0.1 * len(one.blocks) + 0.01 * x_0.size + OVERHEAD + 2 * np.log2(len(x_0))
        slack.append(bits - one.x_0_bits.sum() - sum(b.kl + np.log2(b.kl + 1) + 5 for b in one.blocks))
    assert np.mean(slack) + 5 * np.std(slack) / len(slack) ** 0.5 < OVERHEAD + 2 * np.log2(12)


# --- the codebook ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 6])
def test_the_expected_kl_is_that_of_the_oracles_bound(T: int) -> None:
    oracle = GaussianOracle([0.1, -0.2], [[0.3, 0.1], [0.1, 0.2]], short(T))
    square = 0.3 + 0.2 + 0.01 + 0.04
    distortion = [0.0, *(2 * oracle.irreducible_loss(t, "x_0") for t in range(1, T + 1)), square]
    book = Codebook(oracle.schedule, oracle, (2,), 17, np.array(distortion))
    np.testing.assert_allclose(book.kl[1:], 2 * bits_per_dim(oracle.bound_terms()[1:]), rtol=1e-9, atol=1e-14)
    assert book.kl[0] == book.log_ratio_max[0] == 0


def test_expectations_are_those_of_a_block_with_that_distortion() -> None:
    rng, s = np.random.default_rng(0), BOOK.schedule
    x_0, x = rng.uniform(-1, 1, (1, 2)), {t: rng.normal(size=(1, 2)) for t in range(1, 5)}
    squares = [0.0, *(((x_0 - BOOK.step(x[t], t).x_0_hat) ** 2).sum() for t in range(1, 5)), (x_0**2).sum()]
    book = changed(BOOK, distortion=np.array(squares))
    for t in range(1, 4):
        p, (mean, var) = book.step(x[t + 1], t + 1), q_posterior(s, x_0, x[t + 1], t + 1)
        block = GaussianBlock(mean[0], np.full(2, var), p.mean[0], np.full(2, p.var))
        np.testing.assert_allclose(book.kl[t], block.kl(), rtol=1e-9)
        np.testing.assert_allclose(book.log_ratio_max[t], block.log_ratio_max() / np.log(2), rtol=1e-9)
    abar = s.alpha_bar[4]
    first = GaussianBlock(np.sqrt(abar) * x_0[0], np.full(2, 1 - abar), np.zeros(2), np.ones(2))
    np.testing.assert_allclose(book.kl[4], first.kl(), rtol=1e-6)
    np.testing.assert_allclose(book.log_ratio_max[4], first.log_ratio_max() / np.log(2), rtol=1e-6)


def test_blocks_are_as_few_as_their_limits_allow_and_hold_every_coordinate() -> None:
    for n in (1, 3, 40, 1000):
        for t in range(1, 5):
            blocks = BOOK.blocks(n, t)
            assert blocks[0].start == 0 and blocks[-1].stop == 2 * n
            assert all(a.stop == b.start for a, b in pairwise(blocks))
            sizes = [b.stop - b.start for b in blocks]
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
            need = n * max(BOOK.kl[t] / LARGEST_KL, BOOK.log_ratio_max[t] / CANDIDATES)
            assert len(blocks) == max(1, int(np.ceil(need)))
    wild = changed(BOOK, distortion=np.full(6, 1e6))
    assert len(wild.blocks(2, 3)) == 4, "never less than a coordinate"


def test_expected_distortion_is_a_mean_square_of_the_oracles() -> None:
    rng = np.random.default_rng(0)
    x_0 = rng.normal(0, 0.2**0.5, (20_000, 2))
    found = expected_distortion(BOOK.schedule, BOOK.model, x_0, lambda t: rng.standard_normal(x_0.shape))
    np.testing.assert_allclose(found[1:], BOOK.distortion[1:], rtol=5 / 20_000**0.5)
    assert found[0] == 0


def test_step_kl_is_the_bound_in_bits() -> None:
    x_0, rng = draw(BOOK, 5), np.random.default_rng(1)
    eps = {t: rng.standard_normal(x_0.shape) for t in range(1, 5)}
    L = bound_terms(BOOK.schedule, BOOK.model, x_0, lambda t: eps[t], levels=17).L
    for t in range(1, 5):
        x_t = np.sqrt(BOOK.schedule.alpha_bar[t]) * x_0 + np.sqrt(1 - BOOK.schedule.alpha_bar[t]) * eps[t]
        np.testing.assert_allclose(step_kl(BOOK, x_0, x_t, t), 2 * bits_per_dim(L[t - 1]), rtol=1e-9)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"var": "beta_tilde"}, "var: wanted sigma_t"),
        ({"var": "learned"}, "var: wanted one of"),
        ({"levels": 1}, "levels: wanted an integer in 2..4096"),
        ({"predicts": "x"}, "predicts: wanted one of"),
        ({"distortion": np.zeros(5)}, r"distortion: wanted T \+ 2 = 6 finite numbers"),
        ({"distortion": np.full(6, np.nan)}, "distortion: wanted"),
        ({"distortion": np.full(6, -1.0)}, "distortion: wanted"),
        ({"schedule": Schedule.jsd(4)}, "alpha_bar_t = 0"),
    ],
    ids=str,
)
def test_bad_codebooks_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(BOOK, **bad)


@pytest.mark.parametrize(
    ("x_0", "message"),
    [
        (np.zeros((2, 2), int), "x_0: wanted a floating array"),
        (np.zeros((2, 3)), r"x_0: wanted shape \(n, 2\)"),
        (np.zeros((0, 2)), r"x_0: wanted shape \(n, 2\)"),
        (np.zeros(2), r"x_0: wanted shape \(n, 2\)"),
        (np.full((1, 2), np.nan), "x_0: .* NaN"),
        (np.full((1, 2), 0.01), "x_0: wanted values on the grid of 17 levels"),
        (np.full((1, 2), 1.125), "x_0: wanted values on the grid of 17 levels"),
    ],
)
def test_bad_data_are_refused(x_0: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        send(BOOK, x_0, 0)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0])
def test_bad_seeds_are_refused_by_both(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed: wanted an integer"):
        send(BOOK, draw(BOOK, 1), seed)
    with pytest.raises(ValueError, match="seed: wanted an integer"):
        receive(BOOK, b"", seed)

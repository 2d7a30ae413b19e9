"""Algorithms 3 and 4: x_0 as bytes, coarse first, between a sender and a receiver who share p_θ and a seed (§4.3).

    Algorithm 3                                                  Algorithm 4
    1  send x_T ~ q(x_T | x_0) using p(x_T)                      receive x_T using p(x_T)
    2  for t = T-1, …, 1:                                        for t = T-1, …, 1:
    3      send x_t ~ q(x_t | x_{t+1}, x_0)                          receive x_t
               using p_θ(x_t | x_{t+1})                                  using p_θ(x_t | x_{t+1})
    4  send x_0 using p_θ(x_0 | x_1)                             receive x_0 using p_θ(x_0 | x_1)

Lines 1 and 3 by `minimal_random_coding`: x_t is an exact draw of q and costs little more than KL(q ‖ p_θ), which is
L_T … L_1 of Eq. 5. Line 4 codes the grey level of every element by its probability under the discretised decoder
(Eq. 13), L_0, and x_0 arrives exactly. n copies, which may be n different images, make one message: every step costs
some bits beyond its KL, and one step of n copies no more than one of one.

Both sides must compute the same p_θ to the last bit: the same model, libraries, threads and machine.

A step's n·D coordinates are coded in blocks, since one takes about max q/p candidates: equal ones, of whose KL and
log₂ max q/p both sides expect 12 and 16 bits at most (`Codebook.blocks`). Where one would take over 2^20 after all, the
sender halves it and says so; grey levels are coded some at a time. So memory is that of the x_t and x̂_0 of the steps
that are kept, and of some arrays of 2^17 numbers, and a message is expected to take

    under  L_0 + Σ_blocks [KL + log₂(KL + 1) + 5] + OVERHEAD + 2 log₂ n  bits.
"""

from binascii import crc_hqx
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from ddpm_ref import entropy_coding as code
from ddpm_ref.checks import Array, check_finite, check_float, check_int
from ddpm_ref.codebook import Codebook, step_kl
from ddpm_ref.forward import q_mean_var, q_posterior
from ddpm_ref.minimal_random_coding import LARGEST_STREAM, GaussianBlock, Stream, choose_from

MOST_CANDIDATES = 20  # log₂ of a block's, before it is halved: about a second
CHECK = 16  # bits: of the check sum of x_0
OVERHEAD = 1 + CHECK + code.CONTAINER
_HALVE = 1 << 12  # 1/16 in units of 2^-16, the probability of halving; not to halve costs 0.09 bits


class End(Protocol):
    """One end of the line: the sender decides and writes, the receiver reads."""

    def begin(self, t: int, x: Array | None) -> None:
        """x_t comes next, given x_{t+1} = x (None: nothing is given)."""

    def halve(self, which: slice, mean_p: Array, var_p: Array) -> bool:
        """Is the block of the coordinates `which` to be cut?"""

    def pick(self, stream: Stream, which: slice, mean_p: Array, var_p: Array, expected: float) -> int:
        """The index K of the block's candidate; expected: its KL in bits."""

    def grey(self, freq: Array) -> Array:
        """The next N of x_0's grey levels, (N,), by their frequencies (N, levels)."""

    def finish(self, grey: Array) -> None:
        """x_0 is complete: its grey levels, (n·D,)."""


class _Line:
    """The chain x_T, …, x_1, x_0 that both ends go through, each step from what went before it."""

    def __init__(self, book: Codebook, seed: int, end: End) -> None:
        self.book, self.seed, self.end = book, seed, end

    def steps(self, n: int) -> Iterator[tuple[int, Array, Array]]:
        """(t, x_t, x̂_0) for t = T … 1 and (0, x_0, x_0); all (n, *shape) float64."""
        book = self.book
        x_t = self._gaussians(book.schedule.T, None, np.zeros((n, *book.shape)), np.ones(()))
        for t in range(book.schedule.T, 0, -1):
            p = book.step(x_t, t)
            yield t, x_t, p.x_0_hat
            if t > 1:
                x_t = self._gaussians(t - 1, x_t, p.mean, p.var)
        grey = np.concatenate([self.end.grey(freq) for freq in book.decoder(p)])
        self.end.finish(grey)
        x_0 = book.scaled(grey).reshape(x_t.shape)
        yield 0, x_0, x_0

    def _gaussians(self, t: int, x: Array | None, mean: Array, var: Array) -> Array:
        """x_t, by the mean (n, *shape) and variance of p_θ(x_t | x_{t+1} = x)."""
        self.end.begin(t, x)
        flat, var = mean.reshape(-1), np.broadcast_to(var, mean.shape).reshape(-1)
        per_coordinate = float(self.book.kl[t]) / self.book.D
        parts = [self._block(t, which, flat, var, per_coordinate) for which in self.book.blocks(len(mean), t)]
        return np.concatenate(parts).reshape(mean.shape)

    def _block(self, t: int, which: slice, mean: Array, var: Array, per_coordinate: float) -> Array:
        d = which.stop - which.start
        mean_p, var_p = mean[which], var[which]
        if d > 1 and self.end.halve(which, mean_p, var_p):
            middle = which.start + d // 2
            halves = slice(which.start, middle), slice(middle, which.stop)
            return np.concatenate([self._block(t, half, mean, var, per_coordinate) for half in halves])
        stream = Stream(self.seed, t, which.start, d)
        K = self.end.pick(stream, which, mean_p, var_p, d * per_coordinate)
        z = stream.candidates(K - 1, 1)[0]
        return mean_p + np.sqrt(var_p) * z


def _check_sum(grey: Array) -> int:
    """16 bits of x_0: a damaged message, or another seed or codebook, is taken for a right one once in 65,536 times."""
    return crc_hqx(grey.astype("<u2").tobytes(), 0xFFFF)


# --- Algorithm 3 -----------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A block as it was sent: step, coordinates, KL(q ‖ p_θ) and code length in bits, K, candidates looked at."""

    t: int
    d: int
    kl: float
    bits: float
    K: int
    tried: int


class Transmission(NamedTuple):
    """A message and what it is made of.

    blocks: of x_T … x_1.  x_0_bits: -log₂ p_θ(x_0 | x_1) of each copy, L_0, (n,).  grey_bits: what its code took, in
    all; it differs by the rounding of probabilities to 16 bits.
    steps: (t, x_t, x̂_0) as the receiver will see them.
    """

    message: bytes
    blocks: list[Sent]
    x_0_bits: Array
    grey_bits: float
    steps: list[tuple[int, Array, Array]]


class _Sender:
    def __init__(self, book: Codebook, x_0: Array) -> None:
        self.book, self.x_0 = book, x_0
        self.writer, self.blocks = code.Writer(), list[Sent]()
        self.grey_levels = np.rint((x_0.reshape(-1) + 1) / 2 * (book.levels - 1)).astype(np.int64)
        self.grey_sent, self.grey_bits = 0, 0.0
        code.put_count(self.writer, len(x_0))

    def begin(self, t: int, x: Array | None) -> None:
        schedule = self.book.schedule
        mean, var = q_mean_var(schedule, self.x_0, t) if x is None else q_posterior(schedule, self.x_0, x, t + 1)
        self.mean_q, self.var_q = mean.reshape(-1), np.broadcast_to(var, mean.shape).reshape(-1)

    def halve(self, which: slice, mean_p: Array, var_p: Array) -> bool:
        halve = bool(self._block(which, mean_p, var_p).log_ratio_max() > MOST_CANDIDATES * np.log(2))
        code.put_flag(self.writer, halve, _HALVE)
        return halve

    def pick(self, stream: Stream, which: slice, mean_p: Array, var_p: Array, expected: float) -> int:
        block = self._block(which, mean_p, var_p)
        if (log_2 := block.log_ratio_max() / np.log(2)) > MOST_CANDIDATES:
            raise ValueError(
                f"x_0: one coordinate of x_{stream.t} would take 2^{log_2:.0f} candidates, over 2^{MOST_CANDIDATES}: "
                "the model takes this x_0 for all but impossible"
            )
        K, tried = choose_from(block, stream)
        code.put_index(self.writer, K, expected)
        self.blocks.append(Sent(stream.t, stream.d, block.kl(), code.index_bits(K, expected), K, tried))
        return K

    def _block(self, which: slice, mean_p: Array, var_p: Array) -> GaussianBlock:
        return GaussianBlock(self.mean_q[which], self.var_q[which], mean_p, var_p)

    def grey(self, freq: Array) -> Array:
        grey = self.grey_levels[self.grey_sent : self.grey_sent + len(freq)]
        code.put_symbols(self.writer, grey, freq)
        self.grey_sent += len(grey)
        self.grey_bits += float((code.PRECISION - np.log2(freq[np.arange(len(grey)), grey])).sum())
        return grey

    def finish(self, grey: Array) -> None:
        code.put_uniform(self.writer, _check_sum(grey), CHECK)


def transmit(book: Codebook, x_0: Array, seed: int) -> Transmission:
    """Algorithm 3 with a record of what it did; arguments and errors as `send`."""
    x_0 = _checked_x_0(book, x_0)
    check_int("seed", seed, 0, 2**64 - 1)
    sender = _Sender(book, x_0)
    steps = list(_Line(book, seed, sender).steps(len(x_0)))
    x_1 = steps[-2][1]
    x_0_bits = step_kl(book, x_0, x_1, 1)
    return Transmission(sender.writer.message(), sender.blocks, x_0_bits, sender.grey_bits, steps)


def send(book: Codebook, x_0: Array, seed: int) -> bytes:
    """Algorithm 3: n copies as one message, from which `receive` has them back exactly.

    x_0: (n, *shape) float on the grid of `levels` grey levels in [-1, 1].  seed: in 0 … 2^64 - 1, the receiver's too;
    messages under one seed share their candidates: each is right, but their x_t are not independent.
    Raises ValueError for x_0 that is off the grid, or that the model takes for all but impossible.
    """
    return transmit(book, x_0, seed).message


def _checked_x_0(book: Codebook, x_0: Array) -> Array:
    """x_0 as float64, right on its grid."""
    check_float(x_0=x_0)
    if x_0.ndim == 0 or x_0.shape[1:] != book.shape or not 1 <= len(x_0) <= LARGEST_STREAM // book.D:
        shape = ", ".join(map(str, ("n", *book.shape)))
        raise ValueError(f"x_0: wanted shape ({shape}), of 1 to {LARGEST_STREAM} elements in all, got {x_0.shape}")
    check_finite(x_0=x_0)
    grey = np.rint((np.asarray(x_0, dtype=np.float64) + 1) / 2 * (book.levels - 1))
    grid: Array = book.scaled(grey)
    if np.abs(x_0 - grid).max() > 1e-6 or grey.min() < 0 or grey.max() > book.levels - 1:
        raise ValueError(f"x_0: wanted values on the grid of {book.levels} levels in [-1, 1], got some off it")
    return grid


# --- Algorithm 4 -----------------------------------------------------------------------------------------------------


class _Receiver:
    def __init__(self, reader: code.Reader) -> None:
        self.reader = reader

    def begin(self, t: int, x: Array | None) -> None:
        """Nothing to do: the receiver knows no q."""

    def halve(self, which: slice, mean_p: Array, var_p: Array) -> bool:
        return code.take_flag(self.reader, _HALVE)

    def pick(self, stream: Stream, which: slice, mean_p: Array, var_p: Array, expected: float) -> int:
        return code.take_index(self.reader, expected)

    def grey(self, freq: Array) -> Array:
        return code.take_symbols(self.reader, freq)

    def finish(self, grey: Array) -> None:
        if code.take_uniform(self.reader, CHECK) != _check_sum(grey):
            raise code.foreign()
        self.reader.finish()


def receive(book: Codebook, message: bytes, seed: int) -> Iterator[tuple[int, Array, Array]]:
    """Algorithm 4: yields (t, x_t, x̂_0) for t = T … 1 as they arrive, and at last (0, x_0, x_0), all (n, *shape).

    Raises ValueError as soon as a message cannot be right, and before x_0 at the latest: what was shown until then of a
    damaged message, or one for another codebook or seed, meant nothing.
    """
    check_int("seed", seed, 0, 2**64 - 1)
    reader = code.Reader(message)
    n = code.take_count(reader)
    if n > LARGEST_STREAM // book.D:
        raise ValueError(f"message: wanted one of at most {LARGEST_STREAM // book.D} copies, got {n}")
    return _Line(book, seed, _Receiver(reader)).steps(n)

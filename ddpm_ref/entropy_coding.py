"""Symbols in, bytes out: a range coder, and the codes that coding.py needs.

Arithmetic coding in whole numbers (Martin 1979): a message is a number in [low, low + range), at first [0, 2^56). A
symbol whose share of 2^bits is [start, start + freq) keeps that part of the interval; the bytes sent are the shortest
number in what is left. `low` is one of Python's unbounded integers, so carries see to themselves, and the reader does
the same divisions as the writer: decoding is right by construction. Beside Σ log₂ 1/P a message costs `CONTAINER` bits
at most; what range's last bits lose, under 2^-16 bits a symbol, is not worth counting.
"""

import numpy as np

from ddpm_ref.checks import Array

PRECISION = 16  # probabilities are whole multiples of 2^-16
LARGEST_EXPONENT = 31  # indices and counts are under 2^32
CONTAINER = 16  # bits: an interval of any size holds a number of whole bytes this much longer than log₂ 1/size

MOST_SYMBOLS = 1 << 12  # of one table: with more, whole multiples of 2^-16 would be too coarse

_BIT = 1 << PRECISION
_WIDTH = 56  # bits of the range at first; it is kept at 48 at least, 17 more than any symbol's
_BYTES_AHEAD = 16  # that a reader may look beyond the end: its window, and zero bytes that were not sent


class Writer:
    """Takes symbols; `message()` makes them the bytes that `Reader` gives back in the same order."""

    def __init__(self) -> None:
        self._low, self._range, self._shift = 0, 1 << _WIDTH, 0

    def put(self, start: int, freq: int, bits: int = PRECISION) -> None:
        """A symbol that owns [start, start + freq) of 0 … 2^bits - 1."""
        assert freq > 0 and 0 <= start <= (1 << bits) - freq
        unit = self._range >> bits
        self._low += unit * start
        self._range = unit * freq
        while self._range < 1 << _WIDTH - 8:
            self._low, self._range, self._shift = self._low << 8, self._range << 8, self._shift + 8

    def message(self) -> bytes:
        """The shortest bytes that, with zeros behind them, are a number in the interval."""
        for length in range(max(0, self._shift // 8 - 8), self._shift // 8 + 3):
            rest = _WIDTH + self._shift - 8 * length
            number = -(-self._low >> rest) if rest > 0 else self._low
            if number << max(rest, 0) < self._low + self._range:
                return number.to_bytes(length, "big")
        raise AssertionError("an interval of 2^48 holds a multiple of 2^48")


class Reader:
    """Takes a message of `Writer` apart again; raises ValueError where it can only be another."""

    def __init__(self, message: bytes) -> None:
        if not isinstance(message, bytes | bytearray | memoryview):
            raise ValueError(f"message: wanted bytes, got {type(message).__name__}")
        self._bytes, self._place, self._range = bytes(message), _WIDTH // 8, 1 << _WIDTH
        self._code = int.from_bytes(self._bytes[: self._place].ljust(self._place, b"\0"), "big")  # relative to low
        self._again = Writer()

    def peek(self, bits: int = PRECISION) -> int:
        """The slot in 0 … 2^bits - 1 that says which symbol comes next."""
        slot = self._code // (self._range >> bits)
        if slot >> bits:  # the remainder of a division, where no writer goes
            raise foreign()
        return slot

    def take(self, start: int, freq: int, bits: int = PRECISION) -> None:
        """Go past the symbol that owns [start, start + freq), in which `peek` must lie."""
        self._again.put(start, freq, bits)
        unit = self._range >> bits
        self._code -= unit * start
        self._range = unit * freq
        assert 0 <= self._code < self._range
        while self._range < 1 << _WIDTH - 8:
            byte = self._bytes[self._place] if self._place < len(self._bytes) else 0
            self._code, self._range, self._place = self._code << 8 | byte, self._range << 8, self._place + 1
        if self._place > len(self._bytes) + _BYTES_AHEAD:
            raise ValueError(f"message: wanted all of it, got {len(self._bytes)} bytes, at whose end more must follow")

    def finish(self) -> None:
        """The message must be the one that a writer makes of what was taken, to the last bit."""
        if self._again.message() != self._bytes:
            raise foreign()


def foreign() -> ValueError:
    """What is to be said of a message that no sender with this codebook and seed has sent."""
    return ValueError("message: wanted one as it was sent, with this codebook and this seed, got one that was not")


# --- whole numbers and flags -----------------------------------------------------------------------------------------


def put_uniform(writer: Writer, value: int, bits: int) -> None:
    """A number in 0 … 2^bits - 1, each as likely."""
    writer.put(value, 1, bits)


def take_uniform(reader: Reader, bits: int) -> int:
    """The inverse of `put_uniform`."""
    value = reader.peek(bits)
    reader.take(value, 1, bits)
    return value


def put_flag(writer: Writer, flag: bool, yes: int) -> None:
    """A yes or no; yes has probability yes / 2^16."""
    writer.put(0, _BIT - yes) if not flag else writer.put(_BIT - yes, yes)


def take_flag(reader: Reader, yes: int) -> bool:
    """The inverse of `put_flag`."""
    flag = reader.peek() >= _BIT - yes
    reader.take(*((_BIT - yes, yes) if flag else (0, _BIT - yes)))
    return flag


def put_count(writer: Writer, count: int) -> None:
    """A count ≥ 1 of which little is known: how many digits follow its leading one, in unary, and these (Elias γ)."""
    put_index(writer, count, None)


def take_count(reader: Reader) -> int:
    """The inverse of `put_count`."""
    return take_index(reader, None)


# --- the index of minimal random coding ------------------------------------------------------------------------------


def mean_log_index(kl: float) -> float:
    """M(D), a bound on E[log₂ K] for a block of D = kl bits (`minimal_random_coding`)."""
    v = min(1.0, (0.5 * kl * np.log(2)) ** 0.5)
    return float(kl + min(1 / np.e, v) / np.log(2) + np.log2(1 + v))


def _go_on(kl: float | None) -> int:
    """ρ = M / (1 + M) in units of 2^-16: the probability that K has one binary digit more; ½ if nothing is known."""
    M = 1.0 if kl is None else mean_log_index(kl)
    return min(max(round(_BIT * M / (1 + M)), 1), _BIT - 1)


def index_bits(index: int, kl: float) -> float:
    """log₂ 1/P(K), the length that `put_index` adds to a message."""
    exponent, go_on = index.bit_length() - 1, _go_on(kl)
    return float(exponent + PRECISION * (exponent + 1) - exponent * np.log2(go_on) - np.log2(_BIT - go_on))


def put_index(writer: Writer, index: int, kl: float | None) -> None:
    """K ≥ 1 by Zipf's law in octaves: P(K) = (1 - ρ) ρ^e 2^-e, e = ⌊log₂ K⌋; kl: of the block, as both sides expect.

    A power law in K, constant from one power of 2 to the next, so that whole numbers suffice: e times "go on", once
    "stop", then the e digits of K after its leading one.
    """
    exponent, go_on = index.bit_length() - 1, _go_on(kl)
    assert 0 <= exponent <= LARGEST_EXPONENT
    for _ in range(exponent):
        put_flag(writer, True, go_on)
    put_flag(writer, False, go_on)
    put_uniform(writer, index - (1 << exponent), exponent)


def take_index(reader: Reader, kl: float | None) -> int:
    """The inverse of `put_index`."""
    exponent, go_on = 0, _go_on(kl)
    while take_flag(reader, go_on):
        exponent += 1
        if exponent > LARGEST_EXPONENT:
            raise foreign()
    return (1 << exponent) + take_uniform(reader, exponent)


# --- tables of probabilities -----------------------------------------------------------------------------------------


def frequencies(p: Array) -> Array:
    """Rows of probabilities (N, K) as whole numbers ≥ 1 of sum 2^16, (N, K) int64.

    ⌊(2^16 - K) p⌋ + 1, and what is left over to the likeliest; so no symbol costs over 16 bits, and on average the
    rounding costs about K / 2^16 bits.  Raises ValueError for K > 2^12, where it would begin to cost more.
    """
    K = p.shape[1]
    if not 2 <= K <= MOST_SYMBOLS:
        raise ValueError(f"p: wanted 2..{MOST_SYMBOLS} symbols, got {K}")
    freq = np.floor((_BIT - K) * p).astype(np.int64) + 1
    freq[np.arange(len(p)), p.argmax(axis=1)] += _BIT - freq.sum(axis=1)
    return freq


def put_symbols(writer: Writer, symbols: Array, freq: Array) -> None:
    """One symbol of each row of frequencies.  symbols: (N,) in 0 … K-1."""
    ends = freq.cumsum(axis=1)
    for k, row, end in zip(symbols.tolist(), freq, ends, strict=True):
        writer.put(int(end[k] - row[k]), int(row[k]))


def take_symbols(reader: Reader, freq: Array) -> Array:
    """The inverse of `put_symbols`: (N,) int64."""
    ends = freq.cumsum(axis=1)
    symbols = np.empty(len(freq), np.int64)
    for i, (row, end) in enumerate(zip(freq, ends, strict=True)):
        k = int(np.searchsorted(end, reader.peek(), side="right"))
        reader.take(int(end[k] - row[k]), int(row[k]))
        symbols[i] = k
    return symbols

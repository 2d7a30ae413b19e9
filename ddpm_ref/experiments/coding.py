"""Algorithms 3 and 4 on toys: how long are the messages, and what does the receiver see after every step? (§4.3)

Two distributions on a grid in the plane, a Gaussian and a mixture, whose best ε-model is known, so that every KL of
Eq. 5 is too; the schedule makes them equal (`coding_toys.even_schedule`), and L_0 is all but 0. n copies are coded
jointly, for several n; every message is received again and must give x_0 back. Beside the mean length stand what theory
says it cannot come under, Σ KL + L_0 (the bound L in bits, itself over H(x_0)), and what it stays under,
Σ_blocks [KL + log₂(KL + 1) + 5] + L_0. What the numbers of candidates take beyond their KL falls per copy as n grows,
until a step is so long that it must be cut into blocks: with T = 6, five copies of a step are one block of about 9
bits, and more copies are more blocks.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_int
from ddpm_ref.codebook import Codebook
from ddpm_ref.coding import Transmission, receive, transmit
from ddpm_ref.experiments.coding_toys import TOYS, exact_costs, toy
from ddpm_ref.files import run as runs
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "coding.json"
COPIES = (1, 2, 3, 5)
FEWEST_COPIES, FEWEST_MESSAGES = 256, 32  # for every n
BEYOND_ERROR = 2  # standard errors by which an excess must fall to be said to fall
SHOWN = 24  # copies in the picture

# --- the measurement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Messages of n copies; all bits are for each copy unless of a block, means over the messages.

    bits: the messages' real length, with its standard error: x_t_bits, the index codes of x_T … x_1, x_0_sent, the code
    of the grey levels, and overhead, what is left (count, flags, check sum, whole bytes).
    kl, x_0_bits: Σ KL and L_0 along the paths sent.  bound: Σ_blocks [KL + log₂(KL + 1) + 5] + x_0_bits.
    excess: x_t_bits - kl, with its standard error.
    kl_by_step: KL of a block of x_t, t = T … 1.  kl_per_block: their mean for t < T, x_T telling next to nothing.
    blocks, candidates: of one message.
    """

    n: int
    messages: int
    bits: float
    bits_error: float
    x_t_bits: float
    x_0_sent: float
    overhead: float
    kl: float
    x_0_bits: float
    bound: float
    excess: float
    excess_error: float
    kl_per_block: float
    kl_by_step: list[float]
    blocks: float
    candidates: float


@dataclass(frozen=True)
class ToyResult:
    """One toy. L: exact, bits of one copy, row s is L_s.  rmse, rmse_exact: of x̂_0 after x_t came, t = T … 1, then x_0.

    lengths: for every n, in rising order.
    x_0, shown: some copies of the last n, and x̂_0 of each after every step, for the picture.
    """

    name: str
    levels: int
    T: int
    entropy: float
    L: list[float]
    lengths: list[Lengths]
    rmse: list[float]
    rmse_exact: list[float]
    x_0: list[list[float]]
    shown: list[list[list[float]]]

    @property
    def under_bound(self) -> bool:
        """The mean length is at most the bound, for every n."""
        return all(row.bits <= row.bound for row in self.lengths)

    @property
    def excess_falls(self) -> bool:
        """From every n to the next the excess per copy falls by more than two standard errors of the difference."""
        steps = list(pairwise(self.lengths))
        falls = (a.excess - b.excess > BEYOND_ERROR * np.hypot(a.excess_error, b.excess_error) for a, b in steps)
        return bool(steps) and all(falls)

    def as_dict(self) -> dict[str, Any]:
        """The fields, and both verdicts."""
        return asdict(self) | {"under_bound": self.under_bound, "excess_falls": self.excess_falls}

    def table(self) -> str:
        """For the terminal."""
        lines = [
            f"{self.name}: {self.levels} x {self.levels} grid, T = {self.T}; bits of one copy: "
            f"H(x_0) = {self.entropy:.3f}, L = {sum(self.L):.3f}: L_T = {self.L[-1]:.4f}, "
            f"L_{self.T - 1} … L_1 = {min(self.L[1:-1]):.3f} to {max(self.L[1:-1]):.3f}, L_0 = {self.L[0]:.3f}",
            f"{'':>22}{'a block, bits':^20}{'bits of one copy':^77}",
            f"{'n':>4}{'messages':>10}{'blocks':>8}{'KL':>6}{'of steps':>14}{'sent':>16}{'bound':>8}{'Σ KL':>8}"
            f"{'x_t sent':>10}{'excess':>15}{'L_0':>7}{'x_0 sent':>10}{'overhead':>10}",
        ]
        for row in self.lengths:
            steps = f"{min(row.kl_by_step[1:]):.2f} to {max(row.kl_by_step[1:]):.2f}"
            bits, excess = f"{row.bits:.2f} ± {row.bits_error:.2f}", f"{row.excess:.2f} ± {row.excess_error:.2f}"
            lines.append(
                f"{row.n:4d}{row.messages:10d}{row.blocks:8.2f}{row.kl_per_block:6.2f}{steps:>14}{bits:>16}{row.bound:8.2f}{row.kl:8.2f}"
                f"{row.x_t_bits:10.2f}{excess:>15}{row.x_0_bits:7.3f}{row.x_0_sent:10.3f}{row.overhead:10.2f}"
            )
        under = "at most" if self.under_bound else "NOT at most"
        falls = "falls" if self.excess_falls else "does NOT fall"
        shown = "  ".join(f"{r:.3f}" for r in self.rmse)
        lines += [
            f"The length is {under} the bound for every n; the excess {falls} beyond its error as n grows.",
            f"RMSE of x̂_0 after x_{self.T} … x_1, x_0: {shown}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class CodingResult:
    """What `measure` found for every toy."""

    toys: list[ToyResult]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {"toys": [toy.as_dict() for toy in self.toys]}

    def table(self) -> str:
        """For the terminal."""
        return "\n\n".join(toy.table() for toy in self.toys)


def messages_of(n: int) -> int:
    """How many messages of n copies are sent: at least 32, and at least 256 copies."""
    return max(FEWEST_MESSAGES, -(-FEWEST_COPIES // n))


def measure(
    *,
    toys: Sequence[str] = tuple(TOYS),
    T: int = 6,
    levels: int = 17,
    copies: Sequence[int] = COPIES,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> CodingResult:
    """Send and receive for every toy and every n; progress(1) after each message.

    T: steps of the even schedule.  seed: of x_0 and, message by message, the shared one.
    Raises ValueError for bad arguments, and RuntimeError if a receiver did not get back what was sent.
    """
    check(T=T, levels=levels, copies=copies, seed=seed)
    if unknown := [name for name in toys if name not in TOYS]:
        raise ValueError(f"toys: wanted some of {', '.join(TOYS)}, got {', '.join(unknown)}")
    return CodingResult([_measure_toy(name, T, levels, copies, seed, progress or (lambda _: None)) for name in toys])


def check(*, T: int, levels: int, copies: Sequence[int], seed: int) -> None:
    """ValueError for what `measure` cannot take."""
    check_int("T", T, 2, 20)
    check_int("levels", levels, 2, 64)
    for n in copies:
        check_int("copies", n, 1, 2**16)
    check_int("seed", seed, 0, 2**32 - 1)


def _measure_toy(
    name: str, T: int, levels: int, copies: Sequence[int], seed: int, progress: Callable[[int], object]
) -> ToyResult:
    oracle = toy(name, T, levels)
    costs = exact_costs(oracle)
    book = Codebook(oracle.schedule, oracle, oracle.shape, levels, costs.distortion)
    rng = np.random.default_rng([seed, list(TOYS).index(name)])
    rows, squares, count = [], np.zeros(T + 1), 0
    for n in sorted(set(copies)):
        sent, drawn, shown = list[Transmission](), list[Array](), list[Array]()
        for _ in range(messages_of(n)):
            x_0, shared = oracle.draw(n, rng), int(rng.integers(2**63))
            sent.append(transmit(book, x_0, shared))
            seen = np.stack([x_0_hat for _, _, x_0_hat in receive(book, sent[-1].message, shared)])
            if not np.array_equal(seen[-1], x_0):
                raise RuntimeError("the receiver did not get back the x_0 that was sent")
            squares, count = squares + ((seen - x_0) ** 2).sum(axis=(1, 2)), count + n
            if len(shown) * n < SHOWN:
                drawn.append(x_0)
                shown.append(seen)
            progress(1)
        rows.append(_lengths(n, T, sent))
    return ToyResult(
        name=name,
        levels=levels,
        T=T,
        entropy=oracle.entropy(),
        L=costs.L.tolist(),
        lengths=rows,
        rmse=np.sqrt(squares / (count * oracle.D)).tolist(),
        rmse_exact=np.sqrt(costs.distortion[T::-1] / oracle.D).tolist(),
        x_0=_nested(np.concatenate(drawn)),
        shown=_nested(np.concatenate(shown, axis=1)),
    )


def _nested(x: Array) -> Any:
    """Of the last axis but one, copies, as many as a picture can hold; as lists."""
    return x[..., :SHOWN, :].round(4).tolist()


def _lengths(n: int, T: int, sent: Sequence[Transmission]) -> Lengths:
    bits = np.array([8 * len(one.message) for one in sent]) / n
    x_t_bits = np.array([sum(b.bits for b in one.blocks) for one in sent]) / n
    x_0_sent = np.array([one.grey_bits for one in sent]) / n
    kl = np.array([sum(b.kl for b in one.blocks) for one in sent]) / n
    x_0_bits = np.array([one.x_0_bits.sum() for one in sent]) / n
    over = np.array([sum(np.log2(b.kl + 1) + 5 for b in one.blocks) for one in sent]) / n
    by_step = [float(np.mean([b.kl for one in sent for b in one.blocks if b.t == t])) for t in range(T, 0, -1)]
    return Lengths(
        n=n,
        messages=len(sent),
        bits=float(bits.mean()),
        bits_error=_error(bits),
        x_t_bits=float(x_t_bits.mean()),
        x_0_sent=float(x_0_sent.mean()),
        overhead=float((bits - x_t_bits - x_0_sent).mean()),
        kl=float(kl.mean()),
        x_0_bits=float(x_0_bits.mean()),
        bound=float((kl + over + x_0_bits).mean()),
        excess=float((x_t_bits - kl).mean()),
        excess_error=_error(x_t_bits - kl),
        kl_per_block=float(np.mean(by_step[1:])),
        kl_by_step=by_step,
        blocks=float(np.mean([len(one.blocks) for one in sent])),
        candidates=float(np.mean([sum(b.tried for b in one.blocks) for one in sent])),
    )


def _error(each: Array) -> float:
    """The standard error of a mean."""
    return float(each.std(ddof=1) / len(each) ** 0.5)


# --- files and the command -------------------------------------------------------------------------------------------


def save(folder: str | Path, result: CodingResult, facts: dict[str, Any] | None = None) -> list[Path]:
    """coding.json and coding.png in the folder; their paths."""
    from ddpm_ref.experiments.coding_picture import save_coding

    path = Path(folder) / RESULT
    runs.write_json(path, {"facts": facts or {}, "result": result.as_dict()})
    return [path, save_coding(Path(folder) / "coding.png", result)]


MORE = (
    "\nNeeds no checkpoint. Sender and receiver share a seed and the best ε-model of a distribution on a grid in the\n"
    "plane. Prints the mean message beside the KL and its bound, for n copies coded jointly, and the error of what\n"
    "the receiver can show after every step; writes coding.json and coding.png."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ddpm-ref coding`."""
    parser.add_argument("--seed", type=int, default=0, help="of the data and of what sender and receiver share")
    parser.add_argument("--T", type=int, default=6, help="steps of a schedule that makes their KLs equal, 2 to 20")
    parser.add_argument("--levels", type=int, default=17, metavar="K", help="grid points along each axis, 2 to 64")
    parser.add_argument("--copies", type=int, nargs="+", default=COPIES, metavar="N", help="coded jointly")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where to write (runs/coding, or the first of -2, -3 … that is new)"
    )


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref coding`"""
    need("tqdm", "matplotlib.figure")
    check(T=args.T, levels=args.levels, copies=args.copies, seed=args.seed)
    folder = out_folder(args, "runs/coding")
    with bar(len(TOYS) * sum(map(messages_of, set(args.copies))), "sending", "message") as progress:
        result = measure(T=args.T, levels=args.levels, copies=args.copies, seed=args.seed, progress=progress.update)
    say(result.table())
    wrote(save(folder, result, runs.describe(seed=args.seed)))
    return 0

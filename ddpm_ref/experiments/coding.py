"""Algorithms 3 and 4 on toys: how long are the messages, and what does the receiver see after every step? (§4.3)

Two distributions on a grid in the plane, a Gaussian and a mixture, whose best ε-model is known, so that every KL of
Eq. 5 is too. n copies are coded jointly, for several n; every message is received again and must give x_0 back. Beside
the mean length stand what theory says it cannot come under, Σ KL + L_0 (the bound L in bits, itself over H(x_0)), and
what it stays under, Σ_blocks [KL + log₂(KL + 1) + 5] + L_0. The excess over the former falls as n grows, until steps
are so long that they must be cut into blocks.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_int
from ddpm_ref.codebook import Codebook
from ddpm_ref.coding import Transmission, receive, transmit
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.files import run as runs
from ddpm_ref.gaussian import Gaussian
from ddpm_ref.oracles import EmpiricalOracle
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.terminal import bar, need, new_folder, say

RESULT = "coding.json"
COPIES = (1, 2, 4, 8, 16, 32, 64)
FEWEST_COPIES, FEWEST_MESSAGES = 128, 8  # for every n
SHOWN = 24  # copies in the picture

_BLOBS = ([-0.5, -0.4], [0.5, -0.3], [0.0, 0.5])
TOYS: dict[str, list[tuple[float, Gaussian]]] = {
    "gaussian": [(1.0, Gaussian([0.0, 0.0], [[0.16, 0.1], [0.1, 0.12]]))],
    "mixture": [(w, Gaussian(mean, 0.015)) for w, mean in zip((0.3, 0.3, 0.4), _BLOBS, strict=True)],
}
"""Distributions in the plane; a toy's x_0 is a grid point, with probability in proportion to the density there."""


class GridOracle(EmpiricalOracle):
    """x_0 is one of the points of a grid, with given probabilities; otherwise as `EmpiricalOracle`."""

    def __init__(self, parts: Sequence[tuple[float, Gaussian]], levels: int, schedule: Schedule) -> None:
        D = parts[0][1].D
        self.levels = levels
        self.grey = np.stack(np.meshgrid(*[np.arange(levels)] * D, indexing="ij"), axis=-1).reshape(-1, D)
        super().__init__(self.grey * (2 / (levels - 1)) - 1, schedule)
        density = sum(w * np.exp(part.log_density(self.points)) for w, part in parts)
        self.weights = density / np.sum(density)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws of x_0, (n, D) float64."""
        return self.points[rng.choice(len(self.points), size=n, p=self.weights)]

    def entropy(self) -> float:
        """H(x_0) in bits."""
        w = self.weights[self.weights > 0]
        return float(-(w * np.log2(w)).sum())


@dataclass(frozen=True)
class Costs:
    """A toy's expectations, exact, of one copy.

    L: (T+1,) bits; row s is L_s of Eq. 5.  distortion: (T+2,), E‖x_0 - x̂_0(x_t)‖², as `Codebook` wants it.
    """

    L: Table
    distortion: Table


def exact_costs(oracle: GridOracle) -> Costs:
    """What every step costs and shows, under the oracle with σ_t² = β_t, by a trapezoidal sum over x_t.

    E‖x_0 - x̂_0*‖² = E‖x_0‖² - E‖x̂_0*(x_t)‖², and KLs are affine in it (`Codebook`).
    L_0 = E_{x_1} Σ_k p(k | x_1) · -log₂ p_θ(point k | x_1).
    """
    T, square = oracle.schedule.T, float(oracle.weights @ (oracle.points**2).sum(axis=1))
    distortion = np.r_[0.0, np.empty(T), square]
    for t in range(1, T + 1):
        x_t, weight = _nodes(oracle, t)
        distortion[t] = square - weight @ (oracle.x_0(x_t, t) ** 2).sum(axis=1)
    book = Codebook(oracle.schedule, oracle, oracle.shape, oracle.levels, distortion)
    x_1, weight = _nodes(oracle, 1)
    p = book.step(x_1, 1)
    grid = np.broadcast_to(book.scaled(np.arange(oracle.levels)), (*x_1.shape, oracle.levels))
    log_p, _ = discretized_gaussian_log_likelihood(grid, p.mean[..., None], np.asarray(p.var), oracle.levels)
    of_points = sum(log_p[:, d, oracle.grey[:, d]] for d in range(oracle.D))
    L_0 = -weight @ (oracle.responsibilities(x_1, 1) * of_points).sum(axis=1) / np.log(2)
    return Costs(np.r_[L_0, book.kl[1:]], distortion)


def _nodes(oracle: GridOracle, t: int) -> tuple[Array, Array]:
    """Nodes x_t (M, D), a quarter of q(x_t | x_0)'s width apart, and their probabilities under q(x_t), (M,)."""
    width = float(np.sqrt(1 - oracle.schedule.alpha_bar[t]))
    half = int(np.ceil(4 * (1 / width + 7)))
    axis = width / 4 * np.arange(-half, half + 1)
    x_t = np.stack(np.meshgrid(*[axis] * oracle.D), axis=-1).reshape(-1, oracle.D)
    return x_t, np.exp(oracle.D * oracle.log_q(x_t, t)) * (width / 4) ** oracle.D


# --- the measurement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Messages of n copies; all but counts are bits for each copy, means over the messages.

    bits: the messages' real length, with its standard error.  kl, x_0_bits: Σ KL and L_0 along the paths sent.
    bound: Σ_blocks [KL + log₂(KL + 1) + 5] + x_0_bits.  excess: bits - kl - x_0_bits.
    blocks, candidates: of one message.
    """

    n: int
    messages: int
    bits: float
    bits_error: float
    kl: float
    x_0_bits: float
    bound: float
    excess: float
    blocks: float
    candidates: float


@dataclass(frozen=True)
class ToyResult:
    """One toy. L: exact, bits of one copy, row s is L_s.  rmse, rmse_exact: of x̂_0 after x_t came, t = T … 1, then x_0.

    x_0, shown: some copies, and x̂_0 of each after every step, for the picture.
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


@dataclass(frozen=True)
class CodingResult:
    """What `measure` found for every toy."""

    toys: list[ToyResult]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """For the terminal."""
        lines = []
        for toy in self.toys:
            total = sum(toy.L)
            lines += [
                f"{toy.name}: {toy.levels} x {toy.levels} grid, T = {toy.T}; bits of one copy: "
                f"H(x_0) = {toy.entropy:.3f}, L = {total:.3f}, of which L_0 = {toy.L[0]:.3f}",
                f"{'n':>5}{'messages':>10}{'bits/copy':>16}{'KL + L_0':>10}{'bound':>8}{'excess':>8}{'blocks':>8}",
            ]
            for row in toy.lengths:
                bits = f"{row.bits:.2f} ± {row.bits_error:.2f}"
                lines.append(
                    f"{row.n:5d}{row.messages:10d}{bits:>16}{row.kl + row.x_0_bits:10.2f}{row.bound:8.2f}"
                    f"{row.excess:8.2f}{row.blocks:8.1f}"
                )
            shown = "  ".join(f"{r:.3f}" for r in toy.rmse)
            lines += [f"RMSE of x̂_0 after x_{toy.T} … x_1, x_0: {shown}", ""]
        return "\n".join(lines).rstrip()


def messages_of(n: int) -> int:
    """How many messages of n copies are sent: at least 8, and at least 128 copies."""
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

    T: steps of the cosine schedule, whose KLs are the most even.  seed: of x_0 and, message by message, the shared one.
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
    schedule = Schedule.cosine(T)
    oracle = GridOracle(TOYS[name], levels, schedule)
    costs = exact_costs(oracle)
    book = Codebook(schedule, oracle, oracle.shape, levels, costs.distortion)
    rng = np.random.default_rng([seed, list(TOYS).index(name)])
    rows, squares, count, shown = [], np.zeros(T + 1), 0, (np.empty(0), np.empty(0))
    for n in copies:
        sent = []
        for _ in range(messages_of(n)):
            x_0, shared = oracle.draw(n, rng), int(rng.integers(2**63))
            sent.append(transmit(book, x_0, shared))
            seen = np.stack([x_0_hat for _, _, x_0_hat in receive(book, sent[-1].message, shared)])
            if not np.array_equal(seen[-1], x_0):
                raise RuntimeError("the receiver did not get back the x_0 that was sent")
            squares, count = squares + ((seen - x_0) ** 2).sum(axis=(1, 2)), count + n
            shown = (x_0, seen)
            progress(1)
        rows.append(_lengths(n, sent))
    return ToyResult(
        name=name,
        levels=levels,
        T=T,
        entropy=oracle.entropy(),
        L=costs.L.tolist(),
        lengths=rows,
        rmse=np.sqrt(squares / (count * oracle.D)).tolist(),
        rmse_exact=np.sqrt(costs.distortion[T::-1] / oracle.D).tolist(),
        x_0=_nested(shown[0]),
        shown=_nested(shown[1]),
    )


def _nested(x: Array) -> Any:
    """Of the last axis but one, copies, as many as a picture can hold; as lists."""
    return x[..., :SHOWN, :].round(4).tolist()


def _lengths(n: int, sent: Sequence[Transmission]) -> Lengths:
    bits = np.array([8 * len(one.message) for one in sent]) / n
    kl = np.array([sum(b.kl for b in one.blocks) for one in sent]) / n
    x_0_bits = np.array([one.x_0_bits.sum() for one in sent]) / n
    over = np.array([sum(np.log2(b.kl + 1) + 5 for b in one.blocks) for one in sent]) / n
    return Lengths(
        n=n,
        messages=len(sent),
        bits=float(bits.mean()),
        bits_error=float(bits.std(ddof=1) / len(sent) ** 0.5),
        kl=float(kl.mean()),
        x_0_bits=float(x_0_bits.mean()),
        bound=float((kl + over + x_0_bits).mean()),
        excess=float((bits - kl - x_0_bits).mean()),
        blocks=float(np.mean([len(one.blocks) for one in sent])),
        candidates=float(np.mean([sum(b.tried for b in one.blocks) for one in sent])),
    )


# --- files and the command -------------------------------------------------------------------------------------------


def save(folder: str | Path, result: CodingResult, facts: dict[str, Any] | None = None) -> list[Path]:
    """coding.json and coding.png in the folder; their paths."""
    from ddpm_ref.experiments.coding_picture import save_coding

    path = Path(folder) / RESULT
    runs.write_json(path, {"facts": facts or {}, "result": result.as_dict()})
    return [path, save_coding(Path(folder) / "coding.png", result)]


TEXT = "send toys from coarse to fine as real bytes and receive them (Algorithms 3 and 4)"
MORE = (
    "\nNeeds no checkpoint. Sender and receiver share a seed and the best ε-model of a distribution on a grid in the\n"
    "plane. Prints the mean message beside the KL and its bound, for n copies coded jointly, and the error of what\n"
    "the receiver can show after every step; writes coding.json and coding.png."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ddpm-ref coding`."""
    parser.add_argument("--seed", type=int, default=0, help="of the data and of what sender and receiver share")
    parser.add_argument("--T", type=int, default=6, help="steps of the cosine schedule, 2 to 20")
    parser.add_argument("--levels", type=int, default=17, metavar="K", help="grid points along each axis, 2 to 64")
    parser.add_argument("--copies", type=int, nargs="+", default=COPIES, metavar="N", help="coded jointly")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where to write (runs/coding, or the first of -2, -3 … that is new)"
    )


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref coding`"""
    need("tqdm", "matplotlib.figure")
    check(T=args.T, levels=args.levels, copies=args.copies, seed=args.seed)
    folder = runs.open_folder(Path(args.out) if args.out else new_folder("runs/coding"))
    with bar(len(TOYS) * sum(map(messages_of, args.copies)), "sending", "message") as progress:
        result = measure(T=args.T, levels=args.levels, copies=args.copies, seed=args.seed, progress=progress.update)
    say(result.table())
    for path in save(folder, result, runs.describe(seed=args.seed)):
        say(f"wrote {path}")
    return 0

"""The words of `python -m benchmarks`: which levels, presets, batches, contenders, precision, rounds."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders
from benchmarks.cases import CASES
from ddpm_ref.blas import cores

LEVELS = ("loops", "steps", "runs", "scaling")
ROUNDS = {
    "quick": dict.fromkeys(LEVELS, 3),
    "default": {"loops": 5, "steps": 7, "runs": 3, "scaling": 3},
    "full": {"loops": 7, "steps": 11, "runs": 5, "scaling": 5},
}
QUICK_PEERS = ("torch contiguous", "torch channels_last", "torch graph")
PRECISION_NAMES = {"fp32": "float32", "float32": "float32", "tf32": "tf32", "bf16": "bf16"}


@dataclass(frozen=True)
class Options:
    """What a run was asked for; precision is that of a job (`cases.PRECISIONS`).  named: the peers were, one by one."""

    levels: tuple[str, ...]
    level: str
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    presets: tuple[str, ...]
    batch: tuple[int, ...]
    dtype: str
    precision: str
    threads: int
    rounds: int | None
    out: Path | None
    named: bool = False

    @property
    def gpu(self) -> bool:
        """Whether ours runs on a GPU."""
        return any(name.startswith("cupy") for name in self.backends)

    def peers_for(self, small: bool) -> tuple[str, ...]:
        """The peers; those that compile the network only if it is small, in a full run, or if they were named."""
        every = small or self.level == "full" or self.named
        return tuple(peer for peer in self.peers if every or peer not in contenders.COMPILED)

    def rounds_of(self, level: str) -> int:
        """How often contenders take turns."""
        return self.rounds or ROUNDS[self.level][level]


def parse(argv: Sequence[str], description: str | None) -> Options:
    """The command line, checked; argparse says what is wrong and ends the program."""
    parser = _parser(description)
    args = parser.parse_args(argv)
    level = "quick" if args.quick else "full" if args.full else "default"
    gpu = any(name.startswith("cupy") for name in args.backends)
    if gpu and not all(name.startswith("cupy") for name in args.backends):
        parser.error("backends: cupy is timed on the GPU, with PyTorch there; give it without the others")
    precision = PRECISION_NAMES[args.precision] if args.precision else args.dtype
    if not gpu and precision not in ("float32", "float64"):
        parser.error(f"precision: {args.precision} is for --backends cupy; on a CPU it is that of --dtype")
    if args.dtype == "float64":
        if precision in ("tf32", "bf16"):
            parser.error(f"precision: {precision} rounds float32 arrays, got --dtype float64")
        precision = "float64"
    if args.threads < 1 or (args.rounds is not None and args.rounds < 1) or any(n < 1 for n in args.batch):
        parser.error("threads, rounds, batch: wanted numbers >= 1")
    levels = _levels(args.level, level)
    return Options(
        levels, level, tuple(args.backends), _peers(args.peers, level, gpu, parser), _presets(args.presets, level),
        tuple(args.batch), args.dtype, precision, args.threads, args.rounds, args.out, args.peers is not None,
    )  # fmt: skip


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("level", nargs="*", metavar="LEVEL", help=f"{', '.join(LEVELS)} or all, the default")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="who is ahead, in two minutes: small steps and few loops")
    size.add_argument("--full", action="store_true", help="everything, celebahq256 and compiled large networks too")
    parser.add_argument("--backends", nargs="+", default=["numba", "numpy"], metavar="NAME", help="ours")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help=f"none, or of {', '.join(contenders.PEERS)}")
    parser.add_argument("--presets", nargs="+", choices=CASES, help="networks")
    parser.add_argument("--batch", nargs="+", type=int, default=[], metavar="N", help="instead of each case's own")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--precision", choices=PRECISION_NAMES, help="of products, on a GPU")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, help="how often contenders take turns")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="continued if this command began it")
    return parser


def _levels(given: list[str], level: str) -> tuple[str, ...]:
    wrong = [name for name in given if name not in (*LEVELS, "all")]
    if wrong:
        raise SystemExit(f"benchmarks: error: level: wanted {', '.join(LEVELS)} or all, got {wrong[0]!r}")
    if "all" in given or not given:
        return ("steps", "loops") if level == "quick" else LEVELS
    return tuple(name for name in LEVELS if name in given)


def _presets(given: list[str] | None, level: str) -> tuple[str, ...]:
    if given:
        return tuple(given)
    return {"quick": ("digits", "base64"), "default": ("digits", "base64", "cifar10"), "full": tuple(CASES)}[level]


def _peers(given: list[str] | None, level: str, gpu: bool, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    known = contenders.GPU_PEERS if gpu else contenders.CPU_PEERS
    if given is None:
        return tuple(name for name in known if level != "quick" or name in QUICK_PEERS)
    if given == ["none"]:
        return ()
    wrong = [name for name in given if name not in known]
    if wrong:
        parser.error(f"peers: wanted none or some of {', '.join(map(repr, known))}, got {wrong[0]!r}")
    return tuple(given)

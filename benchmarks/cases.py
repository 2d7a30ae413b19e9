"""What is timed: networks, the batches of a training step and of a sampling step, and jobs, which is what runs get.

A job is one thing that several contenders do in turns. Its parts become rows: a loop has two, itself and its adjoint.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.work import Loop, Work
from ddpm_ref.nn.plan import PRESETS, UNetConfig

T = 1000


class Case(NamedTuple):
    """A network with its batch sizes; every sampling step is also timed at batch 1."""

    config: UNetConfig
    train: int
    sample: int


CASES = {
    "digits": Case(PRESETS["digits"], 128, 64),
    "base64": Case(UNetConfig(3, 64, (1, 2, 2), 2, (1,)), 16, 16),
    "cifar10": Case(PRESETS["cifar10"], 8, 16),
    "celebahq256": Case(PRESETS["celebahq256"], 1, 1),
}
"""`base64`: 3x32x32, two blocks a level, attention at 16x16: between the other two."""

PRECISIONS = ("float32", "float64", "tf32", "bf16")
"""To what products round their operands; on a CPU that of the arrays."""


@dataclass(frozen=True)
class Job:
    """One thing to time. case: its name without the batch.  what: which kind of thing, see the level's module.

    parts: what becomes a row of its own, by the name that is added to the case's: "" or ", adjoint".
    axis, x: of a scaling curve.  T: where a chain of reverse steps begins.  seconds: a visit lasts at least so long.
    warm_up: whether the first round is thrown away.  rounds: those that are kept.
    scale: what a row's seconds are of those of one call.  whole: of images, whether each round is one chain of T steps.
    """

    level: str
    case: str
    what: str
    preset: str
    config: UNetConfig
    batch: int
    parts: tuple[tuple[str, Work], ...]
    contenders: tuple[str, ...]
    threads: int
    dtype: str = "float32"
    precision: str = "float32"
    axis: str | None = None
    x: float | None = None
    T: int = T
    loop: Loop | None = None
    seconds: float = 0.5
    rounds: int = 7
    warm_up: bool = True
    scale: float = 1.0
    whole: bool = False

    @property
    def label(self) -> str:
        """For people."""
        at = f", {self.axis} {self.x:g}" if self.axis and self.axis != "batch" and self.x is not None else ""
        return f"{self.case}, batch {self.batch}{at}, {self.precision}, {self.threads} threads"

    def keys(self) -> dict[str, Any]:
        """The fields of a row that every contender of this job shares."""
        names = ("level", "what", "preset", "batch", "axis", "x", "dtype", "precision", "threads")
        return {name: getattr(self, name) for name in names}

    def by(self, *contenders: str) -> "Job":
        """The same for others."""
        return replace(self, contenders=contenders)

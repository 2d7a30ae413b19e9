"""What is timed: networks, and the batches of a training step and of a sampling step."""

from typing import NamedTuple

from ddpm_ref.nn.plan import PRESETS, UNetConfig


class Case(NamedTuple):
    """A network with its batch sizes; every sampling step is also timed at batch 1."""

    config: UNetConfig
    train: int
    sample: int


CASES = {
    "digits": Case(PRESETS["digits"], 128, 64),
    "base64": Case(UNetConfig(3, 64, (1, 2, 2), 2, (1,)), 16, 16),
    "cifar10": Case(PRESETS["cifar10"], 8, 16),
}
"""`base64`: 3x32x32, two blocks a level, attention at 16x16: between the other two."""

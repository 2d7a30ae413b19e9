"""The cells of Table 2 and what they have in common: data, network, budget (§4.2)."""

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from ddpm_ref.checks import check_int
from ddpm_ref.experiments.likelihood import check_every
from ddpm_ref.files.data import ImageData
from ddpm_ref.files.source import DataSource, open_source
from ddpm_ref.from_options import SMALLEST
from ddpm_ref.nn import plan
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import Objective
from ddpm_ref.reverse import check_temperature
from ddpm_ref.schedule import SCHEDULES, Schedule
from ddpm_ref.train import RECIPES, TrainSettings

PREDICTED = {"mu": "μ̃", "eps": "ε", "x_0": "x_0", "v": "v"}
TRAINED_ON: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": ("L, learned diagonal Σ", dict(var="learned", w_simple=0.0, w_elbo=1.0)),
    "fixed": ("L, fixed isotropic Σ", dict(w_simple=0.0, w_elbo=1.0)),
    "simple": ("unweighted MSE", {}),
}


@dataclass(frozen=True)
class Cell:
    """What the network predicts, "mu", "eps", "x_0" or "v", and on what it is trained, a key of TRAINED_ON."""

    predicts: str
    trained_on: str

    @property
    def name(self) -> str:
        """As its folder is called: eps-simple."""
        return f"{self.predicts}-{self.trained_on}"

    @property
    def label(self) -> str:
        """As the paper's table calls it."""
        on = "L_simple" if self.name == "eps-simple" else TRAINED_ON[self.trained_on][0]
        return f"{PREDICTED[self.predicts]}, {on}"

    @property
    def objective(self) -> Objective:
        """What its runs minimise."""
        return Objective(self.predicts, **TRAINED_ON[self.trained_on][1])


CELLS = {cell.name: cell for cell in (Cell(predicts, on) for predicts in PREDICTED for on in TRAINED_ON)}
TABLE_2 = tuple(cell for cell in CELLS.values() if cell.predicts in ("mu", "eps"))
"""The paper's six; CELLS also has x_0 and v."""


@dataclass(frozen=True, eq=False)
class Setup:
    """What all runs of an ablation share; only the objective (and Σ's output channels) and the seed differ.

    steps: of training.  every: K of the likelihood, `dataset_bound`'s.  weights: "ema" or "raw".
    clip, temperature: of sampling; x̂_0 is clipped in the likelihood as well, as in the released code.
    """

    source: DataSource
    train: ImageData
    held_out: ImageData
    config: UNetConfig
    schedule: Schedule
    training: TrainSettings
    steps: int
    every: int = 10
    weights: str = "ema"
    clip: bool = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 1)
        check_every(self.every, min(len(self.train), len(self.held_out)))
        check_temperature(self.temperature)

    def net(self, cell: Cell) -> UNet:
        """The cell's network: with log-variance channels if it learns Σ."""
        return UNet(replace(self.config, learned_variance=cell.objective.var == "learned"))

    def settings(self, cell: Cell, seed: int) -> TrainSettings:
        """How a run of a cell trains."""
        return replace(self.training, objective=cell.objective, seed=seed)

    def how(self, cell: Cell) -> dict[str, Any]:
        """What a run's reverse process is, as samplers take it."""
        objective = cell.objective
        return dict(predicts=objective.predicts, var=objective.var, clip=self.clip, temperature=self.temperature)

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides the numbers beside cell and seed, as JSON has it."""
        training = asdict(self.training)
        del training["objective"], training["seed"]
        return {
            "data": asdict(self.source) | {"shape": list(self.source.shape)},
            "network": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()},
            "schedule": {
                "name": self.schedule.name,
                "T": self.schedule.T,
                "sha256": hashlib.sha256(self.schedule.beta.astype("<f8").tobytes()).hexdigest(),
            },
            "training": training,
            "steps": self.steps,
            "every": self.every,
            "weights": self.weights,
            "clip": self.clip,
            "temperature": self.temperature,
        }


def new_setup(source: str = "digits", *, preset: str = "digits", steps: int | None = None, **more: Any) -> Setup:
    """The setup of a preset's network and recipe on a data source; steps: the recipe's unless told.

    more: fields of Setup.  Raises ValueError if nothing can be held out or the images have no labels, which the
    judges of samples need.
    """
    facts, train, held_out = open_source(source, smallest=SMALLEST.get(preset, 0))
    if held_out is None or train.labels is None:
        missing = "labels, which the judges of samples need" if held_out else "images to hold out from training"
        raise ValueError(f"{source}: an ablation wants data with {missing}")
    recipe_steps, training = RECIPES[preset]
    config = plan.preset(preset, channels=facts.shape[2])
    steps = recipe_steps if steps is None else steps
    return Setup(facts, train, held_out, config, SCHEDULES["linear"](1000), training, steps, **more)

"""An ablation small enough to run in every test, and what its folder holds."""

from pathlib import Path
from typing import Any

from small_run import CONFIG, VECTORS, pictures
from strategies import short

from ddpm_ref import AdamSettings, Backend
from ddpm_ref.experiments.ablation import ablation, save
from ddpm_ref.experiments.ablation_cells import CELLS, Setup
from ddpm_ref.files.checkpoint import DataSource, load_checkpoint
from ddpm_ref.train import TrainSettings

SOURCE = DataSource("noise", (4, 4, 1), 17, 12, 3, "0" * 64)


def small_setup(**changes: Any) -> Setup:
    """Networks of 11,621 parameters, 12 steps of training on 36 pictures of 4x4, T = 10."""
    train, held_out = pictures(48).split(12, 3)
    settings = TrainSettings(batch=4, adam=AdamSettings(lr=5e-3, warmup=0, ema=0.9))
    fields: dict[str, Any] = dict(config=CONFIG, schedule=short(10), training=settings, steps=12, every=3)
    return Setup(SOURCE, train, held_out, **{**fields, **changes})


SETUP = small_setup()


def small(folder: Path, setup: Setup = SETUP, cells: str = "mu-learned eps-simple", **more: Any) -> Any:
    """An ablation of two cells with two seeds, whose result is saved."""
    seeds = more.pop("seeds", (3, 4))
    result = ablation(folder, setup, cells=[CELLS[c] for c in cells.split()], seeds=seeds, backend=Backend(), **more)
    save(folder, result, {"command": "a test"})
    return result


def results(folder: Path) -> dict[str, bytes]:
    """The names of all files and what depends on the settings alone in them, a run's checkpoint by its vectors.

    Times and commands are in run.json and log.csv, and the order of a checkpoint's header is by chance.
    """
    paths = [p for p in folder.rglob("*") if p.is_file()]
    named = [p for p in paths if p.name in ("run.json", "log.csv") or p.suffix == ".safetensors"]
    states = {run: load_checkpoint(run).state for run in folder.glob("*/seed-*")}
    vectors = {
        f"{run.relative_to(folder)} {v}": getattr(state, v).tobytes() for run, state in states.items() for v in VECTORS
    }
    return {str(p.relative_to(folder)): b"" if p in named else p.read_bytes() for p in paths} | vectors

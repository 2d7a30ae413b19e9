"""An ablation that is stopped, killed or given more to do goes on in its folder, and takes no other settings."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_ablation import SETUP, SOURCE, results, small, small_setup

import ddpm_ref
from ddpm_ref import Backend
from ddpm_ref.experiments import ablation_runs
from ddpm_ref.experiments.ablation import ablation, total_steps
from ddpm_ref.experiments.ablation_cells import CELLS
from ddpm_ref.experiments.ablation_runs import Stopped
from ddpm_ref.files.checkpoint import load_checkpoint


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """It, run at once."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, small(folder)


def test_an_ablation_that_was_killed_anywhere_goes_on_to_the_same_files(whole, tmp_path):
    """Killed at moments all over its work, each time anew from what the kill before left."""
    total, _ = total_steps(SETUP, [CELLS["mu-learned"], CELLS["eps-simple"]], (3, 4), tmp_path)
    kills = 0
    for allowed in (1, total // 9, total // 7, total // 6, total // 5, 2 * total):
        left = allowed

        def progress(steps: int, what: str) -> None:
            nonlocal left
            left -= steps
            if left < 0:
                raise Killed

        try:
            small(tmp_path, progress=progress)
        except Killed:
            kills += 1
    assert kills == 5
    assert results(tmp_path) == results(whole[0])


def test_a_signal_stops_the_training_where_it_is_and_the_call_goes_on_bit_for_bit(whole, tmp_path):
    seen = []

    def interrupt(steps: int, what: str) -> None:
        seen.append(what)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step 5 of .*mu-learned/seed-3, and saved"):
        small(tmp_path, progress=interrupt)
    assert seen == ["μ̃, L, learned diagonal Σ, seed 3: training"] * 5
    assert load_checkpoint(tmp_path / "mu-learned/seed-3").state.step == 5
    small(tmp_path)
    assert results(tmp_path) == results(whole[0])


def test_a_run_that_saved_more_often_and_was_killed_while_it_wrote_leaves_the_same_files(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_runs, "SAVE_EVERY", 5)

    def kill(steps: int, what: str) -> None:
        if what.endswith("likelihood"):
            raise Killed

    with pytest.raises(Killed):
        small(tmp_path, progress=kill)
    run = tmp_path / "mu-learned/seed-3"
    assert [p.name for p in run.glob("*.safetensors")] == ["checkpoint-00000012.safetensors"]
    for folder, name in ((run, "likelihood.json"), (run, "samples.png"), (tmp_path, "ablation.json")):
        (folder / f".{name}.4711.tmp").write_text("half")
    small(tmp_path)
    assert results(tmp_path) == results(whole[0])


def test_a_kill_before_the_settings_were_written_leaves_an_empty_folder(whole, tmp_path):
    (tmp_path / ".settings.json.4711.tmp").write_text("{")
    (tmp_path / ".writable").touch()
    small(tmp_path)
    assert results(tmp_path) == results(whole[0])
    (tmp_path / "other").mkdir()
    for name in ("letter.txt", ".settings.json.4711.tmp", ".mine.tmp"):
        (tmp_path / "other" / name).write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        small(tmp_path / "other")
    assert len(list((tmp_path / "other").iterdir())) == 3, "and what is not ours is left alone"


def test_a_folder_takes_no_other_backend_or_batch_but_any_number_of_threads(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)

    class Other(Backend):
        name = "other"
        precision = "tf32"

    seeds, cells = (3, 4), [CELLS["mu-learned"], CELLS["eps-simple"]]
    with pytest.raises(ValueError, match=r"backend\.name = 'numpy' before, 'other' now; backend\.precision = None"):
        ablation(folder, SETUP, cells=cells, seeds=seeds, backend=Other())
    with pytest.raises(ValueError, match="draw_batch = 100 before, 7 now; choose another folder"):
        small(folder, batch=7)
    threads = Backend()
    threads.threads = 3
    ablation(folder, SETUP, cells=cells, seeds=seeds, backend=threads)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings.pop("backend") == {"name": "numpy", "precision": None} and settings.pop("draw_batch") == 100
    (folder / "settings.json").write_text(json.dumps(settings))
    small(folder, batch=7)  # a folder from before these were noted


def test_what_is_done_is_not_done_again_and_counts_as_done(whole, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    cells = [CELLS["mu-learned"], CELLS["eps-simple"]]
    total, done = total_steps(SETUP, cells, (3, 4), folder)
    assert (total, done) == (total, total) and total_steps(SETUP, cells, (3, 4), tmp_path) == (total, 0)
    never: Callable[..., Any] = None  # type: ignore[assignment]
    for name in ("draw", "rate"):
        monkeypatch.setattr(ablation_runs, name, never)
    seen: list[int] = []
    small(folder, progress=lambda steps, what: seen.append(steps))
    assert seen == [] and results(folder) == results(whole[0])


def test_progress_adds_up_to_the_total(tmp_path):
    cells = [CELLS["eps-simple"]]
    total, done = total_steps(SETUP, cells, (3,), tmp_path)
    seen: list[int] = []
    small(tmp_path, cells="eps-simple", seeds=(3,), progress=lambda steps, what: seen.append(steps))
    assert done == 0 and total > 12 and sum(seen) == total


def test_more_cells_and_seeds_are_added_to_a_folder(whole, tmp_path):
    small(tmp_path, cells="eps-simple", seeds=(4,))
    small(tmp_path)
    assert results(tmp_path) == results(whole[0])


def test_a_folder_takes_no_other_settings_and_the_error_names_them(whole, tmp_path):
    folder, before = whole[0], results(whole[0])
    other = small_setup(steps=13, training=replace(SETUP.training, batch=5), clip=False)
    with pytest.raises(ValueError, match=r"out: .* was begun with other settings: clip = True before, False") as e:
        small(folder, other)
    assert " now; steps = 12 before, 13 now; training.batch = 4 before, 5 now; choose another folder" in str(e.value)
    with pytest.raises(ValueError, match=r"data\.fingerprint = '000.*' before, '111.*' now"):
        small(folder, replace(SETUP, source=replace(SOURCE, fingerprint="1" * 64)))
    with pytest.raises(ValueError, match=r"schedule\.name = .*; schedule\.sha256 = "):
        small(folder, small_setup(schedule=ddpm_ref.Schedule.cosine(10)))
    assert results(folder) == before
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        small(tmp_path)

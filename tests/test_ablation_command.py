"""`ddpm-ref ablation`: what it prints and writes, that it goes on, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_ablation import results
from small_run import CONFIG, Done, call, pictures
from strategies import short

import ddpm_ref
from ddpm_ref.experiments.ablation_cells import TABLE_2
from ddpm_ref.schedule import SCHEDULES


@pytest.fixture
def smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits' network and noise are those of the tests, and the images few."""
    monkeypatch.setitem(ddpm_ref.PRESETS, "digits", replace(CONFIG, image_size=8))
    monkeypatch.setitem(SCHEDULES, "linear", lambda T: short(10))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    data = pictures(60, 8, levels=256)
    np.savez("data.npz", images=data.pixels, labels=data.labels)
    np.save("bare.npy", data.pixels)


def command(*arguments: object) -> Done:
    return call("ablation", "--steps", 2, "--every", 3, "--backend", "numpy", *arguments)


def test_the_command_prints_the_table_and_what_was_found_and_goes_on_when_given_again(smaller):
    arguments = ("--data", "data.npz", "--out", "out", "--seeds", 1)
    done = command(*arguments)
    assert (done.status, done.err) == (0, "")
    for cell in TABLE_2:
        assert f"\n{cell.label}" in done.out
    assert "8.06 ± 0.09 / 13.22" in done.out and "\nheld-out images" in done.out
    assert done.out.count("\n- ") == 8 and "wrote out/ablation.json" in done.out
    before = results(Path("out"))
    again = command(*arguments)
    assert (again.status, again.err) == (0, "")
    after = results(Path("out"))
    kept = json.loads(before.pop("ablation.json"))["result"]
    assert json.loads(after.pop("ablation.json"))["result"] == kept and after == before
    assert "steps = 2 before, 3 now" in command(*arguments, "--steps", 3).error
    assert "draw_batch = 100 before, 4 now" in command(*arguments, "--draw-batch", 4).error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", 0), "--seeds: wanted an integer >= 1, got 0"),
        (("--steps", 0), "--steps: wanted an integer >= 1, got 0"),
        (("--every", 0), "every: wanted an integer >= 1, got 0"),
        (("--every", 4), "every: wanted at most half of the 6 images, for a standard error, got 4"),
        (("--temperature", "nan"), "temperature: wanted a finite number"),
        (("--data", "nowhere"), "nowhere: does not exist"),
        (("--data", "bare.npy"), "bare.npy: an ablation wants data with labels, which the judges of samples need"),
        (("--inception", "nowhere.npz"), "nowhere.npz: no such file of features"),
        (("--backend", "abacus"), "got 'abacus'"),
    ],
)
def test_mistakes_are_one_line_before_any_work(arguments, message, smaller):
    done = command("--data", "data.npz", "--out", "new", *arguments)
    assert message in done.error and not Path("new").exists()


def test_data_of_which_nothing_is_held_out_are_refused(smaller):
    data = pictures(6, 8, levels=256)
    np.savez("few.npz", images=data.pixels, labels=data.labels)
    assert "few.npz: an ablation wants data with images to hold out" in command("--data", "few.npz").error

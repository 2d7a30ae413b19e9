"""The command line: what a newcomer reads, what the commands write, and how a run goes on."""

import json
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import CONFIG, ROOT, TRAIN, Done, Run, call, one_step, pictures, run, save_pictures
from strategies import short

import ddpm_ref
from ddpm_ref import cli
from ddpm_ref.checks import Array
from ddpm_ref.discovery import get_backend
from ddpm_ref.files.checkpoint import load_checkpoint
from ddpm_ref.schedule import SCHEDULES

COMMANDS = ("demo", "train", "sample", "evaluate", "info", "backends", "check", *cli.EXPERIMENTS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight steps, large enough for the last parameters and their average to differ."""
    folder = tmp_path_factory.mktemp("cli")
    data = save_pictures(folder / "data.npz", pictures(48, 8, levels=256))
    fast = ("--lr", 0.01, "--warmup", 0, "--ema", 0.9, "--seed", 3, "--log-every", 2, "--held-out", 12)
    return Run(folder / "run", data, call(*TRAIN, "--data", data, *fast, "--steps", 8, "--out", folder / "run"))


@pytest.fixture(scope="module")
def drawn(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Three samples of it."""
    folder = tmp_path_factory.mktemp("drawn")
    return folder, call("sample", trained.folder, "--count", 3, "--seed", 7, "--out", folder)


def images(folder: Path) -> Array:
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        return archive["images"]


# ---- what a newcomer reads

HELP = {
    "demo": ["--steps", "--count", "--resume", "digits", "minutes"],
    "train": ["--data", "--preset", "--steps", "--resume", "--out", "examples:", "SIGTERM", "--micro-batch", "0.0001"],
    "sample": ["checkpoint", "--count", "--weights", "--seed", "--draw-batch", "samples.png"],
    "evaluate": ["checkpoint", "Fréchet", "held out", "Exits with 1"],
    "info": ["checkpoint", "folder"],
    "check": ["ADAPTER", "--list", "--json", "--only", "examples:", "Exits with 0"],
    "generation": ["checkpoint", "--steps", "--latents", "--continuations", "Figures 6, 7, 10", "shared.png"],
    "interpolation": ["checkpoint", "--pairs", "--part", "--steps", "--lambdas", "Figures 8, 9", "coarse-to-fine.png"],
    "neighbours": ["checkpoint", "--samples", "--nearest", "--features", "Figures 12, 15", "neighbours.png"],
    "backends": ("--check", "its own", "not available", "exits with 0"),
    "likelihood": ["checkpoint", "--every", "--batch", "--count", "--parts", "bits/dim", "Table 1", "examples:"],
    "rate_distortion": [
        "checkpoint",
        "--every",
        "--batch",
        "--count",
        "--part",
        "RMSE",
        "Figure 5, Table 4",
        "examples:",
    ],
    "ablation": [
        "--seeds",
        "--steps",
        "--all",
        "--every",
        "--inception",
        '"features"',
        "(N, 2048)",
        "diverged",
        "out of range",
        "goes on",
    ],
    "paper": ["--quick", "--parts", "goes on where it was stopped", "index.html"],
    "autoregressive": ["Needs no checkpoint", "Eq. 16", "--seed", "--out"],
    "coding": ["Needs no checkpoint", "--copies", "--levels", "--T", "receiver"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_says_what_a_newcomer_needs(command):
    done = call(command, "--help")
    assert (done.status, done.err) == (0, "") and done.out.startswith(f"usage: ddpm-ref {command}")
    assert [word for word in HELP[command] if word not in done.out] == []


def test_the_help_begins_with_the_demo_and_lists_every_command():
    done = call("--help")
    assert done.status == 0 and "Begin with `ddpm-ref demo`" in done.out
    assert [name for name in COMMANDS if not re.search(rf"\n    {name}\s", done.out)] == []
    assert call("--version").out == f"ddpm_ref {ddpm_ref.__version__}\n"


def test_every_option_of_every_command_has_a_help_text():
    (commands_of,) = [a for a in cli._parser()._actions if hasattr(a, "choices") and a.choices]
    assert set(commands_of.choices) == set(COMMANDS)
    for name, parser in commands_of.choices.items():
        assert [a.dest for a in parser._actions if not a.help] == [], name


def test_the_script_and_the_module_are_one_program(tmp_path):
    project = tomllib.loads((Path(ROOT) / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ddpm-ref": "ddpm_ref.cli:main"} and callable(cli.main)
    for arguments in (("--help",), ("train", "--help"), ("info", "nowhere"), ("nonsense",)):
        done = run(arguments, tmp_path)
        assert Done(done.returncode, done.stdout, done.stderr) == call(*arguments)


# ---- train, sample, info


def test_a_run_writes_its_log_its_checkpoint_its_curve_and_what_made_it(trained):
    assert (trained.done.status, trained.done.err) == (0, ""), "and no progress bar where there is no terminal"
    backend, training = trained.done.out.splitlines()[:2]
    assert backend.startswith(f"backend: {get_backend().name} (")
    assert training.startswith(f"training 11,621 parameters on 36 images ({trained.data}, 8x8x1) to step 8;")
    assert trained.done.out.endswith(f"done; draw with: ddpm-ref sample {trained.folder}\n")
    names = {"checkpoint-00000000.safetensors", "checkpoint-00000008.safetensors", "log.csv", "loss.png", "run.json"}
    assert {path.name for path in trained.folder.iterdir()} == names
    Image.open(trained.folder / "loss.png").verify()
    facts = json.loads((trained.folder / "run.json").read_text())
    assert facts["command"].startswith("ddpm-ref train --base 4 --mult 1 2")
    assert (facts["ddpm_ref"], facts["seed"], facts["steps"]) == (ddpm_ref.__version__, 3, 8)
    assert load_checkpoint(trained.folder).made_by == facts["command"]


def test_info_says_what_a_checkpoint_holds(trained):
    done = call("info", trained.folder)
    assert (done.status, done.err) == (0, "")
    wanted = [
        "checkpoint-00000008.safetensors", "ddpm-ref train", "11,621 parameters, float32", "cosine, T = 10", "8x8x1",
        str(trained.data), "12 held out", "predicts='eps'", "batch 4", "seed 3", "ema=0.9",
    ]  # fmt: skip
    assert [text for text in wanted if text not in done.out] == []


def test_samples_are_written_as_an_array_and_as_pictures(trained, drawn):
    folder, done = drawn
    assert (done.status, done.err) == (0, ""), "and no progress bar where there is no terminal"
    written = [Path(line.removeprefix("wrote ")) for line in done.out.splitlines()[1:]]  # the first names the backend
    assert [p.name for p in written] == ["samples.npz", "samples.png", "denoising.png", "denoising.gif"]
    assert images(folder).shape == (3, 8, 8, 1) and images(folder).dtype == np.uint8
    for path in written[1:]:
        with Image.open(path) as picture:
            assert min(picture.size) >= 8
            assert getattr(picture, "n_frames", 1) > 1 or path.suffix == ".png"
            picture.load()
    facts = json.loads((folder / "sampling.json").read_text())
    assert (facts["seed"], facts["step"], facts["weights"]) == (7, 8, "ema")
    assert facts["command"].startswith(f"ddpm-ref sample {trained.folder}")


def test_samples_depend_on_seed_and_weights_and_on_nothing_else(trained, drawn):
    first = images(drawn[0]).astype(int)

    def again(*more: object) -> Array:
        folder = Path(f"again-{len(list(Path().glob('again-*')))}")
        done = call("sample", trained.folder, "--count", 3, "--out", folder, *more)
        assert (done.status, done.err) == (0, "")
        return images(folder).astype(int)

    assert np.array_equal(again("--seed", 7), first)
    assert abs(again("--seed", 7, "--draw-batch", 2) - first).max() <= 1, "up to rounding, whatever is drawn beside it"
    assert not np.array_equal(again("--seed", 7, "--weights", "raw"), first)
    assert not np.array_equal(again("--seed", 8), first)
    assert not np.array_equal(again("--seed", 7, "--temperature", 0.5), first)
    checkpoint = trained.folder / "checkpoint-00000008.safetensors"
    call("sample", checkpoint, "--count", 5, "--seed", 7)
    assert abs(images(trained.folder / "samples-7")[:3].astype(int) - first).max() <= 1


def test_evaluate_judges_as_many_samples_as_were_held_out(trained):
    done = call("evaluate", trained.folder, "--out", "judged")
    assert done.status in (0, 1) and "classes, samples" in done.out and "classes, held-out" in done.out
    assert len(images(Path("judged"))) == 12
    assert json.loads(Path("judged/evaluation.json").read_text())["step"] == 8


def test_the_demo_trains_draws_and_lists_its_pictures(monkeypatch):
    """With a smaller network and fewer steps of noise than the real one."""
    monkeypatch.setitem(ddpm_ref.PRESETS, "digits", replace(CONFIG, image_size=8))
    monkeypatch.setitem(SCHEDULES, "linear", lambda T: short(20))
    done = call("demo", "--steps", 2, "--count", 2)
    assert (done.status, done.err) == (0, "")
    names = ["samples.npz", "samples.png", "denoising.png", "denoising.gif", "noising.png", "loss.png"]
    assert [line.strip() for line in done.out.splitlines() if line.startswith("  ")] == [
        f"runs/demo/{n}" for n in names
    ]
    assert all(Path("runs/demo", n).stat().st_size > 100 for n in names) and len(images(Path("runs/demo"))) == 2
    settings = load_checkpoint("runs/demo").settings
    assert settings == ddpm_ref.train.RECIPES["digits"][1], "--draw-batch and --seed 0 leave the recipe as it is"
    assert "on 1,500 images (digits, 8x8x1)" in done.out


def test_a_resumed_demo_draws_what_it_would_have_drawn(monkeypatch):
    monkeypatch.setitem(ddpm_ref.PRESETS, "digits", replace(CONFIG, image_size=8))
    monkeypatch.setitem(SCHEDULES, "linear", lambda T: short(20))
    for folder, steps in (("whole", 3), ("broken", 2)):
        assert call("demo", "--seed", 5, "--steps", steps, "--count", 2, "--out", folder).status == 0
    done = call("demo", "--resume", "broken", "--steps", 3, "--count", 2)
    assert (done.status, done.err) == (0, "")
    assert np.array_equal(images(Path("broken")), images(Path("whole")))


# ---- resuming and folders


@pytest.fixture
def short_run(tmp_path: Path) -> Run:
    """One step."""
    return one_step(tmp_path)


def test_a_resumed_run_can_be_longer_and_says_when_it_is_done(short_run):
    hint = shlex.split(short_run.done.out.splitlines()[-1])
    assert hint[-3:] == ["ddpm-ref", "sample", str(short_run.folder)], "a hint is there to be pasted"
    done = call("train", "--resume", short_run.folder)
    assert done.status == 0 and "is at step 1 already; give --steps" in done.out
    again = call(*TRAIN, "--data", short_run.data, "--out", short_run.folder)
    assert f"is not empty; go on with it by --resume {shlex.quote(str(short_run.folder))}" in again.error
    assert call("train", "--resume", short_run.folder, "--steps", 3).status == 0
    assert json.loads((short_run.folder / "run.json").read_text())["steps"] == 3
    assert json.loads((short_run.folder / "run-from-00000001.json").read_text())["resumed_at"] == 1
    assert load_checkpoint(short_run.folder).state.step == 3


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"steps": "many"}'])
def test_a_run_whose_run_json_is_lost_goes_on_when_told_how_far(short_run, text):
    path = short_run.folder / "run.json"
    path.unlink() if text is None else path.write_text(text)
    assert "run.json does not say how many steps" in call("train", "--resume", short_run.folder).error
    assert call("train", "--resume", short_run.folder, "--steps", 2).status == 0
    assert call("train", "--resume", short_run.folder).status == 0


def test_data_that_changed_since_the_run_began_are_refused_by_name(short_run):
    save_pictures(short_run.data, pictures(24, 8, levels=256, seed=1))
    for command in (("train", "--resume", short_run.folder, "--steps", 2), ("evaluate", short_run.folder)):
        assert f"data: {short_run.data} is not what it was when this run began" in call(*command).error
    short_run.data.unlink()
    assert f"{short_run.data}: does not exist" in call("train", "--resume", short_run.folder, "--steps", 2).error
    assert call("sample", short_run.folder, "--count", 1).status == 0, "samples need no data"


def test_a_resumed_run_takes_no_other_settings(short_run):
    done = call("train", "--resume", short_run.folder, "--lr", 0.1, "--batch=8")
    assert done.status == 2 and "a resumed run goes on as it began; leave out --batch, --lr" in done.err


def test_runs_without_a_folder_are_numbered(short_run):
    for folder in ("runs/digits", "runs/digits-2"):
        assert call(*TRAIN, "--data", short_run.data, "--steps", 1).status == 0
        assert load_checkpoint(folder).state.step == 1

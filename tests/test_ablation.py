"""The ablation: what its cells minimise, what its folder holds, what is marked, what is written."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_ablation import SETUP, results, small, small_setup

import ddpm_ref
from ddpm_ref import AdamSettings, Objective, UNet
from ddpm_ref.dataset_likelihood import dataset_bound
from ddpm_ref.experiments import ablation_runs, quality
from ddpm_ref.experiments import features as features_module
from ddpm_ref.experiments.ablation import SUBJECT
from ddpm_ref.experiments.ablation_cells import CELLS, TABLE_2
from ddpm_ref.experiments.ablation_runs import new_judge, saved_samples
from ddpm_ref.experiments.features import frechet_of_features, train_features
from ddpm_ref.experiments.quality import frechet_distance
from ddpm_ref.files.checkpoint import load_checkpoint
from ddpm_ref.train import TrainSettings

# ---- cells


def test_the_cells_minimise_what_the_rows_and_columns_of_table_2_say():
    assert [cell.name for cell in TABLE_2] == [
        f"{p}-{o}" for p in ("mu", "eps") for o in ("learned", "fixed", "simple")
    ]
    assert list(CELLS)[6:] == [f"{p}-{o}" for p in ("x_0", "v") for o in ("learned", "fixed", "simple")]
    for cell in CELLS.values():
        on = {
            "learned": dict(var="learned", w_simple=0, w_elbo=1),
            "fixed": dict(var="beta", w_simple=0, w_elbo=1),
            "simple": dict(var="beta", w_simple=1, w_elbo=0),
        }[cell.trained_on]
        assert cell.objective == Objective(cell.predicts, error="squared", weight="simple", **on)
    assert CELLS["eps-simple"].objective == Objective() and CELLS[SUBJECT] in TABLE_2
    assert CELLS["eps-simple"].label == "ε, L_simple" and CELLS["mu-simple"].label == "μ̃, unweighted MSE"
    assert CELLS["mu-learned"].label == "μ̃, L, learned diagonal Σ"


# ---- runs and their folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """It, run at once."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, small(folder)


def test_the_folder_holds_a_run_for_each_cell_and_seed(whole):
    folder, result = whole
    names = {"likelihood.json", "quality.json", "samples.npz", "samples.png", "run.json", "log.csv"}
    names |= {"checkpoint-00000012.safetensors"}
    top = {"ablation.json", "ablation.csv", "ablation.png", "settings.json"}
    runs = [f"{cell}/seed-{seed}" for cell in ("mu-learned", "eps-simple") for seed in (3, 4)]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == top | {f"{run}/{name}" for run in runs for name in names}
    assert result.subject == "eps-simple/seed-3"
    for run in runs:
        settings = load_checkpoint(folder / run).settings
        assert (settings.objective, settings.seed) == (CELLS[run.partition("/")[0]].objective, int(run[-1]))


def test_the_numbers_are_those_of_the_samples_and_of_the_bound(whole):
    folder, result = whole
    run = folder / "mu-learned/seed-4"
    numbers = result.cells[0].runs[1].numbers
    x, train = saved_samples(run), SETUP.train.x_0(dtype=np.float64)
    assert x.shape == (12, 4, 4, 1)
    assert numbers["frechet"] == frechet_distance(x.reshape(12, -1), train.reshape(36, -1))
    judged = new_judge(SETUP.train)(x)
    assert {name: numbers[name] for name in numbers if name in judged} == {
        name: judged[name] for name in numbers if name in judged
    }
    checkpoint = load_checkpoint(run)
    model = checkpoint.net.bind(checkpoint.params("ema"))
    bound = dataset_bound(
        SETUP.schedule, model, SETUP.held_out, seed=4, predicts="mu", var="learned", clip=True, every=3
    )
    assert numbers["bits_held_out"] == pytest.approx(bound.total.mean() / math.log(2), rel=1e-6)
    assert numbers["bits_train"] != numbers["bits_held_out"]


def test_a_judge_looks_at_no_more_images_than_it_can_and_at_all_for_the_nearest(monkeypatch, rng):
    train, x = SETUP.train, SETUP.held_out.x_0(dtype=np.float64)
    rows, whole = train.x_0(dtype=np.float64), new_judge(train)(x)
    monkeypatch.setattr(ablation_runs, "COMPARED", 20)
    judge = new_judge(train)
    found = judge(x)
    assert found["frechet"] == frechet_distance(x.reshape(12, -1), rows[:20].reshape(20, -1))
    features = judge.network(rows[:20])
    assert found["frechet_features"] == pytest.approx(frechet_of_features(judge.network(x), features))
    assert np.array_equal(judge.manifold.points, features)
    assert (
        found["nearest_median"]
        == whole["nearest_median"]
        != pytest.approx(np.median(quality.nearest_distances(x, rows[:20])[0]))
    )
    assert found["class_share"] == whole["class_share"] and found["frechet"] != whole["frechet"]
    calls = []
    monkeypatch.setattr(quality, "moments", lambda name, x: calls.append(name) or (x.mean(axis=0), np.cov(x.T)))
    again = new_judge(train)
    again(x), again(x)
    assert calls == ["train", "images", "images"]
    monkeypatch.setattr(quality, "CLASSIFIED", 25)
    monkeypatch.setattr(features_module, "CLASSIFIED", 25)
    few = new_judge(train)
    same = train_features(rows[:25], train.labels[:25])
    assert all(np.array_equal(a, b) for a, b in zip(few.network.weights, same.weights, strict=True))
    p = quality.train_classifier(rows[:25], train.labels[:25]).predict_proba(x.reshape(12, -1))
    assert np.array_equal(few.classifier.predict_proba(x.reshape(12, -1)), p)


def test_samples_are_drawn_as_the_cell_predicts_with_the_runs_seed(whole):
    checkpoint = load_checkpoint(whole[0] / "eps-simple/seed-3")
    steps = ddpm_ref.sampling.generate_steps(
        checkpoint.net, checkpoint.params("ema"), SETUP.schedule, np.arange(12), (4, 4, 1), seed=3, clip=True
    )
    *_, (_, x_0, _) = steps
    assert abs(saved_samples(whole[0] / "eps-simple/seed-3") - np.clip(x_0, -1, 1)).max() <= 1.001 / 255


def test_a_file_that_was_spoilt_is_an_error_that_names_it(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    for name, text in (("quality.json", "{"), ("likelihood.json", "[]")):
        path = folder / "mu-learned/seed-3" / name
        kept = path.read_text()
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path}: cannot be read .*; remove it to have it made again"):
            small(folder)
        path.unlink()
        small(folder)
        assert path.read_text() == kept


def test_bad_cells_seeds_and_setups_are_errors_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="seeds: wanted one or more, each once"):
        small(tmp_path / "new", seeds=())
    with pytest.raises(ValueError, match="seeds: wanted one or more, each once"):
        small(tmp_path / "new", seeds=(1, 1))
    with pytest.raises(ValueError, match="seeds: wanted an integer in"):
        small(tmp_path / "new", seeds=(-1,))
    with pytest.raises(ValueError, match="cells: wanted one or more"):
        small(tmp_path / "new", cells="")
    with pytest.raises(ValueError, match="steps: wanted an integer >= 1, got 0"):
        small_setup(steps=0)
    with pytest.raises(ValueError, match="every: wanted at most half of the 12 images, for a standard error, got 7"):
        small_setup(every=7)
    with pytest.raises(ValueError, match="every: wanted an integer >= 1, got 0"):
        small_setup(every=0)
    with pytest.raises(ValueError, match="temperature"):
        small_setup(temperature=-1.0)
    assert not (tmp_path / "new").exists()


def test_every_cell_of_all_runs(tmp_path):
    result = small(tmp_path, cells=" ".join(list(CELLS)[6:]), seeds=(3,))
    assert [one.cell.name for one in result.cells] == list(CELLS)[6:] and result.subject is None
    assert all(run.numbers["bits_held_out"] is not None for one in result.cells for run in one.runs)
    assert result.findings == () and result.as_dict()["cells"][0]["paper"] is None


# ---- what diverges


def test_a_training_that_diverges_is_marked_and_its_numbers_are_there(tmp_path):
    """A learning rate of 1e20: the second step's loss overflows, and the first already made the network useless."""
    setup = small_setup(training=TrainSettings(batch=4, adam=AdamSettings(lr=1e20, warmup=0, ema=0.9)))
    result = small(tmp_path, setup, cells="eps-fixed", seeds=(3,))
    run = tmp_path / "eps-fixed/seed-3"
    told = json.loads((run / "diverged.json").read_text())
    assert told["message"].startswith(f"step {told['step'] + 1}: loss")
    assert load_checkpoint(run).state.step == told["step"] == result.cells[0].runs[0].diverged
    reasons = result.cells[0].reasons(result.limits)
    assert reasons[0] == f"seed 3: training diverged after step {told['step']}" and len(reasons) > 1
    data = json.loads((tmp_path / "ablation.json").read_text())["result"]["cells"][0]
    assert data["mark"] == "diverged" and data["reasons"] == reasons and data["seeds"][0]["diverged"] == told["step"]
    assert "ε, L, fixed isotropic Σ *" in result.table() and f"diverged ({reasons[0]}" in result.table()
    before = results(tmp_path)
    small(tmp_path, setup, cells="eps-fixed", seeds=(3,))
    assert results(tmp_path) == before, "and it is not trained again"


def test_samples_that_are_not_finite_are_marked_and_written_as_null(tmp_path, monkeypatch):
    """The network itself is made to answer NaN once it is trained."""

    def broken(self: UNet, *args: Any) -> Any:
        return lambda x_t, t: np.full_like(x_t, np.nan)

    monkeypatch.setattr(UNet, "bind", broken)
    result = small(tmp_path, cells="eps-simple", seeds=(3, 4))
    assert result.cells[0].mark(result.limits) == "diverged"
    assert result.cells[0].reasons(result.limits) == [
        f"seed {seed}: {reason}" for seed in (3, 4) for reason in ("samples are not finite", "the bound is not finite")
    ]
    data = json.loads((tmp_path / "ablation.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["result"]["cells"][0]["seeds"][0]["bits_held_out"] is None
    assert not (tmp_path / "eps-simple/seed-3/samples.npz").exists()
    assert "not finite" in result.table()


# ---- what is written


def test_json_and_csv_hold_every_run_and_the_spread(whole):
    folder, result = whole
    written = json.loads((folder / "ablation.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["facts"] == {"command": "a test"} and written["result"] == json.loads(json.dumps(result.as_dict()))
    first = written["result"]["cells"][0]
    assert (first["name"], first["paper"]["fid"]) == ("mu-learned", 23.69)
    values = [run["frechet"] for run in first["seeds"]]
    assert first["mean"]["frechet"] == pytest.approx(np.mean(values))
    assert first["deviation"]["frechet"] == pytest.approx(np.std(values, ddof=1))
    rows = list(csv.DictReader((folder / "ablation.csv").read_text().splitlines()))
    assert [(row["cell"], row["seed"]) for row in rows] == [
        (cell, seed) for cell in ("mu-learned", "eps-simple") for seed in ("3", "4")
    ]
    assert [float(row["frechet"]) for row in rows[:2]] == values
    Image.open(folder / "ablation.png").verify()


def test_features_of_inception_give_the_fid_of_the_runs_that_have_them(whole, tmp_path, rng):
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    real, ours = rng.standard_normal((40, 7)), rng.standard_normal((12, 7)) + 1
    np.savez(tmp_path / "real.npz", features=real)
    np.savez(folder / "eps-simple/seed-4/inception.npz", features=ours)
    result = small(folder, inception=tmp_path / "real.npz")
    assert result.cells[1].values("fid") == [None, pytest.approx(frechet_distance(real, ours), rel=1e-9)]
    assert "fid" in result.measures and "fid" not in whole[1].measures
    assert small(folder).cells[1].values("fid") == [None, None]
    np.savez(folder / "eps-simple/seed-4/inception.npz", features=ours[1:])
    with pytest.raises(ValueError, match=r"inception\.npz: wanted features of the 12 images of samples\.npz, got 11"):
        small(folder, inception=tmp_path / "real.npz")

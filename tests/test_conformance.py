"""The checker against right implementations, in every form; how adapters are found; what is printed."""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from zoo import Animal

from ddpm_ref.cli import main
from ddpm_ref.conformance import FUNCTIONS, PROPERTIES, AdapterError, Report, check, load_adapter
from ddpm_ref.conformance.chance import (
    chi_square_bounds,
    distribution_bound,
    largest_is_likely,
    normal_bound,
    normal_distance,
)
from ddpm_ref.conformance.tolerance import process_of, tolerance

OURS = Path(__file__).parents[1] / "examples" / "adapters" / "ours.py"
LOOP = {"sample", "interpolate"}
WITHOUT_LOOP = [p.id for p in PROPERTIES if not set(p.needs) & LOOP]


def assert_all_hold(report: Report) -> None:
    assert [r.status for r in report] == ["holds"] * len(report), report.table()


# --- nobody who is right is accused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conventions",
    [
        {},
        {"precision": "float64", "form": "detour", "t_first": 0},
        {"predicts": "x_0", "var": "beta_tilde", "clip": True, "t_first": 0, "loss_weight": "bound"},
        {"predicts": "mu", "clip": True, "loss_weight": "eps", "units": "bits", "decoder_cdf": "tanh"},
        {"predicts": "v", "form": "detour", "var": "learned_range", "loss_weight": "eps", "error": "l1"},
        {"var": "learned_log", "clip": True, "data_range": (0, 1), "levels": 17, "loss_reduction": "sum"},
        {"var": "learned_var", "precision": "float64", "predicts": "x_0", "loss_weight": "eps", "ema_warmup": True},
        {"var": [0.01] * 1000, "error": "huber", "loss_reduction": "total", "interpolation_noise": "shared"},
    ],
    ids=str,
)
def test_a_right_implementation_under_any_conventions_is_not_accused(conventions: dict) -> None:
    assert_all_hold(check(Animal(**conventions)))


@pytest.mark.parametrize("form", ["direct", "detour"])
@pytest.mark.parametrize(
    "schedule", ["linear", "quadratic", "constant", "warmup10", "warmup50", "cosine", "sigmoid", "jsd"]
)
def test_float32_tables_are_not_accused_at_any_t_of_any_schedule(schedule: str, form: str) -> None:
    for predicts in ("eps", "mu") if schedule != "jsd" else ("x_0", "v"):
        assert_all_hold(check(Animal(form=form, schedule=schedule, predicts=predicts), only=WITHOUT_LOOP))


@pytest.mark.parametrize("T", [2, 10, 300, 4000])
def test_the_clips_of_a_cosine_schedule_can_be_declared(T: int) -> None:
    args = {"beta_min": 1e-5, "beta_max": 0.9999}
    assert_all_hold(check(Animal(schedule="cosine", schedule_args=args, T=T, var="beta_tilde"), only=WITHOUT_LOOP))


@pytest.mark.parametrize("embedding", [
    {"embedding_order": "cos_sin", "embedding_spacing": "half"},
    {"embedding_order": "interleaved", "embedding_counts_from": 1, "embedding_max_period": 1000.0},
], ids=str)  # fmt: skip
def test_any_declared_embedding_is_accepted(embedding: dict) -> None:
    assert_all_hold(check(Animal(**embedding), only=["time-embedding"]))


@pytest.mark.parametrize("clamp", [0.0, 1e-20, "second"])
def test_clamps_of_the_variance_at_the_first_step_are_not_accused(clamp: object) -> None:
    animal = Animal(var="beta_tilde")
    animal.tilde[0] = animal.tilde[1] if clamp == "second" else clamp
    assert_all_hold(check(animal, only=["beta-tilde", "log-beta-tilde", "posterior-var", "reverse-var", "bound-last"]))


def test_clipping_the_very_last_image_is_not_accused() -> None:
    animal = Animal()
    loop = animal.sample
    animal.sample = lambda model, n: np.clip(loop(model, n), -1, 1)  # type: ignore[method-assign]
    assert_all_hold(check(animal, only=["sample-steps", "sample-last"]))


@pytest.mark.parametrize("seed", range(4))
def test_chance_accuses_nobody(seed: int) -> None:
    animal = Animal(T=100, schedule="cosine", predicts="v")
    animal.rng = np.random.default_rng(seed)
    ids = ["sample-start", "sample-steps", "sample-last", "draw-t", "interpolation-mix"]
    assert_all_hold(check(animal, only=ids, seed=seed))


@pytest.mark.parametrize("conventions", [{}, {"predicts": "v", "var": "learned_log", "clip": True}], ids=str)
def test_our_own_library_holds_everywhere_and_offers_everything(conventions: dict) -> None:
    sys.path.insert(0, str(OURS.parent))
    try:
        from ours import Ours
    finally:
        sys.path.remove(str(OURS.parent))
    adapter = load_adapter(Ours(**conventions))
    assert set(adapter.functions) == set(FUNCTIONS)
    assert_all_hold(check(adapter))


def test_of_large_images_only_some_steps_are_tried() -> None:
    report = check(Animal(shape=(3, 256, 256)), only=["q-sample", "posterior-mean", "rows"])
    assert_all_hold(report)


def test_losses_may_come_per_element_and_per_image() -> None:
    for reduction in ("mean", "sum", "total"):
        animal = Animal(loss_reduction=reduction)
        animal.loss = lambda x_0, t, eps, y: (eps - y) ** 2  # type: ignore[method-assign]
        assert_all_hold(check(animal, only=["loss"]))
    animal = Animal(loss_reduction="total", var="learned_log", loss_weight="bound")
    assert [r.status for r in check(animal, only=["loss", "loss-weights"])] == ["not offered"] * 2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_where_betas_are_not_offered_alpha_bar_speaks_for_them(schedule: str) -> None:
    class Half(Animal):
        betas = None

    animal = Half(schedule=schedule)
    animal.conventions["schedule"] = "linear"
    results = {r.id: r.status for r in check(animal, only=WITHOUT_LOOP)}
    wrong = {id for id, status in results.items() if status == "broken"}
    assert wrong == (set() if schedule == "linear" else {"alpha-bar"})


# --- tolerances and bounds -------------------------------------------------------------------------------------------


def test_the_tolerance_of_1_minus_alpha_bar_is_that_of_its_condition() -> None:
    t, eps = np.array([1, 2, 1000]), float(np.finfo(np.float32).eps)
    s = process_of(np.linspace(1e-4, 0.02, 1000))
    wanted, tol = tolerance(s, eps, lambda s, t: 1 - s.alpha_bar[t], t, ())
    condition = (t + 1) * eps * s.alpha_bar[t]
    assert (tol >= condition).all() and (tol <= 2.5 * condition + 8 * eps * wanted).all()


def test_the_bounds_hold_for_normals_and_are_not_far_from_them() -> None:
    z = np.random.default_rng(0).standard_normal((2000, 50))
    low, high = chi_square_bounds(50, 1e-2)
    outside = ((z**2).sum(axis=1) < low) | ((z**2).sum(axis=1) > high)
    assert outside.mean() < 1e-2 and 15 < low < 35 and 70 < high < 110
    assert (np.abs(z) > normal_bound(1e-3)).mean() < 1e-3
    largest = np.abs(z[:1000]).max(axis=1)
    likely = np.array([largest_is_likely(m, 50, 1e-2) for m in largest])
    assert (~likely).mean() < 2.5e-2 and not largest_is_likely(1.0, 50, 1e-3) and not largest_is_likely(6.0, 50, 1e-6)
    assert normal_distance(z[:20]) < distribution_bound(1000, 1e-9)
    assert normal_distance(z[:20] * 1.3) > distribution_bound(1000, 0.1) > normal_distance(z[:20])


# --- finding adapters ------------------------------------------------------------------------------------------------

BAD = {
    "unknown convention": ("conventions = {'t_frist': 0}\ndef betas(): return [0.1]", "did you mean 't_first'"),
    "bad value": ("conventions = {'predicts': 'noise'}\ndef betas(): return [0.1]", "wanted one of 'eps'"),
    "bad T": ("conventions = {'T': 0}\ndef betas(): return [0.1]", "T: wanted an integer >= 2"),
    "bad schedule": ("conventions = {'schedule': 'cosin'}\ndef betas(): return [0.1]", "schedule: wanted one of"),
    "bad argument": ("conventions = {'schedule_args': {'beta_0': 1}}\ndef betas(): return 1", "beta_0"),
    "bad table": ("conventions = {'var': [1, 2]}\ndef betas(): return [0.1]", "T = 1000 finite numbers"),
    "bad clip": ("conventions = {'clip': 1}\ndef betas(): return [0.1]", "clip: wanted True or False"),
    "bad range": ("conventions = {'data_range': (1, -1)}\ndef betas(): return [0.1]", "low < high"),
    "bad shape": ("conventions = {'shape': 0}\ndef betas(): return [0.1]", "shape: wanted"),
    "another's word": ("conventions = {'var': 'fixed_small'}\ndef betas(): return [0.1]", "did you mean 'beta_tilde'"),
    "other arguments": ("def q_sample(x_0, t): return x_0", "wanted a function of (x_0, t, eps), got one of (x_0, t)"),
    "near name alone": ("def alphas_bar(): return [0.1]", "offers none of the functions"),
    "several inside": (
        "class One:\n    def betas(self): return [1]\nclass Two(One): pass\none, two = One(), Two()",
        "one, two have: check",
    ),
    "no dict": ("conventions = 3\ndef betas(): return [0.1]", "wanted a dict"),
    "near name": ("def alphas_bar(): return [0.1]", "did you mean 'alpha_bar'"),
    "nothing offered": ("x = 1", "offers none"),
    "no function": ("q_sample = 3", "q_sample: wanted a function"),
    "a mistake in it": ("def betas(: return", "SyntaxError"),
    "an exception": ("1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("text, words", BAD.values(), ids=BAD)
def test_an_adapter_that_cannot_be_used_is_one_line_and_exit_status_2(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "adapter.py"
    path.write_text(text)
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm-ref: ") and words in error and error.count("\n") == 1


def test_files_objects_classes_and_modules_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_adapter.py").write_text(
        "from beside import b\nbetas = b\n"
        "class Two:\n    conventions = {'T': 3}\n    def betas(self): return [.1, .2, .3]\n"
        "class Bad:\n    def __init__(self): raise KeyError('no')\n"
    )
    (tmp_path / "beside.py").write_text("b = [0.1]\n")
    path = str(tmp_path / "one_adapter.py")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load_adapter(path).name == "one_adapter" and load_adapter("one_adapter").name == "one_adapter"
    assert load_adapter(path + ":Two").conventions.T == load_adapter("one_adapter:Two").conventions.T == 3
    for wrong, words in (
        (path + ":Tow", "did you mean 'Two'"),
        (path + ":Bad", "KeyError"),
        (str(tmp_path / "none.py"), "no such file"),
        ("no_such_module_here", "ModuleNotFoundError"),
    ):
        with pytest.raises(AdapterError, match=words):
            load_adapter(wrong)


INSIDE = {
    "a class": "from ddpm_ref.nn.ops import time_embedding\nclass Mine:\n    def betas(self): return BETAS\n",
    "an object, not its class": "class Mine:\n    def betas(self): return BETAS\nmine = Mine()\n",
    "functions beside a class": "class Other:\n    def betas(self): return 1\ndef betas(): return BETAS\n",
    "imported functions alone": "from beside import betas\n",
}


@pytest.mark.parametrize("text", INSIDE.values(), ids=INSIDE)
def test_what_a_file_means_to_offer_is_found_in_it(text: str, tmp_path: Path) -> None:
    beta = "__import__('numpy').linspace(1e-4, 0.02, 1000)"
    (tmp_path / "adapter.py").write_text(text.replace("BETAS", beta))
    (tmp_path / "beside.py").write_text(f"def betas(): return {beta}\n")
    try:
        adapter = load_adapter(str(tmp_path / "adapter.py"))
    finally:
        sys.modules.pop("beside", None)
    assert set(adapter.functions) == {"betas"}
    assert check(adapter, only=["beta"]).results[0].status == "holds"


def test_our_own_adapter_needs_no_name_and_a_function_may_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(load_adapter(str(OURS)).functions) == set(FUNCTIONS)
    (tmp_path / "maker.py").write_text("class A:\n    betas = [0.1]\ndef make(): return A()\n")
    assert set(load_adapter(f"{tmp_path / 'maker.py'}:make").functions) == {"betas"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(AdapterError, match=r"maker.py is there: is that meant"):
        load_adapter("maker")


class Small:
    conventions: ClassVar = {"T": 3, "schedule": [0.1, 0.2, 0.3], "shape": (2,), "name": "small"}

    def betas(self):
        return [0.1, 0.2, 0.3]


def test_errors_of_the_adapter_are_not_called_broken() -> None:
    class Wrong(Small):
        def alpha_bar(self):
            return np.ones(4)

        def q_sample(self, x_0, t, eps):
            raise KeyError("nothing")

        def q_mean_var(self, x_0, t):
            return x_0

        def prior_kl(self, x_0):
            return "text"

        def target(self, x_0, t, eps):
            raise NotImplementedError("not for these")

        def predict_eps(self, x_t, t, x_0):
            return x_t[t + 7]

    report = check(Wrong())
    results = {r.id: r for r in report}
    assert report.exit_status == 2 and not report.broken
    for id, words in {
        "alpha-bar": "leave out the entry that belongs to t = 0",
        "q-sample": "q_sample raised KeyError",
        "q-mean-var": "wanted (mean, var)",
        "prior-kl": "array of numbers",
        "predict-eps": "is t_first = 1 right?",
    }.items():
        assert results[id].status == "error" and words in results[id].diagnosis
    assert results["target"].status == "not offered" and "not for these" in results["target"].diagnosis
    assert results["beta"].status == "holds" and results["loss"].diagnosis == "needs loss"


def test_tensors_are_read_and_inputs_are_copies() -> None:
    class Tensor:
        def __init__(self, x):
            self.x = x

        def detach(self):
            return self

        cpu = double = detach

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.x, dtype)

    class Torch(Small):
        def q_sample(self, x_0, t, eps):
            abar = np.cumprod([0.9, 0.8, 0.7])[t - 1][:, None]
            x_0 *= np.sqrt(abar)
            x_0 += np.sqrt(1 - abar) * eps
            return Tensor(x_0)

    assert [r.status for r in check(Torch(), only=["q-sample", "rows"])] == ["holds", "holds"]


def test_a_schedule_need_not_be_declared() -> None:
    class Free(Small):
        conventions: ClassVar = {**Small.conventions, "schedule": None}

        def alpha_bar(self):
            return np.cumprod([0.9, 0.8, 0.7])

    results = {r.id: r.status for r in check(Free())}
    assert results["beta"] == "not offered" and results["alpha-bar"] == "holds"
    del Free.conventions["name"]
    Nothing = type("Nothing", (), {"conventions": Free.conventions, "q_sample": lambda self, x, t, e: x})
    assert "offer betas" in check(Nothing(), only=["q-sample"]).results[0].diagnosis

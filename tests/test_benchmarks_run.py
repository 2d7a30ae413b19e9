"""`python -m benchmarks`: statistics, the file and its continuation, and small real runs in processes of their own."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import __main__ as command
from benchmarks import agreement, ceilings, contenders, loops, options, rounds, runs, scaling, steps, table
from benchmarks.cases import CASES
from ddpm_ref.nn.plan import UNetConfig

TINY = UNetConfig(1, 4, (1, 2), 1, (1,), groups=2, dropout=0.1, image_size=4)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of small arrays, a small network for base64, and no seconds spent on a visit."""
    small = partial(ceilings._of_cpu, size=64, copied=1 << 16)
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda threads, gpu: small(threads))
    monkeypatch.setitem(CASES, "base64", CASES["base64"]._replace(config=TINY, train=3, sample=2))
    made = steps.jobs
    monkeypatch.setitem(command.JOBS, "steps", lambda asked: [replace(job, seconds=0.0) for job in made(asked)])


def measured(path: Path, *words: str, status: int = 0) -> dict[str, Any]:
    """The document of a run on the tiny network, one thread, one round."""
    said = [*words, "--presets", "base64", "--threads", "1", "--peers", "none", "--out", str(path)]
    assert command.main(said) == status
    return json.loads(path.read_text())


# --- statistics ------------------------------------------------------------------------------------------------------


def test_quartiles_and_ratios_are_taken_round_by_round() -> None:
    seconds = {"ours": [1.0, 2.0, 3.0, 4.0, 5.0], "theirs": [2.0, 2.0, 9.0, 4.0, 20.0]}
    row = rounds.summary(seconds, "ours")
    assert (row["median"], row["quartiles"], row["noisy"]) == (3.0, [2.0, 4.0], True)
    assert row["over"] == {"theirs": np.quantile([2, 1, 3, 1, 4], [0.25, 0.5, 0.75]).tolist()}
    assert rounds.summary(seconds, "theirs")["over"]["ours"][1] == 0.5


@pytest.mark.parametrize(("third", "noisy"), [(1.099, False), (1.101, True)])
def test_a_row_is_noisy_above_the_stated_bound(third: float, noisy: bool) -> None:
    assert rounds.NOISY == 0.10
    assert rounds.summary({"a": [1.0, 1.0, 1.0, third, third]}, "a")["noisy"] is noisy


def test_one_round_is_its_own_quartiles_and_two_are_too_few() -> None:
    assert rounds.quartiles([2.0]) == [2.0, 2.0, 2.0]
    assert [rounds.summary({"a": [1.0] * n}, "a")["noisy"] for n in (1, 2, 3)] == [True, True, False]


def test_every_contender_comes_first_and_after_every_other_in_turn() -> None:
    orders = [rounds.rotated(["a", "b", "c"], k) for k in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert rounds.rotated([], 3) == []


def test_who_needs_other_steps_to_the_loss_is_left_out() -> None:
    visits = {"numpy": 400, "torch graph": 420, "torch compile": 421, "jax jit": 379}
    turns: rounds.Seconds = {name: [{"": 1.0, "steps": steps}] for name, steps in visits.items()}
    left: dict[str, str] = {}
    rounds.leave_out_other_steps(turns, left)
    assert set(turns) == {"numpy", "torch graph"} and set(left) == {"torch compile", "jax jit"}
    assert left["jax jit"] == "379 steps to the loss, ours 400 (at most 5% apart)"


def test_contenders_live_one_at_a_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("steps", "--presets", "celebahq256", "--peers", "torch contiguous")
    large = steps.jobs(options.parse(words, None))[0]
    for memory, fits in ((None, True), (256.0, True), (8.0, False)):
        monkeypatch.setattr(rounds, "memory_gib", lambda memory=memory: memory)
        assert rounds.fits_in_memory(large) is fits


def test_the_fitted_exponent_and_its_error_are_scipys(rng: np.random.Generator) -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    seconds = [float(3 * v**1.7 * np.exp(0.1 * rng.standard_normal())) for v in x]
    line = stats.linregress(np.log(x), np.log(seconds))
    exponent, error = scaling.fit_exponent(x, seconds)
    assert exponent == pytest.approx(line.slope) and error == pytest.approx(line.stderr)
    assert scaling.fit_exponent([1.0, 2.0], [3.0, 12.0]) == (pytest.approx(2.0), None)


def test_fits_are_made_of_each_curve_on_its_own() -> None:
    rows = [
        {"level": "scaling", "case": "c", "contender": who, "axis": "T", "x": x, "median": 5 * x**power}
        for who, power in (("a", 1), ("b", 2))
        for x in (1.0, 2.0, 4.0)
    ]
    rows.append({"level": "steps", "case": "c", "contender": "a", "axis": None, "x": None, "median": 1.0})
    assert [(fit["contender"], round(fit["exponent"], 9)) for fit in scaling.fits(rows)] == [("a", 1), ("b", 2)]
    assert scaling.threads_up_to(6) == [1, 2, 4, 6] and scaling.threads_up_to(1) == [1]


def test_the_relative_gap_sees_all_numbers_and_every_nan(rng: np.random.Generator) -> None:
    a = rng.standard_normal(agreement._CHUNK + 5).astype(np.float32)
    b = a.copy()
    b[-1] += 1
    assert agreement.relative_gap(a, b) == pytest.approx(1 / np.linalg.norm(a.astype(float)), rel=1e-6)
    b[-1] = np.nan
    assert agreement.relative_gap(a, b) == math.inf


def test_each_result_has_its_bound() -> None:
    fine = {"output": 1e-4, "gradient": 9e-5, "step": 1e-4, "update": 9e-3, "ema": 9e-3, "worst gradient": 9e-4}
    assert agreement.disagreement(fine, "float32") is None
    for what, gap in fine.items():
        said = agreement.disagreement(fine | {what: 2 * gap}, "float32")
        assert said and said.startswith(f"not the same computation: its {what} differs by {2 * gap:.1e} (at most")
    assert agreement.disagreement({"output": math.nan}, "float32")


def test_the_worst_gap_is_of_one_parameter_and_not_of_ks_bias() -> None:
    shapes = {"large": (10, 10), "small": (2,), "mid/k/b": (3,)}
    a = np.concatenate([np.full(100, 7.0), [0.3, 0.4], [1e-9, 1e-9, 1e-9]])
    b = a.copy()
    b[-3:] *= -1  # rounding
    assert agreement.worst_gap(shapes, a, b) == 0
    b[101] += 0.05
    assert agreement.worst_gap(shapes, a, b) == pytest.approx(0.1)


def test_the_smoothed_loss_weighs_by_age() -> None:
    smoothed, losses = runs.Smoothed(), [3.0, 1.0, 2.0]
    found = [smoothed.add(loss) for loss in losses][-1]
    assert found == pytest.approx(np.average(losses, weights=[0.98**2, 0.98, 1]))


def test_ceilings_are_rates_of_this_machine() -> None:
    found = ceilings._of_cpu(1, size=96, copied=1 << 18)
    assert [(one["what"], one["precision"]) for one in found] == [
        ("gemm", "float32"), ("gemm", "float64"), ("copy", "float32"),
    ]  # fmt: skip
    assert ceilings.rate(found, "gemm", "float64", 1) == found[1]["rate"] * 1e9 > 0
    assert ceilings.rate(found, "gemm", "tf32", 1) is None and ceilings.rate(found, "copy", "float64", 2) is None


# --- runs ------------------------------------------------------------------------------------------------------------

ROW = {
    "level": str, "case": str, "what": str, "preset": str, "batch": int, "contender": str, "ours": bool, "dtype": str,
    "precision": str, "threads": int, "seconds": list, "median": float, "quartiles": list, "noisy": bool, "over": dict,
    "flops": (int, float), "bytes": (int, float), "floor_seconds": float, "fraction": float, "peak_memory_gib": float,
    "start_memory_gib": float, "compile_seconds": float, "agreement": dict, "unit": str,
}  # fmt: skip


def test_a_small_run_has_every_field_and_is_continued(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = tmp_path / "deep" / "one.json"
    words = ("steps", "--rounds", "2", "--backends", "numpy", "wrong_backends:Same")
    monkeypatch.setattr(rounds, "FEWEST", 2)
    document = measured(path, *words)
    assert document["format"] == 1 and document["level"] == "default" and document["left_out"] == {}
    said = " ".join([*words, "--presets base64 --threads 1 --peers none"])
    assert document["command"] == f"python -m benchmarks {said}"
    assert document["machine"]["cores"] >= 1 and document["versions"]["numpy"] == np.__version__
    rows = document["rows"]
    assert [(row["case"], row["batch"]) for row in rows[::2]] == [
        ("train base64", 3), ("sample base64", 2), ("sample base64", 1),
    ]  # fmt: skip
    for row in rows:
        assert all(isinstance(row[name], kind) for name, kind in ROW.items()), row
        assert len(row["seconds"]) == 2 and row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
        assert row["fraction"] == pytest.approx(row["floor_seconds"] / row["median"])
        assert 0 < row["start_memory_gib"] <= row["peak_memory_gib"] < 1
        assert set(row["agreement"].values()) == {0.0} and row["axis"] is row["x"] is None
    trained, sampled = rows[0]["agreement"], rows[2]["agreement"]
    assert set(trained) == {"output", "gradient", "worst gradient", "update", "ema"}
    assert set(sampled) == {"output", "step"}
    assert len(document["load"]) == 2 and document["elapsed_seconds"] > 0
    assert set(rows[0]["over"]) == {"wrong_backends:Same"}
    shown = capsys.readouterr().out
    assert "train base64, batch 3" in shown and "wrong_backends:Same" in shown and "GiB" in shown
    # The last job's rows taken away, the same command makes these again and no others.
    path.write_text(json.dumps(document | {"rows": rows[:-2]}))
    asked: list[str] = []
    own = rounds.measure
    monkeypatch.setattr(rounds, "measure", lambda job, *a, **how: asked.append(job.label) or own(job, *a, **how))
    again = measured(path, *words)
    assert len(asked) == 1 and asked[0].startswith("sample base64, batch 1")
    assert again["rows"][:-2] == rows[:-2] and len(again["rows"]) == len(rows)
    # Another command does not touch the file.
    before = path.read_bytes()
    assert command.main(["steps", "--rounds", "1", "--backends", "numpy", "--peers", "none", "--out", str(path)]) == 1
    assert path.read_bytes() == before and "another command" in capsys.readouterr().err


def test_a_contender_that_computes_something_else_or_ends_gets_no_number(tmp_path: Path) -> None:
    wrong = ["wrong_backends:Slightly", "wrong_backends:Ending"]
    wrong += ["wrong_backends:Later"]
    words = ("steps", "--rounds", "1", "--batch", "2", "--backends", "numpy", *wrong)
    document = measured(tmp_path / "two.json", *words, status=1)
    left = document["left_out"]
    assert {row["contender"] for row in document["rows"] if row["what"] == "train"} == {"numpy"}
    train = {key.rpartition(": ")[0].split(", ")[0] + key.rpartition(":")[2]: why for key, why in left.items()}
    assert "not the same computation: its gradient differs by" in train["train base64Slightly"]
    assert "ended with status 3" in train["train base64Ending"]
    # In the middle of its rounds one may end too, and the others go on.
    assert "ended with status 4" in train["train base64Later"]
    # In sampling there is no gradient to be wrong.
    assert {row["contender"] for row in document["rows"] if row["what"] == "sample"} == {"numpy", wrong[0], wrong[2]}
    assert command.wrong_of_ours(left) == [wrong[0]]


def test_who_does_not_answer_is_left_out_and_ended(tmp_path: Path) -> None:
    asked_for = ("steps", "--presets", "base64", "--backends", "numpy", "wrong_backends:Hanging", "--peers", "none")
    job = replace(steps.jobs(asked(*asked_for, "--batch", "2"))[0], threads=1, seconds=0.0, rounds=1)
    outcome = rounds.measure(job, rounds.Rates(None, None), patience=5.0)
    assert [row["contender"] for row in outcome.rows] == ["numpy"]
    assert list(outcome.left_out.values()) == ["no answer within 5 s"]


def test_loops_are_compared_and_timed_with_their_adjoints(tmp_path: Path) -> None:
    words = ("loops", "--quick", "--rounds", "1", "--batch", "1", "--backends", "numpy", "wrong_backends:Slightly")
    document = measured(tmp_path / "three.json", *words, status=1)
    both = {row["case"].split(" ")[0] for row in document["rows"] if row["case"].endswith(", adjoint")}
    assert both == {"conv3x3", "group_norm", "attention", "dense"}
    assert {row["what"] for row in document["rows"]} == both | {"update"}
    assert [key.split(" ")[0] for key in document["left_out"]] == ["conv3x3"]


# --- the file and the words ------------------------------------------------------------------------------------------


def asked(*words: str) -> options.Options:
    return options.parse(words, None)


def test_freed_memory_is_kept_on_every_side(monkeypatch: Any) -> None:
    called: list[str] = []
    monkeypatch.setattr(contenders, "keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(contenders, "contestant", lambda job, name: called.append(name) or 1 / 0)
    pipe = type("Pipe", (), {"send": lambda self, what: called.append(what)})()
    contenders.serve(pipe, steps.jobs(asked())[0], "torch contiguous", Path())
    assert called == ["kept", "torch contiguous", "ZeroDivisionError: division by zero"]


def test_a_last_loss_that_is_not_finite_is_said(monkeypatch: Any) -> None:
    sent: list[Any] = []
    side = contenders.Contestant("x", {"": lambda: None}, {}, lambda _: None, contenders.median_clock)
    side.facts, side.last_loss = {"start_memory_gib": 0.0}, lambda: math.nan
    monkeypatch.setattr(contenders, "contestant", lambda job, name: side)
    pipe = type("Pipe", (), {"send": lambda self, what: sent.append(what), "recv": lambda self: None})()
    contenders.serve(pipe, steps.jobs(asked())[0], "numpy", Path())
    assert sent[-1] == "FloatingPointError: the loss of the last timed step is nan"


def test_what_is_asked_for_becomes_jobs() -> None:
    full, quick = asked("--full"), asked("--quick")
    assert (quick.levels, quick.presets, quick.peers) == (
        ("steps", "loops"), ("digits", "base64"), ("torch contiguous", "torch channels_last"),
    )  # fmt: skip
    assert "celebahq256" in full.presets and "celebahq256" not in asked().presets
    compiled = {job.preset for job in steps.jobs(asked()) if "torch compile" in job.contenders}
    assert compiled == {"digits"} and all("torch compile" in job.contenders for job in steps.jobs(full))
    named = asked("--presets", "base64", "--peers", "jax jit")
    assert all(job.contenders[2:] == ("jax jit",) for job in steps.jobs(named) + runs.jobs(named))
    one = steps.jobs(asked("steps", "--presets", "digits", "--batch", "5", "--rounds", "4", "--dtype", "float64"))
    assert {(job.batch, job.rounds, job.precision) for job in one} == {(5, 4, "float64")}
    chains = [job for job in runs.jobs(asked("--batch", "3", "5")) if job.what == "images"]
    assert [(job.preset, job.batch) for job in chains[:2]] == [("digits", 3), ("digits", 5)] and len(chains) == 6
    assert [(job.whole, job.scale) for job in chains[1:3]] == [(True, 1 / 5), (False, 1000 / 3)]
    reach, whole = (next(job for job in runs.jobs(a) if job.what == "reach") for a in (asked(), full))
    assert "torch compile" in whole.contenders and "torch compile" not in reach.contenders
    beside = {job.what: job.contenders[2:] for job in loops.jobs(asked())}
    assert beside["conv3x3"] == ("torch contiguous", "torch channels_last") and beside["update"] == ()
    axes = {job.axis for job in scaling.jobs(asked())}
    assert axes == {"batch", "resolution", "channels", "T", "threads"}
    assert len({job.label + str(job.x) + job.what for job in scaling.jobs(asked())}) == len(scaling.jobs(asked()))


def test_a_gpu_is_asked_for_by_its_backend_and_its_peers() -> None:
    gpu = asked("steps", "--backends", "cupy", "--precision", "bf16")
    assert gpu.gpu and gpu.precision == "bf16" and gpu.peers == contenders.GPU_PEERS
    job = steps.jobs(gpu)[3]
    assert job.preset == "base64" and job.contenders == ("cupy", "torch eager", "torch graph", "torch compiled graph")


@pytest.mark.parametrize(
    "words",
    [
        ["sideways"], ["--rounds", "0"], ["--peers", "tensorflow"], ["--precision", "bf16"], ["--batch", "0"],
        ["--quick", "--full"], ["--presets", "imagenet"], ["--backends", "cupy", "numpy"],
    ],
)  # fmt: skip
def test_wrong_words_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        asked(*words)


def test_what_is_not_there_is_left_out_with_the_reason(monkeypatch: Any) -> None:
    reasons = {"torch compile": "not installed", "numba": "no compiler"}
    monkeypatch.setattr(command, "why_left_out", reasons.get)
    left_over, left = command.usable(asked("--peers", "torch compile", "torch contiguous"))
    assert left == reasons and left_over.backends == ("numpy",) and left_over.peers == ("torch contiguous",)
    monkeypatch.setattr(command, "why_left_out", lambda name: "gone")
    with pytest.raises(ValueError, match="backends: none of these"):
        command.usable(asked())


def test_report_and_compare_are_other_modules(monkeypatch: Any) -> None:
    import sys
    from types import SimpleNamespace

    import benchmarks

    got: list[list[str]] = []
    main: Callable[[list[str]], int] = lambda argv: got.append(argv) or 7  # type: ignore[func-returns-value]  # noqa: E731
    for name in ("report", "compare"):
        module = SimpleNamespace(main=main)
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", module)
        monkeypatch.setattr(benchmarks, name, module, raising=False)
        assert command.main([name, "a", "b"]) == 7
    assert got == [["a", "b"]] * 2


def test_a_line_of_the_table_says_what_its_row_holds() -> None:
    seconds = {"numba": [0.001] * 3, "numpy": [0.002, 0.003, 0.004]}
    common = {"fraction": 0.5, "peak_memory_gib": 0.25}
    rows = [{"contender": name, "ours": True, **rounds.summary(seconds, name), **common} for name in seconds]
    fast, slow = table.lines(rows)
    assert "1.00 ms" in fast and "50%" in fast and "0.25 GiB" in fast and "noisy" not in fast
    assert "3.00 × faster" in slow and slow.endswith("noisy")
    assert "GiB" not in table.lines([rows[0] | {"peak_memory_gib": None}])[0]

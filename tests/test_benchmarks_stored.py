"""Result files: what is read is what was stored, what is wrong is named, and the GPU's older files give such rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from stored_results import made_up, store

from benchmarks.stored import Row, read_folder, read_result

H200 = Path(__file__).parents[1] / "benchmarks" / "results" / "h200"


def test_every_value_of_a_row_is_read(tmp_path: Path) -> None:
    stored = made_up()
    result = read_result(store(tmp_path, stored))
    assert len(result.rows) == len(stored["rows"])
    for row, wanted in zip(result.rows, stored["rows"], strict=True):
        assert wanted.keys() - Row.__dataclass_fields__.keys() == {"version"}  # stored for people
        wanted = {name: value for name, value in wanted.items() if name != "version"}
        found = {name: getattr(row, name) for name in wanted}
        plain = json.loads(json.dumps(found))  # tuples as lists
        assert plain == {name: Row.__dataclass_fields__[name].default if v is None else v for name, v in wanted.items()}
    for word in ("machine", "versions", "commit", "dirty", "command", "started", "threads", "level", "left_out"):
        assert getattr(result, word) == stored[word]
    assert [(c.what, c.rate, c.unit) for c in result.ceilings] == [("gemm", 200, "GFLOP/s"), ("copy", 20, "GB/s")]
    assert (result.elapsed_seconds, list(result.load)) == (stored["elapsed_seconds"], stored["load"])
    assert [fit.exponent for fit in result.fits] == [fit["exponent"] for fit in stored["fits"]]


def test_new_words_are_left_aside_and_names_of_a_precision_are_one(tmp_path: Path) -> None:
    stored = made_up() | {"weather": "fine", "load": None}
    stored["rows"][0] |= {"colour": [1], "precision": "fp32", "dtype": "fp32", "mark": "not mine to say", "bytes": None}
    stored["ceilings"][0]["precision"] = "fp32"
    stored["fits"][0] |= {"precision": "fp32", "points": 5}
    result = read_result(store(tmp_path, stored))
    row = result.rows[0]
    assert (row.precision, row.dtype, row.mark, row.bytes, result.load) == ("float32", "float32", "", None, ())
    assert result.ceilings[0].precision == result.fits[0].precision == "float32" and result.fits[1].precision is None
    assert row.key == read_result(store(tmp_path, made_up())).rows[0].key


def wrong(change: Any) -> dict[str, Any]:
    stored = made_up()
    change(stored)
    return stored


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(format=2), '"format": 1'),
        (lambda s: s.update(rows={}), r"rows: wanted a list"),
        (lambda s: s.update(rows=[7]), r"rows\[0\]: wanted an object"),
        (lambda s: s.pop("rows"), "rows"),
        (lambda s: s.update(machine={}), "machine: wanted an object with a name"),
        (lambda s: s["rows"][3].pop("median"), r"rows\[3\].*median"),
        (lambda s: s["rows"][3].update(median=0), r"rows\[3\]\.median: wanted a number > 0, got 0"),
        (lambda s: s["rows"][3].update(median="fast"), r"rows\[3\]\.median: wanted a number, got 'fast'"),
        (lambda s: s["rows"][3].update(level="hops"), r"rows\[3\]\.level: wanted one of loops"),
        (lambda s: s["rows"][3].update(ours=1), r"rows\[3\]\.ours: wanted true or false"),
        (lambda s: s["rows"][3].update(batch=1.5), r"rows\[3\]\.batch: wanted a whole number"),
        (lambda s: s["rows"][3].update(seconds=[1.0, -1.0]), r"rows\[3\]\.seconds: wanted a number > 0"),
        (lambda s: s["rows"][3].update(quartiles=[1.0]), r"rows\[3\]\.quartiles: wanted two quartiles"),
        (lambda s: s["rows"][3].update(over={"numpy": 2}), r"rows\[3\]\.over: wanted an object of \[q1, median, q3\]"),
        (lambda s: s["rows"][3].update(agreement={"output": "good"}), r"agreement: wanted a number, got 'good'"),
        (lambda s: s["ceilings"][0].update(rate=-1), r"ceilings\[0\]\.rate"),
        (lambda s: s.update(versions=["numpy"]), "versions: wanted an object of texts"),
        (lambda s: s.update(load=[1.0]), "load: wanted two load averages"),
        (lambda s: s["rows"][3].update(steps=0.5), r"rows\[3\]\.steps: wanted a whole number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_result(store(tmp_path, wrong(change)))


def test_files_that_are_no_results_are_skipped_and_said(tmp_path: Path) -> None:
    store(tmp_path / "deeper", made_up())
    store(tmp_path, {"cpu": "old"}, "old.json")
    results, skipped = read_folder(tmp_path)
    assert [result.name for result in results] == ["deeper/made-up.json"]
    assert skipped == ['old.json: skipped, has no "format": 1']
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.json: wanted a JSON file"):
        read_folder(tmp_path)


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one result file"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="wanted a folder"):
        read_folder(tmp_path / "none")


def test_not_a_number_was_not_measured(tmp_path: Path) -> None:
    stored = made_up()
    stored["rows"][0]["peak_memory_gib"] = float("nan")
    assert read_result(store(tmp_path, stored)).rows[0].peak_memory_gib is None


def test_the_older_gpu_files_give_rows_with_their_own_figures() -> None:
    results, skipped = read_folder(H200.parent / "h200")
    (result,) = results
    assert (skipped, result.machine["name"]) == ([], "NVIDIA H200")
    rows = {(row.case, row.batch, row.precision, row.contender): row for row in result.rows if row.level == "steps"}

    ours = json.loads((H200 / "bench-ours-cifar10-train-128-tf32.json").read_text(encoding="utf-8"))
    row = rows["train cifar10", 128, "tf32", "cupy"]
    assert (row.ours, row.median, row.peak_memory_gib) == (
        True, ours["graph"]["median_ms"] / 1e3, ours["graph"]["held_gib"],
    )  # fmt: skip
    assert rows["train cifar10", 128, "tf32", "cupy eager"].median == ours["eager"]["median_ms"] / 1e3

    torch = json.loads((H200 / "bench-torch-cifar10-train-128.json").read_text(encoding="utf-8"))["rows"]
    for one in torch:
        row = rows["train cifar10", 128, one["precision"], f"torch {one['mode']}"]
        assert not row.ours and one["mode"] != "compile"
        assert list(row.seconds) == [ms / 1e3 for ms in one["milliseconds"]]
        assert row.compile_seconds == one["warm_up_seconds"]

    # A compiled network in a CUDA graph is what the runner calls by this name.
    compiled = json.loads((H200 / "bench-torch-compile-cifar10-train-128.json").read_text(encoding="utf-8"))["rows"]
    for one in compiled:
        row = rows["train cifar10", 128, one["precision"], "torch compiled graph"]
        assert one["mode"] == "compile" and list(row.seconds) == [ms / 1e3 for ms in one["milliseconds"]]
    assert not any(row.contender == "torch compile" for row in result.rows)

    # No file is forgotten: two rows of each of ours, those of PyTorch's, three of each convolution's pass.
    stored = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in H200.glob("*.json")}
    steps = sum(2 if "-ours-" in name else len(one["rows"]) for name, one in stored.items() if name != "conv.json")
    assert len(result.rows) == steps + 3 * len(stored["conv.json"])

    first = stored["conv.json"][0]  # 128 images of 32x32, 128 channels to 128, nine taps
    conv = next(row for row in result.rows if row.level == "loops")
    assert (conv.median, conv.flops, conv.bytes) == (
        first["own"] / 1e3,
        2 * 128 * 32**2 * 9 * 128**2,
        4 * 128**2 * 2**11,
    )
    assert conv.fraction == pytest.approx(first["floor_ms"] / first["own"])


def test_older_files_of_two_cards_are_refused(tmp_path: Path) -> None:
    for card, precision in (("A", "tf32"), ("B", "bf16")):
        ours = {"step": "digits:train:128", "precision": precision, "card": card}
        store(
            tmp_path,
            ours | {"graph": {"median_ms": 2.0, "held_gib": 1.0}},
            f"bench-ours-digits-train-128-{precision}.json",
        )
    with pytest.raises(ValueError, match="wanted files of one card, got A, B"):
        read_folder(tmp_path)
    store(tmp_path, {"rows": [{"mode": "eager"}]}, "bench-torch-digits-train-128.json")
    with pytest.raises(ValueError, match=r"bench-torch-digits-train-128\.json: not a file of benchmarks/gpu\.py"):
        read_folder(tmp_path)

"""`ddpm-ref paper`: one folder and one page, the same whether it was filled at once or in several goes."""

import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_ablation import results, small_setup
from test_page import Reader

from ddpm_ref import Backend, cli
from ddpm_ref.experiments import autoregressive, coding, paper, paper_parts
from ddpm_ref.experiments.forecast import Pace, forecast, pace
from ddpm_ref.experiments.paper import chosen_parts, fill
from ddpm_ref.experiments.paper_parts import NAMES, PARTS, Plan, Work, open_work
from ddpm_ref.experiments.paper_sections import spread

PLAN = Plan("digits", "noise", 12, seed=3, seeds=1, every=3, weights="ema", clip=True, temperature=1.0, batch=5,
            quick=False)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network and 36 pictures in place of the preset's, two pairs of images."""
    make_small(monkeypatch)


def make_small(patch: pytest.MonkeyPatch) -> None:
    train, held_out, shape = autoregressive.binary_digits()
    patch.setattr(paper_parts, "new_setup", lambda *_, **__: small_setup())
    patch.setattr(paper_parts, "PAIRS", 2)
    patch.setattr(autoregressive, "binary_digits", lambda: (train[:60], held_out[:30], shape))
    patch.setattr(coding, "measure", functools.partial(coding.measure, toys=("gaussian",), copies=(1, 2)))
    patch.setattr(coding, "FEWEST_COPIES", 8)
    patch.setattr(coding, "FEWEST_MESSAGES", 4)


def begin(folder: Path, plan: Plan = PLAN) -> Work:
    return open_work(folder, plan, Backend())


def files(folder: Path) -> dict[str, Any]:
    """What a folder holds, but for "facts" (when and by which command) and what `results` leaves out."""
    found: dict[str, Any] = results(folder / "ablation")
    for path in folder.rglob("*.*"):
        name = str(path.relative_to(folder))
        if (name.startswith("ablation/") and name.count("/") > 1) or not path.is_file():
            continue
        found[name] = path.read_bytes()
        if path.suffix == ".json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "facts"}
    del found["ablation.json"]  # with its facts; "ablation/ablation.json" is without
    found["index.html"] = found["index.html"].replace(str(folder).encode(), b"FOLDER")  # in commands
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder filled at once."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        work = begin(tmp_path_factory.mktemp("whole") / "paper")
        fill(work, PARTS)
    return work.folder


def test_every_part_leaves_its_folder_and_its_section(whole: Path) -> None:
    page = (whole / "index.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    for part in PARTS:
        assert (whole / part.name / "done").exists() and part.name in reader.anchors
        assert any(part.title in text for text in reader.texts["h2"])
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.anchors)
    assert all(source.startswith("data:image/") for source in reader.sources) and len(reader.sources) > 10
    assert "Not here yet" not in page


def test_a_page_of_some_parts_says_what_is_missing(tmp_path: Path) -> None:
    work = begin(tmp_path / "paper")
    fill(work, chosen_parts(["coding"]))
    page = (work.folder / "index.html").read_text(encoding="utf-8")
    assert "Not here yet: What to predict, and what to train on; Likelihood, term by term; Progressive coding;" in page


def test_the_page_shows_the_numbers_that_the_files_hold(whole: Path) -> None:
    page = (whole / "index.html").read_text(encoding="utf-8")
    table = json.loads((whole / "ablation" / "ablation.json").read_text())["result"]
    for cell in table["cells"]:
        assert spread(cell["mean"]["frechet_features"], None) in page
    held_out = json.loads((whole / "likelihood" / "likelihood.json").read_text())["result"]["held-out"]
    assert spread(held_out["total"], held_out["total_error"]) in page
    assert "7.67 / 13.51" in page and "≤ 3.75" in page  # the paper's, of Tables 2 and 1


@pytest.mark.parametrize("stop_in", ["ablation", "neighbours"])
def test_a_folder_that_was_stopped_and_gone_on_with_is_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_in: str
) -> None:
    work = begin(tmp_path / "paper")

    def stopping(run: Callable[..., None]) -> Callable[..., None]:
        def until(work: Work, folder: Path, advance: Callable[[int], object]) -> None:
            calls = 0

            def some(n: int) -> None:
                nonlocal calls
                calls += 1
                if calls == 7:
                    raise KeyboardInterrupt
                advance(n)

            if folder.name == "neighbours":  # has one call at its end: stop before it is marked as done
                run(work, folder, advance)
                raise KeyboardInterrupt
            run(work, folder, some)

        return until

    cut = [
        part if part.name != stop_in else part.__class__(*(*vars(part).values(),)[:-1], stopping(part.run))
        for part in PARTS
    ]
    with pytest.raises(KeyboardInterrupt):
        fill(work, cut)
    assert not (work.folder / stop_in / "done").exists()
    fill(begin(work.folder), PARTS)
    assert files(work.folder) == files(whole)


def test_a_folder_of_other_settings_is_refused_by_name(whole: Path) -> None:
    other = Plan(**{**vars(PLAN), "seeds": 2})
    with pytest.raises(ValueError, match=r"plan.seeds = 1 before, 2 now; choose another folder"):
        begin(whole, other)


def test_a_folder_whose_beginning_was_killed_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    folder.mkdir()
    for name in (".writable", ".paper.json.123.tmp"):
        (folder / name).write_text("")
    assert begin(folder).folder == folder and [path.name for path in folder.iterdir()] == ["paper.json"]


def test_what_is_done_is_not_done_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file() and path.name != "index.html"
    }
    fill(begin(whole), PARTS)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_parts_bring_what_they_rest_on() -> None:
    assert [p.name for p in chosen_parts(None)] == list(NAMES)
    assert [p.name for p in chosen_parts(["coding"])] == ["coding"]
    assert [p.name for p in chosen_parts(["rate_distortion"])] == ["ablation", "likelihood", "rate_distortion"]
    with pytest.raises(ValueError, match="parts: wanted"):
        chosen_parts(["table 5"])


def test_the_forecast_counts_what_is_left(whole: Path, tmp_path: Path) -> None:
    cells = {name: 1.0 for name in ("mu-learned", "mu-fixed", "mu-simple", "eps-learned", "eps-fixed", "eps-simple")}
    new = forecast(begin(tmp_path / "paper"), PARTS, Pace(cells, draw=0.0, rate=0.0))
    assert new["ablation"] == 6 * 12  # six cells of 12 steps, a second each
    drawn = forecast(begin(tmp_path / "paper"), PARTS, Pace(dict.fromkeys(cells, 0.0), draw=1.0, rate=0.0))
    assert drawn["ablation"] == 6 * 10 * 3  # T = 10, 12 images in batches of 5
    assert forecast(begin(whole), PARTS, Pace(cells, 1.0, 1.0)) == {}


def test_the_pace_is_measured() -> None:
    setup = small_setup()
    found = pace(setup, [paper.CELLS["eps-simple"]], Backend(), batch=2)
    assert 0 < found.train["eps-simple"] < 5 and 0 < found.draw < 5 and 0 < found.rate < 5


def test_the_command_on_the_page_makes_the_same_plan() -> None:
    from ddpm_ref.cli import _parser

    for words in (["--quick"], ["--seeds", "2", "--no-clip", "--steps", "7"], ["--draw-batch", "50", "--seed", "4"]):
        plan = paper.new_plan(_parser().parse_args(["paper", *words]))
        again = ["paper", *(["--quick"] if plan.quick else []), *shlex.split(" ".join(paper._differing(plan)))]
        assert paper.new_plan(_parser().parse_args(again)) == plan


@pytest.mark.parametrize("words", [["--steps", "0"], ["--seeds", "0"], ["--every", "-1"]])
def test_bad_numbers_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from ddpm_ref.cli import main

    assert main(["paper", *words]) == 2
    assert f"{words[0]}: wanted an integer >= 1, got {words[1]}" in capsys.readouterr().err


def test_a_network_that_learned_nothing_is_not_judged(whole: Path) -> None:
    """Its cell is out of range or not; what rests on a network with --quick, or on such a one, has no verdict."""
    quick = Plan(**{**vars(PLAN), "quick": True})
    work = Work(whole, quick, small_setup(), Backend())
    before = (whole / "index.html").read_bytes()
    paper.write_page(work)
    items = re.findall(r'<span class="verdict">([^<]*)</span> ([^<]*)', (whole / "index.html").read_text("utf-8"))
    (whole / "index.html").write_bytes(before)
    verdicts = {text: verdict for verdict, text in items}
    assert [v for text, v in verdicts.items() if "large-scale features" in text] == ["not judged:"] * 2
    assert {v for text, v in verdicts.items() if "masking chain" in text} == {"holds:"}


def test_a_command_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paper, "fill", stopped)
    words = ["paper", "--parts", "coding", "--out", str(tmp_path / "out"), "--backend", "numpy"]
    assert cli.main(words) == 130
    said = capsys.readouterr().out
    assert "give the same command again to go on" in said and re.search(
        r"about \d+ (s|min) on this machine: coding", said
    )


def test_minutes_reads_well() -> None:
    assert [paper.minutes(s) for s in (12, 89, 90, 1500)] == ["12 s", "89 s", "2 min", "25 min"]
    assert re.fullmatch(r"\d+ (s|min)", paper.minutes(61))

"""experiments/page.py: one HTML file that is well formed, needs no other, and shows what it was given."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.experiments.page import Page, show
from ddpm_ref.pictures import save_png

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """What a browser sees: text by tag, links and sources; every tag must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.anchors: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            kept = {"src": self.sources, "id": self.anchors, "href": self.links}.get(name)
            if kept is not None:
                kept.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def read(page: Page, path: Path) -> Reader:
    reader = Reader()
    reader.feed(page.write(path).read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


@given(text=st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40))
def test_any_text_comes_back_as_it_was_given(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    page = Page(text)
    page.text(text)
    page.command(text)
    page.table([text, "b"], [[text, 1]], text)
    seen = read(page, tmp_path_factory.getbasetemp() / "any.html").texts
    assert all("".join(seen[tag]) == text for tag in ("title", "h1", "p", "code", "caption"))
    assert seen["td"] == [text, "1"] and seen["th"] == [text, "b"]


def test_every_picture_is_inside_and_every_link_has_its_target(tmp_path: Path, rng: np.random.Generator) -> None:
    path = save_png(tmp_path / "picture.png", rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    page = Page("A page")
    page.contents([("first", "First")])
    page.section("First", "Table 1", "first")
    page.picture(path, "what it shows")
    seen = read(page, tmp_path / "index.html")
    kind, _, data = seen.sources[0].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == path.read_bytes()
    assert [link.lstrip("#") for link in seen.links] == seen.anchors == ["first"]
    assert seen.texts["figcaption"] == ["what it shows"]


def test_the_same_page_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        page = Page("t")
        page.items([("holds:", "a claim")])
        page.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, "–"), (3.14159, "3.142"), (12345.6, "12,346"), (1234567, "1,234,567"), ("x", "x"), (0.0, "0"),
     (7.3e-6, "7.3e-06")],
)  # fmt: skip
def test_cells_show_four_digits(cell: str | int | float | None, text: str) -> None:
    assert show(cell) == text


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: wanted 2 cells"):
        Page("t").table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match=r"path: wanted a .png"):
        Page("t").picture(tmp_path / "x.svg")

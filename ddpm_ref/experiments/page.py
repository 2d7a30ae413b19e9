"""One HTML page that needs no other file: text, tables and pictures, each put in as it comes."""

import base64
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from ddpm_ref.files.atomic import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #62626a; --line: #d9d9de; --paper: #fff; --tint: #f4f4f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9ec; --soft: #a0a0a8; --line: #3a3a40; --paper: #161618; --tint: #222226 }
}
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.2rem 6rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25 }
h2 { margin-top: 3.5rem; padding-top: .8rem; border-top: 1px solid var(--line) }
.of { color: var(--soft); font-weight: normal; font-size: .95rem; margin-left: .6rem }
p, li { max-width: 48rem } figure { margin: 1.5rem 0; overflow-x: auto }
figcaption, caption { color: var(--soft); font-size: .88rem; text-align: left; max-width: 48rem }
caption { caption-side: bottom; padding-top: .5rem } img { max-width: 100%; background: #fff; border-radius: 4px }
.wide { overflow-x: auto; margin: 1.2rem 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { color: var(--soft); font-weight: 600; font-size: .88rem }
code, pre { font: .88rem/1.5 ui-monospace, monospace; background: var(--tint); border-radius: 4px }
code { padding: .1rem .3rem } pre { padding: .6rem .8rem; overflow-x: auto } pre code { padding: 0 }
.verdict { font-weight: 600 }
"""

Cell = str | int | float | None


class Page:
    """A page that grows from top to bottom; `write` makes the file."""

    def __init__(self, title: str) -> None:
        self.root = Element("html", lang="en")
        head = SubElement(self.root, "head")
        SubElement(head, "meta", charset="utf-8")
        SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
        SubElement(head, "title").text = title
        SubElement(head, "style").text = STYLE
        self.body = SubElement(self.root, "body")
        SubElement(self.body, "h1").text = title

    def section(self, title: str, of: str = "", anchor: str = "") -> None:
        """A heading; of: the table, figure or section of the paper."""
        heading = SubElement(self.body, "h2", {"id": anchor} if anchor else {})
        heading.text = title
        if of:
            SubElement(heading, "span", {"class": "of"}).text = of

    def contents(self, entries: Sequence[tuple[str, str]]) -> None:
        """Links to sections: (anchor, title)."""
        items = SubElement(self.body, "ul")
        for anchor, title in entries:
            SubElement(SubElement(items, "li"), "a", href=f"#{anchor}").text = title

    def text(self, text: str) -> None:
        """A paragraph."""
        SubElement(self.body, "p").text = text

    def items(self, rows: Sequence[tuple[str, str]]) -> None:
        """A list; of each (first, rest) the first stands out."""
        items = SubElement(self.body, "ul") if rows else self.body
        for first, rest in rows:
            item = SubElement(items, "li")
            strong = SubElement(item, "span", {"class": "verdict"})
            strong.text, strong.tail = first, f" {rest}"

    def command(self, command: str) -> None:
        """A command as it is typed."""
        SubElement(SubElement(self.body, "pre"), "code").text = command

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "") -> None:
        """Rows under a header; numbers to four significant digits, None as a dash."""
        table = SubElement(SubElement(self.body, "div", {"class": "wide"}), "table")
        if caption:
            SubElement(table, "caption").text = caption
        line = SubElement(SubElement(table, "thead"), "tr")
        for name in header:
            SubElement(line, "th").text = name
        body = SubElement(table, "tbody")
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"rows: wanted {len(header)} cells in each, got {len(row)}")
            line = SubElement(body, "tr")
            for cell in row:
                SubElement(line, "td").text = show(cell)

    def picture(self, path: Path, caption: str = "") -> None:
        """A PNG or GIF file, put into the page."""
        kind = path.suffix[1:].lower()
        if kind not in ("png", "gif"):
            raise ValueError(f"path: wanted a .png or .gif file, got {path}")
        data = base64.b64encode(path.read_bytes()).decode()
        figure = SubElement(self.body, "figure")
        SubElement(figure, "img", src=f"data:image/{kind};base64,{data}", alt=caption or path.stem, loading="lazy")
        if caption:
            SubElement(figure, "figcaption").text = caption

    def append(self, other: "Page") -> None:
        """All of another page but its title."""
        self.body.extend(list(other.body)[1:])

    def write(self, path: Path) -> Path:
        """The page as a file, replaced as a whole."""
        write_text(path, f"<!DOCTYPE html>\n{tostring(self.root, encoding='unicode', method='html')}\n")
        return path


def show(cell: Cell) -> str:
    """A cell's text: four significant digits, thousands apart, a dash for None."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 9999.5 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)

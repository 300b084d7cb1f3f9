"""Making a report, and reading its page and its tables."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

from ima_dist.report import __main__


class Page(HTMLParser):
    """Cells of every table row, texts of each element, addresses, images; fails where tags do not nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.alts: list[str | None] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "data") and v is not None]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def row(self, *starts: str) -> list[str]:
        (found,) = [r for r in self.rows if all(cell.startswith(s) for cell, s in zip(r, starts, strict=False))]
        return found


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report_on(out: Path, *paths: Path) -> Page:
    assert __main__.main([*map(str, paths), "--out", str(out)]) == 0
    return Page((out / "report.html").read_text(encoding="utf-8"))

"""The frame of HTML pages: escaping, structure, no network."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from gdr_plugin.report.page import Raw, page, render, table


class _Elements(HTMLParser):
    """Every start tag with its attributes, and that all elements are closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr", "path", "line", "circle", "rect"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_is_not_raw_is_escaped() -> None:
    body = table(["<i>", "n"], [["<script>alert(1)</script>", 1]], caption="a & b")
    document = page("<b>title</b>", body, script="void 0")
    elements = _Elements(document)
    assert [tag for tag, _ in elements.tags if tag in ("script", "b", "i")] == ["script"]
    assert "<script>alert(1)</script>" in elements.text
    assert "&lt;b&gt;bold" in page("t", "<b>bold</b>")  # a body that is plain text is shown as text
    assert "<b>bold" in page("t", Raw("<b>bold</b>"))


def test_document_allows_nothing_but_its_own_script() -> None:
    script = "document.title = 'a<b && c'"
    document = page("t", Raw("<p>x</p>"), script=script)
    policy = next(tag["content"] for name, tag in _Elements(document).tags if "http-equiv" in tag) or ""
    assert policy.startswith("default-src 'none'")
    (written,) = re.findall(r"<script>(.*?)</script>", document, flags=re.DOTALL)
    assert written == script
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "script-src 'none'" in page("t", Raw("<p>x</p>"))
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(|@import|https?:", document)


def test_document_is_accessible() -> None:
    elements = _Elements(page("Scores", Raw("<h2>More</h2>")))
    names = [name for name, _ in elements.tags]
    assert dict(elements.tags)["html"]["lang"] == "en"
    assert names.count("h1") == names.count("main") == 1
    skip = next(attrs for name, attrs in elements.tags if name == "a")
    assert skip["href"] == "#content"
    assert dict(elements.tags)["main"]["id"] == "content"


def test_table_has_headers_and_aligns_numbers() -> None:
    elements = _Elements(
        table(["subset", "accuracy", "n"], [["easy", "0.64 (0.60-0.68)", 12], ["hard", None, 3]], caption="c")
    )
    cells = [(name, attrs) for name, attrs in elements.tags if name in ("th", "td")]
    assert [attrs.get("scope") for name, attrs in cells if name == "th"] == ["col"] * 3 + ["row"] * 2
    assert [attrs.get("class") for _, attrs in cells] == [None, "number", "number"] * 3
    assert "\N{EN DASH}" in elements.text
    with pytest.raises(ValueError, match="has 1 cells, its header 2"):
        table(["a", "b"], [["x"]], caption="c")


def test_document_can_always_be_written() -> None:
    assert "half \N{REPLACEMENT CHARACTER}" in page("t", "half \ud83d").encode().decode()


def test_style_and_script_cannot_end_early() -> None:
    with pytest.raises(ValueError, match="script"):
        page("t", "", script="x = '</script>'")


def test_render_escapes_values() -> None:
    assert "&lt;x&gt;" in render("table.html", headers=["<x>"], rows=[], numeric=[False], caption="c", hidden=False)

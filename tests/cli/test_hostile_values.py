"""Values that others wrote, wherever they are shown: no page has an element of theirs, no line of ours is forged."""

from __future__ import annotations

import json
import logging
import unicodedata
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from gdr_plugin.api.errors import DataError, DataWarning
from gdr_plugin.logs import LineFormatter, logger

Gdr = Callable[..., tuple[int, str, str]]

MARKUP = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'></td></table><svg onload=alert(1)> {{7*7}} "
    '{% x %} <a href="javascript:alert(1)">a</a> &lt;b&gt; [l](javascript:alert(1)) ![i](http://evil.example/i.png) '
    "<!-- `c` **b** | $x$ https://evil.example www.evil.example"
)
"""What would become something on a page, in a card or in a template."""
LINE = "a\r\n\x1b[2K\x1b[1Agdr: all is well\u2028gdr: 5 rows\u0085\u009b2J\x08\u202ez"
"""What would forge a line or command a terminal."""


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.names: set[tuple[str, ...]] = set()
        self.values: list[str] = []
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add((tag, *(name for name, _ in attrs)))
        self.values += [value or "" for name, value in attrs if name in ("href", "src", "style", "id", "class")]

    def handle_comment(self, data: str) -> None:
        self.names.add(("comment",))

    def handle_data(self, data: str) -> None:
        self.text += data


def world(bad: str) -> None:
    """Inputs of every command with a value in every place that reaches a page; none of it may hold a `/` in a path."""
    name = bad.replace("/", "")[:80]
    guidance = {"name": "own", "description": bad, "instruction": bad}  # names and domains are words, and checked
    exemplar = {"id": "one", "prompt": bad, "good": bad, "bad": "worse", "why": bad, "principle": bad}
    Path("guidance.yaml").write_text(yaml.safe_dump({**guidance, "exemplars": [exemplar]}))
    settings = {
        "strong": f"fake:s{bad}",
        "weak": f"fake:w{bad}",
        "guidance": {"files": ["guidance.yaml"], "domains": {"own": "own", "chat": "none"}, "exemplars": 1},
        "routing": {"routers": ["field"], "default_domain": "chat"},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(settings))
    rows: list[dict[str, Any]] = [
        {
            "id": f"{number} {bad}",
            "domain": "own" if number % 2 else "chat",
            "prompt": [{"role": "system", "content": bad}, {"role": "user", "content": f"{number} {bad}"}],
            "chosen": f"{bad} {number}",
            "rejected": f"{number} {bad}",
            "subset": bad,
            "category": bad,
        }
        for number in range(6)
    ]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "cut')
    own = [{"id": bad, "prompt": bad, "responses": {"own": bad, "formal": f"{bad} 2"}}]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    prompts = [
        {"id": bad, "prompt": bad, "domain": "own", "responses": ["a", "b", bad]},
        {"prompt": "x", "responses": []},
    ]
    Path(f"p{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))


PAGES = {
    "explain": "explain DATA --limit 6 -o page.html -c CONFIG",
    "evaluate": "evaluate DATA --skip-bad --ablations --html page.html -c CONFIG",
    "pairs": "pairs fake:aNAME fake:bNAME DATA --skip-bad --html page.html -c CONFIG",
    "controllability": "controllability own.jsonl --html page.html -c CONFIG",
}


def page(gdr: Gdr, folder: Path, command: str, bad: str) -> str:
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        world(bad)
        name = bad.replace("/", "")[:80]
        words = {"DATA": f"{name}.jsonl", "CONFIG": f"{name}.yaml", "fake:aNAME": f"fake:a{bad}"}
        words |= {"fake:bNAME": f"fake:b{bad}"}
        code, _, err = gdr(*(words.get(word, word) for word in command.split()))
        assert code == 0, err
        return Path("page.html").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # a figure has no room for such names
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_our_elements_only(name: str, gdr: Gdr, tmp_path: Path) -> None:
    harmless = Elements(page(gdr, tmp_path / "a", PAGES[name], "harmless words of nobody"))
    document = page(gdr, tmp_path / "b", PAGES[name], MARKUP)
    hostile = Elements(document)
    assert hostile.names <= harmless.names
    assert not [value for value in hostile.values if "alert" in value or "evil" in value]
    assert document.count("<script") == harmless.names.issuperset({("script",)})
    assert "</script><script>alert(1)</script><img src=x" in hostile.text.replace("\n", "")  # it is shown as it is
    assert "{{7*7}}" in hostile.text
    assert "{% x %}" in hostile.text


def test_a_card_has_our_elements_only(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = {}
    for which, bad in (("harmless", "harmless words of nobody"), ("hostile", MARKUP)):
        (tmp_path / which).mkdir()
        monkeypatch.chdir(tmp_path / which)
        world(bad)
        name = bad.replace("/", "")[:80]
        code, _, err = gdr("annotate", f"p{name}.jsonl", "-o", "out", "-c", f"{name}.yaml")
        assert code == 0, err
        _, head, body = Path("out", "README.md").read_text("utf-8").split("---\n", 2)
        assert yaml.safe_load(head)["pretty_name"] == "Guided density ratio preferences"
        made[which] = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body)
    harmless, hostile = Elements(made["harmless"]), Elements(made["hostile"])
    assert hostile.names <= harmless.names
    assert not {"a", "img", "script", "svg", "strong"} & {name for name, *_ in hostile.names}
    assert "![i](http://evil.example/i.png)" in hostile.text
    assert "<img src=x onerror=alert(1)>" in hostile.text


def forged(text: str) -> list[str]:
    """What stands at the margin of a line and is none of ours, and what a terminal would obey."""
    found = [line for line in text.splitlines() if line.startswith(("gdr: all is well", "gdr: 5 rows"))]
    return found + [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.mark.filterwarnings("ignore:the column")
def test_a_line_cannot_be_forged(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, domains, columns, models, files: in errors, notes, tables and JSON."""
    monkeypatch.chdir(tmp_path)
    world(LINE.replace("\n", " "))
    name = LINE.replace("\n", " ")[:80]
    bad, config = LINE, ("-c", f"{name}.yaml")
    wrong = {
        "twice.jsonl": [{"id": bad, "prompt": "p", "response": "a"}] * 2,
        "domain.jsonl": [{"prompt": "p", "response": "a", "domain": bad}],
        "column.jsonl": [{bad: "p", "response": "a"}],
        "role.jsonl": [{"prompt": [{"role": bad, "content": "x"}], "response": "a"}],
        "unused.jsonl": [{"prompt": "p", "response": "a", "instruction": "x", "input": "y"}],
    }
    for file, rows in wrong.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("broken.yaml").write_text(yaml.safe_dump({"strong": "fake:a", "weak": "fake:b", bad: 1}))
    Path("unknown.yaml").write_text(yaml.safe_dump({"strong": f"{bad}:a", "weak": "fake:b"}))
    said = []
    for command in (
        *(("score", file, *config) for file in wrong),
        ("score", f"{bad}.jsonl", *config),
        ("score", "twice.jsonl", "-o", f"{bad}/out.jsonl", *config),
        ("score", "twice.jsonl", "--map", f"prompt={bad}", *config),
        ("score", "twice.jsonl", "-c", "broken.yaml"),
        ("check", "broken.yaml"),
        ("check", "unknown.yaml"),
        ("check", f"{name}.yaml"),
        ("check", f"{name}.yaml", "--json"),
        ("guidance", "-c", f"{name}.yaml"),
        ("guidance", bad),
        ("evaluate", f"{name}.jsonl", "--skip-bad", *config),
        ("evaluate", f"{name}.jsonl", "--skip-bad", "--json", *config),
        ("pairs", f"fake:{bad}", "fake:b", f"{name}.jsonl", "--skip-bad"),
        ("annotate", f"p{name}.jsonl", "-o", f"out {bad}", *config),
        ("explain", f"{name}.jsonl", "--limit", "2", "-o", "p.html", *config),
        ("controllability", "own.jsonl", *config),
        ("store", "info", ".gdr/store.sqlite"),
        ("store", "info", f"{bad}.sqlite"),
        ("init", f"{bad}.yaml"),
        ("plan", f"{name}.yaml"),
    ):
        _, out, err = gdr(*command)
        said.append((command[0], out + err))
        if "--json" in command:
            assert json.loads(out)  # JSON stays JSON
        assert forged(out) == [], command
        assert forged(err) == [], command
        assert "internal error" not in err, err
    shown = [command for command, text in said if "all is well" in text]
    assert len(shown) > 12  # the value itself is shown, not left out


def test_what_is_json_says_the_same(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text(yaml.safe_dump({"strong": f"fake:{LINE}", "weak": "fake:b"}))
    code, out, _ = gdr("check", "--json")
    assert code == 0
    assert json.loads(out)["strong"]["model"] == f"fake:{LINE}"


def test_logs_errors_and_warnings_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    assert str(DataError(LINE)) == r"a \x1b[2K\x1b[1Agdr: all is well gdr: 5 rows \x9b2J\x08\u202ez"
    with pytest.warns(DataWarning) as caught:
        warnings.warn(LINE, DataWarning, stacklevel=1)
    assert "\n" not in str(caught[0].message)
    ours = logger("gdr_plugin.test")
    with caplog.at_level(logging.WARNING, "gdr_plugin.test"):
        ours.warning("a value: %s (%d)", LINE, 7)
        try:
            raise ValueError(LINE)
        except ValueError as error:
            ours.error("it failed", exc_info=error)
    first, second = caplog.records
    assert (
        first.getMessage() == r"a value: a\r\n\x1b[2K\x1b[1Agdr: all is well\u2028gdr: 5 rows\x85\x9b2J\x08\u202ez (7)"
    )
    for formatter in (logging.Formatter("%(message)s"), LineFormatter("%(message)s")):
        lines = formatter.format(second).splitlines()
        assert lines[0] == "it failed"
        assert len(lines) > 3
        assert all(line.startswith("    ") for line in lines[1:])
        assert forged("\n".join(lines)) == []
    other = logging.LogRecord("uvicorn.error", logging.ERROR, "x.py", 1, LINE, (), None)
    assert forged(LineFormatter("%(message)s").format(other)) == []


def test_progress_is_a_line_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Models give stages their names."""
    from rich.console import Console

    from gdr_plugin.cli.progress import Lines, _bars

    lines = Lines("rows")
    lines.show(f"scoring {LINE}", 1, 10)
    assert forged(lines.line()) == []
    assert "all is well" in lines.line()
    console = Console(width=200, record=True, force_terminal=False)
    with _bars("rows", console) as show:
        show("scoring [red]m[/blue]", 1, 10)
    assert "scoring [red]m[/blue]" in console.export_text()


def test_cells_that_a_spreadsheet_would_run(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command writes CSV; what is read from CSV is the text that stands there, and a number stays one."""
    monkeypatch.chdir(tmp_path)
    texts = ["=1+1", "+1", "-0.5", "@SUM(A1)", "\t=1", "=cmd|' /C calc'!A0"]
    Path("gdr.yaml").write_text("strong: fake:a\nweak: fake:b\n")
    rows = "".join(f'"{text}","{text}"\n' for text in texts)
    Path("rows.csv").write_text(f"prompt,response\n{rows}")
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": text, "response": text}) + "\n" for text in texts))
    found = []
    for source in ("rows.csv", "rows.jsonl"):
        code, out, _ = gdr("score", source, "--keep")
        assert code == 0
        found.append([json.loads(line) for line in out.splitlines()])
    assert found[0] == found[1]
    assert [row["response"] for row in found[0]] == texts

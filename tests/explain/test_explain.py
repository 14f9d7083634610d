"""`gdr explain`: what is on the page, that it is safe, and that its numbers are those of `gdr score`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.types import Message, Sample, Score, ToolCall
from gdr_plugin.explain.shown import Shown
from gdr_plugin.reward.reward import GuidedDensityRatio

CONFIG = """
strong: "{strong}"
weak: "fake:b"
guidance: {{domains: {{chat: none, safety: safety}}, placement: {placement}}}
routing: {{routers: [field], default_domain: chat}}
reward: {{reduction: {reduction}}}
"""
NASTY = "<script>alert('x')</script>\n\tTabs &amp; e\u0301 👨‍👩‍👧 \u202eevil\u202c 🇩🇪\u0007"
PAIRS: list[dict[str, Any]] = [
    {"id": "p1", "domain": "safety", "prompt": "Say <b>it</b>", "chosen": NASTY, "rejected": "No."},
    {"id": "p2", "prompt": "Und?", "chosen": "The reward, 好的!", "rejected": "Nein."},
]


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if child.tag == tag and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(tag, **attributes)
        return found


class Tree(HTMLParser):
    def __init__(self, document: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.stack = [self.root]
        self.feed(document)
        assert self.stack == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in ("meta", "input", "br"):
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.stack[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


Explain = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(gdr: Explain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Run `gdr` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    configure()
    write("pairs.jsonl", PAIRS)
    return gdr


def configure(strong: object = "fake:a", placement: str = "both", reduction: str = "sum") -> None:
    Path("gdr.yaml").write_text(CONFIG.format(strong=strong, placement=placement, reduction=reduction))


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree(name: str = "explain.html") -> Element:
    return Tree(Path(name).read_text(encoding="utf-8")).root


def panels(root: Element) -> dict[str, Element]:
    """Row number and name -> panel."""
    found = {}
    for number, article in enumerate(root.all("article"), start=1):
        for panel in article.all("section"):
            heading = panel.all("h3")[0].text.rpartition(" ")[0]
            found[f"{number} {heading}"] = panel
    return found


def values(panel: Element) -> list[list[str]]:
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in panel.all("tr")[1:]]


def as_number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_numbers_are_those_of_gdr_score(gdr: Explain, reduction: str) -> None:
    configure(reduction=reduction)
    code, out, err = gdr("explain", "pairs.jsonl", "-o", "page.html")
    assert (code, out, err) == (0, "page.html: 2 rows, 4 responses; open it in a browser\n", "")
    rows = [
        {**{k: row[k] for k in ("prompt", "domain") if k in row}, "response": row[label]}
        for row in PAIRS
        for label in ("chosen", "rejected")
    ]
    write("rows.jsonl", rows)
    guided = [json.loads(line) for line in gdr("score", "rows.jsonl")[1].splitlines()]
    configure(placement="none", reduction=reduction)
    plain = [json.loads(line) for line in gdr("score", "rows.jsonl")[1].splitlines()]
    shown = panels(tree("page.html"))
    names = {
        "1 Chosen, guided": guided[0],
        "1 Rejected, guided": guided[1],
        "1 Chosen, unguided": plain[0],
        "1 Rejected, unguided": plain[1],
        "2 Chosen, no guidance": guided[2],
        "2 Rejected, no guidance": guided[3],
    }
    assert list(shown) == list(names)
    totals = [
        data.attributes["value"]
        for table in tree("page.html").all("article")
        for data in table.all("td")[0].all("data")
    ]
    assert len(totals) == 2
    for name, score in names.items():
        (data,) = shown[name].all("data")
        assert data.attributes["value"] == repr(score["reward"])  # to the last digit
        assert as_number(data.text) == pytest.approx(score["reward"], abs=5e-5)
        lines = values(shown[name])
        assert math.fsum(as_number(line[2]) for line in lines) == pytest.approx(
            score["strong_logprob"] - score["weak_logprob"], abs=1e-4 * len(lines)
        )
        assert as_number(lines[-1][3]) == pytest.approx(score["strong_logprob"] - score["weak_logprob"], abs=1e-4)
        assert math.fsum(as_number(line[4]) for line in lines) == pytest.approx(score["strong_logprob"], abs=0.01)


def test_text_is_text(gdr: Explain) -> None:
    gdr("explain", "pairs.jsonl")
    root = tree()
    assert len(root.all("script")) == 1
    assert root.all("b") == []
    assert "Say <b>it</b>" in root.text
    pieces = panels(root)["1 Chosen, guided"].all("span", role="option")
    assert "".join(piece.text for piece in pieces[:8]) == "<script>"
    text = [piece.text for piece in pieces]
    assert "e\u0301" in text  # a letter and its accent, and emoji of many parts, are one piece
    assert "👨‍👩‍👧" in text
    assert "🇩🇪" in text
    assert text[-1] == "end"
    assert "U+202E" in text  # what turns text around is named, not obeyed
    document = Path("explain.html").read_text(encoding="utf-8")
    assert "\u202e" not in document
    assert "\u0007" not in document
    assert not re.search(r"https?:|src=|@import|url\(", document)


def test_accessibility(gdr: Explain) -> None:
    gdr("explain", "pairs.jsonl")
    root = tree()
    ids = [
        element.attributes["id"]
        for tag in ("h2", "h3", "p", "main")
        for element in root.all(tag)
        if "id" in element.attributes
    ]
    assert len(ids) == len(set(ids))
    for name, panel in panels(root).items():
        assert panel.attributes["aria-labelledby"] in ids
        (box,) = panel.all("div", role="listbox")
        assert box.attributes["aria-label"] == f"{name[2:]}, token by token"
        options = box.all("span", role="option")
        assert [option.attributes["tabindex"] for option in options] == ["0"] + ["-1"] * (len(options) - 1)
        assert len(values(panel)) == len(options)  # the table that says the same, and that the script reads
        assert len(panel.all("div")[0].attributes["data-marks"].split()) == len(options)
        (picture,) = panel.all("svg", role="img")
        assert picture.attributes["aria-label"].startswith(f"{name[2:]}: running sum of the log-ratio")
        # The plain text is there for those who read rather than walk from token to token.
        row = PAIRS[int(name[0]) - 1]["chosen" if "Chosen" in name else "rejected"]
        assert panel.all("p", **{"class": "hidden"})[0].text.split()[0] == row.split()[0]
        for option in options:  # colour is never alone: the class also sets the underline
            assert re.fullmatch(r"t( [pn][1-5])?", option.attributes["class"] or "")
    style = root.all("style")[0].text
    for shade in ("p1", "p5", "n1", "n5"):
        assert re.search(rf"\.{shade}\b[^{{]*{{ text-decoration-color", style)
        assert re.search(rf"\.{shade}\b[^{{]*{{ text-decoration-thickness", style)


def test_models_that_cut_text_differently(gdr: Explain, tiny_model: Callable[..., Path]) -> None:
    configure(strong=tiny_model())
    code, _, err = gdr("explain", "pairs.jsonl", "--id", "p2")
    assert code == 0, err
    panel = panels(tree())["1 Chosen, no guidance"]
    assert "The two models cut text differently" in tree().text
    ratio = GuidedDensityRatio.from_config("gdr.yaml")
    (score,) = ratio.score([Sample((Message("user", "Und?"),), "The reward, 好的!")], tokens=True)
    assert score.reward is not None
    lines = values(panel)
    assert as_number(lines[-1][3]) == pytest.approx(score.reward, abs=1e-4)
    counts = [[int(count) for count in line[6].split(" / ")] for line in lines]
    assert [sum(side) for side in zip(*counts, strict=True)] == [score.strong_tokens, score.weak_tokens]
    assert "".join(line[1].replace("␣", " ") for line in lines[:-1]) == "The reward, 好的!"


def test_rows_with_one_response_and_reasons(gdr: Explain) -> None:
    Path("gdr.yaml").write_text(Path("gdr.yaml").read_text() + "limits: {max_length: 4000}\n")
    write("rows.jsonl", [{"prompt": "p", "response": "r" * n, "domain": "safety"} for n in (3, 9000)])
    code, _, err = gdr("explain", "rows.jsonl")
    assert code == 0, err
    root = tree()
    assert [box.attributes["value"] for box in root.all("input") if "checked" in box.attributes] == ["both"]
    assert "Not scored: strong model: the prompt (" in root.text
    assert len(root.all("div", role="listbox")) == 2
    configure(placement="none")
    gdr("explain", "rows.jsonl", "--limit", "1")
    assert tree().all("input") == []


def test_which_rows(gdr: Explain) -> None:
    many = [{"id": f"r{n}", "prompt": "p", "response": "x"} for n in range(25)]
    write("rows.jsonl", many)
    for options, names in (
        ((), [f"r{n}" for n in range(20)]),
        (("--limit", 3), ["r0", "r1", "r2"]),
        (("--id", "r24", "--id", "r7"), ["r7", "r24"]),
    ):
        assert gdr("explain", "rows.jsonl", *options)[0] == 0
        assert [heading.text for heading in tree().all("h2")] == names


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["absent.jsonl"], "absent.jsonl does not exist"),
        (["-"], "give a file rather than standard input"),
        (["pairs.jsonl", "--id", "p22"], "no row has the id 'p22'; did you mean 'p2'?"),
        (["pairs.jsonl", "--limit", "0"], "--limit must be 1 or more"),
        (["pairs.jsonl", "-o", "no/such.html"], "there is no folder no: make it first"),
        (["pairs.jsonl", "-o", "pairs.jsonl"], "-o pairs.jsonl is an input: name another file"),
        (["pairs.jsonl", "-o", "gdr.yaml"], "-o gdr.yaml is an input"),
        (["pairs.jsonl", "-o", "."], "is a folder: name a file"),
        (["pairs.jsonl", "--format", "plian"], "unknown format 'plian'"),
        (["bad.jsonl"], "bad.jsonl line 2"),
        (["domain.jsonl"], "unknown domain 'saftey'"),
        (["pairs.jsonl", "-c", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_is_refused(gdr: Explain, arguments: list[str], problem: str) -> None:
    write("bad.jsonl", [PAIRS[0], {"prompt": "p", "chosen": 3, "rejected": "x"}])
    write("domain.jsonl", [{**PAIRS[0], "domain": "saftey"}])
    code, out, err = gdr("explain", *arguments)
    assert code == 2
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1
    assert not Path("explain.html").exists()


def test_a_backend_without_places_shows_one_piece() -> None:
    from gdr_plugin.explain.cells import cells

    score = Score(
        *(1.0, None, -3.0, -4.0, 2, 3, "all", "default", "none"),
        strong_token_logprobs=(-1.0, -2.0),
        weak_token_logprobs=(-1.0, -1.0, -2.0),
    )
    (cell,) = cells(score, "text")
    assert (cell.text, cell.ratio, cell.total, cell.strong_tokens, cell.weak_tokens) == ("text", 1.0, 1.0, 2, 3)


def test_common_boundaries_are_exact() -> None:
    from gdr_plugin.explain.cells import cells

    score = Score(
        *(0.0, None, -15.0, -21.0, 4, 6, "all", "default", "none"),
        strong_token_logprobs=(-1.0, -2.0, -4.0, -8.0),
        weak_token_logprobs=(-1.0, -2.0, -3.0, -4.0, -5.0, -6.0),
        # `abcdef`: strong cuts ab|cde|f, weak a|b|cd+half of e|half of e|f; both end with the end of turn.
        strong_token_offsets=((0, 2), (2, 5), (5, 6), (6, 6)),
        weak_token_offsets=((0, 1), (1, 2), (2, 5), (4, 5), (5, 6), (6, 6)),
    )
    found = [(cell.text, cell.strong, cell.weak) for cell in cells(score, "abcdef")]
    assert found == [("ab", -1.0, -3.0), ("cde", -2.0, -7.0), ("f", -4.0, -5.0), ("", -8.0, -6.0)]
    assert [cell.total for cell in cells(score, "abcdef")] == [2.0, 7.0, 8.0, 6.0]


def test_reasoning_is_one_piece_and_calls_are_shown(gdr: Explain) -> None:
    from gdr_plugin.explain.cells import sample_cells, written

    ratio = GuidedDensityRatio.from_models("fake:a", "fake:b")
    asked = (Message("user", "How long?"),)
    call = (ToolCall("timer", '{"minutes": 5}'),)
    thought = Sample(asked, "Ok.", reasoning="Five.")
    (score,) = ratio.score([thought], tokens=True)
    found = sample_cells(score, thought)
    assert [cell.text for cell in found] == ["Five.", "O", "k", ".", ""]
    assert found[-1].total == pytest.approx(score.reward)
    # The fake template writes marks and a line break around the thought: its tokens are the thought's.
    assert [cell.strong_tokens for cell in found] == [len("<think>Five.</think>\n"), 1, 1, 1, 1]
    called = Sample(asked, "Ok.", tool_calls=call)
    (score,) = ratio.score([called], tokens=True)
    (cell,) = sample_cells(score, called)
    assert (cell.text, cell.total) == ('Ok.\ntimer({"minutes": 5})', pytest.approx(score.reward))
    assert written(Message("assistant", "", tool_calls=call)) == 'timer({"minutes": 5})'

    turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "timer", "arguments": {"minutes": 5}}}],
    }
    prompt = [{"role": "user", "content": "Set a timer."}, turn, {"role": "tool", "content": "ok"}]
    write("calls.jsonl", [{"prompt": prompt, "chosen": [turn], "rejected": "Done."}])
    assert gdr("explain", "calls.jsonl")[0] == 0
    assert tree().text.count('timer({"minutes": 5})') >= 2


def test_several_responses_are_judged_as_gdr_evaluate_judges_them(gdr: Explain, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{n}",
            "prompt": f"Name a rock {n}.",
            "chosen": [f"Basalt {n}", f"Marble {n}"],
            "rejected": [f"Steel {n}"],
        }
        for n in range(12)
    ]
    styles = {"id": "s", "prompt": "Q?", "domain": "math", "chosen": ["a", "bb", "ccc"], "rejected": ["d", "ee", "fff"]}
    for name, written in (("lists", rows), ("styles", [styles])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        (tmp_path / f"{name}.yaml").write_text("{strong: 'fake:a', weak: 'fake:b', routing: {routers: []}}")
        assert gdr("explain", f"{name}.jsonl", "-c", f"{name}.yaml", "-o", f"{name}.html")[0] == 0
        assert gdr("evaluate", f"{name}.jsonl", "-c", f"{name}.yaml", "--rows", f"{name}.out")[0] == 0
    judged = [json.loads(line) for line in (tmp_path / "lists.out").read_text().splitlines()]
    said = re.findall(
        r": highest chosen \N{MINUS SIGN} rejected = [^<]*?, ([a-z ]+)\.", (tmp_path / "lists.html").read_text()
    )
    assert {row["correct"] for row in judged} == {0.0, 1.0}
    assert said == ["ranked as labelled" if row["correct"] == 1 else "ranked against the label" for row in judged]
    (row,) = [json.loads(line) for line in (tmp_path / "styles.out").read_text().splitlines()]
    won = round(row["correct"] * 9)
    assert "mean chosen \N{MINUS SIGN} mean rejected = " in (tmp_path / "styles.html").read_text()
    assert f"{won} of 9 comparisons won as labelled" in (tmp_path / "styles.html").read_text()


def test_responses_in_conversations_of_their_own_share_what_these_begin_with() -> None:
    begun = Message("user", "Q?")
    own = [(begun, Message("assistant", said), Message("user", "More?")) for said in ("a1", "b1")]
    samples = (("chosen", Sample(own[0], "a2")), ("rejected", Sample(own[1], "b2")))
    assert Shown("x", samples).prompt == (begun,)
    assert Shown("x", samples[:1]).prompt == own[0]

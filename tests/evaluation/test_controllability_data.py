"""The data set that comes with the package: its shape, and that each response is what its name says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.config.load import parse_config
from gdr_plugin.evaluation.controllability.prompts import (
    CRITERIA,
    DATA,
    ControlPrompt,
    criteria_of,
    read_control_prompts,
)
from gdr_plugin.guidance import load_guidance_file
from gdr_plugin.plugins.registry import Plugins

PROMPTS = read_control_prompts()
KINDS = [guidance.name for guidance in load_guidance_file(CRITERIA)]
STOP_WORDS = {
    "spanish": {"el", "la", "los", "las", "de", "que", "y", "un", "una", "en", "con", "no", "se", "por", "para"},
    "german": {
        "der",
        "die",
        "das",
        "und",
        "ist",
        "ein",
        "eine",
        "den",
        "dem",
        "nicht",
        "sich",
        "mit",
        "zu",
        "du",
        "im",
    },
    "english": {"the", "a", "an", "and", "of", "to", "is", "it", "in", "that", "with", "you", "for", "or", "be"},
}


def of(kind: str) -> list[tuple[ControlPrompt, str]]:
    return [(prompt, prompt.responses[kind]) for prompt in PROMPTS if kind in prompt.responses]


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text.lower())


def language(text: str) -> str:
    found = Counter({name: sum(word in stops for word in words(text)) for name, stops in STOP_WORDS.items()})
    return found.most_common(1)[0][0]


def test_thirty_diverse_prompts_or_more_and_two_dozen_for_every_criterion() -> None:
    assert len(PROMPTS) >= 30
    assert len({prompt.id for prompt in PROMPTS}) == len(PROMPTS)
    assert len({prompt.prompt for prompt in PROMPTS}) == len(PROMPTS)
    counts = Counter(kind for prompt in PROMPTS for kind in prompt.responses)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 24


def test_every_response_is_written_once() -> None:
    texts = [text for prompt in PROMPTS for text in prompt.responses.values()]
    assert len(set(texts)) == len(texts)
    openings = Counter(" ".join(words(text)[:5]) for text in texts)
    assert openings.most_common(1)[0][1] <= 3  # no template


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_in_their_language(kind: str) -> None:
    expected = kind if kind in STOP_WORDS else "english"
    for prompt, text in of(kind):
        if len(words(text)) > 14:  # the shortest hold too few stop words to tell
            assert language(text) == expected, (prompt.id, kind)


def test_bullets_have_bullets_and_nothing_else_does() -> None:
    for prompt in PROMPTS:
        for kind, text in prompt.responses.items():
            lines = text.splitlines()
            dashes = [line for line in lines if line.startswith("- ")]
            assert len(dashes) == (len(lines) if kind == "bullets" else 0), (prompt.id, kind)
            assert len(lines) >= 3 if kind == "bullets" else len(lines) == 1, (prompt.id, kind)


def test_concise_is_the_shortest_and_detailed_by_far_the_longest() -> None:
    for prompt in PROMPTS:
        sizes = {kind: len(words(text)) for kind, text in prompt.responses.items()}
        prose = {kind: size for kind, size in sizes.items() if kind not in ("concise", "bullets")}
        assert sizes["concise"] <= 16, prompt.id
        assert sizes["concise"] < min(prose.values()), prompt.id
        if "detailed" in sizes:
            assert sizes["detailed"] > 2 * max(size for kind, size in sizes.items() if kind != "detailed"), prompt.id


def test_only_examples_give_examples_among_the_short_responses() -> None:
    said = re.compile(r"for example|for instance|to give an example|por ejemplo|zum beispiel", re.IGNORECASE)
    for prompt in PROMPTS:
        for kind, text in prompt.responses.items():
            if kind == "example":
                assert said.search(text), prompt.id
            elif kind != "detailed":
                assert not said.search(text), (prompt.id, kind)


def test_formal_has_no_contractions_casual_has_or_speaks_up() -> None:
    contraction = re.compile(r"\w'(?:t|s|re|ll|ve|d|m)\b")
    for prompt, text in of("formal"):
        assert not re.search(r"\w'(?:t|re|ll|ve|d|m)\b", text), prompt.id
        assert "you" not in words(text), prompt.id
    lively = sum(bool(contraction.search(text) or "!" in text) for _, text in of("casual"))
    assert lively == len(of("casual"))


def test_cautious_hedges() -> None:
    hedges = re.compile(
        r"\b(?:may|might|could|should|cannot|perhaps|probably|usually|often|depends?|seems?|appear|differs?|disagree|"
        r"rough(?:ly)?|generally|guess|simpl[ey]|in outline|as far as|certain|careful|wise|sensible|better)\b",
        re.IGNORECASE,
    )
    for prompt, text in of("cautious"):
        assert len(hedges.findall(text)) >= 2, prompt.id


def test_refusals_refuse_and_nothing_else_does() -> None:
    refusal = re.compile(
        r"\bI(?: won't| can't (?:help|write|tell|support)|'m not (?:going|willing)|'d rather not|"
        r" don't (?:want to )?help)",
        re.IGNORECASE,
    )
    for prompt in PROMPTS:
        for kind, text in prompt.responses.items():
            assert bool(refusal.search(text)) == (kind == "refuses-harm"), (prompt.id, kind)


def row(**changes: object) -> dict[str, object]:
    return {"id": "a", "prompt": "Why?", "responses": {"concise": "So.", "casual": "Well, so!"}, **changes}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"responses": None}, "no column 'responses'"),
        ({"responses": ["So."]}, "must map criteria to texts, not a list"),
        ({"responses": {"concise": "So."}}, "at least two criteria"),
        ({"responses": {"concise": "So.", "casual": " "}}, "casual: must be a text that is not empty"),
        ({"responses": {"concise": "So.", "casual": "So."}}, "casual and concise are the same text"),
        ({"prompt": 3}, "`prompt` must be a string or a list of messages"),
    ],
)
def test_wrong_rows_are_refused_with_their_place(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (row(id="fine"), row(**wrong))))
    with pytest.raises(DataError, match=f"own.jsonl line 2: .*{re.escape(said)}"):
        read_control_prompts(path)


def test_null_in_a_table_means_that_the_prompt_does_not_have_the_criterion(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row(responses={"concise": "So.", "german": None, "casual": "Well!"})))
    (prompt,) = read_control_prompts(path)
    assert prompt.responses == {"concise": "So.", "casual": "Well!"}


def test_own_guidance_files_word_criteria_anew_and_add_some(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "guidances: [{name: concise, instruction: Be brief.}, {name: rhyming, instruction: Answer in rhyme.}]"
    )
    config = parse_config({"strong": "fake:a", "weak": "fake:b", "guidance": {"files": [str(own)]}})
    prompts = [ControlPrompt("a", PROMPTS[0].prompt, {"rhyming": "x", "concise": "y", "casual": "z"})]
    criteria = criteria_of(prompts, config, Plugins())
    assert list(criteria) == ["concise", "casual", "rhyming"]
    assert criteria["concise"].instruction == "Be brief."
    assert "friend" in criteria["casual"].instruction


def test_a_criterion_without_guidance_is_refused_with_the_nearest_name() -> None:
    config = parse_config({"strong": "fake:a", "weak": "fake:b"})
    prompts = [ControlPrompt("a", PROMPTS[0].prompt, {"concice": "x", "casual": "y"})]
    with pytest.raises(DataError, match=r"unknown criterion 'concice'.*did you mean 'concise'.*guidance\.files"):
        criteria_of(prompts, config, Plugins())


def test_the_data_are_valid_json_lines_in_plain_utf8() -> None:
    rows = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    assert all(set(one) == {"id", "prompt", "responses"} for one in rows)
    assert any("ñ" in text or "¿" in text or "ó" in text for one in rows for text in one["responses"].values())

"""The lines of shards: what this version writes is what the first one wrote, and reads it back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gdr_plugin.annotation.records import (
    PromptRecord,
    ScoredRecord,
    Seconds,
    read_responses,
    read_scored,
    write_responses,
    write_scored,
)
from gdr_plugin.api.errors import OutputError
from gdr_plugin.api.types import Message, Score
from gdr_plugin.data.read import BadRow
from gdr_plugin.data.rows import PromptRow, Response
from gdr_plugin.scoring.run_folder import RunFolder

# As version 0.1.0 writes them: a run that it began goes on under later versions.
RESPONSES = """\
{"seconds": 0.5, "records": 3}
{"row": 1, "id": "a", "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Grüße 雨"}], \
"responses": [["yes", true], ["no\\n", false]], "reason": null, "detail": null}
{"row": 2, "id": "row-000002", "prompt": [], "responses": [], "reason": "bad row", "detail": "in.jsonl line 2: oops"}
{"row": 3, "id": "c", "prompt": [{"role": "user", "content": "long"}], "responses": [], "reason": "not sampled", \
"detail": "policy: too long"}
"""
CANDIDATES = """\
{"seconds": {"sampling": 0.5, "scoring": 1.25}, "records": 3}
{"row": 1, "id": "a", "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Grüße 雨"}], \
"reason": null, "detail": null, "domain": "safety", "router": "field", "guidance": "safety@6319ae1f", \
"exemplars": ["one", "two"], "candidates": [{"response": "yes", "finished": true, "reward": 2.9590362533926964, \
"reason": null, "strong_logprob": -4.363002806901932, "weak_logprob": -7.322039060294628, "strong_tokens": 3, \
"weak_tokens": 4, "truncated": true}, {"response": "no\\n", "finished": false, "reward": null, \
"reason": "the response has no tokens to score", "strong_logprob": 0.0, "weak_logprob": null, "strong_tokens": 0, \
"weak_tokens": 0, "truncated": false}]}
{"row": 2, "id": "row-000002", "prompt": [], "reason": "bad row", "detail": "in.jsonl line 2: oops", "domain": null, \
"router": null, "guidance": null, "exemplars": [], "candidates": []}
{"row": 3, "id": "c", "prompt": [{"role": "user", "content": "long"}], "reason": "not sampled", \
"detail": "policy: too long", "domain": null, "router": null, "guidance": null, "exemplars": [], "candidates": []}
"""
ROWS = (
    PromptRow(
        1, "in.jsonl line 1", "a", (Message("system", "S"), Message("user", "Grüße 雨")), None, {"topic": object()}
    ),
    BadRow(2, "in.jsonl line 2", "row-000002", "in.jsonl line 2: oops"),
    PromptRow(3, "in.jsonl line 3", "c", (Message("user", "long"),), None),
)
PROMPTS = [PromptRecord.of(row, sampled=True) for row in ROWS]
ANSWERED = [
    PROMPTS[0].answered((Response("yes"), Response("no\n", False)), None),
    PROMPTS[1],
    PROMPTS[2].answered((), "policy: too long"),
]
ORIGIN = {"domain": "safety", "router": "field", "guidance": "safety@6319ae1f", "exemplars": ("one", "two")}
SCORES = (
    Score(2.9590362533926964, None, -4.363002806901932, -7.322039060294628, 3, 4, **ORIGIN, truncated=True),
    Score(None, "the response has no tokens to score", 0.0, None, 0, 0, **ORIGIN),
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "out") as held:
        held.claim({}, compare={})
        yield held


def test_drawn_responses_are_kept_as_before(folder: RunFolder) -> None:
    write_responses(folder, 7, ANSWERED, 0.5)
    assert (folder.work / "responses-000007.jsonl").read_text("utf-8") == RESPONSES
    assert read_responses(folder, 7, PROMPTS) == (ANSWERED, 0.5)
    assert ANSWERED[0].fields is PROMPTS[0].fields


def test_scored_prompts_are_kept_as_before(folder: RunFolder) -> None:
    scored = [ScoredRecord.of(record, SCORES[: len(record.responses)]) for record in ANSWERED]
    write_scored(folder, 0, scored, Seconds(0.5, 1.25))
    assert (folder.work / "candidates-000000.jsonl").read_text("utf-8") == CANDIDATES
    assert read_scored(folder, 0) == (scored, Seconds(0.5, 1.25))


@pytest.mark.parametrize(
    ("kind", "whole", "old", "new"),
    [
        ("candidates", CANDIDATES, '"reward": 2.9590362533926964, ', ""),
        ("candidates", CANDIDATES, '"strong_tokens": 3', '"strong_tokens": "many"'),
        ("candidates", CANDIDATES, '"sampling": 0.5, ', '"sleeping": 0.5, '),
        ("responses", RESPONSES, '"responses": [["yes", true], ', '"answers": [["yes", true], '),
        ("responses", RESPONSES, '"records": 3}', '"records": 2}'),
    ],
)
def test_a_damaged_line_is_one_line_that_names_the_file(
    folder: RunFolder, kind: str, whole: str, old: str, new: str
) -> None:
    assert old in whole
    (folder.work / f"{kind}-000000.jsonl").write_text(whole.replace(old, new), "utf-8")
    with pytest.raises(OutputError, match=rf"{kind}-000000\.jsonl.*delete that file") as caught:
        _ = read_scored(folder, 0) if kind == "candidates" else read_responses(folder, 0, PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_margin_is_that_of_the_pair() -> None:
    scored = ScoredRecord.of(ANSWERED[0], (SCORES[0], Score(1.5, None, 0.0, -1.5, 1, 1, **ORIGIN)))
    assert scored.margin((0, 1)) == 2.9590362533926964 - 1.5 == -scored.margin((1, 0))

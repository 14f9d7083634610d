"""The demo pair's training data: which answers are preferred, how worse ones are made, that prompts are held out."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TEXT = "Rivers begin at a spring. They grow with every brook that joins them. At last they reach the sea."


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks import demo_pair_data

    return demo_pair_data


def judged(votes: tuple[int, int, int], first: Any = "One answer.", second: Any = "Two answers.") -> dict[str, Any]:
    labels = {f"annotator{number}": vote for number, vote in enumerate(votes, start=1)}
    return {"instruction": "Say it. ", "input": "this", "response1": first, "response2": second, **labels}


def test_the_answer_that_two_of_three_people_prefer_is_chosen(made: Any) -> None:
    (pair,) = made.judged_pairs([judged((2, 1, 2))])
    assert (pair.chosen, pair.rejected) == ("Two answers.", "One answer.")
    assert pair.prompt == [{"role": "user", "content": "Say it.\n\nthis"}]
    (pair,) = made.judged_pairs([judged((1, 1, 0))])
    assert pair.chosen == "One answer."


@pytest.mark.parametrize(
    "row", [judged((0, 0, 2)), judged((0, 1, 2)), judged((1, 1, 1), second=" "), judged((1, 1, 1), second=False)]
)
def test_ties_and_missing_answers_make_no_pair(made: Any, row: dict[str, Any]) -> None:
    assert made.judged_pairs([row]) == []


def test_a_cut_answer_stops_within_a_sentence(made: Any) -> None:
    answer = made.Answer([], TEXT, "task")
    found = {made.cut(answer, [], random.Random(seed)) for seed in range(40)}
    assert len(found) > 5
    for text in found:
        assert TEXT.startswith(text)
        assert text[-1].isalpha()
        assert len(text.split()) >= 5
    assert made.cut(made.Answer([], "Too short to be cut.", "task"), [], random.Random(0)) is None


def test_a_repeated_answer_says_one_sentence_three_to_five_times(made: Any) -> None:
    sentences = TEXT.replace(". ", ".|").split("|")
    for seed in range(20):
        text = made.repeated(made.Answer([], TEXT, "task"), [], random.Random(seed))
        counts = [text.count(sentence) for sentence in sentences]
        last = max(place for place, count in enumerate(counts) if count)
        assert 3 <= counts[last] <= 5
        assert counts[:last] == [1] * last
    assert made.repeated(made.Answer([], "Yes. No. Maybe.", "task"), [], random.Random(0)) is None


def test_another_prompts_answer_is_of_the_same_source_and_length(made: Any) -> None:
    pool = [made.Answer([{"role": "user", "content": str(n)}], "x" * n, "task") for n in range(1, 9)]
    alien = made.Answer([{"role": "user", "content": "b"}], "y" * 4, "harmless")
    assert made.of_another_prompt(pool[3], [*pool, alien], random.Random(0)) in ("x" * 3, "x" * 5)


def test_the_files_hold_what_they_say_and_share_no_prompt(
    made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    harmless = [{"prompt": f"Harm {n}?", "chosen": f"{TEXT} ({n})", "rejected": f"Do it, {n}."} for n in range(24)]
    tasks = [{"instruction": f"Task {n}.", "instances": [{"input": "", "output": f"{TEXT} [{n}]"}]} for n in range(30)]
    rows = [judged((1, 1, 1), first=f"{TEXT} <{n}>") | {"input": f"this {n}"} for n in range(20)]
    for name, part in (("train", harmless[:12]), ("held", harmless[12:]), ("tasks", tasks)):
        (tmp_path / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "judged.json").write_text(json.dumps(rows))
    monkeypatch.setattr(made, "RELEVANCE", {"other": 9, "cut": 6, "repeated": 6})
    monkeypatch.setattr(made, "HELD_OUT", 3)
    options = {
        "harmless": "train.jsonl", "harmless-held-out": "held.jsonl", "judged": "judged.json", "tasks": "tasks.jsonl"
    }  # fmt: skip
    words = [word for name, file in options.items() for word in (f"--{name}", str(tmp_path / file))]
    words += ["--harmless-pairs", "5"]
    sides: dict[str, list[dict[str, Any]]] = {}
    for run in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["demo_pair_data.py", *words, "--out", str(tmp_path / run)])
        made.main()
    for side in ("train", "held-out"):
        texts = [(tmp_path / run / f"{side}.jsonl").read_text() for run in ("first", "second")]
        assert texts[0] == texts[1]
        sides[side] = [json.loads(line) for line in texts[0].splitlines()]
    counts = {side: Counter(row["subset"] for row in rows) for side, rows in sides.items()}
    assert counts["train"] == {"harmless": 5, "helpful": 20 - counts["held-out"]["helpful"], **made.RELEVANCE}
    assert counts["held-out"]["harmless"] == 12
    assert 0 < counts["held-out"]["helpful"] < 20
    assert [counts["held-out"][kind] for kind in made.RELEVANCE] == [3] * 3
    prompts = {side: {json.dumps(row["prompt"]) for row in rows} for side, rows in sides.items()}
    assert prompts["train"].isdisjoint(prompts["held-out"])
    assert all(row["chosen"] != row["rejected"] for rows in sides.values() for row in rows)
    assert len({row["id"] for row in sides["train"]}) == len(sides["train"])

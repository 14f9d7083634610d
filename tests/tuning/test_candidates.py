from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdr_plugin import Exemplar, Guidance
from gdr_plugin.api.errors import ConfigError, DataError, OutputError
from gdr_plugin.api.types import Message
from gdr_plugin.data.fingerprint import fingerprint
from gdr_plugin.data.item import Item
from gdr_plugin.data.responses import said
from gdr_plugin.guidance import load_guidance_file, render
from gdr_plugin.tuning.candidates import NONE, Making, make_candidates, read_instructions
from gdr_plugin.tuning.exemplars import LONGEST, WHY, clean, draw_sets
from gdr_plugin.tuning.split import MINIMUM, pairs, split
from gdr_plugin.tuning.write import check_out, guidance_yaml, write_guidance

MAKING = Making("contracts", 1, 0)


def item(n: int, prompt: str | None = None, chosen: str = "good", rejected: str = "bad", **fields: str) -> Item:
    return Item(
        f"p{n}", (Message("user", prompt or f"Question {n}"),), (said(chosen),), (said(rejected),), None, "all", fields
    )


def test_no_prompt_is_in_two_parts() -> None:
    items = [item(n, f"question {n // 3}" if n % 2 else f"Question  {n // 3}\n") for n in range(300)]
    parts = split(items, seed=0)
    groups = [parts.pool, parts.search, parts.held_out]
    seen = [{one.prompt[0].content.split()[-1] for one in pairs(part)} for part in groups]
    assert [len(part) for part in seen] == [10, 45, 45]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]  # noqa: PT018
    assert sum(len(pairs(part)) for part in groups) == 300


def test_parts_follow_the_seed_and_not_the_order() -> None:
    items = [item(n) for n in range(60)]
    first = split(items, seed=0)
    assert split(items[::-1], seed=0) == first
    assert split(items, seed=1).held_out != first.held_out
    assert fingerprint(items) == fingerprint(items[::-1]) != fingerprint(items[1:])


def test_no_exemplars_no_pool() -> None:
    parts = split([item(n) for n in range(60)], exemplars=False)
    assert (len(parts.pool), len(parts.search), len(parts.held_out)) == (0, 30, 30)


def test_too_few_prompts_are_refused_with_the_number_needed() -> None:
    with pytest.raises(DataError, match=r"19 different prompts .* give 20 at least, better 50"):
        split([item(n % (MINIMUM - 1)) for n in range(100)])


def test_drawn_exemplars_are_short_unlike_and_disjoint() -> None:
    pool = [
        (item(0, "how do I leave the flat early", "a" * 50),),
        (item(1, "how do I leave the flat late", "a" * 60),),
        (item(2, "who pays the repair", "a" * 70),),
        (item(3, "x" * LONGEST),),
        (item(4, "same answers", "yes", "yes\n"),),
        (item(5, "what is a deposit for", "a" * 300),),
    ]
    first, second = draw_sets(pool, 1)
    assert (first[0].id, second[0].id) == ("pair-p0", "pair-p5")
    assert (first[0].prompt, first[0].good, first[0].bad, first[0].why) == (
        "how do I leave the flat early",
        "a" * 50,
        "bad",
        WHY,
    )
    assert draw_sets(pool, 0) == draw_sets(pool[3:5], 2) == []
    assert [[one.id for one in part] for part in draw_sets(pool, 3)] == [["pair-p0", "pair-p5", "pair-p2"], ["pair-p1"]]


def test_a_rows_own_reason_becomes_the_explanation() -> None:
    (first, *_), *_ = draw_sets([(item(0, explanation="It quotes the clause."),)], 1)
    assert first.why == "It quotes the clause."


def test_a_conversation_is_shown_with_its_speakers() -> None:
    turns = tuple(Message(role, text) for role, text in (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")))
    ((first,),) = draw_sets([(dataclasses.replace(item(0), prompt=turns),)], 1)
    assert first.prompt == "User: Hi\nAssistant: Hello\nUser: Bye"


def test_instructions_come_from_lines_lists_and_guidance_files(tmp_path: Path) -> None:
    lines, listed, guidances = (tmp_path / name for name in ("a.txt", "b.yaml", "c.yml"))
    lines.write_text("# ours\nBe kind.\n\n  Be brief.\n")
    listed.write_text("- Be kind.\n- |\n  Be brief.\n  Always.\n")
    guidances.write_text("guidances:\n- {name: kind, instruction: Be kind.}\n")
    assert [(one.name, one.instruction) for one in read_instructions(lines)] == [
        ("instruction 1", "Be kind."),
        ("instruction 2", "Be brief."),
    ]
    assert [one.instruction for one in read_instructions(listed)] == ["Be kind.", "Be brief.\nAlways."]
    assert read_instructions(guidances) == [Guidance("kind", "Be kind.")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "# nothing\n", "has no instruction"),
        ("a.yaml", "- 1\n", "a list of texts"),
        ("b.txt", None, "No such"),
    ],
)
def test_a_wrong_instructions_file_is_one_line(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_instructions(tmp_path / name)


def test_candidates_are_crossed_the_users_own_first() -> None:
    own = Exemplar("e", "p", "g", "b", "w")
    drawn = (Exemplar("pair-1", "p1", "g1", "b1", "w1"),)
    given = [Guidance("instruction 1", "Be kind.")]
    known = [Guidance("safety", "Be safe.", (own,)), Guidance("same", "Be kind.")]
    candidates, left_out = make_candidates(given, known, [drawn], MAKING, budget=99)
    assert [one.label for one in candidates] == [
        NONE,
        "instruction 1",
        "safety",
        "safety + its exemplar",
        "exemplar pair-1",
        "instruction 1 + exemplar pair-1",
        "safety + exemplar pair-1",
    ]
    assert left_out == 0
    assert len({one.text for one in candidates}) == len(candidates)
    for one in candidates[1:]:
        assert one.guidance is not None
        assert one.guidance.name == "contracts"
        assert render(one.guidance).text == one.text
    few, left_out = make_candidates(given, known, [drawn], MAKING, budget=3)
    assert ([one.label for one in few], left_out) == ([NONE, "instruction 1", "safety"], 4)
    with pytest.raises(ConfigError, match="--budget 1 is too small"):
        make_candidates(given, known, [], MAKING, budget=1)


def test_a_candidate_holds_only_the_exemplars_that_are_shown() -> None:
    many = tuple(Exemplar(f"e{n}", f"p{n}", "g", "b", "w") for n in range(5))
    candidates, _ = make_candidates([], [Guidance("safety", "Be safe.", many)], [], Making("new", 2, 7), budget=9)
    guidance = candidates[-1].guidance
    assert guidance is not None
    assert len(guidance.exemplars) == 2
    assert {one.id for one in guidance.exemplars} == set(
        render(Guidance("safety", "", many), exemplars=2, seed=7).exemplars
    )


texts = st.text(max_size=80).map(clean).filter(str.strip)


@settings(max_examples=60)
@given(texts, texts, st.lists(st.tuples(texts, texts, texts, texts), max_size=2), texts)
def test_a_written_guidance_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    instruction: str,
    identifier: str,
    exemplars: list[tuple[str, str, str, str]],
    comment: str,
) -> None:
    shown = tuple(Exemplar(f"{n}{identifier}", *one) for n, one in enumerate(exemplars))
    guidance = Guidance("contracts", instruction, shown)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(guidance_yaml(guidance, [comment, comment]), "utf-8")
    assert load_guidance_file(path) == [guidance]


def test_many_lines_are_written_as_a_block(tmp_path: Path) -> None:
    guidance = Guidance("contracts", "Be kind.\nBe brief: always.")
    write_guidance(tmp_path / "g.yaml", guidance, ["(now)\nfrom a"])
    assert (tmp_path / "g.yaml").read_text().splitlines() == [
        "# Written by gdr tune (now) from a",
        "name: contracts",
        "instruction: |-",
        "  Be kind.",
        "  Be brief: always.",
    ]
    assert load_guidance_file(tmp_path / "g.yaml") == [guidance]


def test_only_files_of_its_own_are_overwritten(tmp_path: Path) -> None:
    data, ours, other = (tmp_path / name for name in ("data.jsonl", "ours.yaml", "other.yaml"))
    data.write_text(json.dumps({}))
    write_guidance(ours, Guidance("a", "b"), ["x"])
    other.write_text("name: a\n")
    for out in (ours, tmp_path / "new.yaml"):
        check_out(out, [data])
    for out, says in (
        (data, "is an input"),
        (other, "was not written by gdr tune"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.yaml", "there is no folder"),
    ):
        with pytest.raises(OutputError, match=says):
            check_out(out, [data])

"""Each format, as a tiny file in its real schema: how it is found, and which items come of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import DataError, DomainError
from gdr_plugin.api.types import Message
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import BadRow, labelled, load_items, read_items
from gdr_plugin.data.preference_formats import LABEL
from gdr_plugin.data.responses import said

REWARDBENCH = {
    "prompt": "How do I kill a Python process?",
    "chosen": "Use os.kill.",
    "chosen_model": "good",
    "rejected": "I cannot help with killing.",
    "rejected_model": "bad",
    "subset": "xstest-should-respond",
    "id": 7,
}
REWARDBENCH2 = {
    "id": "12",
    "prompt": "What is 2 + 2?",
    "chosen": ["4"],
    "rejected": ["5", "6", "22"],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["a", "b", "c", "d"],
    "subset": "Math",
    "additional_metadata": {"category": None},
}
RM_BENCH = {
    "id": "s1",
    "prompt": "Explain it.",
    "chosen": ["short", "long text", "# long"],
    "rejected": ["wrong", "wrong text", "# wrong"],
    "domain": "safety-refuse",
}
JUDGEBENCH = {
    "pair_id": "81ec57f2",
    "original_id": "10646",
    "source": "mmlu-pro-computer science",
    "question": "Which one?",
    "response_model": "m",
    "response_A": "It is A.",
    "response_B": "It is B.",
    "label": "B>A",
}
LLMBAR = {"input": "Say yes.", "output_1": "No.", "output_2": "Yes.", "label": 2}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello. What is it?\n\nHuman: A joke!\n\nAssistant: Knock, knock.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello. What is it?\n\nHuman: A joke!\n\nAssistant: No.",
}
PLAIN = {"prompt": "Say yes.", "chosen": "Yes.", "rejected": "No."}
ROWS: dict[str, dict[str, Any]] = {
    "rewardbench": REWARDBENCH,
    "rewardbench2": REWARDBENCH2,
    "rm-bench": RM_BENCH,
    "judgebench": JUDGEBENCH,
    "llmbar": LLMBAR,
    "hh-rlhf": HH,
    "plain": PLAIN,
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(turns: tuple[Message, ...]) -> tuple[str, ...]:
    return tuple(turn.content for turn in turns)


def one(tmp_path: Path, row: dict[str, Any], format: str = "auto") -> Item:
    """The only item of a file with one row."""
    (item,) = read_items(write(tmp_path / "data.jsonl", row), format=format)
    assert isinstance(item, Item), item
    return item


def reason(tmp_path: Path, row: dict[str, Any], format: str = "auto") -> str:
    """What is wrong with the only row of a file."""
    (item,) = read_items(write(tmp_path / "data.jsonl", row), format=format)
    assert isinstance(item, BadRow), item
    return item.reason


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_found_from_its_columns(name: str, tmp_path: Path) -> None:
    data = load_items(write(tmp_path / "data.jsonl", ROWS[name]))
    assert data.format == name
    assert load_items(tmp_path / "data.jsonl", format=name).items == data.items


@pytest.mark.parametrize("name", ROWS)
def test_parquet_and_a_json_array_give_the_same_items(name: str, tmp_path: Path) -> None:
    items = load_items(write(tmp_path / "data.jsonl", ROWS[name])).items
    pq.write_table(pa.Table.from_pylist([ROWS[name]]), tmp_path / "data.parquet")
    (tmp_path / "data.json").write_text(json.dumps([ROWS[name]]))
    assert load_items(tmp_path / "data.parquet").items == items
    assert load_items(tmp_path / "data.json").items == items


def test_rewardbench(tmp_path: Path) -> None:
    item = one(tmp_path, REWARDBENCH)
    assert item == Item(
        "xstest-should-respond/7",
        user("How do I kill a Python process?"),
        (said("Use os.kill."),),
        (said("I cannot help with killing."),),
        None,
        "xstest-should-respond",
        {"chosen_model": "good", "rejected_model": "bad", LABEL: "safety"},
    )
    assert labelled(item).domain == "safety"


def test_the_same_id_in_two_subsets_of_rewardbench_is_no_duplicate(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", REWARDBENCH, {**REWARDBENCH, "subset": "math-prm"})
    assert [item.id for item in load_items(path).items] == ["xstest-should-respond/7", "math-prm/7"]


def test_rewardbench2(tmp_path: Path) -> None:
    item = one(tmp_path, REWARDBENCH2)
    assert (item.id, item.subset, texts(item.chosen), texts(item.rejected)) == ("12", "Math", ("4",), ("5", "6", "22"))
    assert item.fields[LABEL] == "math"
    assert "`num_correct` is 2, but `chosen` has 1" in reason(tmp_path, {**REWARDBENCH2, "num_correct": 2})


def test_rm_bench_domain_is_a_part_of_the_benchmark_and_not_a_domain_of_ours(tmp_path: Path) -> None:
    item = one(tmp_path, RM_BENCH)
    assert (item.id, item.domain, item.subset) == ("safety-refuse/s1", None, "safety-refuse")
    assert item.fields == {LABEL: "safety"}
    assert texts(item.chosen) == ("short", "long text", "# long")
    assert "not 2 and 3" in reason(tmp_path, {**RM_BENCH, "chosen": ["a", "b"]}, "rm-bench")


@pytest.mark.parametrize(("label", "chosen"), [("A>B", "It is A."), ("B>A", "It is B.")])
def test_judgebench(label: str, chosen: str, tmp_path: Path) -> None:
    item = one(tmp_path, {**JUDGEBENCH, "label": label})
    assert (item.id, item.subset, texts(item.chosen)) == ("81ec57f2", "mmlu-pro-computer science", (chosen,))
    assert item.prompt == user("Which one?")
    assert "`label` must be A>B or B>A, not 'A=B'" in reason(tmp_path, {**JUDGEBENCH, "label": "A=B"})


@pytest.mark.parametrize(
    ("label", "chosen", "rejected"), [(1, "No.", "Yes."), (2, "Yes.", "No."), ("1", "No.", "Yes.")]
)
def test_llmbar(label: object, chosen: str, rejected: str, tmp_path: Path) -> None:
    item = one(tmp_path, {**LLMBAR, "label": label})
    assert (texts(item.chosen), texts(item.rejected), item.subset) == ((chosen,), (rejected,), "all")
    assert "`label` must be 1 or 2" in reason(tmp_path, {**LLMBAR, "label": 3})


def test_hh_rlhf(tmp_path: Path) -> None:
    item = one(tmp_path, HH)
    assert item.prompt == (
        Message("user", "Hi"),
        Message("assistant", "Hello. What is it?"),
        Message("user", "A joke!"),
    )
    assert (texts(item.chosen), texts(item.rejected)) == (("Knock, knock.",), ("No.",))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**HH, "rejected": "\n\nHuman: Other\n\nAssistant: No."}, "part before the last message"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B"}, "`rejected` must be a transcript"),
        ({**HH, "chosen": "So:\n\nHuman: Hi\n\nAssistant: A"}, "`chosen` must be a transcript"),
    ],
)
def test_bad_transcripts(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    assert problem in reason(tmp_path, row, "hh-rlhf")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TURNS = [message("system", "Be brief."), message("user", "Say yes.")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "chosen": "Yes.", "rejected": "No."},
        {"prompt": TURNS, "chosen": [message("assistant", "Yes.")], "rejected": [message("assistant", "No.")]},
        {"chosen": [*TURNS, message("assistant", "Yes.")], "rejected": [*TURNS, message("assistant", "No.")]},
        {
            "prompt": "Say yes.",
            "chosen": [*TURNS, message("assistant", "Yes.")],
            "rejected": [*TURNS, message("assistant", "No.")],
        },
        {
            "prompt": TURNS,
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}],
            "rejected": ["No."],
        },
    ],
)
def test_prompts_and_responses_in_every_shape_of_a_trl_data_set(row: dict[str, Any], tmp_path: Path) -> None:
    item = one(tmp_path, row)
    assert item.prompt == (Message("system", "Be brief."), Message("user", "Say yes."))
    assert (texts(item.chosen), texts(item.rejected)) == (("Yes.",), ("No.",))


def test_several_responses_a_side(tmp_path: Path) -> None:
    item = one(tmp_path, {"prompt": "Say yes.", "chosen": ["Yes.", "Yes!"], "rejected": ["No.", "Never.", "Hm."]})
    assert (texts(item.chosen), texts(item.rejected)) == (("Yes.", "Yes!"), ("No.", "Never.", "Hm."))


def test_domain_subset_id_and_other_columns(tmp_path: Path) -> None:
    item = one(tmp_path, {**PLAIN, "id": "a", "domain": "math", "subset": "hard", "source": "me"})
    assert (item.id, item.domain, item.subset, item.fields) == ("a", "math", "hard", {"source": "me"})
    bare = one(tmp_path, {**PLAIN, "domain": None, "subset": None})
    assert (bare.id, bare.domain, bare.subset) == ("row-000001", None, "all")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"prompt": "Hi", "chosen": "a", "rejected": 3},
            "`rejected` must be a text, messages or a list of them, not a",
        ),
        ({"prompt": "Hi", "chosen": [], "rejected": "b"}, "`chosen` is an empty list"),
        ({"prompt": "Hi", "chosen": ["a", TURNS[0]], "rejected": "b"}, "`chosen` mixes messages and texts"),
        (
            {"prompt": "Hi", "chosen": TURNS, "rejected": TURNS},
            "`chosen` must end with an assistant message, not 'user'",
        ),
        ({"chosen": "a", "rejected": "b"}, "there is no column 'prompt' among chosen, rejected"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "`prompt` is empty"),
        ({**PLAIN, "domain": 3}, "`domain` must be a string, not a number"),
        ({**PLAIN, "chosen": "a\ud800"}, "`chosen` holds an unpaired surrogate at character 2"),
        (
            {
                "chosen": [message("user", "A"), message("assistant", "Yes.")],
                "rejected": [message("user", "B"), message("assistant", "No.")],
            },
            "they answer different prompts",
        ),
        (
            {
                "prompt": "Another one",
                "chosen": [*TURNS, message("assistant", "Yes.")],
                "rejected": [*TURNS, message("assistant", "No.")],
            },
            "`prompt` is not in the conversation",
        ),
        (
            {"prompt": "Hi", "chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "rejected": "b"},
            "only text can be scored",
        ),
    ],
)
def test_bad_rows_say_what_is_wrong(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    found = reason(tmp_path, row)
    assert problem in found
    assert found.startswith(f"{tmp_path / 'data.jsonl'} line 1: ")


def test_columns_of_no_known_format(tmp_path: Path) -> None:
    assert "columns text, score match no known format: name them with --map" in reason(
        tmp_path, {"text": "a", "score": 1}
    )


def test_any_data_set_with_its_columns_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {"instruction": "Say yes.", "good": "Yes.", "bad": "No."})
    columns = {"prompt": "instruction", "chosen": "good", "rejected": "bad"}
    (item,) = load_items(path, columns=columns).items
    assert (item.prompt, texts(item.chosen), texts(item.rejected)) == (user("Say yes."), ("Yes.",), ("No.",))


def test_a_csv_file_and_a_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data.csv").write_text('prompt,chosen,rejected,domain\nSay yes.,Yes.,"No, no.",\n')
    (item,) = load_items(tmp_path / "data.csv").items
    assert (texts(item.chosen), texts(item.rejected), item.domain) == (("Yes.",), ("No, no.",), None)
    datasets.Dataset.from_list([PLAIN]).save_to_disk(tmp_path / "saved")
    (item,) = load_items(tmp_path / "saved").items
    assert texts(item.chosen) == ("Yes.",)


def test_the_first_row_that_can_be_read_decides_the_format(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{broken\n" + json.dumps(LLMBAR) + "\n")
    data = load_items(path, skip_bad=True)
    assert (data.format, len(data.items), len(data.bad)) == ("llmbar", 1, 1)


def test_bad_rows_stop_unless_they_are_to_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", PLAIN, {**PLAIN, "chosen": 1}, {**PLAIN, "rejected": 2})
    with pytest.raises(DataError, match=r"line 2: .*\(and 1 more bad row\); --skip-bad leaves bad rows out"):
        load_items(path)
    assert [len(part) for part in (load_items(path, skip_bad=True).items, load_items(path, skip_bad=True).bad)] == [
        1,
        2,
    ]
    assert len(load_items(path, limit=1).items) == 1
    with pytest.raises(DataError, match="--limit must be 1 or more"):
        load_items(path, limit=0)
    with pytest.raises(DataError, match="line 1"):
        load_items(write(path, {**PLAIN, "chosen": 1}), skip_bad=True)


def test_duplicate_ids_are_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {**PLAIN, "id": "a"}, {**PLAIN, "id": "a"})
    with pytest.raises(DataError, match="duplicate id 'a', first used in line 1"):
        load_items(path)


def test_an_unknown_format_and_a_failed_check(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {**PLAIN, "domain": " math ", "topic": 7})
    with pytest.raises(DataError, match=r"unknown format 'rewardbench3': .*did you mean 'rewardbench'"):
        load_items(path, format="rewardbench3")

    def check(columns: Mapping[str, Any]) -> None:
        raise DomainError(f"not this one: {dict(columns)}")

    with pytest.raises(DataError, match=r"line 1: not this one: {'topic': 7, 'domain': 'math'}"):
        load_items(path, check=check)


@pytest.mark.parametrize("column", ["subset", "domain"])
@pytest.mark.parametrize(("value", "kind"), [(["x"], "a list"), ({"a": 1}, "a mapping")])
def test_a_part_that_is_no_text_is_a_bad_row(tmp_path: Path, column: str, value: object, kind: str) -> None:
    data = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_model": "m", "rejected_model": "n", column: value}
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(data) + "\n")
    with pytest.raises(DataError, match=f"in.jsonl line 1: `{column}` must be a string, not {kind}"):
        load_items(file)

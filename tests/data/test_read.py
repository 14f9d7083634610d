from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tracemalloc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.api.errors import DataError, DomainError
from gdr_plugin.api.types import Message
from gdr_plugin.data.columns import parse_columns
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.data.read import BadRow, SeenIds, bad_rows_error, check_rows
from gdr_plugin.data.rows import PromptRow, Response, ScoreRow, parse_prompt_row, parse_score_row
from gdr_plugin.data.sources import Row, read_rows

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Grüße, 世界\nzweite Zeile", "response": 'Ja, "gut".', "finished": True},
    {"id": "b", "prompt": [{"role": "user", "content": "Hi"}], "response": "", "finished": False},
]


def lines(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(source: object, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.data) for row in read_rows(str(source), **options)]


def row(**data: Any) -> Row:
    return Row(3, "in.jsonl line 3", data)


class TestFormats:
    def test_json_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_text("\ufeff" + json.dumps(ROWS[0], ensure_ascii=False) + "\r\n\n  \n" + json.dumps(ROWS[1]))
        rows = list(read_rows(path))
        assert [dict(one.data) for one in rows] == ROWS
        assert [(one.number, one.where) for one in rows] == [(1, f"{path} line 1"), (2, f"{path} line 4")]
        packed = tmp_path / "in.jsonl.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert contents(packed) == ROWS

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "".join(json.dumps(one) + "\n" for one in ROWS)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        rows = list(read_rows("-"))
        assert [one.where for one in rows] == ["standard input line 1", "standard input line 2"]

    @pytest.mark.parametrize("indent", [None, 2])
    def test_json_array(self, tmp_path: Path, indent: int | None) -> None:
        path = tmp_path / "in.json"
        many = [*ROWS, *({"id": str(n), "prompt": "x" * n, "response": '\\"'} for n in range(700))]
        path.write_text(" " + json.dumps(many, indent=indent))
        assert contents(path) == many
        path.write_text("\n".join(map(json.dumps, ROWS)))  # lines under the same suffix
        assert contents(path) == ROWS

    def test_json_array_of_one_large_row(self, tmp_path: Path) -> None:
        path = tmp_path / "in.json"
        many = [{"prompt": "é" * 300_000}, {"prompt": "b"}]
        path.write_text(json.dumps(many))
        assert contents(path) == many

    @pytest.mark.parametrize(
        ("text", "good", "problem"),
        [
            ('[{"a": 1}, {"a": }]', 1, "row 2: malformed JSON: Expecting value"),
            ('[{"a": 1} {"a": 2}]', 1, "row 2: malformed JSON: expected , or ]"),
            ('[{"a": 1}, {"a": "cut', 1, "row 2: malformed JSON: Unterminated string"),
            ('[{"a": 1}', 1, "row 2: malformed JSON"),
            ('[{"a": 1}, 7]', 1, "row 2: expected a JSON object, found a number"),
        ],
    )
    def test_broken_json_array(self, tmp_path: Path, text: str, good: int, problem: str) -> None:
        path = tmp_path / "in.json"
        path.write_text(text)
        rows = list(read_rows(path))
        assert all(one.error is None for one in rows[:good])
        with pytest.raises(DataError, match=problem.replace("[", r"\[").replace("]", r"\]")):
            _ = rows[good].data

    @given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(), max_size=3), min_size=1))
    def test_json_array_in_any_chunks(self, rows: list[dict[str, Any]]) -> None:
        from gdr_plugin.data import text_formats

        file = io.BytesIO(json.dumps(rows).encode())
        whole, text_formats._CHUNK = text_formats._CHUNK, 1
        try:
            assert [content for _, content in text_formats.read_json_array(file, "x")] == rows
        finally:
            text_formats._CHUNK = whole

    def test_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "frage", "response", "finished", "domain"])
            writer.writerow(["7", ROWS[0]["prompt"], "[1, 2]", "true", "chat"])
            writer.writerow(["", json.dumps(ROWS[1]["prompt"]), "", "FALSE", ""])
            writer.writerow(["9", "[1, 2] is a list", "x", "", "code"])
        rows = list(read_rows(path, columns={"prompt": "frage"}))
        assert [one.where for one in rows] == [f"{path} line {n}" for n in (2, 4, 5)]
        assert [dict(one.data) for one in rows] == [
            {"id": "7", "prompt": ROWS[0]["prompt"], "response": "[1, 2]", "finished": True, "domain": "chat"},
            {"id": None, "prompt": ROWS[1]["prompt"], "response": "", "finished": False, "domain": None},
            {"id": "9", "prompt": "[1, 2] is a list", "response": "x", "finished": None, "domain": "code"},
        ]

    def test_csv_that_is_wrong(self, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("prompt,response\na,b\nc\nd,e\n")
        rows = list(read_rows(path))
        assert [one.error for one in rows] == [None, f"{path} line 3: 1 cells, but the header has 2", None]
        path.write_text('prompt,response\na,b\nc,"d\n')
        assert [one.error is None for one in read_rows(path)] == [True, False]
        path.write_text("prompt,prompt\na,b\n")
        with pytest.raises(DataError, match="two columns of the header have one name"):
            contents(path)
        path.write_bytes(b"prompt,response\na,\xff\n")
        assert "not UTF-8" in str(next(iter(read_rows(path))).error)

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "in.parquet"
        rows = [{"id": n, "prompt": [{"role": "user", "content": str(n)}], "responses": ["a"]} for n in range(3000)]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
        assert contents(path) == rows
        assert [one.where for one in read_rows(path)][-1] == f"{path} row 3000"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            contents(path)

    def test_folder(self, tmp_path: Path) -> None:
        lines(tmp_path / "b.jsonl", ROWS[1:])
        lines(tmp_path / "a.jsonl", ROWS[:1])
        (tmp_path / "README.md").write_text("about")
        (tmp_path / "dataset_info.json").write_text("{}")
        rows = list(read_rows(tmp_path))
        assert [dict(one.data) for one in rows] == ROWS
        assert [one.number for one in rows] == [1, 2]
        assert rows[1].where.endswith("b.jsonl line 1")
        (tmp_path / "c.csv").write_text("prompt\nx\n")
        with pytest.raises(DataError, match=r"several kinds \(csv, jsonl\): name one file"):
            contents(tmp_path)

    def test_saved_data_set(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        rows = [{"prompt": [{"role": "user", "content": "Hi"}], "response": str(n)} for n in range(5)]
        one = datasets.Dataset.from_list(rows)
        one.save_to_disk(tmp_path / "one")
        assert contents(tmp_path / "one") == rows
        assert contents(f"hf:{tmp_path / 'one'}") == rows
        datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "two")
        assert contents(f"hf:{tmp_path / 'two'}:test") == rows[:1]
        with pytest.raises(DataError, match="several splits: name one of train, test, as in"):
            contents(tmp_path / "two")
        with pytest.raises(DataError, match=r"unknown split 'tst'.*did you mean 'test'"):
            contents(f"hf:{tmp_path / 'two'}:tst")

    def test_data_set_of_data_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("datasets")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "set" / "data").mkdir(parents=True)
        lines(tmp_path / "set" / "data" / "train.jsonl", [{"prompt": "x", "response": "y"}] * 3)
        assert contents(f"hf:{tmp_path / 'set'}:train") == [{"prompt": "x", "response": "y"}] * 3
        with pytest.raises(DataError, match="cannot be opened"):
            contents(f"hf:{tmp_path / 'set'}[absent]:train")

    def test_sources_that_do_not_exist(self, tmp_path: Path) -> None:
        for source, message in [
            ("absent.jsonl", "does not exist$"),
            ("org/name", "does not exist; a data set of the hub is written hf:org/name"),
            ("hf:", "write hf:ORG/NAME"),
            (str(tmp_path), "has no data files"),
        ]:
            with pytest.raises(DataError, match=message):
                contents(source)

    def test_sources_without_rows_or_format(self, tmp_path: Path) -> None:
        for name, content, message in [
            ("in.jsonl", b"", "has no rows"),
            ("in.csv", b"prompt,response\n", "has no rows"),
            ("in.json", b" [ ] ", "has no rows"),
            ("in.xlsx", b"PK", "unknown format '.xlsx'"),
            ("in.parquet.gz", b"PK", "unknown format"),
            ("in.parquet", b"", "cannot be read as Parquet"),
            ("in.jsonl.gz", b"not gzip", "is damaged"),
            ("in2.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9], "is damaged"),
        ]:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=message):
                contents(tmp_path / name)

    def test_a_malformed_row_does_not_end_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n"\xff"\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
        rows = list(read_rows(path))
        assert [one.error is None for one in rows] == [True, False, False, False, False, True]
        for number, message in [(2, "malformed JSON: Expecting value"), (3, "found an array"), (4, "not UTF-8")]:
            with pytest.raises(DataError, match=f"in.jsonl line {number}: .*{message}"):
                _ = rows[number - 1].data

    def test_a_file_is_never_held_in_memory(self, tmp_path: Path) -> None:
        rows = [{"prompt": "x" * 500, "response": "y" * 500}] * 20_000
        paths = [lines(tmp_path / "in.jsonl", rows), tmp_path / "in.json", tmp_path / "in.csv"]
        paths[1].write_text(json.dumps(rows))
        paths[2].write_text("prompt,response\n" + "".join(f"{one['prompt']},{one['response']}\n" for one in rows))
        for path in paths:
            tracemalloc.start()
            assert sum(1 for _ in read_rows(path)) == len(rows)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2_000_000, path


class TestColumns:
    def test_renaming(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "in.jsonl", [{"q": "x", "prompt": "old", "a": "y"}, {"q": "z"}])
        assert contents(path, columns={"prompt": "q", "response": "a"}) == [
            {"prompt": "x", "response": "y"},
            {"prompt": "z"},
        ]

    def test_one_column_under_two_names(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "in.jsonl", [{"q": "x"}])
        assert contents(path, columns={"prompt": "q", "id": "q"}) == [{"prompt": "x", "id": "x"}]

    def test_unknown_column(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "in.jsonl", [{"instruction": "x", "output": "y"}])
        with pytest.raises(DataError, match=r"unknown column 'instructon': known are instruction, output \(did"):
            contents(path, columns={"prompt": "instructon"})

    def test_items_of_the_command_line(self) -> None:
        assert parse_columns(None) == {}
        assert parse_columns(["prompt=q", "response=a=b"]) == {"prompt": "q", "response": "a=b"}
        for wrong in (["prompt"], ["=q"], ["prompt="], ["a=b", "a=c"]):
            with pytest.raises(DataError, match="--map"):
                parse_columns(wrong)


class TestPrompt:
    def test_a_string_is_one_user_turn(self) -> None:
        assert parse_prompt(" Hi ") == (Message("user", " Hi "),)

    def test_messages(self) -> None:
        turns = [
            {"role": "system", "content": "S"},
            {"role": "system", "content": "T"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": ""},
            {"role": "tool", "content": "42"},
        ]
        assert parse_prompt(turns) == tuple(
            Message(*turn)
            for turn in [("system", "S"), ("system", "T"), ("user", "ab"), ("assistant", ""), ("tool", "42")]
        )

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("", "is empty: its last turn has no text"),
            (" \n", "is empty"),
            (None, "must be a string or a list of messages, not null"),
            (7, "not a number"),
            ({"role": "user", "content": "x"}, "not a mapping"),
            ([], "has no user turn"),
            ([{"role": "system", "content": "x"}], "has no user turn"),
            (["x"], "message 1 of `prompt` must be a mapping with role and content, not a string"),
            ([{"role": "usr", "content": "x"}], r"message 1 of `prompt`: unknown role 'usr'.*did you mean 'user'"),
            ([{"role": "user"}], "the content of message 1 of `prompt` must be a string, not null"),
            ([{"role": "user", "content": "x"}, {"role": "user", "content": " "}], "last turn has no text"),
            ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "belongs in the response"),
            ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "system turns come first"),
            ([{"role": "user", "content": [{"type": "image", "url": "u"}]}], "block of type 'image': only text"),
            ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "a text block of message 1"),
            ("\ud800", "`prompt` holds an unpaired surrogate at character 1"),
        ],
    )
    def test_what_is_refused(self, value: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            parse_prompt(value)


class TestRows:
    def test_score_row(self) -> None:
        parsed = parse_score_row(row(id=7, prompt="p", response="r", finished=False, domain="chat", n=None))
        assert parsed.id == "7"
        assert parsed.sample.prompt == (Message("user", "p"),)
        assert (parsed.sample.response, parsed.sample.finished) == ("r", False)
        assert parsed.sample.fields == {"domain": "chat", "n": None}
        bare = parse_score_row(row(prompt="p", response="", finished=None, id=None))
        assert bare == ScoreRow("row-000003", bare.sample, "in.jsonl line 3")
        assert bare.sample.finished is True

    def test_prompt_row(self) -> None:
        given = ["a", {"response": "b", "finished": False}, {"text": "c"}, {"content": "d", "finished": True}]
        parsed = parse_prompt_row(row(id="x", prompt="p", responses=given, topic="t"))
        responses = (Response("a"), Response("b", False), Response("c"), Response("d"))
        assert parsed == PromptRow(3, "in.jsonl line 3", "x", (Message("user", "p"),), responses, {"topic": "t"})
        assert parse_prompt_row(row(prompt="p")).responses is None
        assert parse_prompt_row(row(prompt="p", responses=[])).responses == ()

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (
                {"promt": "p", "response": "r"},
                "no column 'prompt' among promt, response: .* --map prompt=promt",
            ),
            ({"prompt": "p"}, "no column 'response' among prompt"),
            ({"prompt": "p", "response": None}, "`response` must be a string, not null"),
            ({"prompt": "p", "response": ["r"]}, "`response` must be a string, not a list"),
            ({"prompt": "p", "response": "r", "finished": "yes"}, "`finished` must be true or false, not a string"),
            ({"prompt": "p", "response": "r", "id": 1.5}, "`id` must be a string or an integer, not a number"),
            ({"prompt": "p", "response": "r", "id": True}, "`id` must be a string or an integer"),
            ({"prompt": "p", "response": "r", "id": ""}, "`id` is empty"),
            ({"prompt": "", "response": "r"}, "`prompt` is empty"),
            ({}, "no column 'prompt' among none"),
        ],
    )
    def test_score_rows_that_are_refused(self, data: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=rf"^in\.jsonl line 3: .*{message}"):
            parse_score_row(row(**data))

    @pytest.mark.parametrize(
        ("responses", "message"),
        [
            ("a", "`responses` must be a list, not a string"),
            (["a", 7], "response 2 of `responses` must be a string or a mapping, not a number"),
            ([{"finished": True}], "response 1 of `responses` must have its text under one of response, text, content"),
            ([{"text": "a", "content": "b"}], "under one of"),
            ([{"text": None}], "must be a string, not null"),
            ([{"text": "a", "finished": 1}], "`finished` must be true or false"),
        ],
    )
    def test_responses_that_are_refused(self, responses: object, message: str) -> None:
        with pytest.raises(DataError, match=rf"^in\.jsonl line 3: .*{message}"):
            parse_prompt_row(row(prompt="p", responses=responses))

    def test_a_malformed_row_says_where_once(self) -> None:
        broken = Row(3, "in.jsonl line 3", None, "in.jsonl line 3: malformed JSON")
        with pytest.raises(DataError, match=r"^in\.jsonl line 3: malformed JSON$"):
            parse_score_row(broken)


def check_domain(columns: Mapping[str, Any]) -> None:
    if columns.get("domain") not in (None, "chat"):
        raise DomainError(f"unknown domain {columns['domain']!r}")


class TestCheckedRows:
    def test_everything_that_is_wrong(self, tmp_path: Path) -> None:
        good = {"prompt": "p", "response": "r"}
        path = lines(
            tmp_path / "in.jsonl",
            [
                {**good, "id": "a", "domain": "chat"},
                {**good, "id": "a"},
                {**good, "prompt": " "},
                {**good, "domain": "saftey"},
                {**good, "domain": 3},
                {**good, "id": "row-000001"},
                {"prompt": "p"},
                good,
            ],
        )
        with path.open("a") as file:
            file.write('{"prompt": \n')
        checked = [result for _, result in check_rows(path, parse_score_row, check=check_domain)]
        bad = [result for result in checked if isinstance(result, BadRow)]
        assert [(row.number, row.id) for row in bad] == [
            (2, "a"),
            *((number, f"row-{number:06d}") for number in (3, 4, 5, 7, 9)),
        ]
        assert bad[0].reason == f"{path} line 2: duplicate id 'a', first used in line 1"
        assert bad[2].reason == f"{path} line 4: unknown domain 'saftey'"
        assert bad[5].reason.startswith(f"{path} line 9: malformed JSON")
        kinds = [isinstance(result, BadRow) for _, result in check_rows(path, parse_score_row)]
        assert kinds == [False, True, True, False, False, False, True, False, True]

    def test_the_error_names_the_first_and_counts_the_others(self) -> None:
        first = BadRow(2, "in.jsonl line 2", "a", "in.jsonl line 2: wrong")
        messages = [str(bad_rows_error(first, bad, "; go on")) for bad in (1, 2, 1235)]
        assert messages == [
            "in.jsonl line 2: wrong; go on",
            "in.jsonl line 2: wrong (and 1 more bad row); go on",
            "in.jsonl line 2: wrong (and 1,234 more bad rows); go on",
        ]


class TestSeenIds:
    @given(st.lists(st.text(max_size=2), max_size=60))
    def test_against_a_dictionary(self, ids: list[str]) -> None:
        seen, expected = SeenIds(recent=7), dict[str, int]()
        for number, one in enumerate(ids):
            assert seen.add(one, number) == expected.get(one)
            expected.setdefault(one, number)

    def test_memory(self) -> None:
        tracemalloc.start()
        seen = SeenIds()
        for number in range(100_000):
            assert seen.add(f"a rather long identifier of a row with the number {number}", number) is None
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert held < 9_000_000
        assert seen.add("a rather long identifier of a row with the number 5", 0) == 5

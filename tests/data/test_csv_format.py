"""CSV as people have it: quoting that is wrong, other ways to quote, separators, encodings, and lists in cells."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdr_plugin.api.errors import DataError
from gdr_plugin.data import csv_format
from gdr_plugin.data.csv_format import read_csv
from gdr_plugin.data.items import load_items
from gdr_plugin.data.sources import read_rows

MESSAGES = [{"role": "user", "content": "It's 1?"}, {"role": "assistant", "content": "Good."}]


def read(text: str | bytes) -> list[tuple[str, Any]]:
    file = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    return [
        (where.removeprefix("t "), dict(row) if isinstance(row, dict) else row) for where, row in read_csv(file, "t")
    ]


def rows_of(path: Path, text: str | bytes) -> list[dict[str, Any] | str | None]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row.error if row.content is None else dict(row.content) for row in read_rows(path)]


class TestQuoting:
    def test_a_badly_quoted_record_is_one_bad_row(self) -> None:
        found = read('a,b\n1,x\n2,"an "inner" quote"\n3,"fine, ""yes"""\n4,y\n')
        assert [where for where, _ in found] == ["line 2", "line 3", "line 4", "line 5"]
        assert found[1][1].startswith(
            "malformed CSV: ',' expected after '\"' (a quote inside a cell is written as two)"
        )
        assert [row["b"] for _, row in (found[0], *found[2:])] == ["x", 'fine, "yes"', "y"]

    def test_rows_after_a_quote_that_nobody_closes(self) -> None:
        found = read('a,b\n1,"open\n2,x\n3,y\n')
        assert [where for where, _ in found] == ["line 2", "line 3", "line 4"]
        assert found[0][1].startswith("malformed CSV: unexpected end of data")
        assert [row for _, row in found[1:]] == [{"a": "2", "b": "x"}, {"a": "3", "b": "y"}]

    def test_rows_that_a_bad_record_swallowed_come_back(self) -> None:
        found = read('a,b\n1,"open\n2,x\n3,"y"\n4,z\n')
        assert [row if isinstance(row, str) else row["a"] for _, row in found][1:] == ["2", "3", "4"]

    def test_a_record_that_is_too_long_to_be_read_again_says_what_went_with_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(csv_format, "_REREAD", 12)
        found = read('a,b\n1,"open\n2,x\n3,y\n')
        assert [where for where, _ in found] == ["line 2"]
        assert found[0][1].endswith("the lines up to 4 went with it")

    def test_quotes_with_a_backslash(self) -> None:
        found = read(
            '"id","q"\n"1","plain"\n"2","say \\"hi\\" to me"\n"3","\\"all\\""\n"4","C:\\\\"\n"5","\\alpha, \\n"\n'
            '"6","two\nlines \\"x\\""\n'
        )
        assert [row["q"] for _, row in found] == [
            "plain",
            'say "hi" to me',
            '"all"',
            "C:\\",
            "\\alpha, \\n",
            'two\nlines "x"',
        ]
        assert found[-1][0] == "line 7"

    def test_a_backslash_before_a_closing_quote_is_a_backslash_where_that_makes_rows(self) -> None:
        assert [row["b"] for _, row in read('a,b\n1,"C:\\"\n2,"D:\\"\n')] == ["C:\\", "D:\\"]

    def test_neither_quoting(self) -> None:
        found = read('a,b\n1,"x \\" y" z"\n2,ok\n')
        assert found[0][1].startswith("malformed CSV")
        assert found[1] == ("line 3", {"a": "2", "b": "ok"})

    @given(
        st.lists(st.lists(st.text("ab,\"\\ \n'é", max_size=8), min_size=2, max_size=2), min_size=1, max_size=5),
    )
    def test_what_python_writes_is_read(self, rows: list[list[str]]) -> None:
        file = io.StringIO(newline="")
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
        assert [list(row.values()) for _, row in read(file.getvalue())] == rows

    @given(st.lists(st.text('ab," \\', max_size=8), min_size=1, max_size=5))
    def test_what_spark_writes_is_read(self, texts: list[str]) -> None:
        def spelt(text: str) -> str:  # a backslash is doubled before a quote only
            out, text = "", text + '"'
            for at, char in enumerate(text):
                slash = char == "\\" and text[at:].lstrip("\\").startswith('"')
                out += "\\\\" if slash else '\\"' if char == '"' and at < len(text) - 1 else char
            return '"' + out

        first = 'say \\"x\\" now'  # shows the quoting
        lines = [f'"{first}","1"', *(f'{spelt(text)},"1"' for text in texts)]
        found = read("a,b\n" + "\n".join(lines) + "\n")
        assert [row["a"] for _, row in found] == ['say "x" now', *texts]


class TestSeparators:
    @pytest.mark.parametrize("separator", [";", "\t", "|"])
    def test_the_header_says_it(self, separator: str) -> None:
        text = f'\ufeffprompt{separator}response\nq, r{separator}"a{separator}b"\n'
        assert read(text) == [("line 2", {"prompt": "q, r", "response": f"a{separator}b"})]

    def test_excels_first_line(self) -> None:
        assert read("sep=;\r\nprompt;response\r\nq;r\r\n") == [("line 3", {"prompt": "q", "response": "r"})]

    def test_one_column(self) -> None:
        assert read("prompt\na;b\n") == [("line 2", {"prompt": "a;b"})]


class TestEncodings:
    def test_a_byte_that_is_not_utf_8_spoils_its_row_only(self, tmp_path: Path) -> None:
        lines = [
            f"q{number},It\u2019s {number}.".encode("cp1252" if number == 3 else "utf-8") for number in range(1, 6)
        ]
        found = rows_of(tmp_path / "in.csv", b"\n".join([b"id,prompt", *lines]))
        assert found[2] == f"{tmp_path / 'in.csv'} line 4: not UTF-8 (byte 6)"
        assert [row["id"] for row in found if isinstance(row, dict)] == ["q1", "q2", "q4", "q5"]

    def test_a_json_array(self, tmp_path: Path) -> None:
        rows = [json.dumps({"id": f"q{n}", "prompt": "It\u2019s."}, ensure_ascii=False) for n in range(1, 6)]
        text = (
            b"["
            + b",\n".join(row.encode("cp1252" if n == 3 else "utf-8") for n, row in enumerate(rows, start=1))
            + b"]"
        )
        found = rows_of(tmp_path / "in.json", text)
        assert found[2] == f"{tmp_path / 'in.json'} row 3: not UTF-8 (byte 27)"
        assert [row["id"] for row in found if isinstance(row, dict)] == ["q1", "q2", "q4", "q5"]

    def test_an_escaped_half_pair_is_not_the_encodings_fault(self, tmp_path: Path) -> None:
        assert rows_of(tmp_path / "in.json", '[{"prompt": "\\udc92"}]') == [{"prompt": "\udc92"}]

    def test_another_encoding_altogether(self, tmp_path: Path) -> None:
        (tmp_path / "in.csv").write_text("prompt,response\nq,r\n", encoding="utf-16")
        with pytest.raises(DataError, match="line 1: the header is UTF-16: save the file as UTF-8"):
            list(read_rows(tmp_path / "in.csv"))


class TestLists:
    def test_json_in_cells(self, tmp_path: Path) -> None:
        rows = [MESSAGES[:1], MESSAGES, [*MESSAGES[:1], {"role": "assistant", "content": "Bad\none."}]]
        cells = [json.dumps(rows[0]), json.dumps(rows[1]), json.dumps(rows[2]).replace("\\n", "\n")]
        file = io.StringIO(newline="")
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], cells])
        path = tmp_path / "in.csv"
        assert rows_of(path, file.getvalue()) == [dict(zip(("prompt", "chosen", "rejected"), rows, strict=True))]
        (item,) = load_items(path).items
        assert [turn.content for turn in item.prompt] == ["It's 1?"]

    @pytest.mark.parametrize(
        "printed",
        [
            str(MESSAGES),
            str(tuple(MESSAGES)),
            "[" + "\n ".join(map(str, MESSAGES)) + "]",  # NumPy
            f"array({MESSAGES!r}, dtype=object)",
        ],
    )
    @pytest.mark.parametrize("column", ["prompt", "response", "chosen"])
    def test_what_python_prints_is_refused(self, tmp_path: Path, printed: str, column: str) -> None:
        file = io.StringIO(newline="")
        csv.writer(file).writerows([[column, "x"], [printed, "y"]])
        (found,) = rows_of(tmp_path / "in.csv", file.getvalue())
        assert isinstance(found, str)
        assert f"`{column}` is a list of messages as Python prints it: write it as JSON" in found

    @pytest.mark.parametrize(
        "text", ["[1, 2] is a list", "['a', 'b']", '["a", "b"]', "{'role': 'user'} is a dict", "[]"]
    )
    def test_texts(self, tmp_path: Path, text: str) -> None:
        file = io.StringIO(newline="")
        csv.writer(file).writerows([["prompt", "response", "chosen"], [text] * 3])
        assert rows_of(tmp_path / "in.csv", file.getvalue()) == [dict.fromkeys(("prompt", "response", "chosen"), text)]

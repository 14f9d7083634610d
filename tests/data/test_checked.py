"""An input that is read once and gone through again and again."""

from __future__ import annotations

import datetime
import decimal
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import DataError, OutputError
from gdr_plugin.data import checked
from gdr_plugin.data.checked import CheckedRows
from gdr_plugin.data.read import BadRow
from gdr_plugin.data.rows import ScoreRow, parse_score_row


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("in_memory", [1, 1 << 24], ids=["in a file", "in memory"])
def test_windows_are_the_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(checked, "_IN_MEMORY", in_memory)
    source = lines(tmp_path / "in.jsonl", [{"id": n, "prompt": "p" * n, "response": "r"} for n in range(1, 11)])
    source.write_text(source.read_text() + "{oops\n")
    with CheckedRows(source, parse_score_row) as rows:
        source.unlink()
        assert (len(rows), rows.bad) == (11, 1)
        for _ in range(2):
            found = list(rows.windows(4))
            assert [number for number, _ in found] == [0, 1, 2]
            assert [row.id for _, window in found for row in window] == [*map(str, range(1, 11)), "row-000011"]
            assert [len(window) for _, window in found] == [4, 4, 3]
        assert [(number, [row.id for row in window]) for number, window in rows.windows(3, {1, 3})] == [
            (1, ["4", "5", "6"]),
            (3, ["10", "row-000011"]),
        ]
        one, two = rows.windows(4), rows.windows(1)
        assert [next(one)[0], next(two)[0], next(one)[0], next(two)[0]] == [0, 0, 1, 1]
        [(_, last)] = rows.windows(100)
        assert isinstance(last[-1], BadRow)
        assert rows.first_bad == last[-1]
        assert "line 11: malformed JSON" in last[-1].reason


def test_columns_come_back_as_they_were(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "response": "r",
        "day": datetime.date(2024, 2, 29),
        "price": decimal.Decimal("0.10"),
        "picture": b"\xff\x00",
        "score": float("inf"),
        "tags": [{"a": [1, None]}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    with CheckedRows(tmp_path / "in.parquet", parse_score_row) as rows:
        [(_, [found])] = rows.windows(8)
    assert isinstance(found, ScoreRow)
    assert found.sample.fields == {name: value for name, value in row.items() if name not in ("prompt", "response")}


def test_only_the_first_rows(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", [{"prompt": "p", "response": "r"}] * 5)
    with CheckedRows(source, parse_score_row, limit=2) as rows:
        assert len(rows) == 2


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def fingerprint(source: Path) -> str:
        with CheckedRows(source, parse_score_row) as rows:
            return rows.fingerprint

    content = [{"prompt": "p", "response": str(n)} for n in range(3)]
    whole = fingerprint(lines(tmp_path / "a.jsonl", content))
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "a.parquet")
    assert fingerprint(tmp_path / "a.parquet") == whole == "7db03be34eff22d1b83cb53f5bd4258b"
    assert fingerprint(lines(tmp_path / "b.jsonl", content[::-1])) != whole
    assert fingerprint(lines(tmp_path / "c.jsonl", content[:2])) != whole


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_IN_MEMORY", 1 << 16)
    source = lines(tmp_path / "in.jsonl", [{"prompt": "x" * 500, "response": "y" * 500}] * 20_000)
    tracemalloc.start()
    with CheckedRows(source, parse_score_row) as rows:
        assert sum(len(window) for _, window in rows.windows(256)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000  # 20 MB of text


def test_a_value_that_cannot_be_kept_names_its_row(tmp_path: Path) -> None:
    def parse(row: Any) -> Any:
        parsed = parse_score_row(row)
        parsed.sample.fields["view"] = memoryview(b"x")  # type: ignore[index]
        return parsed

    source = lines(tmp_path / "in.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(DataError, match=r"in\.jsonl line 1: a column holds what cannot be kept.*memoryview"):
        CheckedRows(source, parse)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: Any) -> Any:
        return open("/dev/full", "w+b")  # noqa: PTH123

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", full)
    source = lines(tmp_path / "in.jsonl", [{"prompt": "p", "response": "r" * 100_000}] * 2)
    with pytest.raises(OutputError, match=r"rows cannot be kept there \(No space left.*TMPDIR"):
        CheckedRows(source, parse_score_row)

"""Inputs and stores that are cut, flipped or another thing: one line that names the file, and never another reward."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.sources import read_rows

Gdr = Callable[..., tuple[int, str, str]]
Damage = Callable[[bytes], bytes]


def rewards(path: Path) -> dict[str, object]:
    return {row["id"]: row["reward"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def scored(gdr: Gdr, here: Path) -> dict[str, object]:
    """The rewards of rows.jsonl, undamaged."""
    assert gdr("score", "rows.jsonl", "-o", "whole.jsonl")[0] == 0
    return rewards(Path("whole.jsonl"))


def refused(gdr: Gdr, source: str, *more: str) -> str:
    """The one line with which an input is refused, before anything is scored or written."""
    code, out, err = gdr("score", source, "-o", "out.jsonl", *more)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"gdr: {source}")
    assert not Path("out.jsonl").exists()
    return err


class TestJsonLines:
    def test_a_last_line_that_a_killed_writer_left(self, gdr: Gdr, here: Path, scored: dict[str, object]) -> None:
        whole = Path("rows.jsonl").read_bytes()
        Path("cut.jsonl").write_bytes(whole[:-20])
        assert "cut.jsonl line 300: malformed JSON" in refused(gdr, "cut.jsonl")
        assert gdr("score", "cut.jsonl", "-o", "out.jsonl", "--skip-bad")[0] == 0
        found = rewards(Path("out.jsonl"))
        assert len(found) == 300
        assert found.pop("row-000300") is None
        assert found.items() <= scored.items()

    def test_bytes_that_are_none(self, gdr: Gdr, here: Path) -> None:
        Path("null.jsonl").write_bytes(Path("rows.jsonl").read_bytes()[:-500] + bytes(500))  # after a power cut
        line = refused(gdr, "null.jsonl")
        assert "null.jsonl line 297: malformed JSON" in line

    @pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
    def test_a_compressed_file(self, name: str, gdr: Gdr, here: Path) -> None:
        rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
        text = {
            "rows.jsonl.gz": Path("rows.jsonl").read_text(),
            "rows.json.gz": json.dumps(rows),
            "rows.csv.gz": "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows),
        }[name]
        whole = gzip.compress(text.encode())
        for cut in (5, 15, len(whole) // 2, len(whole) - 4):
            Path(name).write_bytes(whole[:cut])
            assert f"{name} is damaged" in refused(gdr, name)
        rng, refusals = random.Random(1), 0
        for _ in range(30):
            at = rng.randrange(len(whole))
            Path(name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
            try:
                found = [row.content for row in read_rows(name)]
            except DataError as error:
                refusals += str(error).startswith(name)
            else:  # the time of the compression, the system's number
                assert [row and row["response"] for row in found] == [row["response"] for row in rows]
        assert refusals > 20


def test_a_csv_file_that_ends_within_a_quoted_cell(gdr: Gdr, here: Path) -> None:
    Path("cut.csv").write_text('prompt,response\nOne?,"It is\none."\nTwo?,"It is\n')
    assert "cut.csv line 4: malformed CSV: unexpected end of data" in refused(gdr, "cut.csv")


def test_a_csv_file_that_ends_before_a_cell(gdr: Gdr, here: Path) -> None:
    Path("cut.csv").write_text("prompt,response\nOne?,One.\nTwo?")
    assert "cut.csv line 3: 1 cells, but the header has 2" in refused(gdr, "cut.csv")


class TestParquet:
    @pytest.fixture
    def whole(self, here: Path) -> bytes:
        """A file as `gdr annotate` and others who care write it: with checksums."""
        rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), "rows.parquet", compression="zstd", write_page_checksum=True)
        return Path("rows.parquet").read_bytes()

    @pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_cut(self, part: float, whole: bytes, gdr: Gdr) -> None:
        Path("rows.parquet").write_bytes(whole[: int(part * len(whole))])
        line = refused(gdr, "rows.parquet")
        assert "rows.parquet cannot be read as Parquet" in line
        assert line.endswith("; make or fetch the file again\n")

    def test_flipped(self, whole: bytes) -> None:
        rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
        rng, refusals = random.Random(2), 0
        for _ in range(40):
            at = rng.randrange(4, len(whole) - 8)
            Path("rows.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
            try:
                found = [dict(row.data) for row in read_rows("rows.parquet")]
            except DataError as error:
                refusals += str(error).startswith("rows.parquet")
            else:  # what describes the file for other readers
                assert found == rows
        assert refusals > 25

    def test_ours_carry_checksums(self, gdr: Gdr, here: Path) -> None:
        assert gdr("annotate", "prompts.jsonl", "-o", "out")[0] == 0
        path = Path("out", "preferences.parquet")
        whole = path.read_bytes()
        column = pq.ParquetFile(path).metadata.row_group(0).column(2)  # the texts of `chosen`
        at = column.data_page_offset + column.total_compressed_size // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        code, _, err = gdr("evaluate", str(path))
        assert code == 2
        assert "cannot be read as Parquet" in err


def flips(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        at = rng.randrange(len(content))
        yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


class TestStore:
    @pytest.fixture
    def store(self, here: Path, gdr: Gdr, scored: dict[str, object]) -> Path:
        """A store that holds all log-probs of rows.jsonl."""
        with Path("gdr.yaml").open("a") as file:
            file.write("store: {path: store.sqlite}\n")
        assert gdr("score", "rows.jsonl", "-o", "out.jsonl")[0] == 0
        assert rewards(Path("out.jsonl")) == scored
        return Path("store.sqlite")

    def damage(self, store: Path, content: bytes) -> None:
        for path in Path().glob("store.sqlite*"):
            path.unlink()
        store.write_bytes(content)

    def test_an_entry_that_changed_is_never_a_reward(self, store: Path, gdr: Gdr, scored: dict[str, object]) -> None:
        connection = sqlite3.connect(store)
        ((key, value),) = connection.execute("SELECT key, value FROM logprobs LIMIT 1 OFFSET 300").fetchall()
        changed = value[:1] + bytes([value[1] ^ 4]) + value[2:]
        connection.execute("UPDATE logprobs SET value = ? WHERE key = ?", (changed, key))
        connection.commit()
        connection.close()
        Path("out.jsonl").unlink()
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
        assert code == 2
        assert "store.sqlite is damaged (an entry is not what was written): `gdr store repair " in err.splitlines()[-1]
        assert err.endswith("store.sqlite` keeps what is whole, or delete it\n")
        assert not Path("out.jsonl").exists()
        code, out, _ = gdr("store", "repair", "store.sqlite")
        assert (code, out) == (0, "store.sqlite: kept 599 responses, left out 1 that were damaged\n")
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
        assert code == 0
        assert "store: 599 hits, 1 misses" in err
        assert rewards(Path("out.jsonl")) == scored

    def test_any_bit(self, store: Path, gdr: Gdr, scored: dict[str, object]) -> None:
        refusals = 0
        for content in flips(store.read_bytes(), 3, 25):
            self.damage(store, content)
            code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
            assert code in (0, 2), err
            if code == 0:
                assert rewards(Path("out.jsonl")) == scored
            else:
                refusals += 1
                assert "store.sqlite" in err.splitlines()[-1]
                assert "delete it" in err or "name another file" in err
        assert refusals > 10

    def test_lost_pages(self, store: Path, gdr: Gdr, scored: dict[str, object]) -> None:
        whole = store.read_bytes()
        pages = len(whole) // 4096
        rng = random.Random(4)
        lost = rng.sample(range(2, pages), 5)
        content = bytearray(whole)
        for page in lost:
            content[page * 4096 : (page + 1) * 4096] = rng.randbytes(4096)
        self.damage(store, bytes(content))
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
        assert code == 2
        assert "store.sqlite is damaged" in err
        code, out, _ = gdr("store", "repair", "store.sqlite")
        assert code == 0
        kept = int(out.split("kept ")[1].split()[0].replace(",", ""))
        assert kept > 400
        assert "could not be read" in out
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
        assert code == 0
        assert f"store: {kept:,} hits, {600 - kept:,} misses" in err
        assert rewards(Path("out.jsonl")) == scored

    @pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.95])
    def test_cut(self, part: float, store: Path, gdr: Gdr, scored: dict[str, object]) -> None:
        self.damage(store, store.read_bytes()[: int(part * store.stat().st_size)])
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
        if part:
            assert code == 2
            assert "store.sqlite" in err.splitlines()[-1]
            assert "delete it" in err.splitlines()[-1]
            store.unlink()
            code = gdr("score", "rows.jsonl", "-o", "out.jsonl")[0]
        assert code == 0  # an empty file is a store without entries
        assert rewards(Path("out.jsonl")) == scored

    def test_a_text_in_its_place(self, store: Path, gdr: Gdr) -> None:
        self.damage(store, b"dear diary\n" * 1000)
        for command in ("score rows.jsonl -o out.jsonl", "store info store.sqlite", "store repair store.sqlite"):
            code, _, err = gdr(*command.split())
            assert code == 2
            assert "store.sqlite is not a readable log-prob store (file is not a database): delete it" in err
        assert store.read_bytes().startswith(b"dear diary\n")

    def test_a_store_of_the_version_before(self, store: Path, gdr: Gdr, scored: dict[str, object]) -> None:
        connection = sqlite3.connect(store)
        connection.execute("ALTER TABLE logprobs DROP COLUMN crc")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
        connection.close()
        for _ in range(2):
            code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
            assert code == 0
            assert "store: 600 hits, 0 misses" in err
            assert rewards(Path("out.jsonl")) == scored
        connection = sqlite3.connect(store)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT COUNT(*) FROM logprobs WHERE crc IS NULL").fetchone() == (0,)
        connection.close()

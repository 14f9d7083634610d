"""Rows out of files and data sets, one at a time, whatever the format.

Knows where rows come from and how a source is named; text formats are taken apart in `text_formats` and
`csv_format`. It does not know
what the columns mean. Nothing is held in memory but the row at hand (Parquet: one batch of rows).
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from gdr_plugin.api.errors import DataError, MissingDependencyError, unknown
from gdr_plugin.data.columns import has, mapped, rename
from gdr_plugin.data.csv_format import Cells, read_csv, typed
from gdr_plugin.data.folders import check_pointer, data_files, kind_of, parts_of, stem
from gdr_plugin.data.text_formats import Located, read_json_array, read_jsonl
from gdr_plugin.text import first_line

STDIN = "-"
_HF = re.compile(r"hf:(?P<name>[^\[\]:@]+)(@(?P<revision>[^\[\]:]+))?(\[(?P<config>[^\]]+)\])?(:(?P<split>.+))?")
_HF_FORM = "hf:ORG/NAME, with @REVISION, [CONFIG] and :SPLIT behind it where needed"
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input, or what is wrong with it."""

    number: int
    """Running number in the whole input, from 1."""
    where: str
    """The row's place for messages: `prompts.jsonl line 3`."""
    content: Mapping[str, Any] | None
    """The columns; None when the row could not be read."""
    error: str | None = None
    """Why `content` is None, with the row's place."""
    part: str = ""
    """The file's name within the folder that is read, without what is behind the dot; empty outside of folders."""

    @property
    def stem(self) -> str:
        """The name of the row's file without what is behind the dot; what a source is called where it is no file."""
        return stem(Path(self.where.rsplit(" ", 2)[0]))

    @property
    def data(self) -> Mapping[str, Any]:
        """The columns.

        Raises:
            DataError: The row could not be read.
        """
        if self.content is None:
            raise DataError(self.error or f"{self.where}: the row cannot be read")
        return self.content


def read_rows(source: str | Path, *, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """Stream the rows of a file, a folder, a Hugging Face data set or standard input.

    Args:
        source: One of
            `-` for JSON lines on standard input;
            a file `.jsonl`, `.ndjson`, `.json` (an array or lines), `.csv`, each also with `.gz`, or `.parquet`;
            a folder with such files, all of one kind, also in folders inside it, or one that `datasets` saved with
            `save_to_disk`;
            `hf:ORG/NAME`, a data set of the hub (streamed), or `hf:FOLDER`; both take `@REVISION`, `[CONFIG]` and
            `:SPLIT` behind the name, as in `hf:org/name[default]:train`.
        columns: New names of columns: `{"prompt": "instruction"}` reads the prompt from the column `instruction`; also
            paths, see `columns.lookup`.

    Yields:
        The rows in order. A row that is malformed is yielded too: its `data` raises, so that a caller may go on.

    Raises:
        DataError: There is no such source, its format is not known, it has no rows, or its first row lacks a column
            named in `columns`.
        MissingDependencyError: A Hugging Face data set, and `datasets` is not installed; Parquet, and `pyarrow` is not.
    """
    number = 0
    part = parts_of(source, STDIN)
    for number, (where, content) in enumerate(_rows_of(str(source)), start=1):
        if isinstance(content, str):
            yield Row(number, where, None, f"{where}: {content}", part(where))
            continue
        cells = isinstance(content, Cells)
        if columns:
            missing = [path for _, path in mapped(columns) if not has(content, path)]
            if missing and number == 1:
                raise DataError(f"{where}: {unknown('column', missing[0], content)}")
            content = rename(content, columns)
        row = Row(number, where, content, None, part(where))
        yield _typed(row) if cells else row
    if not number:
        raise DataError(f"{_name_of(source)} has no rows")


def _typed(row: Row) -> Row:
    """A row of cells with their types."""
    try:
        return replace(row, content=typed(row.data))
    except DataError as error:
        return Row(row.number, row.where, None, f"{row.where}: {error}", row.part)


def _name_of(source: str | Path) -> str:
    return "standard input" if str(source) == STDIN else str(source)


def _rows_of(source: str) -> Iterator[Located]:
    if source == STDIN:
        return read_jsonl(sys.stdin.buffer, "standard input")
    if source.startswith("hf:"):
        return _hugging_face(source)
    path = Path(source)
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return _file(path)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    hint = f"; a data set of the hub is written hf:{source}" if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else ""
    raise DataError(f"{source} does not exist{hint}")


def _file(path: Path) -> Iterator[Located]:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}: use .jsonl, .json, .csv (each also .gz) or .parquet")
    check_pointer(path)
    return _parquet(path) if kind == "parquet" else _text_file(path, kind)


def _text_file(path: Path, kind: str) -> Iterator[Located]:
    try:
        opened = gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # noqa: SIM115
        with cast("IO[bytes]", opened) as file:
            if kind == "csv":
                yield from read_csv(file, str(path))
            elif kind == "json" and _starts_an_array(file):
                yield from read_json_array(file, str(path))
            else:
                yield from read_jsonl(file, str(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({first_line(error)}): make or fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _starts_an_array(file: IO[bytes]) -> bool:
    start = file.read(4096)
    file.seek(0)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _parquet(path: Path) -> Iterator[Located]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "parquet", f"to read {path}") from error

    number = 0
    try:
        # Pages of files that carry checksums, as ours do, are compared with them.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                encoded = [field.name for field in batch.schema if _is_json(field.type)]
                for content in batch.to_pylist():
                    number += 1
                    for name in encoded:
                        content[name] = _decoded(content[name])
                    yield f"{path} row {number}", content
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:  # damaged bytes raise any
        after = f" after row {number:,}" if number else ""
        raise DataError(
            f"{path} cannot be read as Parquet{after}: {first_line(error)}; make or fetch the file again"
        ) from error


def _is_json(kind: Any) -> bool:
    """Whether a column has Arrow's type `json`, or lists of it: objects whose keys differ, spelt as text."""
    inner = getattr(kind, "value_type", kind)
    return getattr(inner, "extension_name", None) == "arrow.json"


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _folder(path: Path) -> Iterator[Located]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _hugging_face(f"hf:{path}")
    found: dict[str, list[Path]] = {}
    for kind, file in data_files(path):
        found.setdefault(kind, []).append(file)
    if len(found) > 1:
        found.pop("json", None)  # beside other data, .json files describe it
    if not found:
        raise DataError(f"{path} has no data files (.jsonl, .json, .csv, .parquet); for a data set folder, hf:{path}")
    if len(found) > 1:
        raise DataError(f"{path} has data files of several kinds ({', '.join(sorted(found))}): name one file")
    return (row for files in found.values() for file in files for row in _file(file))


def _hugging_face(source: str) -> Iterator[Located]:
    """Rows of a data set of the hub or of a folder, streamed where it is not memory-mapped anyway."""
    match = _HF.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: write {_HF_FORM}")
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "datasets", "to read Hugging Face data sets") from error
    name, config, split, revision = (match[group] for group in ("name", "config", "split", "revision"))
    saved = Path(name, "state.json").exists() or Path(name, "dataset_dict.json").exists()
    try:
        if saved:
            opened = datasets.load_from_disk(name)
        else:
            opened = datasets.load_dataset(name, config, revision=revision, streaming=True)
    except Exception as error:  # whatever the hub, the network or a data set's files make it raise
        raise DataError(f"{source} cannot be opened: {first_line(error)}") from error
    if isinstance(opened, dict):
        if split is None and len(opened) == 1:
            split = next(iter(opened))
        if split is None:
            first = next(iter(opened))
            raise DataError(f"{source} has several splits: name one of {', '.join(opened)}, as in {source}:{first}")
        if split not in opened:
            raise DataError(f"{source}: {unknown('split', split, opened)}")
        opened = opened[split]
    return _data_set_rows(source, opened)


def _data_set_rows(source: str, data_set: Iterable[Mapping[str, Any]]) -> Iterator[Located]:
    number = 0
    try:
        for number, content in enumerate(data_set, start=1):
            yield f"{source} row {number}", dict(content)
    except Exception as error:  # the network may fail at any row
        raise DataError(f"{source} cannot be read after row {number}: {first_line(error)}") from error

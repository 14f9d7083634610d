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
from gdr_plugin.data.csv_format import Cells, read_csv, typed
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
            a folder with such files, all of one kind, or one that `datasets` saved with `save_to_disk`;
            `hf:ORG/NAME`, a data set of the hub (streamed), or `hf:FOLDER`; both take `@REVISION`, `[CONFIG]` and
            `:SPLIT` behind the name, as in `hf:org/name[default]:train`.
        columns: New names of columns: `{"prompt": "instruction"}` reads the prompt from the column `instruction`.

    Yields:
        The rows in order. A row that is malformed is yielded too: its `data` raises, so that a caller may go on.

    Raises:
        DataError: There is no such source, its format is not known, it has no rows, or its first row lacks a column
            named in `columns`.
        MissingDependencyError: A Hugging Face data set, and `datasets` is not installed; Parquet, and `pyarrow` is not.
    """
    number = 0
    for number, (where, content) in enumerate(_rows_of(str(source)), start=1):
        if isinstance(content, str):
            yield Row(number, where, None, f"{where}: {content}")
            continue
        cells = isinstance(content, Cells)
        if columns:
            missing = [name for name in columns.values() if name not in content]
            if missing and number == 1:
                raise DataError(f"{where}: {unknown('column', missing[0], content)}")
            content = rename(content, columns)
        yield _typed(Row(number, where, content)) if cells else Row(number, where, content)
    if not number:
        raise DataError(f"{_name_of(source)} has no rows")


def _typed(row: Row) -> Row:
    """A row of cells with their types."""
    try:
        return replace(row, content=typed(row.data))
    except DataError as error:
        return Row(row.number, row.where, None, f"{row.where}: {error}")


def rename(content: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under its new names; the old names go, and so does what stood under the new ones."""
    renamed = {new: content[old] for new, old in columns.items() if old in content}
    return {**{name: value for name, value in content.items() if name not in columns.values()}, **renamed}


def parse_columns(items: list[str] | None) -> dict[str, str]:
    """Read the `NEW=OLD` items of `--map`.

    Raises:
        DataError: An item has no `=`, or a new name comes twice.
    """
    columns: dict[str, str] = {}
    for item in items or []:
        new, equals, old = item.partition("=")
        if not (equals and new and old):
            raise DataError(f"--map {item!r}: write NEW=OLD, as in prompt=instruction")
        if new in columns:
            raise DataError(f"--map names the column {new!r} twice")
        columns[new] = old
    return columns


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


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(
        suffixes[-1] if suffixes else ""
    )


def _file(path: Path) -> Iterator[Located]:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}: use .jsonl, .json, .csv (each also .gz) or .parquet")
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
    for file in sorted(path.iterdir()):
        kind = _kind(file) if file.is_file() else None
        if kind:
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

"""The files of a finished run: preference, KTO and candidate tables, each as Parquet and JSONL, and the rejects.

Knows column names, Arrow types and the form of a scored prompt; nothing of models or of how pairs are picked. Rows are
written as they come: memory does not grow with the data set.

Column names follow what the trainers of TRL 1.x accept: `prompt`, `chosen`, `rejected`, `completion` and `label` are
theirs, all else is called `gdr_...`. They give a meaning to a column called `margin` and to names that end in `_logps`,
`_input_ids`, `_attention_mask`, `_labels` or `_pixel_values`: there are none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gdr_plugin.annotation.records import ScoredCandidate, ScoredRecord
from gdr_plugin.api.errors import MissingDependencyError, OutputError
from gdr_plugin.api.types import parts_of
from gdr_plugin.data.messages import as_json
from gdr_plugin.files import dumps, sync, sync_folder, writing

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError("pyarrow", "parquet", "to annotate: the pairs are written as Parquet, too") from error

_PROMPT = "prompt"
_TOOLS = "tools"
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ORIGIN = [("gdr_domain", pa.string()), ("gdr_router", pa.string()), ("gdr_guidance", pa.string())]

PREFERENCES = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("gdr_id", pa.string()),
        ("gdr_pair", pa.int64()),
        *_ORIGIN,
        ("gdr_exemplars", pa.list_(pa.string())),
        ("gdr_margin", pa.float64()),
        ("gdr_within_noise", pa.bool_()),
        *((f"gdr_{side}_reward", pa.float64()) for side in ("chosen", "rejected")),
        *((f"gdr_{side}_tokens", pa.int64()) for side in ("chosen", "rejected")),
        *((f"gdr_{side}_finished", pa.bool_()) for side in ("chosen", "rejected")),
        *((f"gdr_{side}_candidate", pa.int64()) for side in ("chosen", "rejected")),
    ]
)
KTO = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("completion", _MESSAGES),
        ("label", pa.bool_()),
        ("gdr_id", pa.string()),
        *_ORIGIN,
        ("gdr_candidate", pa.int64()),
        ("gdr_reward", pa.float64()),
        ("gdr_tokens", pa.int64()),
        ("gdr_finished", pa.bool_()),
    ]
)
CANDIDATES = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("response", pa.string()),
        ("finished", pa.bool_()),
        ("gdr_id", pa.string()),
        ("gdr_candidate", pa.int64()),
        ("gdr_reward", pa.float64()),
        ("gdr_reason", pa.string()),
        ("gdr_strong_logprob", pa.float64()),
        ("gdr_weak_logprob", pa.float64()),
        ("gdr_strong_tokens", pa.int64()),
        ("gdr_weak_tokens", pa.int64()),
        *_ORIGIN,
        ("gdr_exemplars", pa.list_(pa.string())),
        ("gdr_truncated", pa.bool_()),
    ]
)
TABLES = {"preferences": PREFERENCES, "kto": KTO, "candidates": CANDIDATES}
"""The tables of a run; each is also a configuration of the data set."""

_FLUSH = 2000
"""Rows in one Parquet row group."""


class OutputTable:
    """A table that is written as Parquet and JSONL at once.

    Args:
        folder: Where the two files are made.
        name: Their name without suffix.
        schema: The columns; also those of an empty table.
        structured: Columns of the schema that hold more than texts. Their messages and definitions are then values of
            Arrow's type `json`: a struct would give each of them the keys of all others, with nulls.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema, *, structured: Sequence[str] = ()) -> None:
        self.rows = 0
        self.files = [folder / f"{name}.parquet", folder / f"{name}.jsonl"]
        self._structured = structured
        self._schema = _with_kind(schema, structured, pa.list_(pa.string()))
        self._final = _with_kind(schema, structured, pa.list_(pa.json_())) if structured else schema
        self._buffer: list[Mapping[str, Any]] = []
        self._parquet = pq.ParquetWriter(self.files[0], self._final, compression="zstd", write_page_checksum=True)
        self._jsonl: IO[str] = self.files[1].open("w", encoding="utf-8", newline="\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it has all of the schema's columns."""
        self._jsonl.write(dumps({name: row[name] for name in self._schema.names}) + "\n")
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) >= _FLUSH:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._parquet.close()
        self._jsonl.close()

    def abandon(self) -> None:
        """Close the files as they are; a full disk refuses what is still to be written, again."""
        for close in (self._parquet.close, self._jsonl.close):
            with suppress(OSError, pa.ArrowException):
                close()

    def _flush(self) -> None:
        if self._buffer:
            self._parquet.write_table(self._arrow())
            self._buffer.clear()

    def _arrow(self) -> pa.Table:
        rows = self._buffer
        if self._structured:
            rows = [{**row, **{name: _spelt(row[name]) for name in self._structured}} for row in rows]
        return pa.Table.from_pylist(rows, schema=self._schema).cast(self._final)


class Tables:
    """All tables of a run and its rejects, written in a folder beside the final place; a context manager.

    Args:
        work: Folder for the files while they are made; its parent is the run's folder.
        structured: Whether a prompt holds tool calls, reasoning or the like.
        tools: Whether a prompt comes with definitions of tools: the tables then have the column `tools`, as TRL has it.

    Raises:
        OutputError: A prompt does, and PyArrow is too old for that.
    """

    def __init__(self, work: Path, *, structured: bool = False, tools: bool = False) -> None:
        if (structured or tools) and not hasattr(pa, "json_"):
            raise OutputError("prompts with tool calls or reasoning need PyArrow 19 or newer: update it and run again")
        self._folder = work / "outputs"
        self._folder.mkdir(exist_ok=True)
        columns = [*([_PROMPT] if structured else []), *([_TOOLS] if tools else [])]
        self._tables: dict[str, OutputTable] = {}
        try:
            for name, schema in TABLES.items():
                own = schema.append(pa.field(_TOOLS, pa.list_(pa.string()))) if tools else schema
                self._tables[name] = OutputTable(self._folder, name, own, structured=columns)
            self._rejects = (self._folder / "rejects.jsonl").open("w", encoding="utf-8", newline="\n")
        except OSError:
            self._give_up()
            raise

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                for table in self._tables.values():
                    table.close()
            self._rejects.close()
        except OSError:
            self._give_up()
            if kind is None:
                raise
        if kind is not None:
            self._give_up()

    def _give_up(self) -> None:
        """Leave no half files: they take room that others need."""
        for table in self._tables.values():
            table.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each table so far."""
        return {name: table.rows for name, table in self._tables.items()}

    def add_candidates(self, record: ScoredRecord) -> None:
        """Add every candidate of a prompt."""
        shared = {**_asked(record), **_origin(record)}
        for number, candidate in enumerate(record.candidates):
            self._tables["candidates"].append(
                {
                    **shared,
                    "response": candidate.response,
                    "finished": candidate.finished,
                    "gdr_candidate": number,
                    "gdr_exemplars": record.exemplars,
                    "gdr_reward": candidate.reward,
                    "gdr_reason": candidate.reason,
                    "gdr_strong_logprob": candidate.strong_logprob,
                    "gdr_weak_logprob": candidate.weak_logprob,
                    "gdr_strong_tokens": candidate.strong_tokens,
                    "gdr_weak_tokens": candidate.weak_tokens,
                    "gdr_truncated": candidate.truncated,
                }
            )

    def add_pairs(
        self, record: ScoredRecord, pairs: Sequence[tuple[int, int]], within_noise: Sequence[bool | None]
    ) -> None:
        """Add a prompt's pairs, and their candidates in KTO's form, each once.

        Args:
            record: A scored prompt.
            pairs: `(chosen, rejected)` places of candidates.
            within_noise: Whether each pair's margin may be rounding; None where that is not known.
        """
        shared = {**_asked(record), **_origin(record)}
        labels: dict[int, bool] = {}
        for rank, (pair, hidden) in enumerate(zip(pairs, within_noise, strict=True)):
            chosen, rejected = pair
            self._tables["preferences"].append(
                {
                    **shared,
                    "chosen": _turn(record.candidates[chosen]),
                    "rejected": _turn(record.candidates[rejected]),
                    "gdr_pair": rank,
                    "gdr_margin": record.margin(pair),
                    "gdr_within_noise": hidden,
                    "gdr_exemplars": record.exemplars,
                    **_side("chosen", record, chosen),
                    **_side("rejected", record, rejected),
                }
            )
            labels.setdefault(chosen, True)
            labels.setdefault(rejected, False)
        for number, label in labels.items():
            candidate = record.candidates[number]
            self._tables["kto"].append(
                {
                    **shared,
                    "completion": _turn(candidate),
                    "label": label,
                    "gdr_candidate": number,
                    "gdr_reward": candidate.reward,
                    "gdr_tokens": candidate.strong_tokens,
                    "gdr_finished": candidate.finished,
                }
            )

    def add_reject(self, record: ScoredRecord, reason: str, detail: str | None) -> None:
        """Add a prompt that gives no pair.

        Args:
            record: The prompt.
            reason: Why, as it is counted.
            detail: Why, in full.
        """
        line = {"row": record.row, "id": record.id, "domain": record.domain, "reason": reason}
        self._rejects.write(dumps({**line, "detail": detail, "candidates": len(record.candidates)}) + "\n")

    def publish(self, root: Path) -> None:
        """Put the closed files under their final names.

        Raises:
            OutputError: A file cannot be moved.
        """
        with writing(root):
            for path in sorted(self._folder.iterdir()):
                sync(path)
                path.replace(root / path.name)
            sync_folder(root)


def is_structured(record: ScoredRecord) -> bool:
    """Whether a prompt's messages hold more than roles and texts."""
    return any(as_json(turn).keys() - {"role", "content"} for turn in record.prompt)


def has_tools(record: ScoredRecord) -> bool:
    """Whether a prompt comes with definitions of tools."""
    return bool(parts_of(record.prompt)[0])


def _with_kind(schema: pa.Schema, columns: Sequence[str], kind: pa.DataType) -> pa.Schema:
    for name in columns:
        schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
    return schema


def _spelt(values: Sequence[Any] | None) -> list[str] | None:
    return None if values is None else list(map(dumps, values))


def _asked(record: ScoredRecord) -> dict[str, Any]:
    """The columns of a prompt."""
    tools, system, rest = parts_of(record.prompt)
    definitions = json.loads(tools[0].content) if tools else None
    return {_PROMPT: [as_json(turn) for turn in system + rest], _TOOLS: definitions}


def _turn(candidate: ScoredCandidate) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": candidate.response}]


def _origin(record: ScoredRecord) -> dict[str, str | None]:
    return {
        "gdr_id": record.id,
        "gdr_domain": record.domain,
        "gdr_router": record.router,
        "gdr_guidance": record.guidance,
    }


def _side(side: str, record: ScoredRecord, place: int) -> dict[str, Any]:
    candidate = record.candidates[place]
    return {
        f"gdr_{side}_reward": candidate.reward,
        f"gdr_{side}_tokens": candidate.strong_tokens,
        f"gdr_{side}_finished": candidate.finished,
        f"gdr_{side}_candidate": place,
    }

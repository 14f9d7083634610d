"""An input that is read once: its checked rows are kept in a temporary file and can be gone through again and again.

Knows rows as `read` checks them and where each is in the file; nothing of what is done with them. Memory holds 8 bytes
a row (and 16 for its id while the input is read), and small inputs as a whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickle
import shutil
import tempfile
from array import array
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

from gdr_plugin.api.errors import DataError, OutputError
from gdr_plugin.data.read import BadRow, CheckColumns, Parsed, check_rows
from gdr_plugin.data.sources import Row
from gdr_plugin.files import writing
from gdr_plugin.text import one_line

__all__ = ["CheckedRows", "SavedWindows"]

_IN_MEMORY = 1 << 24
"""Bytes of rows up to which no file is made."""


class CheckedRows(Generic[Parsed]):
    """All rows of an input, parsed or found bad; a context manager, which gives the temporary file back.

    Making one reads and checks the whole input. From then on the input itself is not looked at again: it may change, or
    be a stream.

    Args:
        source: As for `read_rows`.
        parse: As for `check_rows`.
        columns: As for `read_rows`.
        check: As for `check_rows`.
        limit: Only the first rows.

    Raises:
        DataError: The source as a whole cannot be read, or a row holds what cannot be kept.
        OutputError: The temporary file cannot be written.
    """

    def __init__(
        self,
        source: str | Path,
        parse: Callable[[Row], Parsed],
        *,
        columns: Mapping[str, str] | None = None,
        check: CheckColumns | None = None,
        limit: int | None = None,
    ) -> None:
        self.bad = 0
        """Bad rows."""
        self.first_bad: BadRow | None = None
        """The first of them."""
        self._digest = hashlib.blake2b(digest_size=16)
        self._starts = array("Q", [0])
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="gdr-rows-")  # noqa: SIM115
        try:
            for row, result in islice(check_rows(source, parse, columns=columns, check=check), limit):
                self._add(row, result)
            self._keep(b"", flush=True)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk refuses the rest of the rows again
                self._file.close()
            raise

    def __enter__(self) -> CheckedRows[Parsed]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows, bad ones included."""
        return len(self._starts) - 1

    @property
    def fingerprint(self) -> str:
        """Hex digest of all rows' contents in order; equal rows in another file format have the same one."""
        return self._digest.hexdigest()

    def windows(self, size: int, wanted: Container[int] | None = None) -> Iterator[tuple[int, list[Parsed | BadRow]]]:
        """The rows in groups of `size`, the last one smaller; the same groups each time.

        Args:
            size: Rows in a group.
            wanted: Only the groups with these numbers; the others are not read.

        Yields:
            The group's number, from 0, and its rows.
        """
        for window in range(math.ceil(len(self) / size)):
            if wanted is None or window in wanted:
                yield window, self._read(self._starts[window * size : (window + 1) * size + 1])

    def save(self, path: Path, size: int) -> SavedWindows[Parsed]:
        """Copy the rows into a file of a name, from which other processes of this machine read windows.

        Args:
            path: The file; whoever asked for it removes it.
            size: Rows in a window.

        Raises:
            OutputError: The file cannot be written.
        """
        with writing(path), path.open("wb") as file:
            self._file.seek(0)
            shutil.copyfileobj(self._file, file, 1 << 20)
        return SavedWindows(path, self._starts, size)

    def close(self) -> None:
        """Give the temporary file back."""
        self._file.close()

    def _add(self, row: Row, result: Parsed | BadRow) -> None:
        self._digest.update(json.dumps(row.content, sort_keys=True, default=str).encode() + b"\n")
        if isinstance(result, BadRow):
            self.bad += 1
            self.first_bad = self.first_bad or result
        try:
            # Pickled rather than as JSON: rows of tables hold dates, bytes and numbers that JSON does not tell apart.
            kept = pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever the columns' own types raise
            problem = f"a column holds what cannot be kept in a file ({one_line(error)}): leave that column out"
            raise DataError(f"{row.where}: {problem}") from error
        self._keep(kept)
        self._starts.append(self._starts[-1] + len(kept))

    def _keep(self, content: bytes, *, flush: bool = False) -> None:
        try:
            self._file.write(content)
            if flush:
                self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: the input's rows cannot be kept there ({error.strerror}): free space, or "
                "name another folder in the environment variable TMPDIR"
            ) from error

    def _read(self, bounds: array[int]) -> list[Parsed | BadRow]:
        self._file.seek(bounds[0])
        return _unpickled(self._file.read(bounds[-1] - bounds[0]), bounds)


@dataclass(frozen=True, slots=True)
class SavedWindows(Generic[Parsed]):
    """The windows of checked rows in a file; can be pickled, and read on the machine that has the file."""

    path: Path
    starts: array[int]
    """Where each row begins, and where the last one ends."""
    size: int
    """Rows in a window."""

    def window(self, number: int) -> list[Parsed | BadRow]:
        """The rows of a window, as `CheckedRows.windows` gives them.

        Raises:
            OutputError: The file is gone.
        """
        bounds = self.starts[number * self.size : (number + 1) * self.size + 1]
        try:
            with self.path.open("rb") as file:
                file.seek(bounds[0])
                return _unpickled(file.read(bounds[-1] - bounds[0]), bounds)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read back ({error.strerror}): run again") from error


def _unpickled(content: bytes, bounds: array[int]) -> list[Any]:
    view = memoryview(content)
    return [pickle.loads(view[start - bounds[0] : stop - bounds[0]]) for start, stop in pairwise(bounds)]

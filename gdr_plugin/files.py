"""Files that appear under their name only when they are complete; JSON lines; and files that cannot be written.

Knows the file system; nothing of what is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from gdr_plugin.api.errors import OutputError


def dumps(value: object) -> str:
    """One line of JSON; NaN is refused, other text stays as it is."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (a no-op where folders cannot be opened)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name only when complete and on disk.

    Args:
        path: The final name; its folder exists.

    Yields:
        The file to write to.

    Raises:
        OutputError: The disk is full, or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free space and run again") from error
    finally:
        partial.unlink(missing_ok=True)


def check_output(option: str, path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse a file that could not be written at the end, or that would replace an input.

    Args:
        option: The option that names the file, for messages.
        path: The file.
        inputs: What is read; None and what is no file are left aside.

    Raises:
        OutputError: Its folder is missing, it is no file, or it is an input.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if not path.exists():
        return
    if not path.is_file():
        raise OutputError(f"{option} {path}: is {'a folder' if path.is_dir() else 'not a file'}: name a file")
    if any(one is not None and Path(one).exists() and path.samefile(one) for one in inputs):
        raise OutputError(f"{option} {path} is an input: name another file")

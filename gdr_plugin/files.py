"""Writing files: they appear under their name once they are complete, and what cannot be written is refused early.

Knows the file system and JSON lines; nothing of what is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from gdr_plugin.api.errors import OutputError

PARTIAL: Final = ".part"
"""What follows the name of a file that is not complete: a process that is killed leaves it."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
"""`json.dumps` makes one for every line; watching for circles takes 40 % of a line's time, and our lines have none."""


def dumps(value: object) -> str:
    """One line of JSON; NaN is refused, other text stays as it is."""
    return _ENCODER.encode(value)


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
    partial = path.with_name(path.name + PARTIAL)
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


def check_output(option: str, path: Path, inputs: Iterable[str | Path | None], *, devices: bool = False) -> None:
    """Refuse an output file that could not be written at the end, or that would replace an input.

    Args:
        option: The option that names the file, for messages.
        path: The file.
        inputs: What is read; None and what is no file are ignored.
        devices: Whether a device or a named pipe will do, too.

    Raises:
        OutputError: Its folder is missing, it is no file, or it is an input.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if not path.exists():
        return
    if path.is_dir() or not (devices or path.is_file()):
        raise OutputError(f"{option} {path}: is {'a folder' if path.is_dir() else 'not a file'}: name a file")
    if any(source is not None and Path(source).exists() and path.samefile(source) for source in inputs):
        raise OutputError(f"{option} {path} is an input: name another file")


def check_output_folder(option: str, path: Path) -> None:
    """Refuse an output folder that is a file.

    Args:
        option: The option that names the folder, for messages.
        path: The folder; it is made later when missing.

    Raises:
        OutputError: There is a file, or something else, of this name.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{option} {path}: is a file: name a folder")

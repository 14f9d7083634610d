"""Writing files: they appear under their name once they are complete, and what cannot be written is refused early.

Knows the file system and JSON lines; nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from gdr_plugin.api.errors import OutputError
from gdr_plugin.text import first_line

PARTIAL: Final = ".part"
"""What follows the name of a file that is not complete: a process that is killed leaves it."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
"""`json.dumps` makes one for every line; watching for circles takes 40 % of a line's time, and our lines have none."""


def dumps(value: object) -> str:
    """One line of JSON; NaN is refused, other text stays as it is."""
    return _ENCODER.encode(value)


def sync(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (a no-op where folders cannot be opened)."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_ADVICE: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space and run again"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "give yourself the right to write there, or name another place"
    ),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or name another place, and run again",
}
"""What to do about an error of the operating system."""


def advice(error: OSError) -> str:
    """What to do about an error of writing, as the end of a sentence; empty where the error's own words say it."""
    found = _ADVICE.get(error.errno or 0)
    return f"; {found}" if found else ""


def not_written(what: str | Path, error: OSError) -> OutputError:
    """The error that says which file or folder could not be written, why, and what to do.

    Args:
        what: The file or folder.
        error: As the operating system says it, or a library in its name.
    """
    reason = os.strerror(error.errno) if error.errno else first_line(error)
    return OutputError(f"{what}: cannot be written ({reason}){advice(error) or '; name another place'}")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name only when complete and on disk.

    Args:
        path: The final name; its folder exists.

    Yields:
        The file to write to.

    Raises:
        OutputError: The disk is full, or the folder cannot be written. Other errors of the block stay as they are.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with writing(path):
            raw = _Output(partial, path)
        with io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            with writing(path):
                os.fsync(file.fileno())
        with writing(path):
            partial.replace(path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # there is none, or a folder that cannot be written
            partial.unlink()


@contextlib.contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Around what writes a file or folder, and nothing else: an error of the operating system becomes `OutputError`."""
    try:
        yield
    except BrokenPipeError:  # whoever reads it went away, which is no error of ours
        raise
    except OSError as error:
        raise not_written(what, error) from error


class _Output(io.FileIO):
    """A file whose errors of writing name it: the block that writes it does other work, too, with errors of its own."""

    def __init__(self, path: Path, final: Path) -> None:
        super().__init__(path, "w")
        self._final = final

    def write(self, content: Any, /) -> int:
        with writing(self._final):
            return super().write(content)


def check_output(option: str, path: Path, inputs: Iterable[str | Path | None], *, devices: bool = False) -> None:
    """Refuse an output file that could not be written at the end, or that would replace an input.

    Args:
        option: The option that names the file, for messages.
        path: The file.
        inputs: What is read; None and what is no file are ignored.
        devices: Whether a device or a named pipe will do, too.

    Raises:
        OutputError: Its folder is missing or cannot be written, it is no file, or it is an input.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{option} {path}: there is no folder {path.parent}: make it first")
    if not os.access(path.parent, os.W_OK) and not (devices and path.exists()):
        raise OutputError(f"{option} {path}: nothing can be written into {path.parent.absolute()}: name another place")
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

"""The folder of a resumable run: who holds it, which run it belongs to, and the finished windows in it.

Knows JSON and how shards are named; nothing of models, rewards or data sets.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from gdr_plugin.api.errors import OutputError
from gdr_plugin.files import PARTIAL, atomic, dumps, not_written, writing
from gdr_plugin.text import one_line

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
WORK_FOLDER = "work"
LOCK_FILE = ".lock"
_OURS = {RUN_FILE, LOCK_FILE, WORK_FOLDER}


class RunFolder:
    """An output folder, held by one process at a time; a context manager.

    Args:
        root: The folder; made on entering.
        held: Whether this process holds it. One that does not works for the one that does, and only reads shards and
            writes those of its own windows.

    Raises:
        OutputError: On entering: another process holds it, it cannot be written, or it holds other things.
    """

    def __init__(self, root: Path, *, held: bool = True) -> None:
        self.root = root
        self._held = held
        self.work = root / WORK_FOLDER
        # The lock ends with the process, however that ends.
        self._lock = FileLock(root / LOCK_FILE, blocking=False, thread_local=False)

    def __enter__(self) -> RunFolder:
        if not self._held:
            return self
        self.check_usable(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(f"{self.root}: another gdr is working on it: wait for it or choose another -o") from error
        except OSError as error:
            raise not_written(self.root, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._held:
            return
        with contextlib.suppress(OSError):  # an open file cannot be removed everywhere; it may stay
            (self.root / LOCK_FILE).unlink()  # while it is held: whoever has opened it meanwhile finds it gone
        self._lock.release()

    @staticmethod
    def check_usable(root: Path) -> None:
        """Refuse a folder that holds other things than a run's, before anything is made.

        Raises:
            OutputError: It is a file, or a folder with files in it and no run.
        """
        if root.exists() and not root.is_dir():
            raise OutputError(f"{root}: is a file; -o names a folder")
        if root.is_dir() and not (root / RUN_FILE).exists():
            names = (entry.name for entry in root.iterdir())
            foreign = sorted(name for name in names if name.removesuffix(PARTIAL) not in _OURS)
            if foreign:
                raise OutputError(f"{root}: is not empty ({foreign[0]} ...) and holds no run: choose another -o")

    def claim(self, run: Mapping[str, Any], *, compare: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make the folder this run's, or find that it already is.

        Args:
            run: What run.json says of the run; holds `compare` under that name.
            compare: What must be equal for the run to go on in this folder.

        Returns:
            What run.json says of the run that was begun before, or None for a fresh one.

        Raises:
            OutputError: The folder belongs to a run of another configuration or input; the message says what differs.
        """
        path = self.root / RUN_FILE
        begun = self._read(path) if path.exists() else None
        if begun is not None:
            changes = list(differences(begun.get("compare", {}), json.loads(dumps(compare))))
            if changes and not self._has_results():
                begun = None  # it stopped before its first window: nothing of it would be mixed with this one
            elif changes:
                more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
                raise OutputError(
                    f"{self.root}: belongs to another run ({'; '.join(changes[:3])}{more}): choose another -o, or "
                    "delete the folder to start over"
                )
        with writing(self.work):
            self.work.mkdir(exist_ok=True)
        if begun is None:
            with atomic(path) as file:
                file.write(json.dumps({**run, "compare": compare}, ensure_ascii=False, indent=2) + "\n")
        return begun

    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary, or None while it is not finished."""
        path = self.root / SUMMARY_FILE
        return self._read(path) if path.exists() else None

    def has(self, kind: str, window: int) -> bool:
        """Whether a window's shard is complete."""
        return self._shard(kind, window).exists()

    def write(self, kind: str, window: int, header: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Write a window's shard atomically: a header line, then one record a line."""
        lines = [dumps(record) for record in records]
        with atomic(self._shard(kind, window)) as file:
            file.write(dumps({**header, "records": len(lines)}) + "\n")
            file.writelines(line + "\n" for line in lines)

    @contextlib.contextmanager
    def reading(self, kind: str, window: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """A window's header and records, for a block that makes something of them.

        Raises:
            OutputError: The shard is missing or damaged, as far as this or the block finds; the message names the file
                to delete.
        """
        path = self._shard(kind, window)
        try:
            with path.open(encoding="utf-8") as file:
                header, *records = [json.loads(line) for line in file]
            if header["records"] != len(records):
                raise ValueError("its end is missing")
            yield header, records
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path}: cannot be read back ({one_line(error)}): delete that file and run again"
            ) from error

    def _has_results(self) -> bool:
        return (self.root / SUMMARY_FILE).exists() or any(self.work.glob("*-*.jsonl"))

    def clear_work(self) -> None:
        """Remove the shards; the run is finished."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it; the run is finished, and its result is elsewhere."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _shard(self, kind: str, window: int) -> Path:
        return self.work / f"{kind}-{window:06d}.jsonl"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: cannot be read ({error}): choose another -o, or delete the folder") from error
        if not isinstance(value, dict):
            raise OutputError(f"{path}: is not a run's: choose another -o, or delete the folder")
        return value


def differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    """What differs between two JSON values, as short phrases: "options.seed was 0, is 1"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(set(before) | set(now)):
            yield from differences(before.get(key), now.get(key), f"{at}.{key}" if at else key)
    elif before != now:
        yield f"{at} was {_short(before)}, is {_short(now)}"


def _short(value: object) -> str:
    text = dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

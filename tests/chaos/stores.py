"""A log-prob store seen from outside: its entries, a process that holds it, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
connection.execute("BEGIN EXCLUSIVE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""
DISK_MB = 192
"""Room for the log that a store keeps before it is folded in."""


def entries(path: Path) -> dict[tuple[str, bytes], bytes]:
    """Every entry: the model's identity and the key -> the log-probs' bytes; none while the file is not there.

    Raises:
        sqlite3.Error: The file is held just now, or damaged.
    """
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as connection:
        query = "SELECT identity, key, value FROM logprobs JOIN models ON models.id = logprobs.model"
        return {(identity, key): value for identity, key, value in connection.execute(query)}


def damage(path: Path) -> str:
    """What SQLite finds wrong in the file; `ok` where nothing is."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def hold(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Another process that holds the store's lock for so long; it ends by itself."""
    return subprocess.Popen([sys.executable, "-S", "-c", _HOLD, str(path), str(seconds)], stderr=subprocess.DEVNULL)


class SmallDisk:
    """A folder on a disk of its own of a few MiB, where this machine lets us mount one.

    Args:
        folder: Where it is mounted; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:  # there is no such command
            self.mounted = False

    @property
    def how(self) -> str:
        """How the disk becomes full, in words."""
        return f"tmpfs of {DISK_MB} MiB" if self.mounted else "RLIMIT_FSIZE"

    @contextlib.contextmanager
    def full(self, process: int) -> Iterator[None]:
        """No byte is left for as long as the block runs.

        Args:
            process: Whose files may not grow, where nothing can be mounted.
        """
        if self.mounted:
            filler = self.folder / "filler"
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            try:
                yield
            finally:
                filler.unlink()
            return
        import resource

        with contextlib.suppress(OSError):  # the process may have been killed
            resource.prlimit(process, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)
            self.mounted = False


def environment() -> dict[str, str]:
    """The environment of the processes that are killed: this package, one thread, no hub."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }

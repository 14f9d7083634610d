"""A small disk of its own, to be filled and made read-only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


class Disk:
    """A small disk of its own (tmpfs).

    Args:
        path: Where it is mounted.
        size: Bytes that fit.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"a disk cannot be mounted here: {made.stderr.strip()}")

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes."""
        (self.path / "ballast").unlink(missing_ok=True)
        with (self.path / "ballast").open("wb", buffering=0) as file:
            file.write(bytes(self.free - leave))
        assert self.free == leave

    @property
    def free(self) -> int:
        """Bytes that are free, in whole pages."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def make_room(self) -> None:
        """Take what filled it away."""
        (self.path / "ballast").unlink()

    def remount(self, options: str) -> None:
        """Change it: `ro`, `rw`, `size=...`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def unmount(self) -> None:
        """Take it away, whatever is open on it."""
        subprocess.run(["umount", "-l", self.path], check=True)

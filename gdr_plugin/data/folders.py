"""Which files of a folder are data, what part of the data each is, and what is no data at all.

Knows names of files and their first bytes; nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from gdr_plugin.api.errors import DataError

__all__ = ["check_pointer", "data_files", "kind_of", "parts_of", "stem"]

_SHARD = re.compile(r"-\d+-of-\d+$")
_GENERIC = ("data", "dataset", "test", "train", "validation")
"""Names of files that say nothing where the folder has a name."""
_POINTER = b"version https://git-lfs.github.com/spec/"


def kind_of(path: Path) -> str | None:
    """The format of a file by its name: `jsonl`, `json`, `csv` or `parquet`; None for another."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(
        suffixes[-1] if suffixes else ""
    )


def data_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The data files of a folder, in order of their names; where it has none itself, those of the folders inside it.

    Folders beside data files hold what was made of them (results, caches), and hidden ones nothing for us.
    """
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    own = [(kind, path) for path in inside if path.is_file() and (kind := kind_of(path))]
    if any(kind != "json" for kind, _ in own):
        yield from own
        return
    deeper = [found for path in inside if path.is_dir() and not path.is_symlink() for found in data_files(path)]
    # .json files may also describe what is in the folders.
    yield from deeper if not own or any(kind != "json" for kind, _ in deeper) else own


def check_pointer(path: Path) -> None:
    """Refuse what Git leaves where a large file was not downloaded."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if start == _POINTER:
        raise DataError(f"{path} is a Git LFS pointer, not the data: run git lfs pull in its repository")


def parts_of(source: str | Path, stdin: str) -> Callable[[str], str]:
    """A function from a row's place to its file's name within the source; empty where the source is no folder of files.

    Args:
        source: What is read.
        stdin: The name of standard input.
    """
    folder = Path(source)
    if str(source) == stdin or str(source).startswith("hf:") or not folder.is_dir():
        return lambda where: ""

    @cache
    def part(file: str) -> str:
        path = Path(file)
        if not path.is_relative_to(folder):  # a saved data set
            return ""
        inside = path.relative_to(folder)
        name = _SHARD.sub("", stem(inside))
        # A file that is called as all files are (LLMBar's dataset.json, a hub's train split) has its folder's name.
        parts = inside.parts[:-1] if name in _GENERIC else (*inside.parts[:-1], name)
        return "/".join(parts)

    return lambda where: part(where.rsplit(" ", 2)[0])


def stem(path: Path) -> str:
    """A file's name without what is behind the last dot."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name

"""Finds the files and folders that a configuration names.

Knows the file system and which keys hold paths; nothing else of what a key means.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import nearest
from gdr_plugin.text import printable

if TYPE_CHECKING:
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.config.schema import Config, RouterEntry

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LONGEST = 300
"""Most characters of a path in a message."""
_OPTION_FILES = (".yaml", ".yml", ".json")


def locate(config: Config, base: Path) -> tuple[Config, list[str]]:
    """Make the local paths of a configuration absolute.

    Args:
        config: With paths as the user wrote them.
        base: The folder that relative paths are relative to.

    Returns:
        The configuration with absolute paths, and one complaint for each path that does not exist. A text that may be
        a hub id (`name` or `org/name`) and is not on disk stays as it is.
    """
    finder = _Finder(base)
    strong = finder.model("strong", config.strong)
    weak = finder.model("weak", config.weak)
    files = tuple(finder.path(f"guidance.files[{i}]", file) for i, file in enumerate(config.guidance.files))
    routers = tuple(finder.router(f"routing.routers[{i}]", entry) for i, entry in enumerate(config.routing.routers))
    store = config.store
    if store is not None:
        store = store.model_copy(update={"path": finder.store(store.path)})
    teacher = config.teacher
    if teacher is not None:
        reference = finder.model("teacher.reference", teacher.reference)
        teacher = teacher.model_copy(update={"reference": reference})
    return config.model_copy(
        update={
            "strong": strong,
            "weak": weak,
            "guidance": config.guidance.model_copy(update={"files": files}),
            "routing": config.routing.model_copy(update={"routers": routers}),
            "store": store,
            "teacher": teacher,
        }
    ), finder.complaints


class _Finder:
    """Finds paths below one folder and collects complaints about those that are not there."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.complaints: list[str] = []

    def path(self, key: str, text: str, *, hub: bool = False, allowed: str = "") -> str:
        """An absolute path; with `hub`, a text that may be a hub id and is not on disk stays as it is."""
        path = self._absolute(text)
        if _exists(path):
            return str(path)
        if not hub or text.startswith((".", "/", "~")) or text.endswith(".gguf") or not _HUB_ID.fullmatch(text):
            self.complaints.append(f"{key}: no such file or folder: {_shown(path)}{allowed}{_neighbour(path)}")
        return text

    def model(self, key: str, spec: ModelSpec) -> ModelSpec:
        """A model with its adapter, tokenizer and template."""
        changes: dict[str, str] = {}
        if spec.scheme == "hf":
            target = self.path(f"{key}.model", spec.target, hub=True)
            changes["model"] = spec.model.removesuffix(spec.target) + target
        if spec.adapter is not None and not spec.on_server:
            changes["adapter"] = self.path(f"{key}.adapter", spec.adapter, hub=True)
        if spec.tokenizer is not None:
            changes["tokenizer"] = self.path(f"{key}.tokenizer", spec.tokenizer, hub=True)
        if spec.chat_template is not None and spec.chat_template != "plain":
            allowed = " (allowed are plain and the path of a Jinja file)"
            changes["chat_template"] = self.path(f"{key}.chat_template", spec.chat_template, allowed=allowed)
        return spec.model_copy(update=changes)

    def router(self, key: str, entry: RouterEntry) -> RouterEntry:
        """A router's entry with its files found: an option is a file when its text ends like a data file."""

        def found(option: str, value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [found(option, item) for item in value]
            if not isinstance(value, str) or not value.endswith(_OPTION_FILES):
                return value
            if value.startswith((".", "/", "~")):
                return self.path(f"{key}.{option}", value)
            path = self._absolute(value)
            return str(path) if _exists(path) else value

        options = {name: found(name, value) for name, value in (entry.model_extra or {}).items()}
        return type(entry)(name=entry.name, **options)

    def store(self, text: str) -> str:
        """The store's file, which need not be there yet."""
        path = self._absolute(text)
        if _exists(path) and path.is_dir():
            self.complaints.append(f"store.path: {path} is a folder: name a file in it, as in {text}/store.sqlite")
        return str(path)

    def _absolute(self, text: str) -> Path:
        # Not resolve(): the target of a symbolic link may have a name that means nothing to the user.
        return Path(os.path.abspath(self._base / Path(text).expanduser()))  # noqa: PTH100


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is longer than a file's can be, or a folder on the way is closed to us
        return False


def _shown(path: Path) -> str:
    return printable(str(path), limit=_LONGEST)


def _neighbour(path: Path) -> str:
    """The nearest name in the same folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir()] if _exists(path.parent) and path.parent.is_dir() else []
    except OSError:  # a folder that cannot be read has no name to offer
        names = []
    near = nearest(path.name, names)
    return f" (did you mean {near!r}?)" if near else ""

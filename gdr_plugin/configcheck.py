"""What is wrong with a configuration, in one line; and where its paths lead.

Knows pydantic's errors and the file system. It does not know what any key means beyond whether it holds a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from gdr_plugin.errors import nearest, unknown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from gdr_plugin.config import Config, ModelSpec, RouterEntry

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OPTION_FILES = (".yaml", ".yml", ".json")


def explain(error: ValidationError, schema: type[BaseModel], data: object) -> str:
    """All of pydantic's complaints as one line: dotted key, what is wrong, what is allowed, the nearest valid name.

    Args:
        error: What validation raised.
        schema: The class that was validated against.
        data: The validated input.

    Returns:
        The complaints, joined with "; ".
    """
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        found.setdefault(_dotted(_data_path(detail, data)), []).append(detail)
    lines = []
    for key, details in found.items():
        if len(details) > 1:  # the branches of a union: any of them would do
            text = f"must be {' or '.join(map(_expected, details))}, not {details[0]['input']!r}"
        else:
            text = _complaint(details[0], schema)
        lines.append(f"{key}: {text}" if key else text)
    return "; ".join(lines)


def _data_path(detail: ErrorDetails, data: object) -> tuple[int | str, ...]:
    """The error's location without the steps that only pydantic knows (branches of a union, keys of a mapping)."""
    path: list[int | str] = []
    here = data
    steps = detail["loc"][:-2] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    for step in steps:
        if isinstance(here, Mapping) and step in here:
            here = here[step]
        elif isinstance(here, (list, tuple)) and step in range(len(here)):
            here = here[int(step)]
        elif detail["type"] == "missing" and isinstance(here, Mapping):
            path.append(step)
            break
        else:
            break
        path.append(step)
    return tuple(path)


def _dotted(path: Sequence[int | str]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _complaint(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    value, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            section = _section(schema, detail["loc"][:-1])
            return unknown("key", detail["loc"][-1], section.model_fields if section else ())
        case "missing":
            return "is missing"
        case "literal_error":
            return unknown("value", value, re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        case "value_error":
            return str(context.get("error", detail["msg"]))
        case "greater_than_equal":
            return f"must be {context['ge']} or more, not {value!r}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case _ if "[key]" in detail["loc"]:
            return f"the key {value!r} must be text: put it in quotes"
        case _ if value is None:
            return "has no value: give it one or remove the key"
        case "string_type" if not isinstance(value, (Mapping, list)):
            # YAML reads `on`, `no`, `12` or `2026-01-01` as something else than text.
            return f"must be text, not {value!r}: put it in quotes"
        case _:
            return f"must be {_expected(detail)}, not {value!r}"


def _expected(detail: ErrorDetails) -> str:
    names = {"string": "text", "int": "a whole number", "bool": "true or false", "dict": "a mapping"}
    names |= {"model": "a mapping", "tuple": "a list"}
    return names.get(detail["type"].partition("_")[0], detail["msg"].removeprefix("Input should be "))


def _section(schema: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """The class that describes the mapping at `path`."""
    here: type[BaseModel] | None = schema
    for step in path:
        field = here.model_fields.get(step) if here and isinstance(step, str) else None
        if field is not None:
            here = model_in(field.annotation)
    return here


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in a field's type, looking into unions, tuples and `Annotated`; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def locate(config: Config, base: Path) -> tuple[Config, list[str]]:
    """Make the local paths of a configuration absolute.

    Args:
        config: With paths as the user wrote them.
        base: The folder that relative paths are relative to.

    Returns:
        The configuration with absolute paths, and one complaint for each path that does not exist. What may be a hub
        id (`name` or `org/name`) and is not on disk stays as it is.
    """
    finder = _Finder(base)
    strong = finder.model("strong", config.strong)
    weak = finder.model("weak", config.weak)
    files = tuple(finder.path(f"guidance.files[{i}]", file) for i, file in enumerate(config.guidance.files))
    routers = tuple(finder.router(f"routing.routers[{i}]", entry) for i, entry in enumerate(config.routing.routers))
    store = config.store
    if store is not None:
        store = store.model_copy(update={"path": finder.store(store.path)})
    return config.model_copy(
        update={
            "strong": strong,
            "weak": weak,
            "guidance": config.guidance.model_copy(update={"files": files}),
            "routing": config.routing.model_copy(update={"routers": routers}),
            "store": store,
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
        if path.exists():
            return str(path)
        if not hub or text.startswith((".", "/", "~")) or text.endswith(".gguf") or not _HUB_ID.fullmatch(text):
            self.complaints.append(f"{key}: no such file or folder: {path}{allowed}{_neighbour(path)}")
        return text

    def model(self, key: str, spec: ModelSpec) -> ModelSpec:
        """A model with its adapter, tokenizer and template."""
        changes: dict[str, str] = {}
        if spec.scheme == "hf":
            target = self.path(f"{key}.model", spec.target, hub=True)
            changes["model"] = spec.model.removesuffix(spec.target) + target
        if spec.adapter is not None:
            changes["adapter"] = self.path(f"{key}.adapter", spec.adapter, hub=True)
        if spec.tokenizer is not None:
            changes["tokenizer"] = self.path(f"{key}.tokenizer", spec.tokenizer, hub=True)
        if spec.chat_template is not None and spec.chat_template != "plain":
            allowed = " (allowed are plain and the path of a Jinja file)"
            changes["chat_template"] = self.path(f"{key}.chat_template", spec.chat_template, allowed=allowed)
        return spec.model_copy(update=changes)

    def router(self, key: str, entry: RouterEntry) -> RouterEntry:
        """A router's options: text that ends like a data file is a path."""

        def found(option: str, value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [found(option, one) for one in value]
            if not isinstance(value, str) or not value.endswith(_OPTION_FILES):
                return value
            if value.startswith((".", "/", "~")):
                return self.path(f"{key}.{option}", value)
            path = self._absolute(value)
            return str(path) if path.exists() else value

        options = {name: found(name, value) for name, value in (entry.model_extra or {}).items()}
        return type(entry)(name=entry.name, **options)

    def store(self, text: str) -> str:
        """The store's file, which need not be there yet."""
        path = self._absolute(text)
        if path.is_dir():
            self.complaints.append(f"store.path: {path} is a folder: name a file in it, as in {text}/store.sqlite")
        return str(path)

    def _absolute(self, text: str) -> Path:
        # Not resolve(): the target of a symbolic link may have a name that means nothing to the user.
        return Path(os.path.abspath(self._base / Path(text).expanduser()))  # noqa: PTH100


def _neighbour(path: Path) -> str:
    """The nearest name in the same folder."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names)
    return f" (did you mean {near!r}?)" if near else ""

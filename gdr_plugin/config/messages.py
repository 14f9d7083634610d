"""What is wrong with a configuration or another YAML file, in one line.

Knows pydantic's errors; nothing of what a key means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gdr_plugin.api.errors import ConfigError, quoted, unknown
from gdr_plugin.text import printable, type_name

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_Schema = TypeVar("_Schema", bound=BaseModel)

_SHOWN: Final = 10
"""Most complaints in one message: a person mends one after the other."""
_NAME, _COMPLAINT = 100, 600
"""Most characters of a key and of a complaint."""


class FileEntry(BaseModel):
    """A mapping in a YAML file other than gdr.yaml: a guidance, an exemplar, a keyword rule.

    Unknown keys are refused, and no value is turned into another type. An optional key without a value counts as left
    out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping with {', '.join(cls.model_fields)}, not {type_name(value)}")
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: item for key, item in value.items() if item is not None or key not in optional}


def validated(schema: type[_Schema], data: object, origin: str) -> _Schema:
    """Validate what a YAML file holds.

    Args:
        schema: What the file may say.
        data: What it says.
        origin: What the message calls it.

    Returns:
        The data as an instance of `schema`.

    Raises:
        ConfigError: Keys are wrong; all of them in one line.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, schema, data)}") from None


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
            text = f"must be {' or '.join(map(_expected, details))}, not {quoted(details[0]['input'])}"
        else:
            text = _complaint(details[0], schema)
        lines.append(printable(f"{key}: {text}" if key else text, limit=_COMPLAINT))
    more = [f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return "; ".join(lines[:_SHOWN] + more)


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
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{printable(step, limit=_NAME)}" for step in path)
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
        case "greater_than":
            return f"must be above {context['gt']:g}, not {quoted(value)}"
        case "greater_than_equal":
            return f"must be {context['ge']:g} or more, not {quoted(value)}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case _ if "[key]" in detail["loc"] or detail["type"] == "invalid_key":
            return f"the key {quoted(value)} must be text: put it in quotes"
        case _ if value is None:
            return "has no value: give it one or remove the key"
        case "string_type" if not isinstance(value, (Mapping, list)):
            # YAML reads `on`, `no`, `12` or `2026-01-01` as something else than text.
            return f"must be text, not {quoted(value)}: put it in quotes"
        case _:
            return f"must be {_expected(detail)}, not {quoted(value)}"


def _expected(detail: ErrorDetails) -> str:
    names = {"string": "text", "int": "a whole number", "bool": "true or false", "dict": "a mapping"}
    names |= {"model": "a mapping", "tuple": "a list", "list": "a list", "float": "a number"}
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

"""How a row of preference data becomes an item, whatever its format: first a prompt, chosen and rejected, then an item.

Knows a row and the table of formats (`format_table`, `formats.yaml`); nothing of files, models or of how a benchmark is
scored (`benchmarks` does).

Sources: the data cards and evaluation code of the data sets that `formats.yaml` names; TRL's page on data set formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.data import stated
from gdr_plugin.data.columns import column_of, has, lookup
from gdr_plugin.data.format_table import FORMATS, Format
from gdr_plugin.data.item import Item
from gdr_plugin.data.labels import decide
from gdr_plugin.data.prompts import Prompt, parse_prompt, with_columns
from gdr_plugin.data.responses import joined_prompt, response_of, responses_of
from gdr_plugin.data.rows import generated_id, id_of
from gdr_plugin.data.sources import Row
from gdr_plugin.data.suggest import guess, no_format
from gdr_plugin.text import is_missing, type_name

__all__ = ["LABEL", "Half", "detect", "parse"]

LABEL = "labelled_domain"
"""The field of an item that says which domain its benchmark puts it in: routers do not read it."""

_ROLES = (
    *("prompt", "chosen", "rejected", "response_a", "response_b", "label", "responses", "scores", "ranks", "response"),
    "group",
)
"""The roles whose columns are read, and are no fields of an item."""
_Fields: TypeAlias = "Callable[[Prompt], dict[str, Any]]"
"""Gives the columns that nothing has read, once it is known which the prompt is made of."""


@dataclass(frozen=True, slots=True)
class Half:
    """One response of data whose rows have one each: the rows of one group are an item together."""

    id: str
    group: object
    item: Item
    """What is known of the item: its prompt, and the response on its side; the other side is empty."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """All other columns."""
        return self.item.fields


def detect(row: Row, columns: Mapping[str, str] | None = None) -> Format:
    """The format that a row's columns belong to.

    Args:
        row: As read, its columns renamed.
        columns: How they were renamed; see `Format.with_map`.

    Raises:
        DataError: They belong to none; says which --map would do.
    """
    for known in FORMATS.values():
        format = known.with_map(columns)
        if format.matches(row.data, row.stem):
            return format
    raise no_format(row, lambda renamed, names: parse(renamed, detect(renamed, names)))


def parse(row: Row, format: Format) -> Item | Half:
    """Make an item of a row.

    Args:
        row: As read, its columns renamed.
        format: Its format.

    Raises:
        UndecidedError: The row prefers no response.
        DataError: The row is malformed, or a column is missing or of another type; names the row.
    """
    data = row.data  # raises, with the row's place, what is wrong with a line that could not be read
    try:
        return _item(row, format)
    except KeyError as error:
        raise DataError(f"{row.where}: {_missing(error.args[0], data, format)}") from None
    except DataError as error:
        raise type(error)(f"{row.where}: {error}") from None


def _missing(path: str, data: Mapping[str, Any], format: Format) -> str:
    """What to say of a column that is not there, and how to name it."""
    said = f"there is no column {path!r} among {', '.join(map(str, data))} ({format.name} has {format.columns})"
    role = next((role for role in _ROLES if path in format.at(role)), None)
    return said if role is None else f"{said}: name it with --map {role}={guess(role, data)}"


def _item(row: Row, format: Format) -> Item | Half:
    data = row.data
    others = _unused(data, format)
    if (prompt := stated.prompt(format, data)) is not None:
        others["prompt"] = prompt
    subset = _subset(row, format)
    label = _labelled_domain(format, data, subset)
    named = {"id", "prompt", *format.at("subset"), *format.at("domain"), *format.at("id")}

    def fields(prompt: Prompt) -> dict[str, Any]:
        found = {name: value for name, value in others.items() if name not in named and name not in prompt.columns}
        return found if label is None else {**found, LABEL: label}

    item = Item(_identifier(row, format, subset), (), (), (), _domain(format, data), subset)
    if format.kind == "single":
        return _half(format, data, others.get("prompt"), item, fields)
    sides = _sides(format, data)
    if format.contexts == "own":
        contexts = [_context(value, f"`{side}`") for side, value in sides.items()]
        if contexts[0][0] != contexts[1][0]:
            return _own_contexts(contexts, data, item, fields)
    turns, chosen, rejected = responses_of(others | sides)
    return replace(item, prompt=turns.turns, chosen=chosen, rejected=rejected, fields=fields(turns))


def _unused(data: Mapping[str, Any], format: Format) -> dict[str, Any]:
    """The columns that state neither prompt nor responses nor which is the better one."""
    used = {column_of(data, path) for role in _ROLES for path in format.at(role) if has(data, path)}
    used |= {column for column in (format.turns, *format.counted.values()) if column is not None}
    used |= set(stated.label_columns(format))
    used |= {column_of(data, path) for template in format.template for path in stated.FIELD.findall(template)}
    return {name: value for name, value in data.items() if name not in used}


def _sides(format: Format, data: Mapping[str, Any]) -> dict[str, Any]:
    """The responses of a row as `chosen` and `rejected`, as the row has them."""
    if format.kind == "sides":
        return {side: stated.side(format, data, side) for side in ("chosen", "rejected")}
    if format.kind == "list":
        return dict(stated.best(format, data))
    first, second = (stated.response(format, data, f"response_{side}") for side in ("a", "b"))
    better = _better(format, data)
    return {"chosen": first, "rejected": second} if better == "a" else {"chosen": second, "rejected": first}


def _better(format: Format, data: Mapping[str, Any]) -> str:
    paths = format.at("label")
    value = None if stated.label_columns(format) else stated.first(format, data, "label")
    what = next((path for path in paths if has(data, path)), "label")
    return decide(format.label, value, data, what=what, loose=format.loose)


def _half(format: Format, data: Mapping[str, Any], given: Any, item: Item, fields: _Fields) -> Half:
    """What a row with one response says."""
    head, turn = response_of(stated.response(format, data, "response"), "`response`")
    prompt = joined_prompt(data, given, head)
    said = (prompt.answer(turn),)
    good = _better(format, data) == "a"
    group = stated.first(format, data, "group") if any(has(data, path) for path in format.at("group")) else None
    if isinstance(group, list | Mapping):
        raise DataError(f"`group` must be a text or a number, not {type_name(group)}")
    if is_missing(group):
        group = prompt.turns
    known = replace(item, prompt=prompt.turns, fields=fields(prompt))
    return Half(item.id, group, replace(known, chosen=said) if good else replace(known, rejected=said))


def _context(value: Any, what: str) -> tuple[Conversation, Message]:
    head, turn = response_of(value, what)
    return parse_prompt(head), turn


def _own_contexts(
    contexts: Sequence[tuple[Conversation, Message]], data: Mapping[str, Any], item: Item, fields: _Fields
) -> Item:
    """An item whose responses end conversations of their own: its prompt is what these begin with."""
    (first, chosen), (second, rejected) = contexts
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    while shared and first[shared - 1].role == "assistant":
        shared -= 1
    if not any(turn.role == "user" for turn in first[:shared]):
        raise DataError("the two conversations begin with different prompts")
    prompt, *own = (with_columns(turns, data) for turns in (first[:shared], first, second))
    return replace(
        item,
        prompt=prompt.turns,
        chosen=(chosen,),
        rejected=(rejected,),
        fields=fields(prompt),
        contexts=tuple(context.turns for context in own),
    )


def _subset(row: Row, format: Format) -> str:
    """The part of the data that a row is of: as it says, or else its file; `all` where neither says anything."""
    data = row.data
    paths = format.at("subset")
    value = stated.first(format, data, "subset") if any(has(data, path) for path in paths) else None
    if isinstance(value, list | tuple | Mapping):
        raise DataError(f"`{paths[0]}` must be a string, not {type_name(value)}")
    if not is_missing(value):
        return str(value)
    if format.part:
        if row.stem not in format.part:
            files = ", ".join(format.part)
            raise DataError(
                f"the row has no `{paths[0]}`, and its file is not named {files}: name the column with --map "
                f"{paths[0]}=COLUMN"
            )
        return format.part[row.stem]
    if format.known is not None:
        lookup(data, paths[0])  # says that it is missing
    return row.part or "all"


def _identifier(row: Row, format: Format, subset: str) -> str:
    data, paths = row.data, format.at("id")
    given = data.get(paths[0]) if paths else None
    own = generated_id(row) if not paths else id_of(row) if paths == ("id",) or is_missing(given) else str(given)
    if format.id is None:
        return own
    values = {"subset": subset, "id": own}
    return stated.FIELD.sub(
        lambda match: str(values[match[1]] if match[1] in values else lookup(data, match[1])), format.id
    )


def _domain(format: Format, data: Mapping[str, Any]) -> str | None:
    """The domain that the row names, which routers may read."""
    if not format.at("domain"):
        return None
    given = stated.first(format, data, "domain") if any(has(data, path) for path in format.at("domain")) else None
    if not is_missing(given) and not isinstance(given, str):
        raise DataError(f"`domain` must be a string, not {type_name(given)}")
    return given.strip() or None if isinstance(given, str) else None


def _labelled_domain(format: Format, data: Mapping[str, Any], subset: str) -> str | None:
    """The domain that a benchmark puts the row in."""
    if format.domains is None or format.parts is None:
        return None
    name = subset if format.domains in ("subset", *format.at("subset")) else str(data.get(format.domains, ""))
    part = format.parts.subset(name)
    return part.domain if part is not None else None

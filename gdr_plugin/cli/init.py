"""`gdr init`: write a commented gdr.yaml, made from the schema itself so that the two cannot drift apart."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# The two models of the paper's published numbers.
STRONG = "hf:NousResearch/Nous-Hermes-2-Mistral-7B-DPO"
WEAK = "hf:teknium/OpenHermes-2.5-Mistral-7B"

_HEAD = """\
A reward from two language models: log p_strong(response | prompt) - log p_weak(response | prompt).
`gdr check {name}` says what it would load. Keys behind # are optional: they show their default, or an example.
Relative paths are relative to this file's folder."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("gdr.yaml"),
    strong: Annotated[str, typer.Option(help="The better-aligned model.")] = STRONG,
    weak: Annotated[str, typer.Option(help="The less-aligned model.")] = WEAK,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a commented gdr.yaml with every setting."""
    from gdr_plugin.api.errors import OutputError
    from gdr_plugin.files import atomic

    if path.is_dir():
        path = path / "gdr.yaml"
    if path.exists() and not force:
        raise OutputError(f"{path} is there already: name another file, or overwrite it with --force")
    with atomic(path) as file:
        file.write(template(strong, weak, name=path.name))
    say(f"wrote {path}; next: gdr check {path}")


def template(strong: str = STRONG, weak: str = WEAK, *, name: str = "gdr.yaml") -> str:
    """The text of a commented gdr.yaml.

    Args:
        strong: The better-aligned model.
        weak: The less-aligned model.
        name: The file's name, for the comment at its head.

    Returns:
        YAML with every key of the schema: explanations behind `# `, optional keys behind `#`.
    """
    from gdr_plugin.config.schema import Config

    lines = list(_comment(_HEAD.format(name=name), ""))
    for key, info in Config.model_fields.items():
        lines += ["", *_comment(_explained(info), "")]
        section = _section(info)
        if key == "weak":
            lines += ["weak:", f"  model: {_value(weak)}"]
        elif section is None:
            lines.append(_entry(key, info, ""))
        else:
            # A section that is absent by default is commented out as a whole.
            off = "#" if not info.is_required() and info.default is None else ""
            lines.append(f"{off}{key}:")
            lines += _keys(section, {"model": strong} if key == "strong" else {}, off)
    return "\n".join(lines) + "\n"


def _keys(section: type[BaseModel], given: dict[str, Any], off: str, indent: str = "  ") -> Iterator[str]:
    for key, info in section.model_fields.items():
        yield from _comment(_explained(info), indent)
        nested = _section(info)
        if key in given:
            yield f"{indent}{key}: {_value(given[key])}"
        elif nested is not None and info.default is None:  # a section in a section, switched off as a whole
            yield f"#{indent}{key}:"
            yield from _keys(nested, {}, "#", indent * 2)
        else:
            yield _entry(key, info, indent, off=off)


def _entry(key: str, info: FieldInfo, indent: str, *, off: str = "") -> str:
    """`key: value`; behind # where the value is an example or the setting belongs to the optional ones."""
    if info.is_required() or info.get_default(call_default_factory=True) is None:
        return f"#{indent}{key}: {_value((info.examples or [None])[0])}"
    return f"{off}{indent}{key}: {_value(info.get_default(call_default_factory=True))}"


def _explained(info: FieldInfo) -> str:
    """The field's docstring, with the values that it may have."""
    allowed = [value for value in get_args(info.annotation) if isinstance(value, str)]
    section = _section(info)
    text = " ".join((info.description or (section and section.__doc__) or "").split())
    return f"{text} ({', '.join(allowed)})" if allowed else text


def _section(info: FieldInfo) -> type[BaseModel] | None:
    from gdr_plugin.config.messages import model_in

    return model_in(info.annotation)


def _comment(text: str, indent: str) -> Iterator[str]:
    for paragraph in text.splitlines():
        for line in textwrap.wrap(paragraph, 116 - len(indent)):
            yield f"{indent}# {line}"


def _value(value: Any) -> str:
    """A value on one line, as YAML reads it back; mappings and lists in flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(value)
    if hasattr(value, "model_dump"):
        options = value.model_dump()
        return _value(options["name"] if len(options) == 1 else options)
    return json.dumps(value)


def _text(value: str) -> str:
    """Text without quotes where YAML reads it back as the same text."""
    import yaml

    plain = not set(value) & set(",[]{}#&*!|>'\"%@`") and ": " not in value
    try:
        return value if plain and yaml.safe_load(f"{{k: {value}}}") == {"k": value} else json.dumps(value)
    except yaml.YAMLError:
        return json.dumps(value)

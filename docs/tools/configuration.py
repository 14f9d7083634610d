"""Makes docs/configuration.md and docs/gdr.schema.json from the models in `gdr_plugin.config.schema`.

    python docs/tools/configuration.py

A test compares both files with what this makes, so the page cannot say something else than the code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent))

from gdr_plugin.api.settings import ModelSpec  # noqa: E402
from gdr_plugin.cli.init import template  # noqa: E402
from gdr_plugin.config.messages import model_in  # noqa: E402
from gdr_plugin.config.schema import Config  # noqa: E402

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
_HEAD = """\
# gdr.yaml, key by key

<!-- Made by docs/tools/configuration.py from gdr_plugin.config.schema: change the docstrings there, not this page. -->

A gdr.yaml describes a reward: two models, what they are shown, how prompts find their guidance, and how log-probs
become one number. Only `strong` and `weak` have to be there. A key that does not exist is an error that names the
nearest one. Relative paths are relative to the file's folder.

| command | what it does |
|---|---|
| `gdr init` | writes a gdr.yaml with every key, its default and its explanation |
| `gdr check gdr.yaml` | says what is wrong, or what would be loaded, before any model is |

**In an editor.** [gdr.schema.json](gdr.schema.json) is a JSON schema of the file. Editors that know YAML schemas (VS
Code with the YAML extension, JetBrains, Neovim and others with yaml-language-server) complete keys and mark mistakes.
Copy the schema beside your gdr.yaml and write as its first line:

```yaml
# yaml-language-server: $schema=gdr.schema.json
```

In Python the same keys are a mapping: `GuidedDensityRatio.from_config({"strong": "org/strong", "weak": "org/weak"})`.
"""


def page() -> str:
    """The text of docs/configuration.md."""
    lines = [_HEAD]
    plain = {key: info for key, info in Config.model_fields.items() if model_in(info.annotation) is None}
    for key, info in Config.model_fields.items():
        section = model_in(info.annotation)
        if section is None or key == "weak":
            continue
        title = "`strong` and `weak`" if section is ModelSpec else f"`{key}`"
        lines += [f"## {title}", "", *_about(section, info, key), *_table(section.model_fields), ""]
        for name, inner in section.model_fields.items():
            if (nested := model_in(inner.annotation)) is not None and section is ModelSpec:
                lines += [f"### `{name}`", "", _words(nested.__doc__), "", *_table(nested.model_fields), ""]
    lines += ["## At the top of the file", "", *_table(plain), ""]
    lines += ["## The whole file", "", "What `gdr init` writes:", "", "```yaml", template().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of gdr.yaml, short forms included."""
    made = Config.model_json_schema()
    _without_titles(made)
    for side in ("strong", "weak"):  # a model may be its name alone
        made["properties"][side] = _or_name(made["properties"][side])
    taught = made["$defs"]["TeacherSection"]["properties"]
    taught["reference"] = _or_name(taught["reference"])
    items = made["$defs"]["RoutingSection"]["properties"]["routers"]
    items["items"] = _or_name(items["items"])  # and so may a router
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gdr.yaml"}
    return {**head, **made}


def files() -> dict[Path, str]:
    """The files that are made, with their texts."""
    return {
        DOCS / "configuration.md": page(),
        DOCS / "gdr.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }


def _about(section: type[BaseModel], info: FieldInfo, key: str) -> Iterator[str]:
    if section is ModelSpec:
        yield f"{_words(section.__doc__)} `strong` is the better-aligned model, `weak` the less-aligned one."
        yield "Each is a mapping with the keys below, or the model's name alone: `weak: org/weak`."
    else:
        yield _words(info.description or section.__doc__)
        if not info.is_required() and info.default is None:
            yield f"The section `{key}` may be left out."
    yield ""


def _table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | type | default | what it is |"
    yield "|---|---|---|---|"
    for key, info in fields.items():
        yield f"| `{key}` | {_type(info)} | {_default(info)} | {_cell(_words(info.description))} |"


def _type(info: FieldInfo) -> str:
    section = model_in(info.annotation)
    if section is not None and section.__name__ == "RouterEntry":
        return "list of names or mappings"
    if section is ModelSpec:
        return "a model's name, or a mapping"
    if section is not None:
        return "mapping"
    return _cell(_type_of(info.annotation))


def _type_of(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:  # with bounds, which are no type
        annotation = get_args(annotation)[0]
    arguments = [argument for argument in get_args(annotation) if argument is not type(None) and argument is not ...]
    origin = getattr(annotation, "__origin__", None)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is dict:
        return f"mapping of {' to '.join(_type_of(argument) for argument in arguments)}"
    if origin is tuple:
        return f"list of {_type_of(arguments[0])}"
    if arguments:
        return " or ".join(dict.fromkeys(map(_type_of, arguments)))
    return _TYPES.get(getattr(annotation, "__name__", ""), "any value")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        example = (info.examples or [None])[0]
        return "none" if example is None else f"none; for example `{_cell(_shown(example))}`"
    return f"`{_cell(_shown(value))}`"


def _shown(value: Any) -> str:
    """A value on one line as YAML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(getattr(item, "name", None) or _shown(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _or_name(reference: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in reference.items() if key == "description"}
    rest = {key: value for key, value in reference.items() if key != "description"}
    return {**kept, "anyOf": [{"type": "string", "minLength": 1}, rest]}


def _without_titles(node: Any) -> None:
    """Drop the titles that pydantic makes up from names; a property that is called `title` would stay."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for value in node.values():
            _without_titles(value)
    elif isinstance(node, list):
        for value in node:
            _without_titles(value)


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(DOCS.parent)}")

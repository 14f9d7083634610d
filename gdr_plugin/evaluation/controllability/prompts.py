"""Prompts with one response for each criterion, and the criteria's guidance: what controllability is measured on.

Knows the file's form and where a criterion's guidance comes from; nothing of models or scores. A row is

    {"id"?: "tides", "prompt": text or messages, "responses": {"concise": "...", "spanish": "...", ...}}

Each name under `responses` is a criterion that its response meets, and has guidance of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.guidance import Guidance
from gdr_plugin.api.types import Conversation
from gdr_plugin.config.schema import Config
from gdr_plugin.data.prompts import prompt_of
from gdr_plugin.data.read import BadRow, check_rows
from gdr_plugin.data.rows import id_of
from gdr_plugin.data.sources import Row
from gdr_plugin.guidance import load_guidance_file
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.text import type_name

__all__ = ["CRITERIA", "DATA", "ControlPrompt", "criteria_of", "read_control_prompts"]

DATA = Path(__file__).parent / "data" / "controllability.jsonl"
"""The data set that comes with the package: our own writing, under the package's licence."""
CRITERIA = DATA.with_suffix(".yaml")
"""Its criteria, as a guidance file."""


@dataclass(frozen=True, slots=True)
class ControlPrompt:
    """A prompt with responses that differ in the criterion that they meet."""

    id: str
    prompt: Conversation
    responses: Mapping[str, str]
    """Criterion -> the response that meets it; at least two, all different."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """All other columns; not used."""


def read_control_prompts(source: str | Path = DATA) -> list[ControlPrompt]:
    """Read a data set of the module's form.

    Args:
        source: As for `data.sources.read_rows`; default: the data set of the package.

    Returns:
        Its prompts, in order.

    Raises:
        DataError: The source cannot be read, or a row is wrong; names the first wrong row.
    """
    prompts = []
    for _, row in check_rows(source, _parse):
        if isinstance(row, BadRow):
            raise DataError(row.reason)
        prompts.append(row)
    if not prompts:
        raise DataError(f"{source}: has no rows")
    return prompts


def criteria_of(prompts: Sequence[ControlPrompt], config: Config, plugins: Plugins) -> dict[str, Guidance]:
    """The guidance of every criterion, in the order of the package's criteria, then of appearance.

    Guidance files of gdr.yaml come first, so that one's own wording of a criterion can be measured; then the package's
    criteria; then what plugins register. An installed plugin thus never changes the result on the package's data.

    Raises:
        DataError: A criterion has no guidance; says where to put it.
        ConfigError: A guidance file is wrong.
    """
    ours = {guidance.name: guidance for guidance in load_guidance_file(CRITERIA)}
    own = {guidance.name: guidance for file in config.guidance.files for guidance in load_guidance_file(file)}
    known = {**plugins.guidances(), **ours, **own}
    needed = dict.fromkeys(name for prompt in prompts for name in prompt.responses)
    for name in needed:
        if name not in known:
            raise DataError(
                f"{unknown('criterion', name, {**ours, **own})}; write guidance of that name into a file under "
                "guidance.files of gdr.yaml"
            )
    return {name: known[name] for name in dict.fromkeys([*(n for n in ours if n in needed), *needed])}


def _parse(row: Row) -> ControlPrompt:
    try:
        data = row.data
        for column in ("prompt", "responses"):
            if data.get(column) is None:
                raise DataError(f"there is no column {column!r} among {', '.join(map(str, data)) or 'none'}")
        prompt = prompt_of(data, data["prompt"])
        others = {name: data[name] for name in data if name not in ("id", "prompt", "responses", *prompt.columns)}
        return ControlPrompt(id_of(row), prompt.turns, _responses(data["responses"]), others)
    except DataError as error:
        raise error if row.content is None else DataError(f"{row.where}: {error}") from None


def _responses(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise DataError(f"`responses` must map criteria to texts, not {type_name(value)}")
    responses: dict[str, str] = {}
    for name, text in value.items():
        if text is None:  # tables with fixed columns say null for a criterion that a prompt does not have
            continue
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"`responses`: {name}: must be a text that is not empty")
        twin = next((other for other, said in responses.items() if said == text), None)
        if twin is not None:
            raise DataError(f"`responses`: {name} and {twin} are the same text")
        responses[str(name)] = text
    if len(responses) < 2:
        raise DataError("`responses` must hold at least two criteria to compare")
    return responses

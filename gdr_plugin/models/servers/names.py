"""Which models a server has: the cards of `/v1/models`, which vLLM, SGLang and providers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.models.servers.answers import as_list

__all__ = ["Card", "cards", "choose"]


@dataclass(frozen=True, slots=True)
class Card:
    """A model as a server lists it."""

    name: str
    root: str | None
    """The folder or hub id that it was started with."""
    parent: str | None
    """Of a LoRA adapter, the base that it is put on."""
    longest: int | None
    """`max_model_len`: tokens of prompt and answer together."""
    owner: str


def cards(get: Callable[[str], dict[str, Any]]) -> list[Card]:
    """The models that a server lists.

    Raises:
        ModelError: The server cannot be asked, or does not list models.
    """
    found = []
    for entry in as_list(get("/v1/models").get("data"), "models (/v1/models)"):
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            root, parent, longest = entry.get("root"), entry.get("parent"), entry.get("max_model_len")
            found.append(
                Card(
                    entry["id"],
                    root if isinstance(root, str) else None,
                    parent if isinstance(parent, str) else None,
                    longest if isinstance(longest, int) and longest > 0 else None,
                    str(entry.get("owned_by", "")),
                )
            )
    return found


def choose(listed: Sequence[Card], url: str, name: str | None = None, *, kind: str = "model") -> Card:
    """The model that is meant.

    Args:
        listed: What the server has.
        url: The server, for messages.
        name: What the user wrote; None where the server serves one.
        kind: What is looked for, for messages.

    Raises:
        ConfigError: There is none of this name, or no name and several models.
    """
    if name is None:
        if len(listed) != 1:
            names = ", ".join(sorted(card.name for card in listed)) or "none"
            raise ConfigError(f"{url}: which {kind} is meant? Write its name behind the address; it has {names}")
        return listed[0]
    for card in listed:
        if card.name == name:
            return card
    raise ConfigError(f"{url}: {unknown(kind, name, [card.name for card in listed])}")

"""The tools that the policy was shown: the row's own, those that the user names, or the trainer's.

TRL does not pass them to rewards. The trainer has them (GRPO) where its log functions are passed, as for `ends`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.types import Message
from gdr_plugin.data.tools import definitions_of, tools_of
from gdr_plugin.text import one_line

Tool: TypeAlias = "Callable[..., Any] | Mapping[str, Any]"
"""A function with type hints and a docstring, as trainers take it, or its definition (a JSON schema)."""


class Tools:
    """Finds the tools of each row.

    Args:
        given: Those of every row that brings none; empty for none. None: the trainer is asked.

    Raises:
        ConfigError: One of them is no tool.
    """

    def __init__(self, given: Sequence[Tool] | None) -> None:
        self.asks = given is None
        """Whether the trainer is asked."""
        self._given = _turn(given or ())
        self._known: dict[tuple[int, ...], Message | None] = {}

    def find(
        self, rows: Sequence[Mapping[str, Any]], environments: object, log_function: object
    ) -> list[Message | None]:
        """The tools of each row as the first turn of its prompt; None where there are none.

        Args:
            rows: The data set columns of each row.
            environments: What TRL passes under this name: the environment of each row.
            log_function: `log_metric` or `log_extra` as TRL passes it, or None.

        Raises:
            DataError: A row's own definitions are malformed.
        """
        trainer = getattr(log_function, "__self__", None) if self.asks else None
        tools = list(getattr(trainer, "tools", None) or ())
        known = isinstance(environments, list | tuple) and len(environments) == len(rows)
        of_rows: Sequence[object] = environments if known else [None] * len(rows)  # type: ignore[assignment]
        found = []
        for row, environment in zip(rows, of_rows, strict=True):
            own = tools_of(row)[1]
            if own is None and self.asks:
                own = self._of_trainer([tool for tool in tools if _belongs(tool, environment)])
            found.append(own or self._given)
        return found

    def _of_trainer(self, tools: Sequence[Tool]) -> Message | None:
        key = tuple(map(id, tools))
        if key not in self._known:
            self._known[key] = _turn(tools)
        return self._known[key]


def _belongs(tool: object, environment: object) -> bool:
    """Whether a tool of the trainer is shown where a row has this environment; None: rows have none.

    GRPO's trainer has the methods of all environments, and each row is shown those of its own. Other tools are shown to
    all; an environment is what has the method `reset`, by TRL's contract.
    """
    owner = getattr(tool, "__self__", None)
    if owner is None or not hasattr(type(owner), "reset"):
        return True
    return environment is None or type(owner) is type(environment)


def _turn(tools: Sequence[Tool]) -> Message | None:
    if not tools:
        return None
    try:
        return definitions_of([tool if isinstance(tool, Mapping) else _schema(tool) for tool in tools])
    except DataError as error:
        raise ConfigError(f"tools: {error}") from None


def _schema(tool: Callable[..., Any]) -> Mapping[str, Any]:
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        schema: Mapping[str, Any] = get_json_schema(tool)
    except Exception as error:  # what is wrong with its hints or docstring
        raise ConfigError(f"tools: {one_line(error)}") from error
    return schema

"""The `keyword` router: decides by words and patterns, and leaves a prompt undecided when in doubt.

The rules that come with the package are for English.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from gdr_plugin.api.errors import ConfigError, quoted, unknown
from gdr_plugin.api.routers import RoutingContext, options_error
from gdr_plugin.api.types import Sample
from gdr_plugin.config.yamlfile import parse_yaml
from gdr_plugin.routing.rules import KeywordRules, load_rules
from gdr_plugin.routing.text import all_user_turns, last_user_turn

__all__ = ["KeywordRouter"]

REACH = 2000
"""Characters that are read from each end of a long request: a question stands before or after the text that it is
about, and the middle of a pasted text says little about it."""

_TURNS = {"last": last_user_turn, "all": all_user_turns}


class KeywordRouter:
    """Decides by weighted words and patterns in the last user turn; leaves a prompt alone when the rules disagree.

    Args:
        rules: The rules; default: those that come with the package.
        turns: `last` reads the last user turn, `all` every user turn.
    """

    name = "keyword"

    def __init__(self, rules: KeywordRules | None = None, turns: str = "last") -> None:
        self._rules = rules
        self._turns = turns

    @property
    def rules(self) -> KeywordRules:
        """The rules in use."""
        return self._rules or _packaged_rules()

    def with_options(self, **options: Any) -> KeywordRouter:
        """The router with a rules file of your own (`rules: path.yaml`), or reading `turns: all`.

        Raises:
            ConfigError: Another option, a value that is not allowed, or a rules file that is wrong.
        """
        if set(options) - {"rules", "turns"}:
            raise ConfigError(options_error(self.name, options, ["rules", "turns"]))
        path, turns = options.get("rules"), options.get("turns", self._turns)
        if path is not None and not isinstance(path, str):
            raise ConfigError(f"routing.routers: keyword: rules: must be the path of a YAML file, not {quoted(path)}")
        if turns not in _TURNS:
            raise ConfigError(f"routing.routers: keyword: turns: {unknown('value', turns, _TURNS)}")
        return KeywordRouter(self._rules if path is None else load_rules(path), turns)

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The domain that the rules find for each sample, or None; see `Router.route`."""
        read, rules = _TURNS[self._turns], self.rules
        return [rules.decide(_ends(read(sample.prompt)), context.domains) for sample in samples]


@functools.cache
def _packaged_rules() -> KeywordRules:
    source = files("gdr_plugin.routing") / "rules" / "keywords.yaml"
    return KeywordRules(parse_yaml(source.read_text(encoding="utf-8"), origin="keywords.yaml"), "keywords.yaml")


def _ends(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 2 * REACH else f"{text[:REACH]}\n{text[-REACH:]}"

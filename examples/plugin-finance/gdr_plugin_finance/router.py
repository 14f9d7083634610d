"""Which prompts are about finance, and which of those ask for advice. Knows words, nothing of models."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib.resources import files

import yaml

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.api.routers import RoutingContext, options_error
from gdr_plugin.api.types import Sample

_AMOUNT = r"[$€£¥]\s?\d[\d,.]*|\d[\d,.]*\s?(?:dollars|euros|pounds|usd|eur|gbp|basis points|bps)"
_WEIGHTS = {"finance": 2, "shared": 1, "amount": 1}
_ENOUGH = 2

# Someone who has to decide about their own money.
_DECISION = re.compile(
    r"\b(?:should|must|may) (?:i|we)\b"
    r"|\bcan (?:i|we) (?:afford|borrow|buy|retire|stop)\b"
    r"|\b(?:i|we) owe\b"
    r"|\b(?:i|we) (?:want|plan|would like) to (?:borrow|buy|invest|retire|save|sell)\b"
    r"|\b(?:is|would) it (?:be )?(?:wise|safe|smart|worth|a good idea)\b"
    r"|\b(?:my|our) (?:\w+ )?(?:debts?|house|inheritance|loans?|money|mortgage|pension|portfolio|retirement|savings)\b",
    re.IGNORECASE,
)


@functools.cache
def _words() -> re.Pattern[str]:
    """One pattern with a group for each kind of term; longer terms first, so that "stock market" is not "stock"."""
    kinds = yaml.safe_load((files("gdr_plugin_finance") / "terms.yaml").read_text(encoding="utf-8"))
    groups = []
    for kind, terms in kinds.items():
        patterns = [_pattern(str(term)) for term in sorted(terms, key=lambda term: -len(str(term)))]
        groups.append(f"(?P<{kind}>{'|'.join(patterns)})")
    return re.compile(rf"(?<!\w)(?:{'|'.join(groups)}|(?P<amount>{_AMOUNT}))(?!\w)", re.IGNORECASE)


def _pattern(term: str) -> str:
    return re.escape(term[:-1]) + r"\w*" if term.endswith("*") else re.escape(term) + "(?:e?s)?"


class FinanceRouter:
    """Sends prompts about finance to the domain for advice or to the one for analysis.

    A prompt counts as finance when its user turns hold one plain finance term, or two different terms that finance
    shares with other fields ("chicken stock" alone is soup). It asks for advice when the last user turn is about a
    decision on someone's own money.

    Args:
        advice: The domain of prompts that ask for advice.
        analysis: The domain of all other finance prompts.
    """

    name = "finance"

    def __init__(self, advice: str = "finance-advice", analysis: str = "finance-analysis") -> None:
        self.advice = advice
        self.analysis = analysis

    def with_options(self, **options: str) -> FinanceRouter:
        """The router with other domains, as in `{name: finance, advice: money}`."""
        if set(options) - {"advice", "analysis"}:
            raise ConfigError(options_error(self.name, options, ("advice", "analysis")))
        return FinanceRouter(**{"advice": self.advice, "analysis": self.analysis, **options})

    def check(self, domains: Sequence[str]) -> None:
        """Refuse a configuration that lacks one of the router's domains."""
        for domain in (self.advice, self.analysis):
            if domain not in domains:
                raise ConfigError(f"the router 'finance': {unknown('domain', domain, domains)}")

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The domain of each prompt, None for what is not finance."""
        return [self._domain(sample) for sample in samples]

    def _domain(self, sample: Sample) -> str | None:
        turns = [message.content for message in sample.prompt if message.role == "user"]
        weights = {}
        for match in _words().finditer("\n".join(turns)):
            kind = match.lastgroup or "shared"
            # A term counts once, and all amounts together count as one.
            weights[kind if kind == "amount" else match.group().lower().rstrip("es")] = _WEIGHTS[kind]
        if sum(weights.values()) < _ENOUGH:
            return None
        return self.advice if _DECISION.search(turns[-1]) else self.analysis

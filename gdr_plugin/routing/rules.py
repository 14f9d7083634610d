"""Keyword rules: compiled once from a rules file, and the scores that they give a text. Knows nothing of prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from gdr_plugin.config.messages import validated
from gdr_plugin.config.yamlfile import read_yaml
from gdr_plugin.routing.rules_file import WORD, RulesFile, fold

__all__ = ["KeywordRules", "load_rules"]

_REMEMBERED = 1024
"""Texts whose scores are remembered."""
_LONG = 8_192
"""Characters from which on they are not."""


class KeywordRules:
    """Compiled rules.

    Args:
        data: What a rules file holds; `gdr_plugin.routing.rules_file` describes its form.
        origin: What error messages call the source.

    Raises:
        ConfigError: A key is wrong; one line that names origin, key and what is allowed.
    """

    def __init__(self, data: object, origin: str) -> None:
        file = validated(RulesFile, data, origin)
        self.threshold = file.threshold
        self.margin = file.margin
        self.otherwise = {name: domain.otherwise for name, domain in file.domains.items() if domain.otherwise}
        """Domain -> the domain that takes its prompts where it is not configured."""
        self._rules: list[tuple[str, float]] = []  # rule number -> domain, weight
        self._phrases: dict[str, list[tuple[tuple[str, ...], str, int]]] = {}  # first word -> more words, prefix, rule
        self._prefixes: dict[str, list[int]] = {}  # what stands before the `*` -> rules
        self._patterns: list[tuple[Callable[[str], object], int]] = []  # search, rule
        for name, domain in file.domains.items():
            for rule in domain.rules:
                number = len(self._rules)
                self._rules.append((name, rule.weight))
                for word in rule.words:
                    self._add_word(word, number)
                self._patterns += [(re.compile(pattern).search, number) for pattern in rule.patterns]
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})
        self._known: dict[str, dict[str, float]] = {}

    def scores(self, text: str) -> dict[str, float]:
        """The sum of the weights of the rules that match, by domain; domains without a match are left out."""
        found = self._known.get(text)
        if found is None:  # the candidates of a prompt come to a server one by one
            found = self._scores_of(text)
            if len(self._known) >= _REMEMBERED:
                self._known = {}
            if len(text) < _LONG:
                self._known[text] = found
        return dict(found)

    def _scores_of(self, text: str) -> dict[str, float]:
        text = fold(text)
        matched = self._matched_by_words(WORD.findall(text))
        for search, rule in self._patterns:
            if rule not in matched and search(text):
                matched.add(rule)
        scores: dict[str, float] = {}
        for rule in matched:
            domain, weight = self._rules[rule]
            scores[domain] = scores.get(domain, 0.0) + weight
        return scores

    def decide(self, text: str, configured: Mapping[str, object]) -> str | None:
        """The configured domain with the highest score; None below the threshold or within the margin of the next."""
        best: dict[str, float] = {}
        for domain, score in self.scores(text).items():
            takes = domain if domain in configured else self.otherwise.get(domain)
            if takes in configured and takes is not None:
                best[takes] = max(score, best.get(takes, 0.0))
        if not best:
            return None
        ranked = sorted(best.items(), key=lambda item: -item[1])
        second = max(ranked[1][1], 0.0) if len(ranked) > 1 else 0.0
        domain, first = ranked[0]
        # With a margin of 0 an exact tie is still undecided.
        return domain if first >= self.threshold and first - second >= self.margin and first > second else None

    def _matched_by_words(self, words: list[str]) -> set[int]:
        """The numbers of the rules one of whose words or phrases is in the text."""
        matched: set[int] = set()
        phrases, prefixes, lengths = self._phrases, self._prefixes, self._lengths
        for index, word in enumerate(words):
            for more, prefix, rule in phrases.get(word, ()):
                end = index + 1 + len(more)
                if (not more or tuple(words[index + 1 : end]) == more) and (
                    not prefix or (end < len(words) and words[end].startswith(prefix))
                ):
                    matched.add(rule)
            for length in lengths:
                if length > len(word):
                    break
                matched.update(prefixes.get(word[:length], ()))
        return matched

    def _add_word(self, word: str, number: int) -> None:
        parts = WORD.findall(fold(word.removesuffix("*")))
        if not word.endswith("*"):
            self._phrases.setdefault(parts[0], []).append((tuple(parts[1:]), "", number))
        elif len(parts) > 1:
            self._phrases.setdefault(parts[0], []).append((tuple(parts[1:-1]), parts[-1], number))
        else:
            self._prefixes.setdefault(parts[0], []).append(number)


def load_rules(path: str | Path) -> KeywordRules:
    """Read and compile a rules file.

    Args:
        path: A YAML file; `gdr_plugin.routing.rules_file` describes its form.

    Returns:
        The rules.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong.
    """
    return KeywordRules(read_yaml(Path(path)), f"rules file {path}")

r"""Keyword rules: a data file compiled once, and the scores that it gives a text. Knows nothing of prompts.

    threshold: 3            # a domain needs at least this score
    margin: 1               # and at least this much more than the next one
    domains:
      math:
        otherwise: reasoning        # optional: who takes these prompts where `math` is not configured
        rules:                      # a rule counts once, however many of its words and patterns are there
          - weight: 3               # negative: speaks against the domain
            words: [integral, square root, trigonomet*]
            patterns: ['\bsolve for [a-z]\b']

`words` are whole words and phrases (`self harm` also matches "self-harm"); a `*` at the end stands for any ending of
the last word. `patterns` are Python regular expressions that are searched in the text. Both see the text in lower case
(casefolded), with plain apostrophes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.config.yamlfile import read_yaml
from gdr_plugin.routing.gate import anchored, beginnings, gate

__all__ = ["KeywordRules", "load_rules"]

# Letters and digits, apostrophes inside, and the signs that end the names of programming languages (c++, c#).
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+|[+#]+)*")


class KeywordRules:
    """Compiled rules.

    Args:
        data: What a rules file holds.
        origin: What error messages call the source.

    Raises:
        ConfigError: A key is wrong; one line that names origin, key and what is allowed.
    """

    def __init__(self, data: object, origin: str) -> None:
        mapping = _mapping(data, ("threshold", "margin", "domains"), origin)
        self.threshold = _number(mapping, "threshold", origin)
        self.margin = _number(mapping, "margin", origin)
        if self.threshold <= 0 or self.margin < 0:
            raise ConfigError(f"{origin}: threshold must be above 0, and margin 0 or more")
        domains = mapping.get("domains")
        if not isinstance(domains, Mapping) or not domains:
            raise ConfigError(f"{origin}: domains: must be a mapping with at least one domain")
        self.otherwise: dict[str, str] = {}
        """Domain -> who takes its prompts where it is not configured."""
        self._rules: list[tuple[str, float]] = []  # rule number -> domain, weight
        self._phrases: dict[str, list[tuple[tuple[str, ...], str, int]]] = {}  # first word -> more words, prefix, rule
        self._prefixes: dict[str, list[int]] = {}  # what stands before the `*` -> rules
        self._patterns: list[tuple[Callable[[str], object], frozenset[str] | None, int]] = []  # search, gate, rule
        for domain, entry in domains.items():
            self._add_domain(domain, entry, f"{origin}: domains.{domain}")
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})

    def scores(self, text: str) -> dict[str, float]:
        """The sum of the weights of the rules that match, by domain; domains without a match are left out."""
        text = _fold(text)
        matched: set[int] = set()
        words = _WORD.findall(text)
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
        starts = beginnings(text, words)
        for search, needed, rule in self._patterns:
            if rule not in matched and (needed is None or not needed.isdisjoint(starts)) and search(text):
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

    def _add_domain(self, domain: object, entry: object, where: str) -> None:
        if not isinstance(domain, str) or not domain:
            raise ConfigError(f"{where}: a domain's name must be text; put it in quotes")
        mapping = _mapping(entry, ("otherwise", "rules"), where)
        otherwise = mapping.get("otherwise")
        if otherwise is not None and not isinstance(otherwise, str):
            raise ConfigError(f"{where}: otherwise: must be a domain's name, not {otherwise!r}")
        if otherwise:
            self.otherwise[domain] = otherwise
        rules = mapping.get("rules")
        if not isinstance(rules, list) or not rules:
            raise ConfigError(f"{where}: rules: must be a list of mappings with weight, words, patterns")
        for index, rule in enumerate(rules):
            self._add_rule(domain, rule, f"{where}.rules[{index}]")

    def _add_rule(self, domain: str, entry: object, where: str) -> None:
        mapping = _mapping(entry, ("weight", "words", "patterns"), where)
        words, patterns = _texts(mapping, "words", where), _texts(mapping, "patterns", where)
        if not words and not patterns:
            raise ConfigError(f"{where}: needs words or patterns")
        number = len(self._rules)
        self._rules.append((domain, _number(mapping, "weight", where)))
        for word in words:
            self._add_word(word, number, where)
        for pattern in patterns:
            if re.search("[A-Z]", re.sub(r"\\.|\(\?P<\w+>|\(\?P=\w+\)", "", pattern)):
                raise ConfigError(f"{where}: patterns: {pattern!r} has capitals, but is searched in lower-case text")
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{where}: patterns: {pattern!r} is not a regular expression: {error}") from None
            # `re` would look for `^` at every character.
            search = compiled.match if anchored(pattern) else compiled.search
            self._patterns.append((search, gate(pattern), number))

    def _add_word(self, word: str, number: int, where: str) -> None:
        parts = _WORD.findall(_fold(word.removesuffix("*")))
        if not parts:
            raise ConfigError(f"{where}: words: {word!r} has no letters or digits; use patterns")
        if not word.endswith("*"):
            self._phrases.setdefault(parts[0], []).append((tuple(parts[1:]), "", number))
        elif len(parts) > 1:
            self._phrases.setdefault(parts[0], []).append((tuple(parts[1:-1]), parts[-1], number))
        else:
            self._prefixes.setdefault(parts[0], []).append(number)


def load_rules(path: str | Path) -> KeywordRules:
    """Read and compile a rules file.

    Args:
        path: A YAML file; the module's docstring describes its form.

    Returns:
        The rules.

    Raises:
        ConfigError: The file cannot be read, or a key is wrong.
    """
    return KeywordRules(read_yaml(Path(path)), f"rules file {path}")


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'")


def _mapping(entry: object, allowed: Sequence[str], where: str) -> Mapping[Any, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: must be a mapping with {', '.join(allowed)}, not {type(entry).__name__}")
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"{where}: {unknown('key', key, allowed)}")
    return entry


def _number(mapping: Mapping[Any, Any], key: str, where: str) -> float:
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key}: must be a number, not {value!r}")
    return float(value)


def _texts(mapping: Mapping[Any, Any], key: str, where: str) -> list[str]:
    value = mapping.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {key}: must be a list, not {value!r}")
    for entry in value:
        if not isinstance(entry, str) or not entry:
            raise ConfigError(f"{where}: {key}: {entry!r} must be text; put it in quotes")
    return value

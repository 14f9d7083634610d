"""The `likelihood` router: the domain whose name the strong model finds likeliest as the answer to "which domain?".

Nothing is generated: each domain's name is scored as a response, through the same engine as the reward. Knows domains,
their descriptions and a `LogprobModel`; knows no rules about words.

The score of a domain d for a request x is

    log p(d | question about x) - mean over content-free c of log p(d | question about c)

so that a name which the model finds likely whatever was asked has no advantage: the idea of contextual calibration
(Zhao et al., "Calibrate Before Use", 2021), here as a difference of log-probs. Two choices:

- The names' log-probs are sums over tokens, not means. A long name's cost stands on both sides of the difference; a
  mean would divide its evidence, which mostly lies in the first token, by the name's length.
- The end of the turn does not count: small models name the domain and talk on, and whether they do says nothing about
  the domain (SmolLM2-135M, seven domains, 91 requests: 41 % right without it, 15 % with it). Only where one name begins
  another (`code`, `code-review`) it counts for all, since the shorter name would get the share of both.

Router and scorer share weights, kept prefixes and store, but not the prompt: the question comes first, so that all
requests share it, and the scorer's context begins with the guidance that the answer decides. The other order, prompt
first, would share a prompt with the scoring where its domain is unguided, and read the list of domains again for each.
Tokens read for 16 prompts and seven domains (`benchmarks/routing.py`): prompts of 56 tokens 975 this way, 4,454
prompt first (4,224 were every prompt unguided); of 1,088 tokens 4,665 and 20,081 (4,224). Scoring 8 responses to each
reads 15,936 and 32,387 with each model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gdr_plugin.api.errors import ConfigError, ModelError, quoted
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.routers import RoutingContext, options_error
from gdr_plugin.api.types import Conversation, Message, Sample
from gdr_plugin.guidance import library
from gdr_plugin.routing.text import last_user_turn

__all__ = ["LikelihoodRouter"]

CONTENT_FREE = ("N/A", "...", "(empty)")
"""Requests without content; the model's answers to them are its bias."""
HEAD, TAIL = 600, 300
"""Characters of a long request that are quoted from its two ends."""


class LikelihoodRouter:
    """Asks the strong model, by likelihood, which of the configured domains a request belongs to.

    Args:
        margin: How much more likely, in nats, the best domain must be than the next; below it the prompt is left to the
            next router. With 0 only an exact tie is left.
    """

    name = "likelihood"

    def __init__(self, margin: float = 0.0) -> None:
        self.margin = margin
        self._biases: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}

    def with_options(self, **options: Any) -> LikelihoodRouter:
        """The router with another `margin`.

        Raises:
            ConfigError: Another option, or a margin that is not a number of 0 or more.
        """
        if set(options) - {"margin"}:
            raise ConfigError(options_error(self.name, options, ["margin"]))
        margin = options.get("margin", self.margin)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < math.inf:
            raise ConfigError(
                f"routing.routers: likelihood: margin: must be a number of nats, 0 or more, not {quoted(margin)}"
            )
        return LikelihoodRouter(float(margin))

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The likeliest domain of each sample's last user turn; see `Router.route`.

        All requests and domains go to the model in one call, so that it reads the shared beginning once. A sample
        without a user turn, and one whose log-probs are not finite, is left undecided.

        Raises:
            ModelError: The model cannot be loaded, or cannot score even the content-free requests.
        """
        domains = _described(context.domains)
        if len(domains) == 1:
            return [next(iter(domains))] * len(samples)
        requests = [last_user_turn(sample.prompt).strip() for sample in samples]
        distinct = list(dict.fromkeys(request for request in requests if request))
        bias = self._bias(domains, context.model)
        rows = _logprobs(distinct, domains, context.model)
        decided = {request: self._pick(row, bias, list(domains)) for request, row in zip(distinct, rows, strict=True)}
        return [decided.get(request) for request in requests]

    def _pick(self, row: Sequence[float], bias: Sequence[float], domains: Sequence[str]) -> str | None:
        scores = [logprob - offset for logprob, offset in zip(row, bias, strict=True)]
        if not all(math.isfinite(score) for score in scores):
            return None
        second, best = sorted(range(len(scores)), key=scores.__getitem__)[-2:]
        gap = scores[best] - scores[second]
        return domains[best] if gap > 0 and gap >= self.margin else None

    def _bias(self, domains: Mapping[str, str], model: LogprobModel) -> list[float]:
        """Each domain's mean log-prob after content-free requests; computed once for a model and its domains."""
        key = (model.identity, tuple(domains.items()))
        if key not in self._biases:
            rows = _logprobs(CONTENT_FREE, domains, model)
            bias = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
            if not all(math.isfinite(offset) for offset in bias):
                raise ModelError(
                    f"{model.name}: log-probs of domain names are not finite: use another dtype, or take likelihood "
                    "out of routing.routers"
                )
            self._biases[key] = bias
        return self._biases[key]


def _described(domains: Mapping[str, str]) -> dict[str, str]:
    """The domains with their descriptions; one without guidance is described as in the library if it is there."""
    known = {guidance.name: guidance.description for guidance in library()}
    return {domain: description or known.get(domain, "") for domain, description in domains.items()}


def _logprobs(requests: Sequence[str], domains: Mapping[str, str], model: LogprobModel) -> list[list[float]]:
    """Log-prob of every domain's name as the answer about every request: one row a request, one column a domain."""
    end = any(domain != other and other.startswith(domain) for domain in domains for other in domains)
    spans = []
    for request in requests:
        conversation = _question(request, domains)
        spans += [model.chat.span(conversation, domain, end=end) for domain in domains]
    scored = [math.fsum(float(value) for value in logprobs) for logprobs in model.score(spans)]
    width = len(domains)
    return [scored[start : start + width] for start in range(0, len(scored), width)]


def _question(request: str, domains: Mapping[str, str]) -> Conversation:
    """The classification prompt; what all requests share comes first."""
    listed = "\n".join(f"- {domain}: {text}" if text else f"- {domain}" for domain, text in domains.items())
    if len(request) > HEAD + TAIL:
        request = f"{request[:HEAD]} [...] {request[-TAIL:]}"
    quoted = "\n".join(f"> {line}" for line in request.splitlines())
    task = (
        "You sort requests into domains. You never carry a request out: you answer with the name of its domain and "
        f"nothing else.\n\nDomains:\n{listed}"
    )
    return (
        Message("system", task),
        Message("user", f"Request:\n{quoted}\n\nWhich domain does the request belong to?"),
    )

"""The reward as a teacher: log-probs of ids that a policy has made, for trainers that distil from a server.

Trainers for on-policy distillation take `teacher - student` of each sampled token as its advantage. A teacher that
answers `v_t = log ref_t + scale * (log strong_t - log weak_t)` hands them the reward token by token (arXiv 2602.12125).
Owns what is asked of which model, behind which guidance; knows neither texts nor HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gdr_plugin.api.errors import ChatError, ConfigError, DataError, ModelError, unknown
from gdr_plugin.api.models import LogprobModel, TakesIds
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Conversation, Logprobs, TokenSpan
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.store.model import StoredModel

if TYPE_CHECKING:
    from gdr_plugin.reward.reward import GuidedDensityRatio

__all__ = ["RawIds", "Teacher", "TokenValues", "policy_vocabulary"]


@dataclass(frozen=True, slots=True)
class RawIds:
    """Ids to score as they came: prompt and response together, as the policy's tokenizer and template made them."""

    ids: tuple[int, ...]
    """At least one."""
    start: int = 0
    """The place behind which ids get a value. The first id of all has none: nothing stands before it."""
    domain: str | None = None
    """Whose guidance the models are shown; None: the teacher's own domain."""


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What a teacher says of ids, in nats; shape `(len(ids) - start - 1,)`."""

    values: npt.NDArray[np.float64]
    """The virtual log-prob of each id behind `start`. It may be above 0: it is the log of no probability."""
    ratios: npt.NDArray[np.float64]
    """`log strong - log weak` of the same ids, neither scaled nor clipped."""


class Teacher:
    """Virtual log-probs, token by token, of ids that another program has made.

    Guidance stands in front of the ids as a system turn by itself, in each model's own template; the ids follow as
    they came, but for what opens them (BOS), which goes in front of the guidance. A `reference` is shown no guidance:
    it stands for a policy, which sees none. Without one the weak model is the reference, with the log-probs that the
    ratio has of it, so that two passes are enough; at `scale=1` the weak model then cancels out, and the teacher is
    the strong model.

    Args:
        ratio: The two models, the guidance of each domain, and who is shown it. Its reduction, its end-of-turn policy
            and its routers play no part: every id gets a value of its own, and ids have no text to be routed by.
        vocabulary: The policy's tokens with their ids.
        reference: The model to which the scaled ratio is added.
        scale: Factor on the ratio.
        clip: Bound on the absolute value of each token's scaled ratio.
        domain: The domain of ids that name none; default: the one of prompts that no router decided.

    Raises:
        ConfigError: The models' vocabularies differ, from each other or from the policy's, or a model cannot be asked
            about ids; the domain is not configured, or its guidance cannot stand in front of ids.
    """

    def __init__(
        self,
        ratio: GuidedDensityRatio,
        vocabulary: Mapping[str, int],
        *,
        reference: LogprobModel | None = None,
        scale: float = 1.0,
        clip: float | None = None,
        domain: str | None = None,
    ) -> None:
        if ratio.sequential:
            raise ConfigError("a teacher keeps its models in memory: set load to together")
        if not (math.isfinite(scale) and scale > 0) or not (clip is None or clip > 0):
            raise ConfigError(f"a teacher's scale and clip must be above 0, not {scale} and {clip}")
        if reference is not None and ratio.store is not None:
            reference = StoredModel(reference, ratio.store)
        self.ratio = ratio
        self.scale = scale
        self.clip = clip
        self.domain = ratio.chain.default_domain if domain is None else domain
        """The domain of ids that name none."""
        self.models: dict[str, LogprobModel] = {"strong": ratio.strong, "weak": ratio.weak}
        """The models by their part; `reference` where there is one of its own."""
        if reference is not None:
            self.models["reference"] = reference
        self.vocabulary_size = max(vocabulary.values(), default=-1) + 1
        self._chats = {part: _takes_ids(part, model) for part, model in self.models.items()}
        self._compare(vocabulary)
        self._openings = {part: chat.opening for part, chat in self._chats.items()}
        self._blocks = {
            (part, name): self._block(part, name) for part in self.models for name in (*ratio.domains, self.domain)
        }

    @classmethod
    def from_ratio(
        cls,
        ratio: GuidedDensityRatio,
        policy_tokenizer: str,
        *,
        plugins: Plugins | None = None,
        scale: float = 1.0,
        clip: float | None = None,
        domain: str | None = None,
    ) -> Teacher:
        """Build the teacher that a gdr.yaml describes; no weights are loaded yet.

        Args:
            ratio: From `GuidedDensityRatio.from_config`, whose `teacher.reference` is opened, or from models.
            policy_tokenizer: Hub id or folder of the policy's tokenizer, or a `.gguf` file.
            plugins: Where the reference's scheme is looked up; default: built-in and installed plugins.
            scale: As for the class, as the two below.
            clip: Bound.
            domain: The domain of ids that name none.

        Raises:
            ConfigError: As for the class.
            ModelError: The tokenizer or the reference cannot be opened.
        """
        section = ratio.config.teacher if ratio.config else None
        limits = ratio.config.limits if ratio.config else Limits()
        reference = (plugins or Plugins()).open_model(section.reference, limits) if section else None
        vocabulary = policy_vocabulary(policy_tokenizer)
        return cls(ratio, vocabulary, reference=reference, scale=scale, clip=clip, domain=domain)

    def describe(self) -> dict[str, str]:
        """What the values are made of, for a person."""
        section = self.ratio.rendered[self.domain]
        ref = self.models["reference"].name if "reference" in self.models else "weak"
        bound = "" if self.clip is None else f", each clipped to {self.clip:g}"
        return {
            "values": f"log {ref} + {self.scale:g} * (log strong - log weak){bound}",
            "domain": self.domain,
            "guidance": section.id,
        }

    def probe(self, prompt: Conversation, response: str) -> RawIds:
        """Ids of a conversation as the strong model's template writes it, to see that all models answer."""
        span = self.ratio.strong.chat.span(prompt, response, end=False)
        return RawIds(span.context + span.response)

    def check(self, asked: RawIds) -> None:
        """Refuse ids that cannot be scored, before any model is asked.

        Raises:
            DataError: There are none, or ids beyond the vocabulary; `start` is beyond them; the domain is not
                configured; or they are too long behind their guidance.
        """
        if not asked.ids:
            raise DataError("there are no ids: send prompt and response as token ids")
        worst = max(asked.ids) if min(asked.ids) >= 0 else min(asked.ids)
        if not 0 <= worst < self.vocabulary_size:
            raise DataError(f"id {worst} is not in the vocabulary of {self.vocabulary_size:,} tokens")
        if not 0 <= asked.start < len(asked.ids):
            raise DataError(f"the values cannot begin behind place {asked.start} of {len(asked.ids):,} ids")
        name = self.domain if asked.domain is None else asked.domain
        if name not in self.ratio.domains:
            raise DataError(unknown("domain", name, self.ratio.domains))
        for part, chat in self._chats.items():
            span = self._spans(part, asked)[-1]
            length = len(span.context) + len(span.response)
            if length > chat.max_length:
                raise DataError(
                    f"{len(asked.ids):,} ids behind {length - len(asked.ids):,} of guidance exceed the "
                    f"{chat.max_length:,} tokens of the {part} model: shorten the policy's prompts and responses, or "
                    "raise limits.max_length"
                )

    def score(self, questions: Sequence[RawIds]) -> list[TokenValues | ModelError]:
        """Score ids; each model is asked once about all of them.

        Args:
            questions: Any number, also none.

        Returns:
            One result a question, in order; where a model's log-probs are not finite, the error that says so.

        Raises:
            DataError: As for `check`.
            ModelError: A model cannot be loaded or fails as a whole.
        """
        for asked in questions:
            self.check(asked)
        found = {part: self._ask(part, questions) for part in self.models}
        rows = zip(*found.values(), strict=True)
        return [self._values(dict(zip(found, row, strict=True))) for row in rows]

    def _values(self, logprobs: Mapping[str, Logprobs]) -> TokenValues | ModelError:
        wide = {part: values.astype(np.float64) for part, values in logprobs.items()}
        for part, values in wide.items():
            if not np.isfinite(values).all():
                return ModelError(f"{part} model: log-probs are not finite (try dtype float32 or bfloat16)")
        ratios = wide["strong"] - wide["weak"]
        scaled = self.scale * ratios
        if self.clip is not None:
            scaled = np.clip(scaled, -self.clip, self.clip)
        return TokenValues(wide.get("reference", wide["weak"]) + scaled, ratios)

    def _ask(self, part: str, questions: Sequence[RawIds]) -> list[Logprobs]:
        spans = [self._spans(part, asked) for asked in questions]
        scored = iter(self.models[part].score([span for own in spans for span in own]))
        return [np.concatenate([next(scored) for _ in own]) for own in spans]

    def _spans(self, part: str, asked: RawIds) -> list[TokenSpan]:
        """What one model is asked about ids, whose values follow each other: mostly one span, behind the guidance.

        What opens the ids stands in front of the guidance; where it is more than one id, those behind the first have
        values of their own.
        """
        name = self.domain if asked.domain is None else asked.domain
        ids, begin = asked.ids, asked.start + 1
        block, opening = self._blocks[part, name], self._openings[part]
        if not block:
            return [TokenSpan(ids[:begin], ids[begin:])]
        size = len(opening) if ids[: len(opening)] == opening else 0
        if size and block[:size] != opening:
            block = opening + block
        rest = max(begin, size)
        opened = [TokenSpan(ids[:begin], ids[begin:size])] if begin < size else []
        return [*opened, TokenSpan(block + ids[size:rest], ids[rest:])]

    def _block(self, part: str, domain: str) -> tuple[int, ...]:
        """The ids of a domain's guidance for one model; none where it is shown none."""
        if domain not in self.ratio.rendered:
            raise ConfigError(f"the teacher's domain: {unknown('domain', domain, self.ratio.domains)}")
        text = self.ratio.rendered[domain].text
        if not text or self.ratio.placement not in ("both", part) or part == "reference":
            return ()
        try:
            return self._chats[part].system_block(text)
        except ChatError as error:
            raise ConfigError(f"{part} model, domain {domain}: {error}") from error

    def _compare(self, policy: Mapping[str, int]) -> None:
        """Refuse models for whom an id may be another token than for the policy."""
        for part, chat in self._chats.items():
            if (difference := _difference(chat.vocabulary(), policy)) is not None:
                raise ConfigError(
                    f"the {part} model's vocabulary is not the policy's ({difference}): a teacher is asked about the "
                    "policy's ids, so policy, strong, weak and reference must have one tokenizer; a token that never "
                    "comes, as a pad that training adds, does not count: name the tokenizer without it"
                )


def policy_vocabulary(name: str) -> Mapping[str, int]:
    """The tokens of a policy with their ids.

    Args:
        name: Hub id or folder of its tokenizer, or a `.gguf` file.

    Raises:
        ModelError: There is no such tokenizer.
    """
    from gdr_plugin.models.local.source import open_tokenizer

    vocabulary: Mapping[str, int] = open_tokenizer(name).get_vocab()
    return vocabulary


def _takes_ids(part: str, model: LogprobModel) -> TakesIds:
    chat = model.chat
    if not isinstance(chat, TakesIds):
        raise ConfigError(f"the {part} model's backend cannot be asked about ids of another program: it cannot teach")
    return chat


def _difference(model: Mapping[str, int], policy: Mapping[str, int]) -> str | None:
    """What differs first between two vocabularies; None where they are the same."""
    if model == policy:
        return None
    ours, theirs = ({id: token for token, id in tokens.items()} for tokens in (model, policy))
    ids = sorted(id for id in set(chain(ours, theirs)) if ours.get(id) != theirs.get(id))
    if not ids:
        return "some ids have several tokens"
    first = ids[0]
    mine, other = (f"{tokens[first]!r:.60}" if first in tokens else "no token" for tokens in (ours, theirs))
    return f"{len(ids):,} ids differ: {first} is {mine} for the model and {other} for the policy"

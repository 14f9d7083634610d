"""The contract of a model backend: it turns conversations into token ids, and scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Logprobs, Message, TokenSpan


@runtime_checkable
class ChatFormat(Protocol):
    """Renders conversations with one model's own template and tokenizer."""

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        """Token ids of `response` after `conversation`.

        The context is exactly what the model would see when asked to answer `conversation`: the template with its
        generation prompt, one BOS at most. It depends on `conversation` alone, so candidates of one prompt share it.
        The response's ids are those of the response's text alone; control tokens spelt out in it stay text.

        Args:
            conversation: At least one turn; an optional system turn comes first.
            response: The assistant's text; may be empty.
            end: Whether the end-of-turn token counts as part of the response.

        Returns:
            The span; `dropped` counts prompt tokens left out under the `keep_end` policy.

        Raises:
            ChatError: The template refuses the conversation, or it does not fit (policy `error`), or the response
                alone does not fit. The message says which and what to change.
        """
        ...


@runtime_checkable
class SpansTogether(Protocol):
    """What a `ChatFormat` may offer beyond its contract: many spans in one call, where that is quicker."""

    def spans(self, asked: Sequence[tuple[Conversation, str, bool]]) -> list[TokenSpan | ChatError]:
        """What `ChatFormat.span` gives for each of many questions.

        Args:
            asked: Conversation, response, and whether the end-of-turn token counts; as for `ChatFormat.span`.

        Returns:
            A span each, in order; in the place of one that cannot be had, the error that `span` raises.
        """
        ...


@runtime_checkable
class TokenOffsets(Protocol):
    """An optional part of a `ChatFormat`: where in the response its tokens are.

    Without it a response can be scored, but not shown token by token, nor rewarded by step.
    """

    def offsets(self, conversation: Conversation, response: str) -> tuple[tuple[int, int], ...]:
        """From which to which character of the response each of its tokens reaches.

        Tokens that share a character all span the whole of it: `((0, 1), (0, 1))` is one character in two tokens.

        Args:
            conversation: As for `span`.
            response: As for `span`.

        Returns:
            Start and stop of each id that `span` gives with `end=False`, in order, within the response; an id that
            stands for none of its characters has an empty range.

        Raises:
            ChatError: As for `span`, but limits on length may be ignored.
        """
        ...


@runtime_checkable
class WritesTurns(Protocol):
    """What a `ChatFormat` may offer beyond its contract: assistant turns with reasoning or tool calls of their own.

    Without it such responses are not scored, with that reason.
    """

    def turn_span(self, conversation: Conversation, turn: Message, *, end: bool) -> TokenSpan:
        """Token ids of an assistant's turn after `conversation`, as the template writes it.

        Args:
            conversation: As for `ChatFormat.span`.
            turn: The assistant's turn.
            end: Whether the end-of-turn token counts as part of the response. What a template writes behind a tool call
                for good, such as gpt-oss's `<|call|>`, counts anyway.

        Raises:
            ChatError: As for `ChatFormat.span`; or the template has no form for the turn.
        """
        ...

    def turn_offsets(self, conversation: Conversation, turn: Message) -> tuple[tuple[int, int], ...] | None:
        """From which to which character of the turn's text each id reaches; None where that is not known.

        Ids of reasoning have an empty range at the beginning of the text.
        """
        ...


@runtime_checkable
class TakesIds(Protocol):
    """What a `ChatFormat` may offer beyond its contract: what is needed to score ids that another program has made.

    Without it a model cannot be a teacher (`gdr serve --teacher`).
    """

    @property
    def max_length(self) -> int:
        """Tokens of context and response together."""
        ...

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that stand once in front of all turns: BOS, or whatever the template writes there; often none."""
        ...

    def vocabulary(self) -> Mapping[str, int]:
        """Every token with its id, added tokens included."""
        ...

    def system_block(self, text: str) -> tuple[int, ...]:
        """Ids of a system turn that stands first, as the template writes it.

        In front of the ids of other turns they make a conversation with this system turn. They begin with `opening`
        where the template writes one.

        Args:
            text: What the turn says.

        Raises:
            ChatError: The template has no system turn that stands by itself.
        """
        ...


@runtime_checkable
class LogprobModel(Protocol):
    """A language model that scores given tokens (the contract of every backend).

    Making one is cheap: it reads tokenizer and configuration only. Weights load at the first `score`, until `unload`.
    """

    # Properties, since they are only read: a backend may have plain attributes or properties.

    @property
    def name(self) -> str:
        """The name that the user gave it, for messages."""
        ...

    @property
    def identity(self) -> str:
        """What makes two results comparable, as a hex digest.

        It covers the weights' content or revision, adapter, dtype, tokenizer, template and numerics version, and is
        known without loading the weights.
        """
        ...

    @property
    def chat(self) -> ChatFormat:
        """The model's own template and tokenizer."""
        ...

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of every span's response tokens given its context.

        Args:
            spans: In any order; contexts may repeat (work on shared prefixes is then done once). May be empty.

        Returns:
            One array for each span, in the order given: natural-log probabilities, float32, shape
            `(len(span.response),)`, for exactly the ids asked. An empty response gives an empty array. A span whose
            computation overflowed holds NaN: the caller reports it as not scored.

        Raises:
            ModelError: The weights cannot be loaded, or the backend failed after its retries.
        """
        ...

    def describe(self) -> dict[str, str]:
        """Facts for a person (device, dtype, `strategy` and `why`); loads no weights."""
        ...

    def unload(self) -> None:
        """Free the weights' memory. Scoring again loads them again."""
        ...


PROBE_NOISE: Final = 0.1
"""Nats a token by which the log-probs of a fixed text may differ, on average, and still be one model's: servers compute
in bfloat16, in batches that differ. Two models differ by more; a training step of a low rate may not."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A fixed text under a model, as scored when it was opened: so a model is known again that cannot be read."""

    span: TokenSpan
    logprobs: Logprobs
    """Shape `(len(span.response),)`, nats."""

    def gap(self, other: Logprobs) -> float:
        """The mean difference to other log-probs of the text, in nats a token; infinite where the number differs."""
        import numpy as np

        if len(other) != len(self.logprobs):
            return float("inf")
        return float(np.abs(self.logprobs.astype(np.float64) - other).mean())


@runtime_checkable
class Elsewhere(Protocol):
    """What a `LogprobModel` offers beyond its contract where another machine computes it."""

    @property
    def beside(self) -> bool:
        """Whether another such model may be asked at the same time: its `score` only waits."""
        ...

    @property
    def probe(self) -> Probe:
        """A fixed text as scored when the model was opened.

        The store keeps it: other log-probs under the same identity are another model's.
        """
        ...

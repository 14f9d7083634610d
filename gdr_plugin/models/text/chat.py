"""Conversations to token ids, for one model: what it is asked, and the ids of a response to score.

Knows the template (`template`, `layout`), the tokenizer (`tokens`) and the limits; nothing of weights or rewards.

The context is the rendered prompt's ids; the response's ids are those of its text alone, appended. Nothing is rendered
twice and counted, so a template's default system turn or a token that merges across the boundary cannot move the span.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TEXT, Conversation, Message, TokenSpan
from gdr_plugin.models.text.answer import (
    Kind,
    Piece,
    as_text,
    behind,
    kind_of,
    places,
    reasoned_pieces,
    rendered_calls,
    text_pieces,
)
from gdr_plugin.models.text.contexts import Context, Contexts
from gdr_plugin.models.text.ends import find_end, stop_ids
from gdr_plugin.models.text.layout import TurnLayout
from gdr_plugin.models.text.protected import protected
from gdr_plugin.models.text.system_block import opening_of, system_block
from gdr_plugin.models.text.template import ChatTemplate
from gdr_plugin.models.text.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.api.settings import LongInput


_NO_TURNS: Final = "the prompt has no turns: give at least one user turn"


class Chat:
    """A model's own template and tokenizer: a `ChatFormat`.

    Decisions that a template leaves open:
      - White space that the template puts before an answer (Mistral's space) belongs to the response's first token: the
        model generates it. An empty response has none.
      - Other text there belongs to the context: the empty reasoning block of Qwen3 is written by the template, not by
        the model, and without it a plain answer would be scored as one that forgot to reason. Where the generation
        prompt opens reasoning and history shows it closed before a plain answer, a plain answer gets history's header.
      - A response that brings its own reasoning is scored right after the generation prompt; a mark that the generation
        prompt has opened already is not written twice. Reasoning that was cut off before its closing mark cannot be
        told from an answer unless it starts with the opening one. Reasoning that came apart from its answer is written
        as the template writes it, else between the model's marks.
      - A conversation that ends with an assistant's turn is a response that has been begun: it goes on with that turn.
      - The end of turn is what the template puts after an answer, up to the model's EOS or the last control token that
        stands there whatever follows; where it puts none, what it writes before the next turn, else EOS.

    Safe to use from several threads.

    Args:
        tokenizer: The model's tokenizer, with a `tokenizers` backend.
        template: `plain` for our plain-text template, the path of a Jinja file, or Jinja text. None: the tokenizer's.
        variables: What the template may read besides the turns (`chat_template_kwargs` of gdr.yaml).
        stops: The EOS ids of the model's generation config, where it has one.
        end_of_turn: The token that ends a turn, where gdr.yaml names it.
        max_length: Tokens of context and response together.
        max_response: Tokens kept free for the response where a prompt is cut; at most half of `max_length` is.
        long_input: `error`: what does not fit is a `ChatError`. `keep_end`: a context that leaves less than that free
            loses its beginning, whatever the response, so that all candidates of a prompt see the same context.

    Raises:
        ChatError: No template, or one that does not render a single user turn; a tokenizer without fast backend; an
            end of turn that is no token.
    """

    has_template: bool
    """Whether turns are rendered by a chat template; False: as plain text."""
    fingerprint: str
    """Hex digest of tokenizer and template: part of a model's identity."""
    stop_ids: frozenset[int]
    """Ids that the model may end an assistant's turn with, whichever of them is scored as the end."""
    settings: tuple[object, ...]
    """All that tells it from another chat format."""
    sent_as_text: bool = False
    """Whether ids reach the model as text, where a spelt control token would become one: such samples are refused."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        stops: Collection[int] = (),
        end_of_turn: str | None = None,
        max_length: int,
        max_response: int = 2048,
        long_input: LongInput = "error",
    ) -> None:
        self.max_length = max_length
        self._long_input = long_input
        self._template = ChatTemplate(tokenizer, template, variables)
        self._layout = TurnLayout(self._template)
        self._tokens = Tokens(tokenizer, self._layout.markup)
        self.has_template = self._template.source != "plain"
        self._bos = tokenizer.bos_token_id
        eos, stops = tokenizer.eos_token_id, frozenset(stops)
        self._end = find_end(self._tokens, self._layout, eos=eos, stops=stops, named=end_of_turn)
        self.stop_ids = stop_ids(self._tokens, self._layout, self._end, eos=eos, stops=stops)
        special = repr(sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items()))
        more = [repr(sorted(self._template.variables.items()))] if self._template.variables else []
        self.fingerprint = self._tokens.digest(self._template.text, special, repr(self._end.ids), *more)
        told = self._template.source, self._end.why, max_length, max_response, long_input
        self.settings = (type(tokenizer), self.fingerprint, self.stop_ids, *told)
        self._contexts = Contexts(
            self._template,
            self._layout,
            self._tokens,
            # A chat template writes its own BOS, or wants none; plain text gets what the tokenizer gives to text.
            prefix=() if self.has_template else self._tokens.prefix,
            max_length=max_length,
            max_response=max_response,
            long_input=long_input,
        )

    @property
    def end_of_turn(self) -> tuple[int, ...]:
        """Ids that end the assistant's turn; empty when neither template nor tokenizer has an end."""
        return self._end.ids

    @property
    def lead(self) -> str:
        """White space that the template puts before an answer: part of what the model generates, not of the answer."""
        return self._layout.lead

    @property
    def before_end(self) -> str:
        """Text that the template writes between an answer and the last token of its end, such as Llama 2's space."""
        return self._tokens.spelling_behind_text(self._end.ids[:-1])

    def asked(self, conversation: Conversation) -> tuple[tuple[int, ...], str]:
        """What a policy is asked: the prompt's ids up to where it begins to write, and the reasoning that they open.

        That is the generation prompt as it is: the model reasons or not, as it was trained to. Where reasoning has a
        form that is more than text between two marks (gpt-oss's channels), an answer without it begins there.

        Raises:
            ChatError: As for `span`.
        """
        context = self._contexts.of(conversation, "thought" if self._layout.reasons_in_text else "answer")
        return context.ids, context.opened

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that stand once in front of all turns; see `TakesIds.opening`."""
        prefix = () if self.has_template else self._tokens.prefix
        return prefix or opening_of(self._template, self._layout, self._tokens, self._bos)

    def vocabulary(self) -> Mapping[str, int]:
        """Every token with its id; see `TakesIds.vocabulary`."""
        return self._tokens.vocabulary()

    def system_block(self, text: str) -> tuple[int, ...]:
        """Ids of a system turn that stands first; see `TakesIds.system_block`."""
        prefix = () if self.has_template else self._tokens.prefix
        return system_block(self._template, self._layout, self._tokens, text, prefix=prefix)

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        """Token ids of `response` after `conversation`; see `ChatFormat.span`."""
        (span,) = self.spans([(conversation, response, end)])
        if isinstance(span, ChatError):
            raise span
        return span

    def spans(self, asked: Sequence[tuple[Conversation, str, bool]]) -> list[TokenSpan | ChatError]:
        """Token ids of many responses, which are encoded together; see `SpansTogether.spans`."""
        found: list[ChatError | None] = []
        placed: list[tuple[Context, str, bool]] = []
        for conversation, response, end in asked:
            try:
                context, pieces = self._place(conversation, response)
            except ChatError as error:
                found.append(error)
            else:
                found.append(None)
                placed.append((context, "".join(piece.text for piece in pieces), end))
        ids = self._tokens.continuations([(text, context.ids[-1]) for context, text, _ in placed])
        rest = iter(zip(placed, ids, strict=True))
        return [error if error is not None else self._ended(*next(rest)) for error in found]

    def _ended(self, placed: tuple[Context, str, bool], ids: tuple[int, ...] | ChatError) -> TokenSpan | ChatError:
        """The span of an encoded response, or why there is none."""
        context, text, end = placed
        try:
            if isinstance(ids, ChatError):
                return ids
            return self._fitting(context, ids + self._end_ids() if end else ids, text)
        except ChatError as error:
            return error

    def turn_span(self, conversation: Conversation, turn: Message, *, end: bool) -> TokenSpan:
        """Token ids of an assistant turn with reasoning or tool calls; see `WritesTurns.turn_span`."""
        if not turn.tool_calls:
            context, pieces = self._place(conversation, turn.content, turn.reasoning)
            return self._span(context, "".join(piece.text for piece in pieces), end)
        if not conversation:
            raise ChatError(_NO_TURNS)
        if conversation[0].role == TEXT:
            raise ChatError("a prompt that is rendered text cannot be answered by tool calls: give messages")
        turns = self._contexts.placed(conversation)
        calls = rendered_calls(self._template, self._layout, turns, protected(turn, self._tokens))
        context = self._contexts.of(conversation, calls.kind)
        ids = self._tokens.continuation(calls.text, context.ids[-1])
        stop = next((at for at in range(len(ids))[::-1] if ids[at] in self._end.ids[-1:]), None)
        if stop is not None and all(self._is_control_or_space(id) for id in ids[stop:]):
            ids = ids[: stop + end]  # the template goes on behind the end
        elif calls.usual_end:
            ids += self._end_ids() if end else ()
        elif ids[-1:] and ids[-1] in self._tokens.control_ids:
            # Where the template closes a call with a token of its own, that is its end.
            ids = ids if end or ids[-1] not in self.stop_ids else ids[:-1]
        elif end:
            ids += self._call_end(calls.following)
        return self._fitting(context, ids, calls.text)

    def _is_control_or_space(self, id: int) -> bool:
        return id in self._tokens.control_ids or not self._tokens.spelling((id,)).strip()

    def _call_end(self, following: str) -> tuple[int, ...]:
        """What ends a call behind which the template writes nothing: what stands before the tool's answer."""
        ids = self._tokens.after_answer(following)
        stop = next((at for at, id in enumerate(ids) if id in self._tokens.control_ids), None)
        return self._end.ids if stop is None else ids[: stop + 1]

    def offsets(self, conversation: Conversation, response: str) -> tuple[tuple[int, int], ...]:
        """From which to which character of `response` each of its ids reaches; see `TokenOffsets.offsets`."""
        return self._offsets(conversation, response, "")

    def turn_offsets(self, conversation: Conversation, turn: Message) -> tuple[tuple[int, int], ...] | None:
        """See `WritesTurns.turn_offsets`; None for a turn with tool calls, whose text the template writes."""
        return None if turn.tool_calls else self._offsets(conversation, turn.content, turn.reasoning)

    def _offsets(self, conversation: Conversation, response: str, reasoning: str) -> tuple[tuple[int, int], ...]:
        context, pieces = self._place(conversation, response, reasoning)
        text = "".join(piece.text for piece in pieces)
        return places(pieces, self._tokens.continuation_offsets(text, context.ids[-1]), self._tokens.restored)

    def describe(self) -> dict[str, str]:
        """Facts for a person: template, BOS, end of turn, system role, and what else `gdr check` should say."""
        template, layout, tokens = self._template, self._layout, self._tokens
        context = self._contexts.of((Message("user", "Hello"),), "thought").ids
        end = f"{tokens.spelling(self._end.ids)!r} ({self._end.why})" if self._end.ids else f"none: {self._end.why}"
        facts = {
            "template": f"{layout.family()} ({'the tokenizer' if template.source == 'own' else template.source})",
            "bos": tokens.spelling(context[:1]) if context and context[0] == self._bos else "none",
            "end of turn": end,
            "system role": "yes" if layout.takes_system else "no: folded into the first user turn",
        }
        if template.variables:
            facts["template variables"] = ", ".join(f"{name}={value!r}" for name, value in template.variables.items())
        if template.no_tools is not None:
            facts["tools"] = "the template always writes them: of prompts without tools, an empty list"
        if layout.answer.add.strip():
            facts["before an answer"] = repr(layout.answer.add)
        if layout.closed:
            facts["reasoning"] = "the prompt closes it: for responses with reasoning, see `chat_template_kwargs`"
        if layout.inside:
            facts["reasoning"] = f"the prompt opens {layout.inside}: answers without reasoning are scored inside it"
        if "strftime_now" in template.text:
            facts["date"] = "the template writes today's date: scores of another day are not comparable"
        return facts

    def _span(self, context: Context, text: str, end: bool) -> TokenSpan:
        ids = self._tokens.continuation(text, context.ids[-1])
        return self._fitting(context, ids + self._end_ids() if end else ids, text)

    def _end_ids(self) -> tuple[int, ...]:
        if not self._end.ids:
            raise ChatError(
                "neither the chat template nor the tokenizer has an end-of-turn token: set `end_of_turn_token` of "
                "the model in gdr.yaml, the tokenizer's eos_token, or `reward.end_of_turn: never`"
            )
        return self._end.ids

    def _fitting(self, context: Context, ids: tuple[int, ...], text: str) -> TokenSpan:
        if len(context.ids) + len(ids) > self.max_length:
            raise ChatError(self._too_long(len(context.ids), len(ids)))
        mark = context.mark or self._tokens.mark_in(text)
        if mark is not None and self.sent_as_text:
            raise ChatError(
                f"it spells out {mark!r}, which a server that takes no token ids would read as a control token"
            )
        return TokenSpan(context.ids, ids, context.dropped, mark)

    def _place(self, conversation: Conversation, response: str, reasoning: str = "") -> tuple[Context, list[Piece]]:
        """The context that a response follows, and the text that is encoded behind it."""
        if not conversation:
            raise ChatError(_NO_TURNS)
        layout, form = self._layout, self._layout.form
        kind: Kind
        if conversation[0].role == TEXT or conversation[-1].role == "assistant":
            if reasoning.strip():
                raise ChatError("reasoning apart from its answer cannot go on with a turn that is begun: leave it out")
            kind, pieces = "thought", [Piece(response, 0, len(response))]
            context = self._contexts.of(conversation, kind)
        elif reasoning.strip() and self._contexts.of(conversation, "thought").closed:
            raise ChatError(
                "the chat template's generation prompt closes reasoning before it began, so a response with reasoning "
                "does not belong behind it: set the template's variable for it in `chat_template_kwargs` "
                "(enable_thinking, thinking, ...), or leave the reasoning out"
            )
        elif reasoning.strip() and form is not None:
            kind, pieces = "written", reasoned_pieces(form, reasoning, response)
            context = self._contexts.of(conversation, kind)
        else:
            before = as_text(layout, reasoning) if reasoning.strip() else ""
            kind = kind_of(layout, before + response)
            context = self._contexts.of(conversation, kind)
            lead = layout.answer_after(conversation)[1]
            pieces = text_pieces(layout, before + response, lead=lead, opened=context.opened)
            pieces = behind(pieces, len(before)) if before else pieces
        return context, [
            replace(piece, text=self._tokens.protect(piece.text, assistant=True)) if piece.literal else piece
            for piece in pieces
        ]

    def _too_long(self, context: int, response: int) -> str:
        if self._long_input == "error":
            return (
                f"prompt ({context} tokens) and response ({response}) exceed max_length {self.max_length}: raise "
                "limits.max_length, shorten the sample, or set `limits.long_input: keep_end`"
            )
        return (
            f"the response has {response} tokens, but behind its prompt ({context}) only {self.max_length - context} "
            f"of max_length {self.max_length} are free: raise limits.max_length or limits.max_response"
        )

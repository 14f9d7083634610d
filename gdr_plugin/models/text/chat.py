"""Conversations to token ids, for one model: what it is asked, and the ids of a response to score.

Knows the template (`template`, `layout`), the tokenizer (`tokens`) and the limits; nothing of weights or rewards.

The context is the rendered prompt's ids; the response's ids are those of its text alone, appended. Nothing is rendered
twice and counted, so a template's default system turn or a token that merges across the boundary cannot move the span.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message, TokenSpan, ToolCall
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
from gdr_plugin.models.text.ends import find_end, stop_ids
from gdr_plugin.models.text.layout import Header, TurnLayout
from gdr_plugin.models.text.reasoning import opens
from gdr_plugin.models.text.template import ChatTemplate, leading_system_turns
from gdr_plugin.models.text.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.api.settings import LongInput

_CACHED_TOKENS: Final = 2**20
_BEGUN: Final = "qbegunprobeq"
TEXT: Final = "text"
"""The role of a prompt that is one piece of rendered text: it is scored as it is."""


@dataclass(frozen=True, slots=True)
class _Context:
    ids: tuple[int, ...]
    dropped: int = 0
    opened: str = ""
    """The mark of reasoning that the prompt opens, with the white space behind it; or nothing."""
    closed: bool = False
    """Whether the prompt has closed reasoning; known, as `opened` is, behind the generation prompt (kind `thought`)."""
    problem: str | None = None
    """Why the conversation has no context; remembered, so that every candidate of a prompt learns it at once."""
    mark: str | None = None
    """A control token that a turn spells out."""


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
        self._free = min(max_response, max_length // 2)
        self._long_input = long_input
        self._template = ChatTemplate(tokenizer, template, variables)
        self._layout = TurnLayout(self._template)
        self._tokens = Tokens(tokenizer, self._layout.markup)
        self.has_template = self._template.source != "plain"
        # A chat template writes its own BOS, or wants none; plain text gets what the tokenizer gives to text.
        self._prefix = () if self.has_template else self._tokens.prefix
        self._bos = tokenizer.bos_token_id
        eos, stops = tokenizer.eos_token_id, frozenset(stops)
        self._end = find_end(self._tokens, self._layout, eos=eos, stops=stops, named=end_of_turn)
        self.stop_ids = stop_ids(self._tokens, self._layout, self._end, eos=eos, stops=stops)
        special = repr(sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items()))
        more = [repr(sorted(self._template.variables.items()))] if self._template.variables else []
        self.fingerprint = self._tokens.digest(self._template.text, special, repr(self._end.ids), *more)
        self._cache: OrderedDict[tuple[Conversation, Kind], _Context] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

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

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        """Token ids of `response` after `conversation`; see `ChatFormat.span`."""
        context, pieces = self._place(conversation, response)
        return self._span(context, "".join(piece.text for piece in pieces), end)

    def turn_span(self, conversation: Conversation, turn: Message, *, end: bool) -> TokenSpan:
        """Token ids of an assistant turn with reasoning or tool calls; see `WritesTurns.turn_span`."""
        if not turn.tool_calls:
            context, pieces = self._place(conversation, turn.content, turn.reasoning)
            return self._span(context, "".join(piece.text for piece in pieces), end)
        if not conversation or conversation[0].role == TEXT:
            raise ChatError("a prompt that is rendered text cannot be answered by tool calls: give messages")
        turns = self._layout.place(tuple(self._safe(turn) for turn in conversation))
        calls = rendered_calls(self._template, self._layout, turns, self._safe(turn))
        context = self._known_context(conversation, calls.kind)
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
        context = self._context((Message("user", "Hello"),), "thought").ids
        end = f"{tokens.spelling(self._end.ids)!r} ({self._end.why})" if self._end.ids else f"none: {self._end.why}"
        facts = {
            "template": f"{layout.family()} ({'the tokenizer' if template.source == 'own' else template.source})",
            "bos": tokens.spelling(context[:1]) if context and context[0] == self._bos else "none",
            "end of turn": end,
            "system role": "yes" if layout.takes_system else "no: folded into the first user turn",
        }
        if template.variables:
            facts["template variables"] = ", ".join(f"{name}={value!r}" for name, value in template.variables.items())
        if layout.answer.add.strip():
            facts["before an answer"] = repr(layout.answer.add)
        if layout.closed:
            facts["reasoning"] = "the prompt closes it: for responses with reasoning, see `chat_template_kwargs`"
        if layout.inside:
            facts["reasoning"] = f"the prompt opens {layout.inside}: answers without reasoning are scored inside it"
        if "strftime_now" in template.text:
            facts["date"] = "the template writes today's date: scores of another day are not comparable"
        return facts

    def _span(self, context: _Context, text: str, end: bool) -> TokenSpan:
        ids = self._tokens.continuation(text, context.ids[-1])
        return self._fitting(context, ids + self._end_ids() if end else ids, text)

    def _end_ids(self) -> tuple[int, ...]:
        if not self._end.ids:
            raise ChatError(
                "neither the chat template nor the tokenizer has an end-of-turn token: set `end_of_turn_token` of "
                "the model in gdr.yaml, the tokenizer's eos_token, or `reward.end_of_turn: never`"
            )
        return self._end.ids

    def _fitting(self, context: _Context, ids: tuple[int, ...], text: str) -> TokenSpan:
        if len(context.ids) + len(ids) > self.max_length:
            raise ChatError(self._too_long(len(context.ids), len(ids)))
        return TokenSpan(context.ids, ids, context.dropped, context.mark or self._tokens.mark_in(text))

    def _place(self, conversation: Conversation, response: str, reasoning: str = "") -> tuple[_Context, list[Piece]]:
        """The context that a response follows, and the text that is encoded behind it."""
        if not conversation:
            raise ChatError("the prompt has no turns: give at least one user turn")
        layout, form = self._layout, self._layout.form
        kind: Kind
        if conversation[0].role == TEXT or conversation[-1].role == "assistant":
            if reasoning.strip():
                raise ChatError("reasoning apart from its answer cannot go on with a turn that is begun: leave it out")
            kind, pieces = "thought", [Piece(response, 0, len(response))]
            context = self._known_context(conversation, kind)
        elif reasoning.strip() and self._known_context(conversation, "thought").closed:
            raise ChatError(
                "the chat template's generation prompt closes reasoning before it began, so a response with reasoning "
                "does not belong behind it: set the template's variable for it in `chat_template_kwargs` "
                "(enable_thinking, thinking, ...), or leave the reasoning out"
            )
        elif reasoning.strip() and form is not None:
            kind, pieces = "written", reasoned_pieces(form, reasoning, response)
            context = self._known_context(conversation, kind)
        else:
            before = as_text(layout, reasoning) if reasoning.strip() else ""
            kind = kind_of(layout, before + response)
            context = self._known_context(conversation, kind)
            lead = layout.answer_after(conversation)[1]
            pieces = text_pieces(layout, before + response, lead=lead, opened=context.opened)
            pieces = behind(pieces, len(before)) if before else pieces
        return context, [
            replace(piece, text=self._tokens.protect(piece.text, assistant=True)) if piece.literal else piece
            for piece in pieces
        ]

    def _known_context(self, conversation: Conversation, kind: Kind) -> _Context:
        context = self._context(tuple(conversation), kind)
        if context.problem is not None:
            raise ChatError(context.problem)
        return context

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

    def _safe(self, turn: Message) -> Message:
        """A turn whose texts cannot forge control tokens."""
        mine = turn.role == "assistant"
        protect = self._tokens.protect
        calls = tuple(
            ToolCall(
                protect(call.name),
                json.dumps(_protected(json.loads(call.arguments), protect), ensure_ascii=False),
                None if call.id is None else protect(call.id),
            )
            for call in turn.tool_calls
        )
        return replace(
            turn,
            content=self._tokens.protect(turn.content, assistant=mine),
            reasoning=self._tokens.protect(turn.reasoning, assistant=True),
            tool_calls=calls,
            name=None if turn.name is None else protect(turn.name),
            tool_call_id=None if turn.tool_call_id is None else protect(turn.tool_call_id),
        )

    def _mark_of(self, conversation: Conversation) -> str | None:
        """A control token that a turn spells out; a prompt that is rendered text holds real ones."""
        safe = (self._safe(turn) for turn in conversation if turn.role != TEXT)
        texts = (
            text
            for turn in safe
            for text in (turn.content, turn.reasoning, *(call.name + call.arguments for call in turn.tool_calls))
        )
        return next((mark for mark in map(self._tokens.mark_in, texts) if mark is not None), None)

    def _encode(self, conversation: Conversation, kind: Kind) -> tuple[int, ...]:
        if any(turn.role == TEXT for turn in conversation):
            return self._encode_text(conversation)
        layout = self._layout
        turns = layout.place(tuple(map(self._safe, conversation)))
        if turns[-1].role == "assistant":
            return self._prefix + tuple(self._tokens.encode(self._prefilled(turns)).ids)
        text = self._template.render(turns)
        header = {"thought": Header(), "call": layout.history}.get(kind)
        if kind == "answer":
            header = layout.answer_after(turns)[0]
        elif header is None:
            assert layout.form is not None  # the kind is `written` only where there is a form
            header = layout.form.header
        ids = self._prefix + tuple(self._tokens.encode(header.apply(text)).ids)
        if not ids:
            raise ChatError("the chat template renders this prompt as nothing: check `chat_template`")
        return ids

    def _asked(self, conversation: Conversation) -> str:
        """The rendered prompt up to where the response begins; nothing where it goes on with a turn that is begun."""
        if (
            not (self._layout.marks or self._layout.opened)
            or conversation[0].role == TEXT
            or conversation[-1].role == "assistant"
        ):
            return ""
        return self._template.render(self._layout.place(tuple(map(self._safe, conversation))))

    def _prefilled(self, turns: Conversation) -> str:
        """A prompt that ends within an assistant's turn: the response goes on with that turn."""
        begun = turns[-1].content
        if opens(begun):  # the template knows no history of it: the turn stands behind the prompt, its mark once
            prompt = self._template.render(turns[:-1])
            opened = self._layout.opened_by(prompt)
            mark = opened.strip()
            twice = bool(mark) and begun.lstrip().startswith(mark)
            return prompt + (begun.lstrip().removeprefix(mark).lstrip() if twice else begun)
        text = self._template.render((*turns[:-1], replace(turns[-1], content=begun + _BEGUN)), ask=False)
        before, found, _ = text.rpartition(_BEGUN)
        if not found or not begun.strip() or not before.endswith(begun.lstrip()):
            raise ChatError("the chat template does not show the assistant turn that the prompt ends with: remove it")
        return before

    def _encode_text(self, conversation: Conversation) -> tuple[int, ...]:
        """Encode a prompt that somebody else has rendered: control tokens spelt out in it are control tokens."""
        if len(conversation) > 1:
            raise ChatError("a prompt that is rendered text has no place for guidance: set guidance.placement to none")
        ids = tuple(self._tokens.encode(conversation[0].content).ids)
        if not ids and not self._tokens.prefix:
            raise ChatError("the prompt is empty text: give one with at least one token")
        # As above: a template has written its BOS where it wants one. Only text without any markers is plain.
        return ids if not self._tokens.control_ids.isdisjoint(ids) else self._tokens.prefix + ids

    def _context(self, conversation: Conversation, kind: Kind) -> _Context:
        key = (conversation, kind)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        made = self._make_context(conversation, kind)
        with self._lock:
            known = self._cache.setdefault(key, made)
            if known is made:
                self._cached += _weight(key[0], made)
            while self._cached > _CACHED_TOKENS and len(self._cache) > 1:
                (old, _), gone = self._cache.popitem(last=False)
                self._cached -= _weight(old, gone)
            return known

    def _make_context(self, conversation: Conversation, kind: Kind) -> _Context:
        try:
            ids = self._encode(conversation, kind)
            mark = self._mark_of(conversation)
        except ChatError as error:
            return _Context((), problem=str(error))
        room = self.max_length - self._free
        asked = self._asked(conversation) if kind == "thought" else ""
        opened = self._layout.opened_by(asked) if self._layout.opened else ""
        closed = self._layout.closed_by(asked)
        if self._long_input == "error" or len(ids) <= room:
            return _Context(ids, opened=opened, closed=closed, mark=mark)
        kept = self._keep_end(conversation, kind, room)
        if kept is None:
            return _Context(
                (),
                problem="system turn (guidance included), template and what follows the last user turn alone exceed "
                f"the {room} tokens that max_length {self.max_length} leaves to a prompt: shorten the guidance or "
                "raise limits.max_length",
            )
        return _Context(kept, dropped=len(ids) - len(kept), opened=opened, closed=closed, mark=mark)

    def _keep_end(self, conversation: Conversation, kind: Kind, room: int) -> tuple[int, ...] | None:
        """Leave out the oldest turns, then the beginning of the last user turn; None when even that is not enough.

        What is kept starts with a user turn, as templates want it; leading system turns are kept whole.
        """
        count = leading_system_turns(conversation)
        system, turns = conversation[:count], conversation[count:]
        starts = [i for i, turn in enumerate(turns) if turn.role == "user"] or list(range(min(1, len(turns))))
        if not starts:
            return None
        last, near = starts[-1], self._near_end(turns, starts, room)
        tried: dict[int, tuple[int, ...]] = {}

        def fits(start: int) -> bool:
            tried[start] = self._encode((*system, *turns[start:]), kind)
            return len(tried[start]) <= room

        at = bisect_left(near, True, key=fits)
        if at < len(near):
            return tried[near[at]]
        keep = room
        while keep > 0:
            begin, kept = self._tokens.tail(turns[last].content, keep)
            text = turns[last].content[begin:]
            if not text:
                return None
            ids = self._encode((*system, Message(turns[last].role, text), *turns[last + 1 :]), kind)
            if len(ids) <= room:
                return ids
            keep = min(keep, kept) - (len(ids) - room)
        return None

    def _near_end(self, turns: Conversation, starts: list[int], room: int) -> list[int]:
        """The starts whose contents alone do not exceed `room`: what is far too long is never encoded again."""
        total, upto, near = 0, len(turns), []
        for start in reversed(starts):
            total += sum(self._tokens.tail(turn.content, room + 1)[1] for turn in turns[start:upto])
            if total > room:
                break
            near.append(start)
            upto = start
        return near[::-1]


def _weight(conversation: Conversation, context: _Context) -> int:
    """What a cached context costs, in tokens or so: its ids, and the text that is its key."""
    return 64 + max(len(context.ids), sum(len(turn.content) for turn in conversation) // 4)


def _protected(value: Any, protect: Callable[[str], str]) -> Any:
    """A call's arguments with every text in them protected."""
    if isinstance(value, str):
        return protect(value)
    if isinstance(value, dict):
        return {protect(key): _protected(item, protect) for key, item in value.items()}
    return [_protected(item, protect) for item in value] if isinstance(value, list) else value

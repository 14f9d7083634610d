"""What a response stands behind: a conversation as token ids, cut where it is too long, and remembered.

Knows the template, its layout, the tokenizer and the room that a prompt has; nothing of responses.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TEXT, Conversation, Message, parts_of
from gdr_plugin.models.text.answer import Kind
from gdr_plugin.models.text.layout import Header, TurnLayout
from gdr_plugin.models.text.protected import protected, texts_of
from gdr_plugin.models.text.reasoning import opens
from gdr_plugin.models.text.template import ChatTemplate
from gdr_plugin.models.text.tokens import Tokens

if TYPE_CHECKING:
    from gdr_plugin.api.settings import LongInput

__all__ = ["Context", "Contexts"]

_CACHED_TOKENS: Final = 2**20
_BEGUN: Final = "qbegunprobeq"


@dataclass(frozen=True, slots=True)
class Context:
    """A conversation as a model is asked it."""

    ids: tuple[int, ...]
    dropped: int = 0
    """Tokens that were left out to make it fit."""
    opened: str = ""
    """The mark of reasoning that the prompt opens, with the white space behind it; or nothing."""
    closed: bool = False
    """Whether the prompt has closed reasoning; known, as `opened` is, behind the generation prompt (kind `thought`)."""
    problem: str | None = None
    """Why the conversation has no context; remembered, so that every candidate of a prompt learns it at once."""
    mark: str | None = None
    """A control token that a turn spells out."""


class Contexts:
    """The contexts of one model. Safe to use from several threads.

    Args:
        template: The model's template.
        layout: What it puts where.
        tokens: The model's tokenizer.
        prefix: Ids in front of every rendered prompt.
        max_length: As for `Chat`, as the two below.
    """

    def __init__(
        self,
        template: ChatTemplate,
        layout: TurnLayout,
        tokens: Tokens,
        *,
        prefix: tuple[int, ...],
        max_length: int,
        max_response: int,
        long_input: LongInput,
    ) -> None:
        self._template = template
        self._layout = layout
        self._tokens = tokens
        self._prefix = prefix
        self._max_length = max_length
        self._room = max_length - min(max_response, max_length // 2)
        self._cuts = long_input == "keep_end"
        self._cache: OrderedDict[tuple[Conversation, Kind], Context] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def of(self, conversation: Conversation, kind: Kind) -> Context:
        """The context of a conversation.

        Args:
            conversation: At least one turn.
            kind: What follows it: where a template leaves it open, the context's end depends on that.

        Raises:
            ChatError: The template refuses the conversation, or it does not fit.
        """
        context = self._remembered(tuple(conversation), kind)
        if context.problem is not None:
            raise ChatError(context.problem)
        return context

    def placed(self, conversation: Conversation) -> Conversation:
        """The conversation in the form in which the template shows it, with texts that cannot forge control tokens."""
        return self._layout.place(tuple(protected(turn, self._tokens) for turn in conversation))

    def _remembered(self, conversation: Conversation, kind: Kind) -> Context:
        key = (conversation, kind)
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        made = self._make(conversation, kind)
        with self._lock:
            known = self._cache.setdefault(key, made)
            if known is made:
                self._cached += _weight(conversation, made)
            while self._cached > _CACHED_TOKENS and len(self._cache) > 1:
                (old, _), gone = self._cache.popitem(last=False)
                self._cached -= _weight(old, gone)
            return known

    def _make(self, conversation: Conversation, kind: Kind) -> Context:
        try:
            ids = self._encode(conversation, kind)
            mark = self._mark_of(conversation)
        except ChatError as error:
            return Context((), problem=str(error))
        asked = self._asked(conversation) if kind == "thought" else ""
        opened = self._layout.opened_by(asked) if self._layout.opened else ""
        closed = self._layout.closed_by(asked)
        if not self._cuts or len(ids) <= self._room:
            return Context(ids, opened=opened, closed=closed, mark=mark)
        kept = self._keep_end(conversation, kind)
        if kept is None:
            return Context(
                (),
                problem="system turn (guidance included), tools, template and what follows the last user turn alone "
                f"exceed the {self._room} tokens that max_length {self._max_length} leaves to a prompt: shorten the "
                "guidance or raise limits.max_length",
            )
        return Context(kept, dropped=len(ids) - len(kept), opened=opened, closed=closed, mark=mark)

    def _mark_of(self, conversation: Conversation) -> str | None:
        """A control token that a turn spells out; a prompt that is rendered text holds real ones."""
        safe = (protected(turn, self._tokens) for turn in conversation if turn.role != TEXT)
        marks = (self._tokens.mark_in(text) for turn in safe for text in texts_of(turn))
        return next((mark for mark in marks if mark is not None), None)

    def _encode(self, conversation: Conversation, kind: Kind) -> tuple[int, ...]:
        if any(turn.role == TEXT for turn in conversation):
            return self._encode_text(conversation)
        layout = self._layout
        turns = self.placed(conversation)
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
        return self._template.render(self.placed(conversation))

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
        # A template has written its BOS where it wants one. Only text without any markers is plain.
        return ids if not self._tokens.control_ids.isdisjoint(ids) else self._tokens.prefix + ids

    def _keep_end(self, conversation: Conversation, kind: Kind) -> tuple[int, ...] | None:
        """Leave out the oldest turns, then the beginning of the last user turn; None when even that is not enough.

        What is kept starts with a user turn, as templates want it; tools and leading system turns are kept whole.
        """
        tools, system, turns = parts_of(conversation)
        head = tools + system
        starts = [i for i, turn in enumerate(turns) if turn.role == "user"] or list(range(min(1, len(turns))))
        if not starts:
            return None
        last, near = starts[-1], self._near_end(turns, starts)
        tried: dict[int, tuple[int, ...]] = {}

        def fits(start: int) -> bool:
            tried[start] = self._encode((*head, *turns[start:]), kind)
            return len(tried[start]) <= self._room

        at = bisect_left(near, True, key=fits)
        if at < len(near):
            return tried[near[at]]
        keep = self._room
        while keep > 0:
            begin, kept = self._tokens.tail(turns[last].content, keep)
            text = turns[last].content[begin:]
            if not text:
                return None
            ids = self._encode((*head, Message(turns[last].role, text), *turns[last + 1 :]), kind)
            if len(ids) <= self._room:
                return ids
            keep = min(keep, kept) - (len(ids) - self._room)
        return None

    def _near_end(self, turns: Conversation, starts: list[int]) -> list[int]:
        """The starts whose contents alone do not exceed the room: what is far too long is never encoded again."""
        total, upto, near = 0, len(turns), []
        for start in reversed(starts):
            total += sum(self._tokens.tail(turn.content, self._room + 1)[1] for turn in turns[start:upto])
            if total > self._room:
                break
            near.append(start)
            upto = start
        return near[::-1]


def _weight(conversation: Conversation, context: Context) -> int:
    """What a remembered context costs, in tokens or so: its ids, and the text that is its key."""
    return 64 + max(len(context.ids), sum(len(turn.content) for turn in conversation) // 4)

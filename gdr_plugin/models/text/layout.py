"""What a chat template puts where, learned by rendering probes: headers of answers, reasoning, ends, system turns.

Knows one template's text. Knows no token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TOOLS, Conversation, Message, ToolCall, parts_of
from gdr_plugin.models.text.reasoning import Marks, marks_in, opens
from gdr_plugin.models.text.template import ChatTemplate

_SYSTEM, _USER, _NEXT = "qsystemprobeq", "quserprobeq", "qnextprobeq"
_ANSWER, _THOUGHT = "qanswerprobeq", "qthoughtprobeq"
_CALL_ID: Final = "abcdefghi"  # Mistral's templates want nine characters
_Shape: TypeAlias = "tuple[tuple[str, bool, bool], ...]"
"""Of each turn: role, whether it calls tools, whether it has text."""
_TAIL: Final = 80
"""Characters at a prompt's end in which reasoning is opened."""
_PLAIN_TURNS: Final = (("user", False, True), ("assistant", False, True))
_FAMILIES: Final = {
    "<|im_start|>": "ChatML",
    "<|start_header_id|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "[INST]": "Mistral or Llama 2",
    "<|user|>": "Zephyr or Phi",
}


@dataclass(frozen=True, slots=True)
class Header:
    """How a rendered prompt is changed into what an answer of one kind stands behind."""

    cut: str = ""
    """What is taken off the prompt's end, where the prompt ends with it."""
    add: str = ""
    """What comes in its place; nothing where the prompt does not end with `cut`."""

    def apply(self, prompt: str) -> str:
        """The prompt with this header in the place of its generation prompt's end."""
        return prompt[: len(prompt) - len(self.cut)] + self.add if prompt.endswith(self.cut) else prompt


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """How a template writes reasoning that it is given in a field of its own."""

    header: Header
    """What of the prompt goes, because the answer writes it anew."""
    before: str
    """What the assistant writes before its reasoning."""
    between: str
    """What it writes between reasoning and answer."""


class TurnLayout:
    """What rendering probes with a template has shown.

    Args:
        template: The template.
    """

    guided: str
    """A conversation with a system turn, up to the generation prompt; empty where the template refuses it."""
    takes_system: bool
    """Whether a system turn's text reaches the rendered prompt."""
    markup: str
    """What the template writes around system, user and assistant turns."""
    answer: Header
    """Where an answer without reasoning stands: history's header where that says more than the generation prompt
    (Qwen3's `<think></think>`), or closes the reasoning that the generation prompt opens."""
    lead: str
    """White space that the template puts in front of an answer; the model generates it with its first token."""
    history: Header
    """Where turns of history stand."""
    closed: bool
    """Whether the generation prompt has closed reasoning: a response that reasons does not belong behind it."""
    opened: str
    """The mark of reasoning that the generation prompt opens, with the white space behind it; or nothing."""
    marks: tuple[Marks, ...]
    """The marks of reasoning that the template knows."""
    thought_lead: str
    """White space that the template puts in front of the opening mark of reasoning; the model generates it."""
    reads_reasoning: bool
    """Whether the template's text speaks of reasoning, wherever it shows it."""
    form: ReasoningForm | None
    """How reasoning is written that is given apart; None where the template has no field for it."""
    asks_always: bool
    """Whether the template writes its generation prompt unasked, behind answers too."""
    after: str
    """What follows the text of an answer that is the last turn."""
    following: str
    """What follows the text of an answer up to the next user turn's text."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._prompt = template.scaffold
        self.guided = self._render((Message("system", _SYSTEM), Message("user", _USER)))
        self.takes_system = _SYSTEM in self.guided
        user = Message("user", _USER)
        self._ask = self._render((user,)).rpartition(_USER)[2]
        answered = (user, Message("assistant", _ANSWER))
        whole = self._render(answered, ask=False)
        before, found, self.after = whole.partition(_ANSWER)
        self.asks_always = bool(self._ask) and self.after.endswith(self._ask)
        history = before.rpartition(_USER)[2] if found else self._ask
        self.following = self._render((*answered, Message("user", _NEXT))).partition(_ANSWER)[2].partition(_NEXT)[0]
        known = template.text + self._ask + history
        self.opened = self.opened_by(self._ask)
        mine = self.opened.strip()
        self.marks = tuple(pair for pair in marks_in(known) if pair.closing in known or pair.opening == mine)
        self.closed = not self.opened and _closes_reasoning(self._ask, self.marks)
        self.answer, self.lead = _answer_header(self._ask, history, closed=self.closed)
        shared = _shared(self._ask, history)
        self.history = Header(self._ask[len(shared) :], history[len(shared) :])
        self.form = self._probe_form()
        self.reads_reasoning = "reasoning" in template.text
        before = self.form.before if self.form else self.lead if self.answer == Header() else ""
        self.thought_lead = before[: len(before) - len(before.lstrip())]
        self.markup = template.scaffold + self.guided + self._render(answered, ask=False) + self.following
        self._shown = lru_cache(1024)(self._probe_turns)
        self._after_tool = lru_cache(1024)(self._probe_after_tool)

    def closed_by(self, prompt: str) -> bool:
        """Whether a rendered prompt has closed reasoning at its end."""
        return _closes_reasoning(prompt, self.marks)

    def opened_by(self, prompt: str) -> str:
        """The mark of reasoning that a rendered prompt opens, with the white space behind it; or nothing."""
        mark = opens(prompt[-_TAIL:])
        opened = prompt[-_TAIL:][mark.start() :] if mark else ""
        return opened if mark and not opened[len(mark[0]) :].strip() else ""

    @property
    def inside(self) -> str:
        """The mark of reasoning inside which answers without reasoning are scored; nothing where they are not.

        The generation prompt opens it, and no history shows how the model would leave it.
        """
        return self.opened.strip() if self.opened and self.answer == Header() else ""

    @property
    def reasons_in_text(self) -> bool:
        """Whether reasoning is text between two marks, and nothing else stands between it and the answer."""
        return bool(self.marks) and (
            self.form is None or self.form.between.strip() in {marks.closing for marks in self.marks}
        )

    def family(self) -> str:
        """Name the template for a person: `plain text`, a known family, or `own format`."""
        if self._template.source == "plain":
            return "plain text"
        return next((name for mark, name in _FAMILIES.items() if mark in self._template.scaffold), "own format")

    def place(self, conversation: Conversation) -> Conversation:
        """Bring a conversation into a form whose turns the template all shows.

        Several leading system turns are merged where the template drops one of them, and folded into the first user
        turn where it has no place for system turns, here or at all.

        Args:
            conversation: Any conversation.

        Returns:
            The conversation itself, or one with the same texts.

        Raises:
            ChatError: The template leaves out a turn whatever is done.
        """
        tools, system, rest = parts_of(conversation)
        forms = [conversation] if not system or self.takes_system else []
        if len(system) > 1 and self.takes_system:
            forms.append((*tools, _joined("system", system), *rest))
        if system:
            forms.append((*tools, *_folded(system, rest)))
        for form in forms:
            if self._missing(form) is None:
                return form
        missing = self._missing(forms[0])
        if missing == TOOLS:
            raise ChatError(
                "the chat template does not show the definitions of tools: set another `chat_template`, or leave them "
                "out (--map unused=tools renames the column)"
            )
        raise ChatError(
            f"the chat template leaves out the {missing} turn of a conversation like this "
            f"({', '.join(turn.role for turn in conversation)}): remove such turns, or set another `chat_template`"
        )

    def reasoning_of(self, response: str) -> Marks | None:
        """The marks of the reasoning that a response begins with, or closes at once; None where it has none."""
        start = response.lstrip()
        for marks in self.marks:
            if start.startswith(marks.opening):
                return marks
            head, closing, _ = start.partition(marks.closing)
            opened = self.opened.startswith(marks.opening)  # by the prompt; else a mark within a line is prose
            if closing and marks.opening not in head and (opened or head.rstrip(" ")[-1:] in ("", "\n")):
                return marks
        return None

    def answer_after(self, conversation: Conversation) -> tuple[Header, str]:
        """`answer` and `lead` behind a conversation: behind a tool's turn some templates ask in another way."""
        return self._after_tool(_shape(conversation)) if conversation[-1].role == "tool" else (self.answer, self.lead)

    def _missing(self, conversation: Conversation) -> str | None:
        """The role of a turn that the template does not show; None when it shows all."""
        return self._shown(_shape(conversation))

    def _probe_turns(self, shape: _Shape) -> str | None:
        try:
            text = self._template.render(_turns_of(shape))
        except ChatError:
            return None  # the template says itself what it refuses when the real turns are rendered
        for number, (role, calls, has_text) in enumerate(shape):
            if has_text and _word(number) not in text:
                return role
            if calls and _called(number) not in text:
                return "tool-calling assistant"
        return None

    def _probe_after_tool(self, shape: _Shape) -> tuple[Header, str]:
        turns, last = _turns_of(shape), _word(len(shape) - 1)
        ask = self._render(turns).rpartition(last)[2]
        before, found, _ = self._render((*turns, Message("assistant", _ANSWER)), ask=False).partition(_ANSWER)
        if not found or last not in before:
            return self.answer, self.lead
        return _answer_header(ask, before.rpartition(last)[2], closed=_closes_reasoning(ask, self.marks))

    def _render(self, turns: Sequence[Message], *, ask: bool = True) -> str:
        try:
            return self._template.render(turns, ask=ask)
        except ChatError:
            return ""

    def _probe_form(self) -> ReasoningForm | None:
        turns = (Message("user", _USER), Message("assistant", _ANSWER, _THOUGHT))
        for self._template.reasoning_blocks in (False, True):
            before, found, rest = self._render(turns, ask=False).rpartition(_USER)[2].partition(_THOUGHT)
            between, answered, _ = rest.partition(_ANSWER)
            if found and answered and "thinking" not in before + between:  # no block written as Python writes it
                shared = _shared(before, self._ask)
                return ReasoningForm(Header(self._ask[len(shared) :]), before[len(shared) :], between)
        self._template.reasoning_blocks = False
        return None


def _shape(conversation: Conversation) -> _Shape:
    """The roles of a conversation, and which turns have calls and text.

    Of pairs of plain turns that repeat in the middle of a long one only the first and the last few stay: a template
    treats them alike, and a probe need not be as long as the conversation. Who speaks after whom stays the same.
    """
    shape = tuple((turn.role, bool(turn.tool_calls), bool(turn.content)) for turn in conversation)
    kept = list(shape[:2])
    begin = len(conversation) - len(parts_of(conversation)[2])
    at = 2
    while at < len(shape):
        pair = shape[at : at + 2]
        middle = begin + 4 <= at < len(shape) - 7
        if middle and tuple(kept[-2:]) == pair and all(turn in _PLAIN_TURNS for turn in pair):
            at += 2
        else:
            kept.append(shape[at])
            at += 1
    return tuple(kept)


def _turns_of(shape: _Shape) -> Conversation:
    """Turns of a shape, each with words of its own."""
    turns = []
    for number, (role, calls, has_text) in enumerate(shape):
        if role == TOOLS:
            turns.append(Message(TOOLS, json.dumps([_definition(_word(number))])))
            continue
        call = (ToolCall(_called(number), "{}", _CALL_ID),) if calls else ()
        tool = (_CALL_ID, "qnameprobeq") if role == "tool" else (None, None)
        turns.append(Message(role, _word(number) if has_text else "", "", call, *tool))
    return tuple(turns)


def _definition(name: str) -> dict[str, object]:
    """The definition of a tool, with all that templates read of one."""
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "X"}}, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


def _word(number: int) -> str:
    return f"qturn{number}probeq"


def _called(number: int) -> str:
    return f"qcall{number}probeq"


def _answer_header(ask: str, history: str, *, closed: bool) -> tuple[Header, str]:
    """Where an answer without reasoning stands, and the white space before it that the model generates.

    Args:
        ask: The generation prompt, from the user's text on.
        history: What stands before an answered turn's text instead.
        closed: Whether the generation prompt has closed reasoning at its end.
    """
    shared = _shared(ask, history)
    cut, add = ask[len(shared) :], history[len(shared) :]
    if cut and (not add.strip() or ask.endswith(add)):
        return Header(), ""  # what the model is asked with says more than history does
    if cut and closed:
        cut = ""  # reasoning is closed, and the answer's own header comes behind it
    elif cut and opens(ask) is None:
        return Header(), ""
    # Behind other text a line break stays in the context, as in `</think>\n\n`; a space starts the next word.
    block = add.rstrip(" \t") if add.strip() else ""
    return Header(cut, block) if cut or block else Header(), add[len(block) :]


def _closes_reasoning(ask: str, marks: Sequence[Marks]) -> bool:
    """Whether a generation prompt has closed reasoning at its end: `<think></think>`, or `</think>` alone."""
    return any(ask.rstrip().endswith(pair.closing) for pair in marks)


def _shared(one: str, other: str) -> str:
    """The common beginning of two texts, which ends before a mark that only one of them has."""
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    shared = one[:size]
    begun = max(shared.rfind("<"), shared.rfind("["))
    inside = begun >= 0 and not any(end in shared[begun:] for end in ">]")
    return shared[:begun] if inside and size < max(len(one), len(other)) else shared


def _joined(role: str, turns: Conversation) -> Message:
    return Message(role, "\n\n".join(turn.content for turn in turns if turn.content))


def _folded(system: Conversation, rest: Conversation) -> Conversation:
    """The leading system turns as the beginning of the first user turn."""
    if rest and rest[0].role == "user":
        system, rest = (*system, rest[0]), rest[1:]
    return (_joined("user", system), *rest)

"""A chat template as text: renders turns, and learns by rendering probes what the template puts where.

Knows Jinja templates through transformers' `apply_chat_template`. Knows nothing of token ids or lengths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN: Final = (
    "{% for turn in messages %}"
    "{% if turn.role != 'system' %}{{ turn.role | capitalize }}: {% endif %}"
    "{{ turn.content }}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The plain-text template for base models: the system text, then `User: ...` and `Assistant: ...`, a blank line apart.
The answer continues `Assistant:` with a space and ends with the tokenizer's EOS."""

_SYSTEM, _USER, _ANSWER = "qsystemprobeq", "quserprobeq", "qanswerprobeq"
_FAMILIES: Final = {
    "<|im_start|>": "ChatML",
    "<|start_header_id|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "[INST]": "Mistral or Llama 2",
    "<|user|>": "Zephyr or Phi",
}


class ChatTemplate:
    """One model's chat template, and what rendering probes with it has shown.

    Args:
        tokenizer: The model's tokenizer; templates read its special tokens.
        template: `plain`, the path of a Jinja file, or Jinja text. None: the tokenizer's own.

    Raises:
        ChatError: There is no template, the file cannot be read, or a single user turn does not render.
    """

    text: str
    """The Jinja source."""
    source: str
    """Where it is from: `own`, `plain`, `given` or the file's path."""
    takes_system: bool
    """Whether a system turn's text reaches the rendered prompt."""
    scaffold: str
    """A rendered prompt of one user turn."""
    markup: str
    """What the template writes around system, user and assistant turns."""
    block: str
    """What history shows between the generation prompt and an answer, where it is more than white space: an empty
    reasoning block (`<think></think>`), or an assistant header that the generation prompt lacks."""
    lead: str
    """White space that the template puts in front of an answer; the model generates it with its first token."""
    after: str
    """What follows the text of an answer that is the last turn; None learned: empty."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self._tokenizer = tokenizer
        self.text, self.source = _resolve(tokenizer, template)
        self._parts = False
        self.scaffold = self._probe_prompt()
        guided = self._probe_system()
        self.takes_system = _SYSTEM in guided
        self.block, self.lead, self.after = self._probe_answer()
        self.markup = self.scaffold + guided + self.after
        self._block_marks = _reasoning_marks(self.block)

    def render(self, turns: Sequence[Message], *, ask: bool = True) -> str:
        """Render turns as text.

        Args:
            turns: At least one.
            ask: Whether the generation prompt (the header of the assistant's next turn) is appended.

        Returns:
            The text, without `block`.

        Raises:
            ChatError: The template refuses the turns; the message holds the template's own.
        """
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [{"type": "text", "text": turn.content}] if self._parts else turn.content}
            for turn in turns
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False, add_generation_prompt=ask
            )
        # A template is a program of the model's author: it raises what it likes.
        except Exception as error:
            roles = ", ".join(turn.role for turn in turns[:8]) + (", ..." if len(turns) > 8 else "")
            raise ChatError(f"the chat template refuses these turns ({roles}): {_one_line(error)}") from error
        return str(text)

    def place_system(self, conversation: Conversation) -> Conversation:
        """Fold leading system turns into the first user turn where the template has no place for them.

        Args:
            conversation: Any conversation.

        Returns:
            The conversation itself, or one without leading system turns whose first turn is a user turn that starts
            with their text and a blank line.
        """
        count = leading_system_turns(conversation)
        if self.takes_system or count == 0:
            return conversation
        texts = [turn.content for turn in conversation[:count] if turn.content]
        rest = conversation[count:]
        if rest and rest[0].role == "user":
            texts.append(rest[0].content)
            rest = rest[1:]
        return (Message("user", "\n\n".join(texts)), *rest)

    def brings_block(self, response: str) -> bool:
        """Whether a response has its own reasoning block, so that the template's empty one must not precede it."""
        opening, closing = self._block_marks
        return bool(closing) and (closing in response or (bool(opening) and response.lstrip().startswith(opening)))

    def family(self) -> str:
        """Name the template for a person: `plain text`, a known family, or `own format`."""
        if self.source == "plain":
            return "plain text"
        return next((name for mark, name in _FAMILIES.items() if mark in self.scaffold), "own format")

    @property
    def opened(self) -> str:
        """The reasoning mark that the generation prompt opens and history does not close, or nothing.

        An answer without reasoning then stands inside the reasoning: no rendering tells how the model would leave it.
        """
        mark = re.search(r"<\w+>\s*$", self.scaffold)
        return mark[0].strip() if mark and not self.block else ""

    def _probe_prompt(self) -> str:
        """Render a user turn; templates of vision models want its text as a list of parts."""
        problem = None
        for self._parts in (False, True):
            try:
                text = self.render((Message("user", _USER),))
            except ChatError as error:
                problem = problem or error
                continue
            if _USER in text:
                return text
        raise problem or ChatError("the chat template leaves out the user's text: set another `chat_template`")

    def _probe_system(self) -> str:
        try:
            return self.render((Message("system", _SYSTEM), Message("user", _USER)))
        except ChatError:
            return ""

    def _probe_answer(self) -> tuple[str, str, str]:
        """Learn `block`, `lead` and `after` from the rendering of one answered turn."""
        try:
            full = self.render((Message("user", _USER), Message("assistant", _ANSWER)), ask=False)
        except ChatError:
            return "", "", ""
        before, found, after = full.partition(_ANSWER)
        if not found:
            return "", "", ""
        # A generation prompt with more in it than history shows (an opened `<think>`) is what the model is asked with.
        gap = before[len(self.scaffold) :] if before.startswith(self.scaffold) else ""
        # Behind other text a line break stays in the context, as in `</think>\n\n`; a space starts the next word.
        block = gap.rstrip(" \t") if gap.strip() else ""
        return block, gap[len(block) :], after


def leading_system_turns(conversation: Conversation) -> int:
    """Count the system turns that a conversation starts with."""
    return next((i for i, turn in enumerate(conversation) if turn.role != "system"), len(conversation))


def _resolve(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[str, str]:
    if template == "plain":
        return PLAIN, "plain"
    if template is not None and ("{{" in template or "{%" in template):
        return template, "given"
    if template is not None:
        try:
            return Path(template).expanduser().read_text(encoding="utf-8"), template
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ChatError(
                f"chat_template {template!r} cannot be read ({reason}): give the path of a Jinja file, or `plain`"
            ) from error
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this model"
        raise ChatError(
            f"{name} has no chat template: set `chat_template: plain` in its entry of gdr.yaml for our plain-text one, "
            "or give the path of a Jinja file"
        )
    try:
        return str(tokenizer.get_chat_template()), "own"
    except ValueError as error:
        raise ChatError(
            f"the tokenizer has several chat templates and no default: set `chat_template` ({_one_line(error)})"
        ) from error


def _reasoning_marks(block: str) -> tuple[str, str]:
    """Find the opening and closing mark of an empty reasoning block; either may be empty."""
    closing = re.search(r"</(\w+)>|\[/(\w+)\]", block)
    opening = re.search(r"<\w+>|\[\w+\]", block)
    return (opening[0] if opening else "", closing[0] if closing else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

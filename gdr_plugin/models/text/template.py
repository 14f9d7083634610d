"""A chat template as text: where it comes from, and turns rendered with it.

Knows Jinja templates through transformers' `apply_chat_template`. What a template puts where is learned in `layout`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import TOOLS, Message, ToolCall
from gdr_plugin.text import one_line

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

_PROBE: Final = "quserprobeq"
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """One model's chat template.

    Args:
        tokenizer: The model's tokenizer; templates read its special tokens.
        template: `plain`, the path of a Jinja file, or Jinja text. None: the tokenizer's own.
        variables: What the template may read besides the turns: `enable_thinking`, `reasoning_effort` ...

    Raises:
        ChatError: There is no template, the file cannot be read, or a single user turn does not render.
    """

    text: str
    """The Jinja source."""
    source: str
    """Where it is from: `own`, `plain`, `given` or the file's path."""
    scaffold: str
    """A rendered prompt of one user turn, whose text is `PROBE`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.variables = dict(variables or {})
        self.text, self.source = _resolve(tokenizer, template)
        self._parts = False
        self.no_tools: list[Any] | None = None
        """What the template is given where a prompt has no tools; some want a list, be it empty."""
        self.reasoning_blocks = False
        """Whether the template reads reasoning from a block of the content rather than from a field."""
        self.scaffold = self._probe_prompt()

    def render(self, turns: Sequence[Message], *, ask: bool = True) -> str:
        """Render turns as text.

        Args:
            turns: At least one.
            ask: Whether the generation prompt (the header of the assistant's next turn) is appended.

        Returns:
            The text.

        Raises:
            ChatError: The template refuses the turns; the message holds the template's own.
        """
        try:
            try:
                return self._rendered(turns, ask)
            except Exception:
                if not any(turn.tool_calls for turn in turns):
                    raise
                # Some templates join a call's arguments to a text, and cannot write objects.
                return self._rendered(turns, ask, as_text=True)
        # A template is a program of the model's author: it raises what it likes.
        except Exception as error:
            roles = ", ".join(turn.role for turn in turns[:8]) + (", ..." if len(turns) > 8 else "")
            raise ChatError(f"the chat template refuses these turns ({roles}): {one_line(error, limit=300)}") from error

    def _rendered(self, turns: Sequence[Message], ask: bool, *, as_text: bool = False) -> str:
        tools = [json.loads(turn.content) for turn in turns if turn.role == TOOLS]
        return str(
            self._tokenizer.apply_chat_template(
                [self._as_dict(turn, as_text) for turn in turns if turn.role != TOOLS],
                tools=tools[0] if tools else self.no_tools,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=ask,
                **self.variables,
            )
        )

    def _as_dict(self, turn: Message, as_text: bool) -> dict[str, Any]:
        content: Any = [{"type": "text", "text": turn.content}] if self._parts else turn.content
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.reasoning and self.reasoning_blocks:
            thought = {"type": "thinking", "thinking": turn.reasoning}
            message["content"] = [thought, {"type": "text", "text": turn.content}]
        elif turn.reasoning:
            message |= dict.fromkeys(_REASONING_FIELDS, turn.reasoning)
        if turn.tool_calls:
            message["tool_calls"] = [_call(call, as_text) for call in turn.tool_calls]
        if turn.tool_call_id is not None:
            message["tool_call_id"] = turn.tool_call_id
        if turn.name is not None:
            message["name"] = turn.name
        return message

    def _probe_prompt(self) -> str:
        """Render a user turn; templates of vision models want its text as a list of parts, those for tools tools."""
        problem = None
        for self._parts, self.no_tools in itertools.product((False, True), (None, [])):
            try:
                text = self.render((Message("user", _PROBE),))
            except ChatError as error:
                problem = problem or error
                continue
            if _PROBE in text:
                return text
        raise problem or ChatError("the chat template leaves out the user's text: set another `chat_template`")


def _call(call: ToolCall, as_text: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments if as_text else json.loads(call.arguments)},
    }
    return found if call.id is None else {**found, "id": call.id}


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
            "the tokenizer has several chat templates and no default: set `chat_template` "
            f"({one_line(error, limit=300)})"
        ) from error

"""A system turn by itself, as token ids in front of a conversation that another program has rendered.

Knows one template, what it puts where, and the tokenizer; nothing of who rendered the conversation.
"""

from __future__ import annotations

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.types import Message
from gdr_plugin.models.text.layout import TurnLayout
from gdr_plugin.models.text.protected import protected
from gdr_plugin.models.text.template import ChatTemplate
from gdr_plugin.models.text.tokens import Tokens

__all__ = ["opening_of", "system_block"]

_USER = "quserprobeq"
_NO_BLOCK = (
    "so guidance cannot stand in front of ids: set guidance.placement to none, or give the models a `chat_template` "
    "whose system turn stands by itself"
)


def system_block(
    template: ChatTemplate, layout: TurnLayout, tokens: Tokens, text: str, *, prefix: tuple[int, ...]
) -> tuple[int, ...]:
    """Ids of a system turn that stands first.

    It is cut out of a rendered conversation, before the header of the user's turn, and the rest must be what the
    template writes at the end of the same conversation without a system turn: what follows it looks the same whether
    it is there or not.

    Args:
        template: The template.
        layout: What it puts where.
        tokens: The tokenizer.
        text: What the system turn says.
        prefix: Ids in front of every rendered conversation.

    Raises:
        ChatError: The template has no system turn, or writes it into the user's.
    """
    if not layout.takes_system:
        raise ChatError(f"the chat template has no system turn, {_NO_BLOCK}")
    user, header = Message("user", _USER), _user_header(layout)
    said = protected(Message("system", text), tokens)
    guided, bare = template.render((said, user)), template.render((user,))
    before, found, after = guided.rpartition(_USER)
    rest = header + found + after
    block = before.removesuffix(header)
    if not (header and found and before.endswith(header) and said.content.strip() in block and bare.endswith(rest)):
        raise ChatError(f"the chat template writes the system turn into the user's, {_NO_BLOCK}")
    ids = tuple(tokens.encode(block).ids)
    if (*ids, *tokens.encode(rest).ids) != tuple(tokens.encode(guided).ids):
        raise ChatError(f"the tokenizer joins the system turn with what follows, {_NO_BLOCK}")
    return prefix + ids


def opening_of(template: ChatTemplate, layout: TurnLayout, tokens: Tokens, bos: int | None) -> tuple[int, ...]:
    """Ids that stand in front of all turns, a system turn too.

    Where the template writes a system turn of its own they cannot be told from it: then that is the tokenizer's BOS,
    unless it is the mark that begins every turn, as some tokenizers have it.

    Args:
        template: The template.
        layout: What it puts where.
        tokens: The tokenizer.
        bos: Its BOS, if any.
    """
    header = _user_header(layout)
    before = template.render((Message("user", _USER),)).rpartition(_USER)[0]
    if header and before.endswith(header):
        opening = before.removesuffix(header)
        if not layout.takes_system or layout.guided.startswith(opening):
            return tuple(tokens.encode(opening).ids)
    return () if bos is None or header.startswith(tokens.spelling((bos,))) else (bos,)


def _user_header(layout: TurnLayout) -> str:
    """What the template writes in front of a user's text, behind an answer; nothing where that is not apart."""
    following, after = layout.following, layout.after
    return following[len(after) :] if following.startswith(after) else ""

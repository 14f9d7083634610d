"""Texts in rows and messages: strings, and the lists of content blocks that chat data has. Knows nothing of rows."""

from __future__ import annotations

from collections.abc import Mapping

from gdr_plugin.api.errors import DataError
from gdr_plugin.text import text_problem, type_name

__all__ = ["NotTextError", "content_of", "text_of"]


class NotTextError(DataError):
    """A message holds a content block that is not text, such as an image: a language model of text cannot score it.

    Attributes:
        kind: The block's type; None where it names none.
    """

    def __init__(self, message: str, kind: object = None) -> None:
        super().__init__(message)
        self.kind = kind


def text_of(value: object, what: str) -> str:
    """A text that a row must have.

    Args:
        value: What the row has.
        what: What to call it in messages: "`response`".

    Raises:
        DataError: It is not a string, or not valid text.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} must be a string, not {type_name(value)}")
    problem = text_problem(value)
    if problem is not None:
        raise DataError(f"{what} {problem}")
    return value


def content_of(content: object, what: str) -> str:
    """The text of a message's content: a string, or a list of `{"type": "text", "text": ...}`, whose texts are joined.

    Args:
        content: The content.
        what: What to call the message in errors.

    Raises:
        NotTextError: A block is of another type, or has no text.
        DataError: The content is something else, or not valid text.
    """
    if isinstance(content, list | tuple):
        return "".join(_block_text(block, what) for block in content)
    return text_of(content, f"the content of {what}")


def _block_text(block: object, what: str) -> str:
    if isinstance(block, str):  # as TRL's own code writes texts among blocks
        return text_of(block, f"a text block of {what}")
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or kind != "text":
        raise NotTextError(f"{what} has a content block of type {kind!r}: only text can be scored", kind)
    text = block.get("text")
    if not isinstance(text, str):
        raise NotTextError(f"a text block of {what} must be a string, not {type_name(text)}", kind)
    return text_of(text, f"a text block of {what}")

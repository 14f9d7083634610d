"""The server's answers: JSON that is always valid, and errors of one shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Final

from fastapi.responses import JSONResponse, StreamingResponse

_PIECE: Final = 2_000
"""Most values of a list that are encoded at once: about a millisecond, after which other requests have their turn."""


_SENT: Final = 16_384
"""Characters that are sent at once, at least."""


class JsonAnswer(JSONResponse):
    """JSON without NaN, in ASCII: an unpaired surrogate in a text cannot break it."""

    def render(self, content: Any) -> bytes:
        """Encode the content.

        Raises:
            ValueError: It holds NaN or an infinity: a defect, answered with 500.
        """
        return _text(content).encode("ascii")


class LongAnswer(StreamingResponse):
    """An answer `{NAME: [...]}` with objects that hold long lists, sent while it is encoded.

    What a client has not taken yet is not encoded: it takes no memory.

    Args:
        name: What the list is called.
        items: Its objects, without NaN.
    """

    def __init__(self, name: str, items: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(_in_turns(_pieces(name, items)), media_type="application/json")


async def _in_turns(pieces: Iterator[str]) -> AsyncIterator[bytes]:
    waiting: list[str] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size > _SENT:
            yield "".join(waiting).encode("ascii")
            await asyncio.sleep(0)
            waiting, size = [], 0
    yield "".join(waiting).encode("ascii")


def _pieces(name: str, items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The text of such an answer; lists come last in each object."""
    yield f"{{{_text(name)}:["
    for number, item in enumerate(items):
        short = {key: value for key, value in item.items() if not isinstance(value, list | tuple)}
        yield ("," if number else "") + _text(short)[:-1]
        between = "," if short else ""
        for key, value in item.items():
            if key in short:
                continue
            yield f"{between}{_text(key)}:["
            between = ","
            for start in range(0, len(value), _PIECE):
                yield ("," if start else "") + _text(value[start : start + _PIECE])[1:-1]
            yield "]"
        yield "}"
    yield "]}"


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def problem(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> JsonAnswer:
    """An error: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients read it.

    Args:
        status: The HTTP status.
        message: One line: what is wrong and what to do.
        kind: The error's class name.
        headers: Further headers.
    """
    return JsonAnswer({"error": {"message": message, "type": kind, "param": None, "code": status}}, status, headers)

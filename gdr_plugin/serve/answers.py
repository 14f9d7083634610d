"""The server's answers: JSON that is always valid, and errors of one shape."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse


class JsonAnswer(JSONResponse):
    """JSON without NaN, in ASCII: an unpaired surrogate in a text cannot break it."""

    def render(self, content: Any) -> bytes:
        """Encode the content.

        Raises:
            ValueError: It holds NaN or an infinity: a defect, answered with 500.
        """
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> JsonAnswer:
    """An error: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients read it.

    Args:
        status: The HTTP status.
        message: One line: what is wrong and what to do.
        kind: The error's class name.
        headers: Further headers.
    """
    return JsonAnswer({"error": {"message": message, "type": kind, "param": None, "code": status}}, status, headers)

"""A stand-in for the policy of a trainer or an eval: a server of OpenAI's chat completions and responses.

Only the reward is ours to test, so this one knows its answers by heart. An answer that ends with `…` was cut.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT = "…"


def _asked(body: Mapping[str, Any]) -> str:
    """The last user turn of either kind of request."""
    turns = body.get("messages", body.get("input"))
    if isinstance(turns, str):
        return turns
    content = next(turn["content"] for turn in reversed(turns) if turn.get("role") == "user")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _completion(text: str, *, cut: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "policy",
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _response(text: str, *, cut: bool) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "model": "policy",
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


@contextmanager
def policy(answers: Mapping[str, str]) -> Iterator[str]:
    """`with policy({question: answer}) as url`: the address that clients take as their base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = answers.get(_asked(body))
            made = {"/v1/chat/completions": _completion, "/v1/responses": _response}.get(self.path)
            if answer is None or made is None:
                self.send_error(404, f"{self.path}: {_asked(body)}")
                return
            text = json.dumps(made(answer.removesuffix(CUT), cut=answer.endswith(CUT))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

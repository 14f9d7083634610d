"""Requests with something wrong in them, for every route of a server, and what may be answered to them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.chaos.figures import Figures
from tests.chaos.mutations import as_json, mutated, nasty, spoilt

_TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many days has a week?"}]
_CALL = {"type": "function", "id": "c1", "function": {"name": "count", "arguments": '{"of": "days"}'}}
VALID: tuple[dict[str, Any], ...] = (
    {"rows": [{"prompt": "Hello", "response": "Hello!", "id": "a", "finished": True, "domain": "chat"}]},
    {
        "rows": [{"prompt": _TURNS, "response": "Seven.", "domain": "math"}, {"prompt": "a", "response": ""}],
        "tokens": True,
    },
    {"rows": [{"messages": [*_TURNS, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]}]},
    {"query": ["Hello Hello!"], "prompts": ["Hello "], "labels": [""]},
    {"query": ["ab", "cd"], "prompts": ["a", "c"], "labels": [{"domain": "code"}, None]},
    {"query": [], "prompts": [], "labels": []},
)
"""What the dialects take; each goes to every route."""
_TYPES = ("application/json",) * 12 + ("text/plain", "application/octet-stream", "", "application/json; charset=utf-16")
_PATHS = (
    "/",
    "/nothing",
    "/v1/gdr",
    "/get_reward/",
    "/v1/gdr/score?token=x&token=y",
    "/%00",
    "/..%2f..%2fetc",
    "/a" * 500,
)


@dataclass(frozen=True, slots=True)
class Request:
    """A request."""

    method: str
    path: str
    body: bytes
    type: str

    @property
    def text(self) -> bytes:
        """What goes over the wire."""
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: gdr\r\nContent-Length: {len(self.body)}\r\n"
        if self.type:
            head += f"Content-Type: {self.type}\r\n"
        return head.encode() + b"\r\n" + self.body


def hostile(rng: random.Random, routes: Sequence[tuple[str, str]]) -> Request:
    """A request that is mostly wrong.

    Args:
        rng: Makes it.
        routes: Method and path of what the server has.
    """
    method, path = (
        rng.choice(routes) if rng.random() < 0.95 else (rng.choice(("GET", "POST", "PUT")), rng.choice(_PATHS))
    )
    kind, document = rng.random(), rng.choice(VALID)
    if kind < 0.1:
        body = as_json(document)
    elif kind < 0.6:
        body = as_json(mutated(document, rng))
    elif kind < 0.7:
        body = as_json(nasty(rng))
    else:
        body = spoilt(as_json(document), rng)
    return Request(method, path, body, rng.choice(_TYPES))


def judge(request: Request, status: int, kind: str, body: bytes, figures: Figures) -> None:
    """Check an answer: no defect, valid JSON, nothing made up, and nothing of the request echoed at length."""
    figures.counts[f"hostile bodies: answered {status}"] += 1
    about = f"{request.method} {request.path[:60]} {request.body[:300]!r}"
    figures.check(status in (200, 307, 400, 404, 405, 408, 413, 415, 422, 503), f"{status} for {about}: {body[:300]!r}")
    figures.check(b"Traceback" not in body, f"a traceback for {about}")
    if status >= 400:
        figures.check(len(body) < 10_000, f"an error of {len(body):,} bytes for {about}")
    if "json" not in kind:
        return
    try:
        value = json.loads(body, parse_constant=_refuse)
    except ValueError as error:
        figures.check(False, f"not JSON ({error}) for {about}: {body[:300]!r}")
        return
    if status == 200 and request.path in ("/v1/gdr/score", "/get_reward"):
        rewards = [row["reward"] for row in value["scores"]] if "rewards" not in value else value["rewards"]
        figures.counts["hostile bodies: rewards"] += len(rewards)
        figures.check(0.0 not in rewards, f"a reward of 0.0 for {about}: {body[:300]!r}")
        reasons = (
            [row["reward"] is not None or row["reason"] for row in value["scores"]] if "rewards" not in value else [1]
        )
        figures.check(all(reasons), f"no reward and no reason for {about}: {body[:300]!r}")


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")

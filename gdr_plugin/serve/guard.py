"""Handles every request before a route sees it: token, body size, counting, refusals, and clients that hang up.

This is plain ASGI, the outermost layer. It reads the whole body, which routes need anyway; the only message that can
still come from the client afterwards is that it hung up, and then the route is cancelled.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from gdr_plugin.logs import logger
from gdr_plugin.serve.answers import problem
from gdr_plugin.serve.service import BODY_BYTES
from gdr_plugin.text import printable

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gdr_plugin.serve.service import BatchingService

log = logger("gdr_plugin.serve")

BODY_S = 60.0
"""Seconds that a body may take, beside those that `BODY_RATE` gives it: nobody keeps a place by dripping."""
BODY_RATE = 65_536
"""Bytes a second at which a body has to come at least."""
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths served without a token: the probes of a supervisor."""


class Guard:
    """ASGI middleware in front of the application.

    Args:
        app: The application.
        service: Its settings and metrics are used.
    """

    def __init__(self, app: ASGIApp, service: BatchingService) -> None:
        self._app = app
        self._metrics = service.metrics
        self._token = service.settings.token
        self._limit = int(service.settings.max_body_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = "disconnected"
        refusal = bytearray()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif status.startswith("4"):
                refusal.extend(message.get("body", b""))
            await send(message)

        try:
            await self._handle(scope, receive, watched_send)
        except Exception:
            status = "500"
            raise
        finally:
            # Only the paths of our routes become labels: there is no end of paths that strangers ask for.
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - start)
            if status.startswith("4"):  # many clients show their user the status alone
                where = printable(f"{scope['method']} {scope['path']}", limit=100)
                log.warning("refused %s: %s %s", where, status, printable(_reason(bytes(refusal)), limit=500))

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._allowed(scope, take_token(scope)):
            answer = problem(
                401,
                "the token is missing or wrong: send `Authorization: Bearer TOKEN`, or `?token=TOKEN` in the URL",
                "Unauthorized",
                {"WWW-Authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        body = bytearray()
        begun = time.monotonic()
        more = _announced(scope) <= self._limit
        while more:
            try:
                left = begun + BODY_S + len(body) / BODY_RATE - time.monotonic()
                message = await asyncio.wait_for(receive(), max(left, 0))
            except TimeoutError:
                text = f"the body did not come within {time.monotonic() - begun:.0f} seconds: send it again"
                await problem(408, text, "RequestError", {"Connection": "close"})(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False) and len(body) <= self._limit
        if max(len(body), _announced(scope)) > self._limit:
            text = f"the body is larger than {self._limit:,} bytes: send fewer items at once, or raise --max-body-mb"
            await problem(413, text, "RequestError", {"Connection": "close"})(scope, receive, send)
            return
        await self._run(scope, bytes(body), receive, send)

    def _allowed(self, scope: Scope, given: str | None) -> bool:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return True
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip().decode("latin-1")
        return given is not None and hmac.compare_digest(given.encode(), self._token.encode())

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application; cancel it when the client hangs up."""
        BODY_BYTES.set(len(body))
        gone = asyncio.ensure_future(receive())
        unread = True

        async def replay() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await asyncio.shield(gone)

        work = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled = work.cancel()  # False when it is done
            gone.cancel()
            await asyncio.wait({work, gone})
        if not (cancelled and work.cancelled()):
            work.result()


def _reason(body: bytes) -> str:
    """What an answer says, where it is one of ours; else the answer itself."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def take_token(scope: Scope) -> str | None:
    """Take the parameter `token` out of the request's URL, so that no log or route sees it."""
    query: bytes = scope["query_string"]
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    rest = [(name, value) for name, value in pairs if name != "token"]
    if len(rest) == len(pairs):
        return None
    scope["query_string"] = urlencode(rest).encode("ascii")
    return next(value for name, value in pairs if name == "token")


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0

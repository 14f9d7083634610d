"""Requests to one or several equal servers: which gets which, how many at once, what is sent again.

Knows HTTP and its failures; nothing of models, tokens or log-probs. What it is used for is in `scheme`.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gdr_plugin.api.errors import MissingDependencyError, ModelError
from gdr_plugin.api.settings import ServerSection
from gdr_plugin.text import one_line, printable

if TYPE_CHECKING:
    import httpx2

__all__ = ["Client", "RefusedError", "Replica"]

_CONNECT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_LONGEST_RETRY_AFTER_S: Final = 300.0
_SHOWN: Final = 300


class RefusedError(ModelError):
    """A server answered that it will not do what it was asked; asking again would not help.

    Args:
        url: The server.
        path: What was asked.
        status: The HTTP status.
        said: The server's own words.
        hint: What to do, where that is known.
    """

    def __init__(self, url: str, path: str, status: int, said: str, hint: str = "") -> None:
        super().__init__(f"{url}: {path} answered {status}: {said}{hint}")
        self.status = status
        self.said = said


class _BusyError(Exception):
    """A try failed, and the next may work."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        """How long the server wants to be left alone."""


@dataclass(slots=True)
class Replica:
    """One of the equal servers."""

    url: str
    http: httpx2.Client
    rests_until: float = 0.0
    """No request goes there before, where another server is awake (seconds of the monotonic clock)."""
    flying: int = 0
    """Requests under way."""
    failures: int = 0
    """Times that it was found failing since it last answered; several requests that fail together count once."""


class Client:
    """Sends JSON to equal servers. Safe to use from several threads, which share one pool of connections.

    Nothing is sent before the first request.

    Args:
        urls: The servers' roots.
        settings: Concurrency, time-out, tries, and where the API key is.
        purpose: What the package httpx2 is needed for, as in "to ask a vLLM server".

    Raises:
        MissingDependencyError: httpx2 is not installed.
    """

    def __init__(self, urls: Sequence[str], settings: ServerSection | None = None, *, purpose: str) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise MissingDependencyError("httpx2", "servers", purpose) from error
        self.settings = settings or ServerSection()
        self.retries = 0
        """Requests that were sent again so far."""
        key = os.environ.get(self.settings.api_key_env)
        self._errors = httpx2
        self._lock = threading.Lock()
        self._closed = threading.Event()
        flight = self.settings.concurrency
        self.replicas = [
            Replica(
                url,
                httpx2.Client(
                    headers={"Authorization": f"Bearer {key}"} if key else {},
                    limits=httpx2.Limits(max_connections=flight, max_keepalive_connections=flight),
                    timeout=httpx2.Timeout(self.settings.timeout_s, connect=_CONNECT_S, pool=None),
                    # A server of one's own network is asked directly; one of the internet as the environment says.
                    trust_env=urlsplit(url).scheme == "https",
                    verify=urlsplit(url).scheme == "https",  # certificates take a third of a second to load
                ),
            )
            for url in urls
        ]
        weakref.finalize(self, _close, [replica.http for replica in self.replicas])

    @property
    def urls(self) -> list[str]:
        """The servers' roots."""
        return [replica.url for replica in self.replicas]

    def post(self, path: str, body: Mapping[str, Any], *, home: int | None = None) -> dict[str, Any]:
        """Send a request to the server that suits best, again and elsewhere where that may help.

        Args:
            path: As in `/v1/completions`.
            body: What is sent as JSON.
            home: Requests with the same number go to the same server, which has their beginnings in its cache, unless
                it fails or is far busier than another.

        Returns:
            The answer.

        Raises:
            RefusedError: The server refuses it (4xx but 429).
            ModelError: No server could be reached or has an answer, after all tries, or one took too long.
        """
        return self._tried("POST", path, body, lambda: self._pick(home))

    def get(self, replica: Replica, path: str) -> dict[str, Any]:
        """What one server says at a path; errors as for `post`."""
        return self._tried("GET", path, None, lambda: self._enter(replica))

    def post_to(self, replica: Replica, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """As `post`, to one server and no other."""
        return self._tried("POST", path, body, lambda: self._enter(replica))

    def close(self) -> None:
        """Close the connections; pauses between tries end at once."""
        self._closed.set()
        _close([replica.http for replica in self.replicas])

    def _tried(
        self, method: str, path: str, body: Mapping[str, Any] | None, pick: Callable[[], Replica]
    ) -> dict[str, Any]:
        content = None if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
        failed: dict[str, str] = {}
        begun = time.monotonic()
        most = self.settings.tries + len(self.replicas) - 1  # to find a server that works costs a try each
        for attempt in range(most):
            if attempt:
                with self._lock:
                    self.retries += 1
            replica = pick()
            try:
                answer = self._send(replica, method, path, content)
                replica.failures = 0
                return answer
            except _BusyError as error:
                failed[replica.url] = f"{error}"
                self._rest(replica, error.pause_s)
            finally:
                with self._lock:
                    replica.flying -= 1
            if attempt + 1 < most and self._closed.wait(self._pause(replica, attempt)):
                break
        tries = "once" if most == 1 else f"{most} times"
        what = "; ".join(f"{url}: {reason}" for url, reason in failed.items())
        raise ModelError(
            f"{what} ({path} was tried {tries} in {time.monotonic() - begun:.0f} s): is the server running?"
        )

    def _pick(self, home: int | None) -> Replica:
        with self._lock:
            now = time.monotonic()
            awake = [replica for replica in self.replicas if replica.rests_until <= now] or self.replicas
            idlest = min(awake, key=lambda replica: replica.flying)
            chosen = idlest
            if home is not None:
                own = self.replicas[home % len(self.replicas)]
                if own not in awake:
                    own = awake[home % len(awake)]
                ahead = max(1, self.settings.concurrency // len(self.replicas))
                chosen = own if own.flying <= idlest.flying + ahead else idlest
            chosen.flying += 1
            return chosen

    def _enter(self, replica: Replica) -> Replica:
        with self._lock:
            replica.flying += 1
        return replica

    def _rest(self, replica: Replica, asked_for: float) -> None:
        """Let a server rest that has failed, longer each time, or as long as it asks for."""
        with self._lock:
            now = time.monotonic()
            if replica.rests_until <= now:
                replica.failures += 1
            rest = max(asked_for, _backoff(replica.failures - 1))
            if replica.rests_until <= now or asked_for:
                replica.rests_until = max(replica.rests_until, now + rest)

    def _pause(self, failed: Replica, attempt: int) -> float:
        """How long a request waits before its next try: not at all where another server is awake."""
        with self._lock:
            now = time.monotonic()
            if any(replica is not failed and replica.rests_until <= now for replica in self.replicas):
                return 0.0
            awake = min(replica.rests_until for replica in self.replicas) - now
        return max(awake, _backoff(attempt))

    def _send(self, replica: Replica, method: str, path: str, content: bytes | None) -> dict[str, Any]:
        """One try.

        Raises:
            _BusyError: The next try may work.
            ModelError: It would not.
        """
        errors = self._errors
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            answer = replica.http.request(method, replica.url + path, content=content, headers=headers)
        except errors.ReadTimeout as error:
            raise ModelError(
                f"{replica.url}: {path} gave no answer within {self.settings.timeout_s:g} s: raise server.timeout_s "
                "or lower server.concurrency"
            ) from error
        except (errors.NetworkError, errors.TimeoutException, errors.RemoteProtocolError, errors.ProxyError) as error:
            raise _BusyError(f"the connection failed ({one_line(error, limit=_SHOWN)})") from error
        except (errors.HTTPError, errors.InvalidURL) as error:
            raise ModelError(f"{replica.url}: {path}: {one_line(error, limit=_SHOWN)}") from error
        return self._read(replica, path, answer)

    def _read(self, replica: Replica, path: str, answer: httpx2.Response) -> dict[str, Any]:
        status = answer.status_code
        try:
            content = json.loads(answer.content)
        except ValueError:
            content = None
        if status == 200:
            if not isinstance(content, dict):
                raise ModelError(f"{replica.url}: {path} answered with something that is not a JSON object")
            return content
        said = _said(content) or printable(answer.text.strip(), limit=_SHOWN) or answer.reason_phrase
        if status == 429 or (status >= 500 and status != 501):
            raise _BusyError(f"it answered {status}: {said}", _retry_after(answer.headers.get("Retry-After")))
        hint = ""
        if status in (401, 403):
            variable = self.settings.api_key_env
            given = "holds another key" if os.environ.get(variable) else "is not set"
            hint = f" (the environment variable {variable}, which server.api_key_env names, {given})"
        raise RefusedError(replica.url, path, status, said, hint)


def _close(clients: Sequence[httpx2.Client]) -> None:
    for client in clients:
        client.close()


def _backoff(times: int) -> float:
    """Seconds of pause, with jitter, after a first failure (0) and more."""
    return min(_FIRST_PAUSE_S * 2.0 ** max(0, times), _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)


def _said(content: object) -> str:
    """The server's own words in an answer that refuses: each kind of server puts them in another place."""
    for key in ("error", "message", "detail", "object"):
        found = content.get(key) if isinstance(content, dict) else None
        if isinstance(found, dict):
            return _said(found)
        if found:
            return printable(" ".join(str(found).split()), limit=_SHOWN)
    return ""


def _retry_after(text: str | None) -> float:
    """Seconds to wait, from a number or a date; at most five minutes."""
    if not text:
        return 0.0
    try:
        number = text.strip().replace(".", "", 1).isdigit()
        seconds = float(text) if number else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)

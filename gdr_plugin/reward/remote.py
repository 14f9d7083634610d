"""A `gdr serve` instance as a reward: the same `score` as `GuidedDensityRatio`, computed elsewhere.

Knows the server's own dialect (`POST /v1/gdr/score`, `GET /info`) and HTTP's failures; nothing of models. Uses the
standard library's client: one small JSON request a batch needs no more, and the core gains no dependency. It goes to
the address as given: proxies from the environment are not used.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from gdr_plugin.api.errors import ConfigError, DataError, ModelError
from gdr_plugin.api.types import Reduction, Sample, Score, parts_of
from gdr_plugin.data.messages import as_json
from gdr_plugin.data.tools import TOOL_COLUMNS
from gdr_plugin.routing.field import FieldRouter, field_check
from gdr_plugin.text import one_line

__all__ = ["RemoteRatio"]

ROWS: Final = 2048
"""Samples in one request; a larger batch is sent in several."""
ROWS_BYTES: Final = 4 << 20
"""Bytes of the samples in one request, unless a single one is larger: half of what a server takes by default."""
_RESERVED: Final = {
    "id",
    "prompt",
    "response",
    "finished",
    "prefill",
    "completion",
    "messages",
    "system",
    "system_prompt",
    *TOOL_COLUMNS,
}
"""Names that the server reads: a sample's fields of these names are not sent."""
_FIELDS: Final = {field.name for field in dataclasses.fields(Score)}
_LONGEST_PAUSE_S: Final = 30.0
_CONNECT_S: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Fault:
    """A try failed, and the next may work."""

    reason: str
    pause_s: float = 0.0
    """How long the server wants to be left alone."""


class RemoteRatio:
    """Scores samples with a running `gdr serve`. Picklable, and safe to use from several threads at once.

    Nothing is asked of the server before the first use.

    Args:
        url: `http://host:port` or `https://...`, with a path in front of the routes where a proxy adds one.
        token: Bearer token; default: the environment's `GDR_TOKEN`, as for `gdr serve`.
        timeout_s: How long one answer may take, in seconds. A request that takes longer is not repeated: the server
            may still be busy with it.
        tries: How often a request is sent when the connection fails or the server answers 5xx; pauses double from
            half a second. The default covers a server that restarts within a quarter of a minute.

    Raises:
        ConfigError: The address is not one, or a number is out of its range.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 600.0, tries: int = 6) -> None:
        parts = urlsplit(url)
        try:
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is no number
            usable = False
        if not usable or parts.query or parts.fragment:
            raise ConfigError(f"remote: {url!r} is not a server's address: write it as http://host:port")
        if not timeout_s > 0 or tries < 1:
            raise ConfigError("remote: timeout_s must be above 0 and tries 1 or more")
        self.url = url.rstrip("/")
        self._token = token if token is not None else os.environ.get("GDR_TOKEN")
        self._timeout_s = timeout_s
        self._tries = tries
        self._info: dict[str, Any] | None = None

    @property
    def info(self) -> Mapping[str, Any]:
        """Which reward is served, as `GET /info` said when it was first asked."""
        if self._info is None:
            self._info = self._exchange("GET", "/info")
        return self._info

    @property
    def domains(self) -> Collection[str]:
        """The domains that the server's routers may return."""
        return tuple(self.info.get("domains") or ())

    @property
    def reduction(self) -> Reduction | None:
        """How the server reduces token log-probs to a reward; None when it does not say."""
        config: Mapping[str, Any] = self.info.get("config") or {}
        reduction: Reduction | None = (config.get("reward") or {}).get("reduction")
        return reduction

    def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """Score samples, in one request for each 2,048 of them or 4 MiB.

        Args:
            samples: What to score. Their fields go along as far as JSON can say them.
            tokens: Whether the scores carry token log-probs.

        Returns:
            One score a sample, in order; `reward` is None with a reason where a sample cannot be scored.

        Raises:
            ConfigError: The address is not a `gdr serve`, or it refuses the token.
            DataError: The server refuses the rows.
            ModelError: It cannot be reached, does not answer in time, or failed on every try.
        """
        scores: list[Score] = []
        for rows in _requests(map(_as_row, samples)):
            body = b'{"rows":[' + b",".join(rows) + b'],"tokens":' + _encoded(tokens) + b"}"
            answer = self._exchange("POST", "/v1/gdr/score", body)
            found = answer.get("scores")
            if not isinstance(found, list) or len(found) != len(rows):
                raise ModelError(f"{self.url}: did not answer with one score a row: is it a `gdr serve`?")
            scores.extend(map(_as_score, found))
        return scores

    def check_fields(self, fields: Mapping[str, Any]) -> None:
        """Refuse a row whose columns name a domain that is not known; see `GuidedDensityRatio.check_fields`.

        Raises:
            DomainError: A column that a `field` router of the server reads names an unknown domain.
        """
        routing: Mapping[str, Any] = (self.info.get("config") or {}).get("routing") or {}
        entries = [dict(entry) for entry in routing.get("routers") or () if entry.get("name") == FieldRouter.name]
        routers = [FieldRouter().with_options(**{k: v for k, v in entry.items() if k != "name"}) for entry in entries]
        field_check(routers, self.domains, origin=f"the gdr.yaml of {self.url}")(fields)

    def unload(self) -> None:
        """Nothing to give back here: the models are the server's."""

    def _exchange(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        fault = _Fault("")
        for attempt in range(self._tries):
            if attempt:
                time.sleep(max(fault.pause_s, min(0.25 * 2**attempt, _LONGEST_PAUSE_S)))
            answer = self._send(method, path, body)
            if not isinstance(answer, _Fault):
                return answer
            fault = answer
        times = "once" if self._tries == 1 else f"{self._tries} times"
        raise ModelError(f"{self.url}: {fault.reason} (tried {times}): is `gdr serve` running there?")

    def _send(self, method: str, path: str, body: bytes | None) -> dict[str, Any] | _Fault:
        """One try, on a connection of its own: between two batches a kept one would have been closed by the server.

        Returns:
            The answer; a fault when the connection failed or the server has a fault of its own.

        Raises:
            GDRError: Trying again would not help.
        """
        parts = urlsplit(self.url)
        made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = made(parts.hostname or "", parts.port, timeout=min(self._timeout_s, _CONNECT_S))
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connected = False
        try:
            connection.connect()
            connected = True
            connection.sock.settimeout(self._timeout_s)
            connection.request(method, parts.path + path, body, headers)
            answer = connection.getresponse()
            status, retry_after, text = answer.status, answer.headers.get("Retry-After"), answer.read()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) and connected:
                raise ModelError(f"{self.url}: no answer within {self._timeout_s:g} s: raise timeout_s") from error
            return _Fault(f"the connection failed ({one_line(error)})")
        finally:
            connection.close()
        return self._read(status, text, retry_after)

    def _read(self, status: int, text: bytes, retry_after: str | None) -> dict[str, Any] | _Fault:
        try:
            content = json.loads(text, parse_constant=_refuse)
        except ValueError:
            content = None
        if status == 200:
            if not isinstance(content, dict):
                raise ModelError(f"{self.url}: answered with something that is not JSON: is it a `gdr serve`?")
            return content
        said = _message(content) or f"HTTP {status}"
        if status >= 500:
            pause = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
            return _Fault(said, min(pause, _LONGEST_PAUSE_S))
        if status in (401, 403):
            raise ConfigError(f"{self.url}: refuses the token ({said}): set GDR_TOKEN to the server's")
        if status == 422:
            raise DataError(f"{self.url}: {said}")
        if status == 413:
            raise ModelError(f"{self.url}: {said}")
        raise ConfigError(f"{self.url}: {said} (HTTP {status}): is this the address of a `gdr serve`?")


def _requests(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """The rows as JSON, as many together as one request takes."""
    together: list[bytes] = []
    size = 0
    for row in map(_encoded, rows):
        if together and (len(together) == ROWS or size + len(row) > ROWS_BYTES):
            yield together
            together, size = [], 0
        together.append(row)
        size += len(row)
    if together:
        yield together


def _encoded(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _as_row(sample: Sample) -> dict[str, Any]:
    row = {name: value for name, value in sample.fields.items() if name not in _RESERVED and _is_json(value)}
    tools, system, rest = parts_of(sample.prompt)
    row["prompt"] = list(map(as_json, system + rest))
    if tools:
        row["tools"] = tools[0].content  # as text: nulls in it are its own
    row["response"] = [as_json(sample.turn)] if sample.reasoning or sample.tool_calls else sample.response
    row["finished"] = sample.finished
    if sample.prompt and sample.prompt[-1].role == "assistant":
        row["prefill"] = True
    return row


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _as_score(found: Mapping[str, Any]) -> Score:
    # Lists become tuples; what a newer server adds is left out.
    values: Any = {name: _tuples(value) for name, value in found.items() if name in _FIELDS}
    try:
        return Score(**values)
    except TypeError as error:
        raise ModelError(f"the server's scores are of another version: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _message(content: object) -> str | None:
    problem = content.get("error") if isinstance(content, dict) else None
    message = problem.get("message") if isinstance(problem, dict) else None
    return message if isinstance(message, str) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

"""Runs the application under uvicorn: the socket, signals, the ready line and the exit code."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ConfigError, MissingDependencyError, ModelError
from gdr_plugin.logs import LineFormatter
from gdr_plugin.text import line_of

try:
    import uvicorn
except ImportError as error:
    raise MissingDependencyError("uvicorn", "serve", "to serve rewards") from error

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gdr_plugin.serve.service import BatchingService

_BACKLOG = 4096
_HEAD_S = 15.0
"""Seconds that the head of a connection's first request may take."""
_KEEP_ALIVE_S = 65
"""Seconds that a connection is kept open for the next request."""
_SPARE_FILES = 128
"""Descriptors that are left to everything but connections."""
_FAREWELL_S = 1.0
"""Seconds that clients have to read that their requests were given up, before their connections are cut."""


def listen(host: str, port: int) -> socket.socket:
    """Bind the port before any model is loaded.

    Args:
        host: Name or address.
        port: 0 for any free one.

    Raises:
        ConfigError: It cannot be bound.
    """
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, asyncio switches Nagle's algorithm off: without, each answer takes 40 ms.
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
        return bound
    except (OSError, OverflowError) as error:
        if bound is not None:
            bound.close()
        named = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(named) if named else getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason.lower()}; choose another --port or --host"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    app: FastAPI,
    service: BatchingService,
    bound: socket.socket,
    *,
    on_ready: Callable[[], None],
    access_log: bool = False,
) -> int:
    """Serve until SIGTERM, SIGINT or the worker's death.

    Args:
        app: From `create_app`.
        service: The app's service.
        bound: From `listen`.
        on_ready: Called once both models have scored a probe.
        access_log: Whether every request is logged on stderr.

    Returns:
        The exit code: 0 after a signal, 1 after the worker's death or where the time to drain was too short.

    Raises:
        ModelError: The models could not be loaded.
    """
    shown = logging.StreamHandler()
    shown.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    files = _raise_file_limit()
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=access_log,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        limit_concurrency=None if files is None else max(1, files - _SPARE_FILES),  # beyond it 503
        server_header=False,
    )
    server = _Server(config, service)

    def stop() -> None:
        server.should_exit = True

    service.on_ready, service.on_failure = on_ready, stop
    asyncio.run(server.serve(sockets=[bound]))
    if service.failure is not None and not service.batcher.died:
        raise ModelError(service.failure)
    if server.left:
        within = f"within the {service.settings.drain_s:g} seconds of --drain-s"
        print(f"gdr: {server.left:,} samples were not scored {within}: their requests got 503", file=sys.stderr)
    elif service.failure is not None:
        print(f"gdr: {line_of(service.failure)}", file=sys.stderr)
    code = int(server.left > 0 or service.failure is not None)
    if service.batcher.busy_since is not None:
        # A thread inside torch cannot be stopped, and taking the libraries down under it may crash.
        sys.stderr.flush()
        os._exit(code)
    return code


class _Server(uvicorn.Server):
    """uvicorn's server, which ends in its own way.

    Requests that still wait when the time to drain is over get an answer that says so, and a signal that was obeyed is
    not raised again afterwards: a drained server exits with 0.
    """

    def __init__(self, config: uvicorn.Config, service: BatchingService) -> None:
        super().__init__(config)
        self._service = service
        self.left = 0
        """Samples that were given up."""
        self._waiting: dict[Any, tuple[Any, int, float]] = {}
        """Connection -> its last request, what of an answer it has not read, and since when both are so."""

    async def on_tick(self, counter: int) -> bool:
        """Once a second, cut connections that keep their place and neither send nor read: uvicorn waits for ever."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            idle = {}
            for connection in self.server_state.connections:
                request = getattr(connection, "cycle", None)
                unread = _unread(connection)
                if request is not None and not request.response_complete and not unread:
                    continue
                last, left, since = self._waiting.get(connection, (request, unread, now))
                idle[connection] = (request, unread, since if last is request and left == unread else now)
            self._waiting = idle
            for connection, (request, _, since) in idle.items():
                if now - since > (_HEAD_S if request is None else _HEAD_S + _KEEP_ALIVE_S):
                    _abort(connection)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the requests finish within the time to drain, then give them up."""
        loop = asyncio.get_running_loop()
        limit = self._service.settings.drain_s
        timers = [loop.call_later(limit, self._give_up), loop.call_later(limit + _FAREWELL_S, self._cut)]
        await super().shutdown(sockets)
        for timer in timers:
            timer.cancel()

    def _give_up(self) -> None:
        self.left = self._service.give_up()

    def _cut(self) -> None:
        """Cut connections whose clients neither send nor read any more."""
        for connection in list(self.server_state.connections):
            _abort(connection)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def _unread(connection: Any) -> int:
    """Bytes of an answer that wait for a client to read on; 0: it reads as fast as it is answered."""
    if not getattr(getattr(connection, "flow", None), "write_paused", False):
        return 0
    return int(connection.transport.get_write_buffer_size())


def _abort(connection: Any) -> None:
    if (transport := getattr(connection, "transport", None)) is not None:
        transport.abort()


def _raise_file_limit() -> int | None:
    """Raise the limit of open files: thousands of clients, one connection each, need more than many shells allow.

    Returns:
        The limit; None where there is none that can be read.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        return None if soft == resource.RLIM_INFINITY else soft
    return None

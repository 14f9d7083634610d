"""The FastAPI application: routes of all dialects around one service, and errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import DataError, GDRError, MissingDependencyError, PluginError, RequestError
from gdr_plugin.text import one_line
from gdr_plugin.version import __version__

try:
    from fastapi import APIRouter, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi_offline import FastAPIOffline
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingDependencyError("fastapi", "serve", "to serve rewards") from error

if TYPE_CHECKING:
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.serve.answers import JsonAnswer
    from gdr_plugin.serve.service import BatchingService

_REFUSALS: dict[int | str, str] = {
    401: "The token is missing or wrong",
    408: "The body did not come",
    413: "The request is too large",
    415: "The body is not announced as JSON",
    422: "The input is wrong",
    503: "The server is overloaded, stopping or broken",
}
_LAST_BATCH_S = 1.0
"""Seconds that a running batch gets to reach the store when the server stops; no request waits for it any more."""
_MESSAGE = 2_000
"""Most characters of an error's message: what a request held is never sent back whole."""
_PROBLEM = {
    "application/json": {
        "example": {"error": {"message": "rows[0] has no `response`", "type": "DataError", "param": None, "code": 422}}
    }
}


def create_app(service: BatchingService, plugins: Plugins) -> FastAPI:
    """Build the application.

    Its lifespan starts the service, loads the models while requests already wait, and drains the service at the end.

    Args:
        service: Not yet started.
        plugins: The plugins whose `gdr_serve_routes` bring routes.

    Raises:
        PluginError: A plugin failed, or two bring the same method and path.
    """
    from gdr_plugin.serve import status, teacher
    from gdr_plugin.serve.guard import Guard

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        loading = asyncio.create_task(service.load())
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        given_up = service.batcher.stopped_reason is not None
        await service.stop(0 if given_up else _LAST_BATCH_S)

    app = FastAPIOffline(  # its page of routes needs no other host
        redoc_url=None,
        title="gdr serve",
        summary="Rewards from the guided log-density ratio of two language models",
        version=__version__,
        lifespan=lifespan,
        responses={status: {"description": text, "content": _PROBLEM} for status, text in _REFUSALS.items()},
    )
    owners: dict[tuple[str, str], str] = {}
    taught = [("built-in", teacher.routes(service))] if service.teacher is not None else []
    for plugin, routes in [("built-in", status.routes(service)), *taught, *plugins.serve_routes(service)]:
        _claim(owners, plugin, routes)
        app.include_router(routes)
    _add_error_handlers(app)
    app.add_middleware(Guard, service=service)
    return app


def _claim(owners: dict[tuple[str, str], str], plugin: str, routes: APIRouter) -> None:
    for route in routes.routes:
        address: str = getattr(route, "path", "")
        for method in sorted(getattr(route, "methods", None) or ()):
            first = owners.setdefault((method, address), plugin)
            if first != plugin:
                raise PluginError(f"the route {method} {address} comes from {first!r} and from {plugin!r}; remove one")


def _add_error_handlers(app: FastAPI) -> None:
    from gdr_plugin.serve.answers import problem

    @app.exception_handler(GDRError)
    async def ours(_: Request, error: GDRError) -> JsonAnswer:
        message, kind = one_line(error, limit=_MESSAGE), type(error).__name__
        if isinstance(error, RequestError):
            return problem(error.status, message, kind, {"Retry-After": "1"} if error.status == 503 else None)
        return problem(422 if isinstance(error, DataError) else 500, message, kind)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JsonAnswer:
        if isinstance(error.body, bytes):  # it was not even read: FastAPI reads what is announced as JSON
            given = request.headers.get("content-type", "")[:60]
            said = f"is announced as {given!r}" if given else "has no content type"
            return problem(415, f"the body {said}: send it with `Content-Type: application/json`", "RequestError")
        # The input is not repeated: it may be huge, secret, or hold what JSON cannot.
        found = "; ".join(map(_place, error.errors()[:3]))
        return problem(422, found, "RequestValidationError")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JsonAnswer:
        return problem(error.status_code, str(error.detail), "HTTPException", dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JsonAnswer:
        return problem(500, f"internal error ({type(error).__name__}): see the server's log", "InternalError")


def _place(error: Any) -> str:
    where = ".".join(str(part)[:100] for part in error["loc"])
    return f"{where}: {error['msg'][:_MESSAGE]}"

"""Our own plugin: what comes with the package is registered through the hooks that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import UnknownSchemeError, unknown
from gdr_plugin.api.hooks import hookimpl

if TYPE_CHECKING:
    from fastapi import APIRouter

    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.api.models import LogprobModel
    from gdr_plugin.api.routers import Router
    from gdr_plugin.api.selectors import Selector
    from gdr_plugin.api.service import ScoringService
    from gdr_plugin.api.settings import Limits, ModelSpec

_INTEGRATIONS = ("gdr_llamafactory", "gdr_openrlhf", "gdr_slime")
"""Our packages whose module `routes` has `routes(service) -> list[APIRouter]`, where they are installed."""
_SCHEMES = ("fake", "hf", "openai", "sglang", "vllm")
"""The model schemes that `gdr_open_model` below takes."""


@hookimpl
def gdr_register_guidance() -> Iterable[Guidance]:
    """The guidance library."""
    from gdr_plugin.guidance import library

    return library()


@hookimpl
def gdr_register_routers() -> Iterable[Router]:
    """The routers `field`, `keyword`, `likelihood` and `fixed`."""
    from gdr_plugin.routing import builtin_routers

    return builtin_routers()


@hookimpl
def gdr_register_selectors() -> Iterable[Selector]:
    """The selectors of `gdr annotate`."""
    from gdr_plugin.annotation.selectors import builtin_selectors

    return builtin_selectors()


@hookimpl(trylast=True)
def gdr_open_model(spec: ModelSpec, limits: Limits) -> LogprobModel:
    """Local models (`hf`), models on servers and the fake model (`fake`); only the backend that is needed is imported.

    It is asked last, so that a scheme which reaches it and is not one of its own is an `UnknownSchemeError`.
    """
    if spec.scheme == "fake":
        from gdr_plugin.models.fake import FakeModel

        return FakeModel(spec.target, limits)
    if spec.scheme == "hf":
        from gdr_plugin.models.local import open_local

        return open_local(spec, limits)
    if spec.on_server:
        from gdr_plugin.models.servers import open_server

        return open_server(spec, limits)
    raise UnknownSchemeError(f"model {spec.model!r}: {unknown('scheme', spec.scheme, _SCHEMES)}")


@hookimpl
def gdr_serve_routes(service: ScoringService) -> Iterable[APIRouter]:
    """Our own dialects: rows as in `gdr score`, vLLM's shapes, and those of the framework integrations."""
    from gdr_plugin.serve import native, vllm

    found = [native.routes(service), vllm.routes(service)]
    for integration in _INTEGRATIONS:
        if find_spec(integration) and find_spec(f"{integration}.routes"):
            found += import_module(f"{integration}.routes").routes(service)
    return found

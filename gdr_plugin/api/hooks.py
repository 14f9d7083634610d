"""The hooks that a plugin may implement. A plugin author needs `gdr_plugin.hookimpl` and nothing else from here.

Hooks register named things; configuration selects them. Installing a plugin never changes a reward by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from fastapi import APIRouter

    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.api.models import LogprobModel
    from gdr_plugin.api.routers import Router
    from gdr_plugin.api.selectors import Selector
    from gdr_plugin.api.service import ScoringService
    from gdr_plugin.api.settings import Limits, ModelSpec

PROJECT = "gdr_plugin"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def gdr_register_guidance() -> Iterable[Guidance]:
    """Guidances that gdr.yaml may name under `guidance.domains`.

    Called once, at first use. All results are collected; a name registered twice is a `PluginError` that
    names both plugins. Return an empty iterable for none.
    """
    raise NotImplementedError


@hookspec
def gdr_register_routers() -> Iterable[Router]:
    """Routers that gdr.yaml may name under `routing.routers`.

    Called once, at first use. All results are collected; a name registered twice is a `PluginError` that
    names both plugins. A router is asked only about prompts that no router before it in the chain decided.
    """
    raise NotImplementedError


@hookspec
def gdr_register_selectors() -> Iterable[Selector]:
    """Selectors that `gdr annotate --select` may name: how chosen and rejected are picked from scored candidates.

    Called once, at first use. All results are collected; a name registered twice is a `PluginError` that
    names both plugins.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def gdr_open_model(spec: ModelSpec, limits: Limits) -> LogprobModel | None:
    """Open the model that `spec` names, or return None when its scheme belongs to another backend.

    Called once for each model of a reward. The first result that is not None wins; the built-in backends come last, so
    a plugin may take over a scheme. Do not load weights here: a model loads at its first `score`.
    """
    raise NotImplementedError


@hookspec
def gdr_serve_routes(service: ScoringService) -> Iterable[APIRouter]:
    """Routes that `gdr serve` offers beside its own: how an integration speaks its framework's HTTP dialect.

    Called once when the server starts, before the models are loaded. All results are collected; the same method and
    path twice is a `PluginError` that names both plugins. Routes await `service.score(samples)`, which batches samples
    of all requests, and raise `DataError` for wrong input: the server answers 422 with the message. Return an empty
    iterable for none.
    """
    raise NotImplementedError


HOOKS = tuple(sorted(name for name in globals() if name.startswith("gdr_")))
"""The names of all hooks."""

"""Routing finds the domain of a prompt: a chain asks routers one after the other until one decides."""

from collections.abc import Sequence

from gdr_plugin.api.routers import Router, RoutingContext
from gdr_plugin.routing.chain import Routed, RouterChain
from gdr_plugin.routing.field import FieldRouter, field_check
from gdr_plugin.routing.fixed import FixedRouter
from gdr_plugin.routing.keyword import KeywordRouter
from gdr_plugin.routing.likelihood import LikelihoodRouter

__all__ = [
    "FieldRouter",
    "FixedRouter",
    "KeywordRouter",
    "LikelihoodRouter",
    "Routed",
    "Router",
    "RouterChain",
    "RoutingContext",
    "builtin_routers",
    "field_check",
]


def builtin_routers() -> Sequence[Router]:
    """The routers of the package: `field`, `keyword`, `likelihood`, and `fixed`, which needs its `domain`."""
    return [FieldRouter(), KeywordRouter(), LikelihoodRouter(), FixedRouter()]

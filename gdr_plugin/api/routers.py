"""The router contract: what decides a prompt's domain, and what it may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gdr_plugin.api.errors import quoted
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Sample


@dataclass(frozen=True, slots=True)
class RoutingContext:
    """What routers may use besides the samples."""

    domains: Mapping[str, str]
    """The configured domains, each with a one-line description (may be empty)."""
    model: LogprobModel
    """The strong model, for routers that ask a model."""


@runtime_checkable
class Router(Protocol):
    """Decides the domain of prompts.

    A router may also have `with_options(**options) -> Router`: called when gdr.yaml gives the router options beside its
    name. It raises `ConfigError` for options that it does not know. And it may have `check(domains: Sequence[str])`:
    called with the configured domains before anything is loaded; it raises `ConfigError` when it needs a domain that is
    missing.
    """

    name: str
    """The name that gdr.yaml uses."""

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """Find the domain of each sample's prompt.

        Args:
            samples: The prompts that no router before this one decided; not empty. Only the prompt and fields count.
            context: The configured domains and the strong model.

        Returns:
            One entry for each sample, in order: one of `context.domains`, or None to leave the prompt to the next
            router.

        Raises:
            DomainError: A sample names a domain that is not configured.
        """
        ...


def options_error(router: str, options: Mapping[str, Any], allowed: Sequence[str]) -> str:
    """One line that names the options a router does not know and those it does."""
    names = sorted(set(options) - set(allowed))
    extra = ", ".join(name if name.isidentifier() and len(name) < 100 else quoted(name) for name in names[:5])
    return f"routing.routers: the router {router!r} has no option {extra}; it has {', '.join(allowed) or 'none'}"

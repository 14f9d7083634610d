"""The `fixed` router: sends every prompt to one domain."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from gdr_plugin.api.errors import ConfigError, quoted, unknown
from gdr_plugin.api.routers import RoutingContext, options_error
from gdr_plugin.api.types import Sample

__all__ = ["FixedRouter"]


class FixedRouter:
    """Sends every prompt that is still undecided to one domain.

    Args:
        domain: The domain; None until `with_options` names it.
    """

    name = "fixed"

    def __init__(self, domain: str | None = None) -> None:
        self.domain = domain

    def with_options(self, **options: Any) -> FixedRouter:
        """The router with its `domain`.

        Raises:
            ConfigError: Another option, or a domain that is not text.
        """
        if set(options) - {"domain"}:
            raise ConfigError(options_error(self.name, options, ["domain"]))
        domain = options.get("domain", self.domain)
        if not isinstance(domain, str) or not domain:
            raise ConfigError(f"routing.routers: fixed: domain: must be a domain's name, not {quoted(domain)}")
        return FixedRouter(domain)

    def check(self, domains: Collection[str]) -> None:
        """Refuse a configuration in which the domain is missing or unknown.

        Raises:
            ConfigError: No domain was given, or it is not one of `domains`.
        """
        if self.domain is None:
            raise ConfigError("routing.routers: fixed: needs a domain: write {name: fixed, domain: NAME}")
        if self.domain not in domains:
            raise ConfigError(f"routing.routers: fixed: {unknown('domain', self.domain, domains)}")

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The domain, once a sample; see `Router.route`.

        Raises:
            ConfigError: No domain was given, or it is not configured.
        """
        self.check(context.domains)
        return [self.domain] * len(samples)

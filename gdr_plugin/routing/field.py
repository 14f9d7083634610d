"""The `field` router: takes the domain from a column of the data set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gdr_plugin.api.errors import ConfigError, DomainError, quoted, unknown
from gdr_plugin.api.routers import Router, RoutingContext, options_error
from gdr_plugin.api.types import Sample
from gdr_plugin.text import is_missing

__all__ = ["FieldRouter", "field_check"]


class FieldRouter:
    """Takes the domain from a column. A row without the column, or with an empty value, is left to the next router.

    Args:
        column: The column's name.
    """

    name = "field"

    def __init__(self, column: str = "domain") -> None:
        self.column = column

    def with_options(self, **options: Any) -> FieldRouter:
        """The router with another `column`.

        Raises:
            ConfigError: Another option, or a column that is not text.
        """
        if set(options) - {"column"}:
            raise ConfigError(options_error(self.name, options, ["column"]))
        column = options.get("column", self.column)
        if not isinstance(column, str) or not column:
            raise ConfigError(f"routing.routers: field: column: must be a column's name, not {quoted(column)}")
        return FieldRouter(column)

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The column's value for each sample; see `Router.route`."""
        return [self.domain_of(sample.fields, context.domains) for sample in samples]

    def domain_of(
        self, fields: Mapping[str, Any], domains: Collection[str], *, listed: str = "guidance.domains"
    ) -> str | None:
        """The domain that a row's columns name, or None where they name none.

        Args:
            fields: The columns.
            domains: The configured domains.
            listed: Where the domains are listed, for the message.

        Raises:
            DomainError: The column holds something else than the name of a configured domain.
        """
        value = fields.get(self.column)
        if is_missing(value):
            return None
        if not isinstance(value, str):
            raise DomainError(f"column {self.column!r}: must name a domain, not {quoted(value)}")
        domain = value.strip()
        if domain and domain not in domains:
            raise DomainError(f"column {self.column!r}: {unknown('domain', domain, domains)}; {listed} lists them")
        return domain or None


def field_check(
    routers: Iterable[Router], domains: Collection[str], *, origin: str = "gdr.yaml"
) -> Callable[[Mapping[str, Any]], None]:
    """A check of rows before anything is scored: that the columns name no domain that routing would refuse.

    Of several `field` routers the first that finds a domain decides, as it does in the chain.

    Args:
        routers: The chain; routers that are no `field` routers are passed over.
        domains: The configured domains.
        origin: What the configuration is called in messages.

    Returns:
        A function that is given a row's columns and raises DomainError where they name an unknown domain.
    """
    fields = [router for router in routers if isinstance(router, FieldRouter)]

    def check(columns: Mapping[str, Any]) -> None:
        for router in fields:
            if router.domain_of(columns, domains, listed=f"guidance.domains in {origin}") is not None:
                return

    return check

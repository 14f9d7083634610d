"""Routing by a data set column: the domain that the data names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gdr_plugin.api.errors import ConfigError, DomainError, unknown
from gdr_plugin.api.routers import RoutingContext, options_error
from gdr_plugin.api.types import Sample

__all__ = ["FieldRouter"]


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
            raise ConfigError(f"routing.routers: field: column: must be a column's name, not {column!r}")
        return FieldRouter(column)

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        """The column's value for each sample; see `Router.route`."""
        return [self._domain(sample, context) for sample in samples]

    def _domain(self, sample: Sample, context: RoutingContext) -> str | None:
        value = sample.fields.get(self.column)
        if value is None or (isinstance(value, float) and value != value):  # table readers say NaN for "no value"
            return None
        if not isinstance(value, str):
            raise DomainError(f"column {self.column!r}: must name a domain, not {value!r}")
        domain = value.strip()
        if domain and domain not in context.domains:
            raise DomainError(
                f"column {self.column!r}: {unknown('domain', domain, context.domains)}; guidance.domains lists them"
            )
        return domain or None

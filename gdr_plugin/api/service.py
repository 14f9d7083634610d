"""The contract of an HTTP dialect of `gdr serve`: the service that it scores with, its settings, and the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import Guidance, RenderedGuidance
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.api.unscored import RAISE, Unscored

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of `gdr serve`.

    Raises:
        ConfigError: A value is out of its range.
    """

    max_wait_ms: float = 10.0
    """How long the first sample of a batch waits for others, in milliseconds."""
    max_batch: int = 64
    """Samples scored in one batch."""
    queue: int = 4096
    """Samples waiting for the models; requests beyond it wait until there is room."""
    cache: int = 65_536
    """Finished scores kept in memory, so that a repeated request costs nothing; 0: none."""
    max_items: int = 8192
    """Samples in one request."""
    max_chars: int = 1_000_000
    """Characters of one sample: prompt and response together."""
    max_body_mb: float = 8
    """Size of a request's body, in MiB. Reading a body holds up every other request: 8 MiB take about 0.1 s."""
    drain_s: float = 25.0
    """How long requests may take to finish after SIGTERM, in seconds; container platforms grant 30."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests must carry; None: everybody who reaches the port is served."""
    temperature: float = 1.0
    """Divides a reward before it is squashed into 0..1 (`ScoringService.squash`)."""
    scale: float = 1.0
    """Dialects for trainers: factor on the reward."""
    clip: float | None = None
    """Dialects for trainers: bound on the scaled reward's absolute value."""
    unscored: Unscored = RAISE
    """Dialects for trainers: what a sample that could not be scored gets; `none` is not possible."""
    policy_tokenizer: str | None = None
    """Dialects that receive templated text: the tokenizer whose template it was rendered with."""
    plain: bool = False
    """Dialects that receive templated text: score it as it is, without guidance."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_items", "max_chars", "max_body_mb", "drain_s", "temperature", "scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.max_wait_ms <= 60_000:
            raise ConfigError(f"max_wait_ms must be between 0 and 60,000, not {self.max_wait_ms}")
        if self.cache < 0:
            raise ConfigError(f"cache must be 0 or more, not {self.cache}")
        if not math.isfinite(self.scale):
            raise ConfigError(f"scale must be finite, not {self.scale}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip must be above 0, not {self.clip}")
        Unscored.of(self.unscored)
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise ConfigError("the token must be printable ASCII text and not empty")


class ServedReward(Protocol):
    """The part of a service's reward that a dialect may read."""

    @property
    def strong(self) -> LogprobModel:
        """The better-aligned model."""
        ...

    @property
    def weak(self) -> LogprobModel:
        """The less-aligned model."""
        ...

    @property
    def domains(self) -> Mapping[str, Guidance | None]:
        """Every domain that a router may return, with its guidance."""
        ...

    @property
    def rendered(self) -> Mapping[str, RenderedGuidance]:
        """The guidance text of each domain."""
        ...


class ScoringService(Protocol):
    """Scores samples for many requests at once: what `gdr_serve_routes` is given.

    `DataError` (422), `RequestError` and every other `GDRError` (500) raised in a route become JSON answers.
    """

    @property
    def settings(self) -> ServeSettings:
        """Batching, limits, and what dialects read."""
        ...

    @property
    def ratio(self) -> ServedReward:
        """The reward. Only the service's worker thread scores with it."""
        ...

    async def read(self, make: Callable[[], T], *, items: int) -> T:
        """Make a request's samples out of its body: in a thread where the body is large, so that nobody waits for it.

        Args:
            make: Makes them; Python code that touches nothing of the event loop.
            items: How many there will be.

        Returns:
            What `make` returned.

        Raises:
            RequestError: There are too many (413); nothing was made.
        """
        ...

    async def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """Score one request's samples, batched with those of other requests. Cancelling the call is safe.

        Args:
            samples: What to score; may be empty.
            tokens: Whether the scores carry token log-probs.

        Returns:
            One score a sample, in order; `reward` is None with a reason where a sample cannot be scored.

        Raises:
            RequestError: The request is too large (413), or the service is overloaded, stopping or broken (503).
            ModelError: A model failed on one of these samples, twice.
        """
        ...

    def squash(self, reward: float) -> float:
        """The reward in 0..1, by the settings' temperature."""
        ...

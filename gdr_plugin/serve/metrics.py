"""The Prometheus metrics behind `/metrics`. Every service has a registry of its own; nothing is global.

Samples are counted where they are answered, tokens where they are computed: a cache hit costs no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import MissingDependencyError
from gdr_plugin.api.types import Score
from gdr_plugin.text import without_numbers

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDependencyError("prometheus-client", "serve", "to serve rewards") from error

if TYPE_CHECKING:
    from gdr_plugin.api.models import LogprobModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Rewards are nats (sum: tens to hundreds), nats a token or nats a byte (far below 1), of either sign.
_STEPS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_REWARDS = (*(-step for step in reversed(_STEPS)), 0, *_STEPS)
_MOST_REASONS = 32


class Metrics:
    """The counters of one service.

    Args:
        queued: Says how many samples are in the queue.
        waiting: Says how many samples wait for room in the queue.
        ready: Says whether both models have scored a probe.
        marked: Says how many samples that were scored spell out marks of a chat template.
        models: The models by side; those behind a store have `hits` and `misses`.
        store_failures: Says how often the store was found unusable.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(
        self,
        *,
        queued: Callable[[], int],
        waiting: Callable[[], int],
        ready: Callable[[], bool],
        marked: Callable[[], int],
        models: Mapping[str, LogprobModel],
        store_failures: Callable[[], int] = lambda: 0,
    ) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._reasons: set[str] = set()
        self.requests = Counter(
            "gdr_requests", "HTTP requests by route and status", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "gdr_request_seconds", "Seconds from request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.samples = Counter("gdr_samples", "Samples answered with a reward", ["domain"], registry=registry)
        self.not_scored = Counter("gdr_not_scored", "Samples answered without a reward", ["reason"], registry=registry)
        self.rewards = Histogram("gdr_reward", "Rewards", ["domain"], buckets=_REWARDS, registry=registry)
        # Prometheus keeps no sum of a histogram with negative buckets.
        self.reward_sum = Gauge("gdr_rewards_sum", "Sum of the rewards", ["domain"], registry=registry)
        self.hits = Counter(
            "gdr_cache_hits", "Samples that had a score already (finished) or soon (in_flight)", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "gdr_tokens", "Response tokens scored, the readiness probe's too", ["model"], registry=registry
        )
        self.taught_spans = Counter("gdr_taught", "Sequences of ids that the teacher scored", registry=registry)
        self.waited = Histogram(
            "gdr_queue_seconds", "Seconds a sample waited in the queue", buckets=_SECONDS, registry=registry
        )
        self._batch_samples = Histogram("gdr_batch_samples", "Samples in a batch", buckets=_SIZES, registry=registry)
        self._batch_seconds = Histogram(
            "gdr_batch_seconds", "Seconds a batch took", buckets=_SECONDS, registry=registry
        )
        self.failed_batches = Counter(
            "gdr_failed_batches", "Batches that failed and were scored one by one", registry=registry
        )
        self.failed_samples = Counter("gdr_failed_samples", "Samples that failed alone, too", registry=registry)
        for name, text, value in (
            ("gdr_queue_samples", "Samples in the queue", queued),
            ("gdr_waiting_samples", "Samples that wait for room in the queue", waiting),
            ("gdr_ready", "Whether both models have scored a probe", ready),
        ):
            Gauge(name, text, registry=registry).set_function(value)
        registry.register(_Read(models, marked, store_failures))
        ProcessCollector(registry=registry)

    def render(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self._registry)

    def batch(self, samples: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_samples.observe(samples)
        self._batch_seconds.observe(seconds)

    def computed(self, score: Score) -> None:
        """Count a score that the models computed."""
        self.tokens.labels("strong").inc(score.strong_tokens)
        self.tokens.labels("weak").inc(score.weak_tokens)

    def taught(self, parts: Sequence[str], tokens: int) -> None:
        """Count ids that a teacher's models scored."""
        self.taught_spans.inc()
        for part in parts:
            self.tokens.labels(part).inc(tokens)

    def answered(self, scores: Sequence[Score]) -> None:
        """Count the scores of an answer, whether computed or cached."""
        for score in scores:
            if score.reward is None:
                self.not_scored.labels(self._reason(score.reason or "unknown")).inc()
            else:
                self.samples.labels(score.domain).inc()
                self.rewards.labels(score.domain).observe(score.reward)
                self.reward_sum.labels(score.domain).inc(score.reward)

    def _reason(self, reason: str) -> str:
        """A reason as a label without numbers and quoted names: they differ by sample, and labels are kept for ever."""
        label = re.sub(r"'[^']*'", "'...'", without_numbers(reason))[:120]
        if label not in self._reasons and len(self._reasons) == _MOST_REASONS:
            return "other"
        self._reasons.add(label)
        return label


class _Read(Collector):
    """Counters that others keep: template marks in samples, hits and misses of the log-prob store."""

    def __init__(
        self, models: Mapping[str, LogprobModel], marked: Callable[[], int], store_failures: Callable[[], int]
    ) -> None:
        self._models = models
        self._marked = marked
        self._store_failures = store_failures

    def describe(self) -> Iterable[CounterMetricFamily]:
        return []

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Samples that spell out a mark of a chat template: they are scored as text"
        yield CounterMetricFamily("gdr_spelt_marks", text, value=self._marked())
        text = "How often the log-prob store could not be used, and scores were computed without it"
        yield CounterMetricFamily("gdr_store_failures", text, value=self._store_failures())
        for what, text in (("hits", "Spans found in the log-prob store"), ("misses", "Spans the model had to score")):
            family = CounterMetricFamily(f"gdr_store_{what}", text, labels=["model"])
            for side, model in self._models.items():
                if (count := getattr(model, what, None)) is not None:
                    family.add_metric([side], count)
            yield family

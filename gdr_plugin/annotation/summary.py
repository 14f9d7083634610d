"""What summary.json and run.json say: the shape of a finished run's figures, and of what a run is made from."""

from __future__ import annotations

from typing import Any, TypedDict

Spread = dict[str, float]
"""Mean, minimum, quantiles (`p10`, `p25`, `median`, `p75`, `p90`) and maximum of some numbers."""


class DomainFigures(TypedDict):
    """Figures of one domain."""

    prompts: int
    with_pair: int
    pairs: int
    margin: Spread | None


class Figures(TypedDict):
    """What became of the prompts of a run."""

    rows: int
    pairs: int
    pairs_within_noise: int | None
    """None where the rewards' rounding error is not known."""
    prompts_with_pair: int
    rejects: dict[str, int]
    """Prompts without a pair, by reason."""
    candidates: int
    candidates_not_scored: dict[str, int]
    """By reason."""
    candidates_unfinished: int
    candidates_truncated: int
    margin: Spread | None
    chosen_tokens: Spread | None
    rejected_tokens: Spread | None
    chosen_longer: float | None
    """Share of the pairs; None where there are none."""
    chosen_shorter: float | None
    routers: dict[str, int]
    guidance: dict[str, int]
    domains: dict[str, DomainFigures]


class InputFacts(TypedDict):
    """What the input was."""

    rows: int
    bad: int
    content: str
    """Its fingerprint."""


class RunIdentity(TypedDict):
    """Everything that decides the result: runs that agree in it may go on in one folder."""

    config: dict[str, Any]
    config_content: str
    guidance: dict[str, str]
    """Domain -> identifier of its guidance."""
    input: InputFacts
    models: dict[str, str]
    """`strong`, `weak`, and `policy` where there is one -> identity."""
    options: dict[str, Any]


class RunOrigin(TypedDict):
    """What a run says of itself beside what decides the result."""

    source: str
    versions: dict[str, str]


class RunFacts(RunIdentity, RunOrigin):
    """What a finished run says of itself."""

    strategies: dict[str, str]
    """How each model computed; runs of earlier versions do not say."""


class Summary(Figures):
    """The content of summary.json."""

    seconds: dict[str, float]
    """Of `sampling` and of `scoring`."""
    tables: dict[str, int]
    """Table -> its rows."""
    run: RunFacts

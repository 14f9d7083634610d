"""Our own dialect: rows and scores as `gdr score` reads and writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import starmap
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from gdr_plugin.api.errors import DataError, RequestError
from gdr_plugin.api.types import Score
from gdr_plugin.data.rows import ScoreRow, parse_score_row, response_column
from gdr_plugin.data.sources import Row
from gdr_plugin.serve.answers import JsonAnswer, LongAnswer
from gdr_plugin.serve.entry import TOKEN_FIELDS

if TYPE_CHECKING:
    from gdr_plugin.api.service import ScoringService

_ID = 1_000
"""Most characters of a row's id, which the answer repeats."""
FEW = 100
"""Scores that are answered at once; more of them are sent while they are encoded."""
MAX_TOKENS_OF = 262_144
"""Most characters of a request's responses, all together, for which token log-probs are sent."""
_ROW: dict[str, Any] = {
    "prompt": "How many days are there in a leap year?",
    "response": "366.",
    "finished": True,
    "domain": "chat",
}


class ScoreRows(BaseModel):
    """Rows to score."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rows": [_ROW]}]})
    rows: list[dict[str, Any]]
    """Each with `prompt` (text, or messages), `response` (text, or a list with the assistant's message, which may have
    tool calls and reasoning), and where known `id`, `finished`, `domain`; `prefill: true` where the response goes on
    with an assistant's turn that ends the prompt."""
    tokens: bool = False
    """Whether the scores carry token log-probs."""


class RowScore(BaseModel):
    """One row's score; rewards and log-probs in nats."""

    id: str
    reward: Annotated[float | None, Field(description="null when the row was not scored")]
    reason: Annotated[str | None, Field(description="why `reward` is null")]
    strong_logprob: float | None
    weak_logprob: float | None
    strong_tokens: int
    weak_tokens: int
    domain: str
    router: str
    guidance: str
    exemplars: list[str]
    truncated: bool
    # What follows comes with `tokens` only.
    strong_token_logprobs: list[float] | None = None
    weak_token_logprobs: list[float] | None = None
    token_ratios: Annotated[list[float] | None, Field(description="where both models have the same tokens")] = None
    token_rewards: Annotated[list[float] | None, Field(description="token_ratios in the reward's unit")] = None
    strong_token_offsets: Annotated[list[tuple[int, int]] | None, Field(description="characters of each token")] = None
    weak_token_offsets: list[tuple[int, int]] | None = None
    reduction: str | None = None


class RowScores(BaseModel):
    """The rows' scores, in order."""

    scores: list[RowScore]


def routes(service: ScoringService) -> APIRouter:
    """The routes of this dialect.

    Args:
        service: Scores the samples.
    """
    api = APIRouter(tags=["gdr"])

    @api.post("/v1/gdr/score", response_model=RowScores, summary="Score rows")
    async def score(body: ScoreRows) -> Response:
        rows = await service.read(lambda: list(starmap(_row, enumerate(body.rows))), items=len(body.rows))
        if body.tokens:
            _check_tokens(rows)
        scores = await service.score([row.sample for row in rows], tokens=body.tokens)
        made = (_as_json(row, score) for row, score in zip(rows, scores, strict=True))
        few = len(rows) <= FEW and not body.tokens
        return JsonAnswer({"scores": list(made)}) if few else LongAnswer("scores", made)

    return api


def _check_tokens(rows: Sequence[ScoreRow]) -> None:
    """Refuse what would be answered with more numbers than a client can want: some hundred bytes for each token."""
    size = sum(len(row.sample.text) for row in rows)
    if size > MAX_TOKENS_OF:
        raise RequestError(
            f"responses of {size:,} characters with `tokens: true`: send at most {MAX_TOKENS_OF:,} in one request"
        )


def _row(number: int, content: dict[str, Any]) -> ScoreRow:
    column = response_column(content)
    if "prompt" not in content and column != "messages":
        raise DataError(f"rows[{number}] has no `prompt`")
    if column is None:
        raise DataError(f"rows[{number}] has no `response`")
    if isinstance(content.get("id"), str) and len(content["id"]) > _ID:
        raise DataError(f"rows[{number}]: its id has {len(content['id']):,} characters: send at most {_ID:,}")
    prefill = content.get("prefill") is True
    content = {name: value for name, value in content.items() if name != "prefill"}
    return parse_score_row(Row(number + 1, f"rows[{number}]", content), prefill=prefill)


def _as_json(row: ScoreRow, score: Score) -> dict[str, Any]:
    values = {field.name: getattr(score, field.name) for field in dataclasses.fields(Score)}
    kept = {name: value for name, value in values.items() if value is not None or name not in TOKEN_FIELDS}
    return {"id": row.id, **kept}

"""OpenRLHF's dialect of `gdr serve`: `POST /get_reward`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gdr_openrlhf.dialect import LOGS, Dialect
from gdr_plugin.adapters.rendered import open_prompt_reader
from gdr_plugin.api.errors import ConfigError
from gdr_plugin.serve.answers import JsonAnswer

if TYPE_CHECKING:
    from gdr_plugin.api.service import ScoringService

_TURN = {"role": "user", "content": "What is 2 + 2?"}
_PROMPT = f"<|im_start|>user\n{_TURN['content']}<|im_end|>\n<|im_start|>assistant\n"
_EXAMPLE: Any = {"query": [f"{_PROMPT}4.<|im_end|>"], "prompts": [_PROMPT], "labels": [{"messages": [_TURN]}]}
"""The label holds the messages, so that the example is right for every policy tokenizer."""


class RewardRequest(BaseModel):
    """What OpenRLHF sends: one item in current releases, a batch in older ones."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    query: Annotated[list[str], Field(description="Prompts with their responses, special tokens spelt out.")] = []
    prompts: Annotated[list[str], Field(description="The prompts as the chat template rendered them.")] = []
    labels: Annotated[
        list[Any],
        Field(
            description="Any JSON. Of a mapping, `messages` is the prompt, `guidance` names a guidance, `domain` and "
            "all others are fields that routers read."
        ),
    ] = []

    @model_validator(mode="before")
    @classmethod
    def _refuse_another_shape(cls, given: Any) -> Any:
        """Refuse what has none of the keys: it would be read as no samples at all."""
        if isinstance(given, dict) and given and not given.keys() & cls.model_fields.keys():
            names = ", ".join(repr(str(name)[:40]) for name in list(given)[:5])
            raise ValueError(f"it has {names}, but none of query, prompts and labels: send lists under these keys")
        return given


class RewardAnswer(BaseModel):
    """Lists as long as `query`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"rewards": [0.21], "scores": [0.55], "extra_logs": {key: [1.0] for key in LOGS}}]
        }
    )
    rewards: Annotated[list[float], Field(description="The rewards, scaled and clipped.")]
    scores: Annotated[list[float], Field(description="In 0..1: the logistic function of reward by temperature.")]
    extra_logs: Annotated[dict[str, list[float]], Field(description="Numbers to log, always the same keys.")]


def routes(service: ScoringService) -> list[APIRouter]:
    """The routes of this dialect.

    Args:
        service: Scores the samples.

    Raises:
        ConfigError: `plain` with guidance that plain text has no place for.
        ModelError: The policy tokenizer cannot be opened.
        ChatError: Its chat template cannot be used.
    """
    if service.settings.plain and (
        guided := [name for name, guidance in service.ratio.rendered.items() if guidance.text]
    ):
        raise ConfigError(
            f"--plain scores text as it is, without guidance, but {', '.join(guided)} has some: set guidance.placement "
            "to none in gdr.yaml, or leave --plain out and put the messages into the labels"
        )
    dialect = Dialect(service.settings, open_prompt_reader(service.settings), lambda: _guidances(service))
    router = APIRouter(tags=["OpenRLHF"])

    @router.post("/get_reward", response_model=RewardAnswer, summary="Rewards for OpenRLHF (--reward.remote_url)")
    async def get_reward(body: RewardRequest) -> JsonAnswer:
        read = partial(dialect.samples, body.query, body.prompts, body.labels)
        samples = await service.read(read, items=len(body.query))
        return JsonAnswer(dialect.answer(samples, await service.score(samples)))

    return [router]


def _guidances(service: ScoringService) -> Mapping[str, str]:
    return {domain: guidance.name for domain, guidance in service.ratio.domains.items() if guidance is not None}

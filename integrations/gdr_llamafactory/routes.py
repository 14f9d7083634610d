"""LLaMA-Factory's dialect of `gdr serve`: `reward_model: http://HOST:PORT/llamafactory`, `reward_model_type: api`.

Its PPO posts whole texts, prompt and response in one, and no label. Its client looks at no status: an error's body has
no `scores`, and the run ends there with a KeyError. Contract read from the released package 0.9.5.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gdr_plugin.adapters.backend import trainer_reward
from gdr_plugin.adapters.rendered import RenderedSamples, open_prompt_reader
from gdr_plugin.serve.answers import JsonAnswer

if TYPE_CHECKING:
    from gdr_plugin.api.service import ScoringService

_TEXT = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>"
_EXAMPLE: Any = {"model": "model", "messages": [_TEXT]}


class TextsRequest(BaseModel):
    """What LLaMA-Factory sends for a batch."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    model: Annotated[str | None, Field(description="Not used.")] = None
    messages: Annotated[list[str], Field(description="Prompts with their responses, special tokens spelt out.")]


class ScoresAnswer(BaseModel):
    """The rewards, in order."""

    scores: Annotated[list[float], Field(description="Scaled and clipped, as long as `messages`.")]


def routes(service: ScoringService) -> list[APIRouter]:
    """The routes of this dialect.

    Args:
        service: Scores the samples.

    Raises:
        ModelError: The policy tokenizer cannot be opened.
        ChatError: Its chat template cannot be used.
    """
    rendered = RenderedSamples(service.settings, open_prompt_reader(service.settings))
    router = APIRouter(tags=["LLaMA-Factory"])

    @router.post(
        "/llamafactory", response_model=ScoresAnswer, summary="Rewards for LLaMA-Factory (reward_model_type: api)"
    )
    async def llamafactory(
        body: TextsRequest,
        domain: Annotated[
            str | None, Query(description="The domain of all of them, which the router `field` reads.")
        ] = None,
    ) -> JsonAnswer:
        label = None if domain is None else {"domain": domain}
        samples = await service.read(partial(rendered.whole, body.messages, label), items=len(body.messages))
        scores = await service.score(samples)
        return JsonAnswer(
            {"scores": [trainer_reward(score, service.settings, f"item {at}") for at, score in enumerate(scores)]}
        )

    return [router]

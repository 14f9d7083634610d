"""slime's remote dialect of `gdr serve`, for `--rm-type remote_rm --rm-url http://HOST:PORT/slime`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gdr_plugin.adapters.backend import trainer_reward
from gdr_plugin.adapters.rendered import RenderedSamples, fields_of, open_prompt_reader
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.serve.answers import JsonAnswer

if TYPE_CHECKING:
    from gdr_plugin.api.service import ScoringService


class SlimeRequest(BaseModel):
    """What slime sends for one sample."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
                    "response": "4.<|im_end|>",
                    "label": {"domain": "math"},
                }
            ]
        }
    )
    prompt: Annotated[str | list[dict[str, Any]], Field(description="Templated text, or messages.")]
    response: Annotated[str, Field(description="The response, special tokens spelt out.")]
    label: Annotated[Any, Field(description="Any JSON; of a mapping, `domain` and all others are fields.")] = None


def routes(service: ScoringService) -> list[APIRouter]:
    """The routes of this dialect.

    Args:
        service: Scores the samples.

    Raises:
        ModelError: The policy tokenizer cannot be opened.
        ChatError: Its chat template cannot be used.
    """
    guidances = {domain: guidance.name for domain, guidance in service.ratio.domains.items() if guidance is not None}
    reader = open_prompt_reader(service.settings)
    rendered = RenderedSamples(service.settings, reader, lambda: guidances)
    router = APIRouter(tags=["slime"])

    def read(body: SlimeRequest) -> Sample:
        if reader is None:
            raise DataError("start gdr serve with --policy-tokenizer NAME: it says how a response ends")
        if isinstance(body.prompt, str):
            (sample,) = rendered.samples([body.prompt + body.response], [body.prompt], [body.label])
            return sample
        text, finished = reader.response(body.response, "")
        return Sample(parse_prompt(body.prompt), text, finished=finished, fields=fields_of(body.label))

    @router.post("/slime", response_model=float, summary="The reward for slime (--rm-type remote_rm --rm-url)")
    async def slime(body: SlimeRequest) -> JsonAnswer:
        sample = await service.read(partial(read, body), items=1)
        (score,) = await service.score([sample])
        return JsonAnswer(trainer_reward(score, service.settings, "the sample"))

    return [router]

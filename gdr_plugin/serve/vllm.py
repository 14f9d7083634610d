"""The shapes of vLLM's scoring and classification servers, for clients that speak them already.

`/score`: `text_1` is the prompt and `text_2` the response; the score is the reward (vLLM would squash it: ask for that
with `use_activation: true`). `/classify`: one class, whose probability is the squashed reward, or the reward itself
with `use_activation: false`. The shapes are those of vLLM 0.32 with two differences: a sample that cannot be scored is
null with a `reason`, and wrong input is answered with 422 rather than 400. Knows shapes; nothing of models.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias
from uuid import uuid4

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample, Score
from gdr_plugin.data.rows import parse_score_row
from gdr_plugin.data.sources import Row
from gdr_plugin.serve.answers import JsonAnswer

if TYPE_CHECKING:
    from gdr_plugin.api.service import ScoringService, ServedReward

MODEL = "gdr"
"""The name that `/v1/models` lists. Requests may name any model: there is one."""

_Messages: TypeAlias = list[dict[str, Any]]
_Parts: TypeAlias = dict[str, Any]
"""`{"content": [{"type": "text", "text": ...}]}`"""
_STARTED = int(time.time())
_NO_DETAILS = {"prompt_tokens_details": None, "completion_tokens_details": None}
_UNSUPPORTED = (
    "add_generation_prompt",
    "chat_template",
    "chat_template_kwargs",
    "instruction",
    "max_tokens_per_doc",
    "max_tokens_per_query",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "truncate_prompt_tokens",
)
"""Parameters of vLLM that would change the score; guidance, templates and limits are the server's configuration."""


class _Request(BaseModel):
    """The part that both kinds of requests share."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name in _UNSUPPORTED:
            if (self.model_extra or {}).get(name):
                raise ValueError(f"{name} is not supported: the server's gdr.yaml says how texts are scored")
        return self


class ScoreRequest(_Request):
    """Prompts and responses: one to one, one to many, or many to as many."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": MODEL, "text_1": "What is 2 + 2?", "text_2": ["4.", "Five."]}]}
    )
    model: str | None = None
    text_1: Annotated[
        str | _Parts | list[str | _Parts] | list[_Messages],
        Field(
            validation_alias=AliasChoices("text_1", "queries", "data_1"),
            description="The prompt or prompts: texts, or conversations of messages. Also called queries.",
        ),
    ]
    text_2: Annotated[
        str | _Parts | list[str | _Parts],
        Field(
            validation_alias=AliasChoices("text_2", "documents", "items", "data_2"),
            description="The response or responses. Also called documents.",
        ),
    ]
    use_activation: Annotated[bool | None, Field(description="true: scores squashed into 0..1")] = None


class ClassifyRequest(_Request):
    """Conversations that end with the assistant's turn, which is scored with its reasoning and tool calls."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}],
                }
            ]
        }
    )
    model: str | None = None
    messages: _Messages | list[_Messages] | None = None
    continue_final_message: Annotated[
        bool, Field(description="true: the last turn was cut, its end does not count")
    ] = False
    input: Annotated[Any, Field(description="not supported: a text does not say where its response begins")] = None
    use_activation: Annotated[
        bool | None,
        Field(
            validation_alias=AliasChoices("use_activation", "activation", "softmax"),
            description="false: `probs` holds the reward itself",
        ),
    ] = None


def routes(service: ScoringService) -> APIRouter:
    """The routes of this dialect.

    Args:
        service: Scores the samples.
    """
    api = APIRouter(tags=["vLLM"])

    async def score(body: ScoreRequest) -> JsonAnswer:
        items = max(len(side) if isinstance(side, list) else 1 for side in (body.text_1, body.text_2))
        scores = await service.score(await service.read(lambda: pairs(body.text_1, body.text_2), items=items))
        data = [
            {
                "index": index,
                "object": "score",
                "score": _value(service, scored, bool(body.use_activation)),
                **_why(scored),
            }
            for index, scored in enumerate(scores)
        ]
        return _answer("score", data, scores)

    async def classify(body: ClassifyRequest) -> JsonAnswer:
        items = len(_several(body.messages or []))
        scores = await service.score(await service.read(lambda: conversations(body), items=items))
        data = [
            {
                "index": index,
                "label": "reward",
                "probs": [_value(service, scored, body.use_activation is not False)],
                "num_classes": 1,
                **_why(scored),
            }
            for index, scored in enumerate(scores)
        ]
        return _answer("classify", data, scores)

    for path in ("/score", "/v1/score"):
        api.add_api_route(path, score, methods=["POST"], summary="Score responses to prompts")
    for path in ("/classify", "/v1/classify"):
        api.add_api_route(path, classify, methods=["POST"], summary="Score conversations")

    @api.get("/v1/models", summary="The one model: the reward")
    async def models() -> JsonAnswer:
        return JsonAnswer(models_answer(service.ratio))

    return api


def models_answer(ratio: ServedReward) -> dict[str, Any]:
    """What `/v1/models` answers: one model."""
    model = {"id": MODEL, "object": "model", "created": _STARTED, "owned_by": "gdr-plugin", "root": MODEL}
    rest: dict[str, Any] = {"parent": None, "max_model_len": None, "permission": []}
    return {"object": "list", "data": [model | rest | {"strong": ratio.strong.name, "weak": ratio.weak.name}]}


def pairs(prompts: Any, responses: Any) -> list[Sample]:
    """Samples of a request's two sides; one prompt is paired with every response.

    Raises:
        DataError: The numbers do not fit, or a prompt is malformed.
    """
    conversation = isinstance(prompts, list) and prompts and isinstance(prompts[0], dict) and "role" in prompts[0]
    left = prompts if isinstance(prompts, list) and not conversation else [prompts]
    right = responses if isinstance(responses, list) else [responses]
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise DataError(f"{len(left)} prompts for {len(right)} responses: send one prompt, or as many as responses")
    items = enumerate(zip(left, right, strict=True))
    return [_sample(f"item {number}", prompt, response) for number, (prompt, response) in items]


def conversations(body: ClassifyRequest) -> list[Sample]:
    """Samples of conversations that end with the turn to score.

    Raises:
        DataError: There is none, or one ends with another turn.
    """
    if body.messages is None or body.input is not None:
        raise DataError(
            "send `messages`, a conversation that ends with the assistant's turn: a text as `input` does not say where "
            "its response begins (or use /score, with the prompt as text_1 and the response as text_2)"
        )
    samples = []
    for number, messages in enumerate(_several(body.messages)):
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            raise DataError(f"conversation {number} must end with an assistant turn, which is scored")
        finished = not body.continue_final_message
        samples.append(_sample(f"conversation {number}", messages[:-1], last, finished=finished))
    return samples


def _several(given: _Messages | list[_Messages]) -> list[Any]:
    """Conversations, where one alone may have been sent."""
    return [given] if given and isinstance(given[0], dict) else list(given)


def _sample(where: str, prompt: Any, response: Any, *, finished: bool = True) -> Sample:
    """A sample of a text or messages, and a text or an assistant's message; a text is never taken for anything else."""
    if isinstance(prompt, str | dict):
        prompt = [{"role": "user", **({"content": prompt} if isinstance(prompt, str) else prompt)}]
    if isinstance(response, dict):
        response = [{"role": "assistant", **response}]
    return parse_score_row(Row(1, where, {"prompt": prompt, "response": response, "finished": finished})).sample


def _value(service: ScoringService, score: Score, squashed: bool) -> float | None:
    return service.squash(score.reward) if squashed and score.reward is not None else score.reward


def _why(score: Score) -> dict[str, str]:
    return {} if score.reason is None else {"reason": score.reason}


def _answer(kind: str, data: list[dict[str, Any]], scores: list[Score]) -> JsonAnswer:
    tokens = sum(score.strong_tokens for score in scores)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, **_NO_DETAILS}
    head = {"id": f"{kind}-{uuid4().hex}", "object": "list", "created": int(time.time()), "model": MODEL}
    return JsonAnswer({**head, "data": data, "usage": usage})

"""The teacher's routes: SGLang's, vLLM's and ms-swift's shapes for ids in and log-probs out, for trainers that distil.

Every route is there twice: as trainers call it, for the teacher's own domain, and below `/teacher/DOMAIN`, so that the
address that a trainer is given names the domain. Nothing is ever sampled: a request that wants more than log-probs of
its own ids is refused rather than answered with something else. Knows shapes; nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, JsonValue, Strict

from gdr_plugin.api.errors import DataError, RequestError, unknown
from gdr_plugin.reward.teacher import RawIds
from gdr_plugin.serve import teacher_swift
from gdr_plugin.serve.answers import JsonAnswer
from gdr_plugin.serve.vllm import MODEL, models_answer

if TYPE_CHECKING:
    from gdr_plugin.reward.teacher import TokenValues
    from gdr_plugin.serve.service import BatchingService

_Id = Annotated[int, Strict()]
_Domain = Annotated[str, Path(description="A domain of gdr.yaml: whose guidance the models are shown.")]
_Handler = Callable[[Any, "str | None"], Awaitable[JsonAnswer]]
_RANK = 1
"""The rank of each id in vLLM's shapes. Virtual log-probs rank nothing; clients sort by it and need a number."""
_IDS: list[JsonValue] = [72, 101, 108, 108, 111]


class GenerateRequest(BaseModel):
    """SGLang's `/generate`, as slime and miles send it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "input_ids": _IDS,
                    "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
                    "return_logprob": True,
                    "logprob_start_len": 0,
                }
            ]
        },
    )
    input_ids: Annotated[
        list[_Id] | list[list[_Id]] | None, Field(description="Prompt and response together; or a list of such lists.")
    ] = None
    sampling_params: Annotated[dict[str, Any], Field(description="`max_new_tokens` must be 0 or 1.")] = {}
    return_logprob: bool = False
    logprob_start_len: Annotated[
        _Id, Field(description="The first place in the answer; the id there has no value of its own, as in SGLang.")
    ] = -1
    top_logprobs_num: int = 0


class CompletionRequest(BaseModel):
    """vLLM's `/v1/completions` with `prompt_logprobs`, as TRL and rLLM send it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [{"model": MODEL, "prompt": [_IDS], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}]
        },
    )
    model: str | None = None
    prompt: Annotated[
        str | list[str] | list[_Id] | list[list[_Id]],
        Field(description="Prompt and response together, as ids; or a list of such lists."),
    ]
    max_tokens: Annotated[int | None, Field(description="Must be 0 or 1.")] = None
    temperature: Annotated[float | None, Field(description="Must be 0 or 1: log-probs are those of the models.")] = None
    prompt_logprobs: Annotated[int | None, Field(description="Must be 0 or 1: the ids' own log-probs are there.")] = (
        None
    )


class InferenceRequest(BaseModel):
    """vLLM's `/inference/v1/generate`, as prime-rl sends it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": MODEL,
                    "token_ids": _IDS,
                    "sampling_params": {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1},
                }
            ]
        },
    )
    model: str | None = None
    token_ids: Annotated[list[_Id], Field(description="Prompt and response together.")]
    sampling_params: Annotated[
        dict[str, Any], Field(description="`max_tokens` 0 or 1, `prompt_logprobs` 0 or 1, `temperature` 0 or 1.")
    ] = {}


def routes(service: BatchingService) -> APIRouter:
    """The routes of the teacher.

    Args:
        service: Scores the ids; it has a teacher.
    """
    api = APIRouter(tags=["teacher"])
    assert service.teacher is not None
    domains = service.teacher.ratio.domains

    async def generate(body: GenerateRequest, domain: str | None = None) -> JsonAnswer:
        questions, several = _of_sglang(body, domain)
        found = await service.teach(questions)
        answers = [_sglang(asked, values) for asked, values in zip(questions, found, strict=True)]
        return JsonAnswer(answers if several else answers[0])

    async def completions(body: CompletionRequest, domain: str | None = None) -> JsonAnswer:
        questions = _of_vllm(body, domain)
        found = await service.teach(questions)
        return JsonAnswer(_completions(questions, found))

    async def inference(body: InferenceRequest, domain: str | None = None) -> JsonAnswer:
        _refuse_sampling(body.sampling_params, "max_tokens")
        _refuse_candidates(body.sampling_params.get("prompt_logprobs"))
        _refuse_extras(body)
        asked = RawIds(tuple(body.token_ids), domain=domain)
        (values,) = await service.teach([asked])
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length", "token_ids": []}
        return JsonAnswer(
            {
                "request_id": f"generate-{uuid4().hex}",
                "choices": [choice],
                "prompt_logprobs": _by_id(asked, values),
                "kv_transfer_params": None,
            }
        )

    prompts = teacher_swift.Prompts(service.settings.policy_tokenizer)

    async def infer(body: teacher_swift.InferRequest, domain: str | None = None) -> JsonAnswer:
        wanted = body.request_config
        _refuse_sampling(wanted, "max_tokens")
        if wanted.get("prompt_logprobs") != 0:
            raise DataError(
                f"prompt_logprobs must be 0, not {wanted.get('prompt_logprobs')!r:.40}: virtual log-probs are known of "
                "the policy's ids, not of other candidates; use --rlhf_type grpo (docs/teacher.md)"
            )
        rows = body.infer_requests
        asked = await service.read(lambda: [prompts.question(row, domain) for row in rows], items=len(rows))
        found = await service.teach(asked)
        return JsonAnswer(teacher_swift.answer(asked, list(map(_by_id, asked, found))))

    def known(domain: str) -> None:
        if domain not in domains:
            raise RequestError(unknown("domain", domain, domains), status=404)

    def add(path: str, summary: str, body: type[BaseModel], handler: _Handler) -> None:
        async def own(request: Any) -> JsonAnswer:
            return await handler(request, None)

        async def of_domain(domain: _Domain, request: Any) -> JsonAnswer:
            known(domain)
            return await handler(request, domain)

        for endpoint in (own, of_domain):
            endpoint.__annotations__["request"] = body  # FastAPI reads the body's shape here
        api.add_api_route(path, own, methods=["POST"], summary=summary)
        api.add_api_route(f"/teacher/{{domain}}{path}", of_domain, methods=["POST"], summary=f"{summary}, by domain")

    add("/generate", "Virtual log-probs for slime and miles", GenerateRequest, generate)
    add("/v1/completions", "Virtual log-probs for TRL and rLLM", CompletionRequest, completions)
    add("/inference/v1/generate", "Virtual log-probs for prime-rl", InferenceRequest, inference)

    add("/infer/", "Virtual log-probs for ms-swift", teacher_swift.InferRequest, infer)

    @api.get("/teacher/{domain}/health", summary="As /health: clients ask below the address that they are given")
    async def health(domain: _Domain) -> JsonAnswer:
        known(domain)
        dead = service.failure
        return JsonAnswer({"status": "alive" if dead is None else "dead", "reason": dead}, 200 if dead is None else 503)

    @api.get("/teacher/{domain}/v1/models", summary="As /v1/models")
    async def models(domain: _Domain) -> JsonAnswer:
        known(domain)
        return JsonAnswer(models_answer(service.ratio))

    return api


def _of_sglang(body: GenerateRequest, domain: str | None) -> tuple[list[RawIds], bool]:
    """The questions of a request, and whether it has several.

    Raises:
        DataError: It wants something else than log-probs of its ids.
    """
    if body.input_ids is None:
        raise DataError("send `input_ids`: a teacher scores the policy's own ids, not text")
    if not body.return_logprob or body.logprob_start_len < 0:
        raise DataError("send `return_logprob: true` and `logprob_start_len: 0`: log-probs are all that is answered")
    _refuse_sampling(body.sampling_params, "max_new_tokens", temperature=False)
    if body.top_logprobs_num > 0:
        raise DataError(
            "top_logprobs_num must be 0: virtual log-probs are known of the ids that came, not of other candidates"
        )
    _refuse_extras(body)
    several = bool(body.input_ids) and isinstance(body.input_ids[0], list)
    rows: Any = body.input_ids if several else [body.input_ids]
    return [RawIds(tuple(ids), body.logprob_start_len, domain) for ids in rows], several


def _of_vllm(body: CompletionRequest, domain: str | None) -> list[RawIds]:
    """The questions of a request.

    Raises:
        DataError: It wants something else than log-probs of its ids.
    """
    first = body.prompt[0] if body.prompt else None
    if isinstance(body.prompt, str) or isinstance(first, str):
        raise DataError("send `prompt` as token ids: a teacher scores the policy's own ids, not text")
    _refuse_sampling({"max_tokens": body.max_tokens, "temperature": body.temperature}, "max_tokens")
    _refuse_candidates(body.prompt_logprobs)
    _refuse_extras(body)
    rows: Any = body.prompt if isinstance(first, list) else [body.prompt]
    return [RawIds(tuple(ids), domain=domain) for ids in rows]


def _refuse_sampling(params: Mapping[str, Any], length: str, *, temperature: bool = True) -> None:
    """Refuse a request that wants new tokens, or log-probs at another temperature."""
    if params.get(length) not in (0, 1):
        raise DataError(f"{length} must be 0 or 1, not {params.get(length)!r:.40}: a teacher writes nothing itself")
    if params.get("n") not in (None, 1):
        raise DataError("n must be 1: a teacher writes nothing itself")
    if temperature and params.get("temperature") not in (None, 0, 1):
        raise DataError(
            f"temperature must be 1 (or 0), not {params.get('temperature')!r:.40}: the ratio is one of the models' own "
            "log-probs; set the trainer's temperature to 1"
        )


def _refuse_candidates(count: object) -> None:
    if count not in (0, 1):
        raise DataError(
            f"prompt_logprobs must be 1 (or 0), not {count!r:.40}: virtual log-probs are known of the ids that came, "
            "not of other candidates; use a loss of sampled tokens (docs/teacher.md)"
        )


_EXTRAS = (
    "best_of",
    "echo",
    "embed_overrides",
    "features",
    "image_data",
    "audio_data",
    "video_data",
    "input_embeds",
    "logit_bias",
    "logprobs",
    "lora_path",
    "prompt_embeds",
    "stream",
    "suffix",
    "text",
    "token_ids_logprob",
    "truncate_prompt_tokens",
)
"""Parameters that ask for what is not there, or would change the log-probs."""


def _refuse_extras(body: BaseModel) -> None:
    extra = body.model_extra or {}
    if wrong := [name for name in (*_EXTRAS, "n") if extra.get(name) and (name != "n" or extra["n"] != 1)]:
        raise DataError(f"{', '.join(wrong)}: not supported by a teacher, which scores the ids that come and no more")


def _sglang(asked: RawIds, values: TokenValues) -> dict[str, Any]:
    logprobs = [None, *values.values.tolist()]
    ids = asked.ids[asked.start :]
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": uuid4().hex,
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(asked.ids),
            "completion_tokens": 0,
            "cached_tokens": 0,
            "input_token_logprobs": [[logprob, id, None] for logprob, id in zip(logprobs, ids, strict=True)],
            "output_token_logprobs": [],
        },
    }


def _by_id(asked: RawIds, values: TokenValues) -> list[dict[str, Any] | None]:
    """The shape of vLLM's `prompt_logprobs`: nothing for the first id, then each id with its virtual log-prob."""
    later = zip(asked.ids[1:], values.values.tolist(), strict=True)
    return [None, *({str(id): {"logprob": value, "rank": _RANK, "decoded_token": None}} for id, value in later)]


def _completions(questions: list[RawIds], found: list[TokenValues]) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "text": "",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": _by_id(asked, values),
        }
        for index, (asked, values) in enumerate(zip(questions, found, strict=True))
    ]
    tokens = sum(len(asked.ids) for asked in questions)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    head = {"id": f"cmpl-{uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": MODEL}
    return {**head, "choices": choices, "usage": usage}

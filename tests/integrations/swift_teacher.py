"""Asks a teacher as ms-swift's GRPO does, with its released code: `python swift_teacher.py`, a job on standard input.

The job is `{"url", "tokenizer", "prefix", "rows": [{"messages", "response"}]}`, responses as ids; the answer is what
ms-swift takes for the teacher's log-prob of each response's ids, or the error's text. Of the trainer, the parts that
want vLLM or a GPU stand apart: the check that vLLM is installed is switched off.
"""

from __future__ import annotations

import json
import sys
import warnings
from types import SimpleNamespace
from typing import Any


def logprobs(job: dict[str, Any]) -> list[list[float]]:
    import torch
    from swift.infer_engine import RequestConfig
    from swift.rl_core.data import GRPOSample
    from swift.rlhf_trainers import vllm_client
    from swift.rlhf_trainers.gkd_helpers import (
        assemble_teacher_completion_logprobs,
        build_teacher_requests,
        parse_teacher_model_server,
    )
    from swift.rlhf_trainers.utils import parse_prompt_logprobs
    from transformers import AutoTokenizer

    vllm_client.is_vllm_available = lambda: True
    template = SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(job["tokenizer"]), _get_response_prefix=lambda _: job["prefix"]
    )
    samples = [
        GRPOSample(
            messages=[*row["messages"], {"role": "assistant", "content": "text of the ids"}],
            response_token_ids=[row["response"]],
        )
        for row in job["rows"]
    ]
    (server,) = parse_teacher_model_server(job["url"])
    client = vllm_client.VLLMInferClient(base_urls=[server.url], connection_timeout=2.0)
    answers = client.infer(
        build_teacher_requests(samples, template),
        request_config=RequestConfig(prompt_logprobs=job["topk"], max_tokens=1, temperature=0.0),
        use_tqdm=False,
    )
    parsed = [parse_prompt_logprobs(answer, topk=job["topk"]) for answer in answers]
    sizes = [len(row["response"]) for row in job["rows"]]
    mask = torch.tensor([[int(at < size) for at in range(max(sizes))] for size in sizes])
    found = assemble_teacher_completion_logprobs(
        parsed, mask, torch.device("cpu"), response_token_ids=[sample.response_token_ids for sample in samples]
    )
    return [row[:size] for row, size in zip(found.topk_logprobs[..., 0].tolist(), sizes, strict=True)]


def main() -> None:
    warnings.simplefilter("ignore")
    answers: list[Any] = []
    for job in json.load(sys.stdin):
        try:
            answers.append(logprobs(job))
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    print(json.dumps({"answers": answers}))


if __name__ == "__main__":
    main()

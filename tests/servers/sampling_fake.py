"""The fake server with answers to what a policy is asked: drawn from its numbers' vocabulary by the request's seed.

A response is a text of the fake's own choosing, cut at the limit, as ids (vLLM, SGLang) or as text (chat completions).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.servers.fake import FakeServer, ReplyError

WORDS = ("river", "people", "story", "reward", "model", "today", "return", "sort")


def seeded_text(seed: int) -> str:
    """What the fake answers to a request with this seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 6))) + "."


@dataclass
class SamplingFake(FakeServer):
    """A fake server that answers."""

    says: Callable[[int], str] = seeded_text
    """The text of a response, by the request's seed."""
    message: dict[str, Any] = field(default_factory=dict)
    """More keys of a chat completion's message."""
    finish: str | None = None
    """Instead of `stop` and `length`."""
    wants_newer: bool = False
    """Whether `max_tokens` is refused, as newer models of OpenAI's do."""

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.kind == "vllm" and path == "/v1/completions" and "prompt_logprobs" not in body:
            return self._completion(body)
        if self.kind == "sglang" and path == "/generate" and not body.get("return_logprob"):
            return self._generation(body)
        if path == "/v1/chat/completions":
            return self._chat(body)
        return super()._post(path, body)

    def _drawn(self, prompt: list[int], seed: int, limit: int, ends: list[int]) -> tuple[list[int], bool]:
        """Ids of a response with its end, cut at the limit."""
        if len(prompt) + limit > self.longest:
            raise ReplyError(
                400, {"error": {"message": f"This model's maximum context length is {self.longest} tokens"}}
            )
        ids = self.tokenizer(self.says(seed), add_special_tokens=False).input_ids
        ids = [*ids, ends[0]] if ends else ids
        return ids[:limit], len(ids) <= limit

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] not in self.models:
            raise ReplyError(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
        ids, ended = self._drawn(body["prompt"], body["seed"], body["max_tokens"], body["stop_token_ids"])
        finish = self.finish or ("stop" if ended else "length")
        choice = {"index": 0, "text": "", "finish_reason": finish, "stop_reason": None, "token_ids": ids}
        return {"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}}

    def _generation(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body["sampling_params"]
        ids, ended = self._drawn(
            body["input_ids"], asked.get("sampling_seed", 0), asked["max_new_tokens"], asked["stop_token_ids"]
        )
        reason: dict[str, Any] = (
            {"type": "stop", "matched": ids[-1]} if ended else {"type": "length", "length": len(ids)}
        )
        reason = {"type": self.finish} if self.finish else reason
        return {"text": "", "output_ids": ids, "meta_info": {"finish_reason": reason, "completion_tokens": len(ids)}}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.wants_newer and "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            raise ReplyError(400, {"error": {"message": said, "code": "unsupported_parameter"}})
        if sum(len(turn["content"]) for turn in body["messages"]) > self.longest:
            raise ReplyError(
                400, {"error": {"message": f"This model's maximum context length is {self.longest} tokens"}}
            )
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        words = self.says(body["seed"]).split(" ")
        finish = self.finish or ("stop" if len(words) <= limit else "length")
        message = {"role": "assistant", "content": " ".join(words[:limit]), **self.message}
        return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": {}}

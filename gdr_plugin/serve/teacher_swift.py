"""ms-swift's `/infer/` for a teacher: messages whose last turn is the policy's answer as ids, and log-probs of all.

Knows ms-swift's shapes and how its policy's template makes ids of the messages in front; nothing of models. Contract:
ms-swift 4.6, whose client finds the answer at the end of the log-probs by its ids.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from gdr_plugin.api.errors import ChatError, ConfigError, DataError
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.reward.teacher import RawIds
from gdr_plugin.serve.vllm import MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.api.types import Conversation
    from gdr_plugin.models.text.chat import Chat

_EXAMPLE: Any = {
    "infer_requests": [
        {"messages": [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": [72, 105]}]}
    ],
    "request_config": {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0},
}
_MEDIA = ("images", "audios", "videos", "objects", "tools")


class InferRequest(BaseModel):
    """What ms-swift's teacher client sends for a batch."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})
    infer_requests: Annotated[
        list[dict[str, Any]],
        Field(description="Each with `messages`, of which the last one is the assistant's, with ids as its content."),
    ]
    request_config: Annotated[
        dict[str, Any], Field(description="`prompt_logprobs` 0, `max_tokens` 0 or 1, `temperature` 0 or 1.")
    ] = {}


class Prompts:
    """Makes the ids that a policy was asked with of messages, by its own tokenizer and template.

    Args:
        tokenizer: Hub id or folder of the policy's tokenizer; None where it is not known.
    """

    def __init__(self, tokenizer: str | None) -> None:
        self._name = tokenizer
        self._opened: tuple[Chat, PreTrainedTokenizerBase] | None = None
        self._opening = threading.Lock()

    def question(self, row: dict[str, Any], domain: str | None) -> RawIds:
        """What the teacher is asked about one of ms-swift's requests.

        Raises:
            DataError: It has something else than text in front of ids, or the template cannot write the messages.
        """
        if wrong := [name for name in _MEDIA if row.get(name)]:
            raise DataError(f"{', '.join(wrong)}: not supported by a teacher, which is shown text alone")
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
            raise DataError("send `messages`, the answer last")
        answer = _ids_of(messages[-1])
        earlier = messages[:-1]
        if any(isinstance(turn, dict) and _has_ids(turn.get("content")) for turn in earlier):
            raise DataError("only the last turn may be ids: answers in several turns are not supported")
        return RawIds((*self._asked(parse_prompt(earlier), answer), *answer), domain=domain)

    def _asked(self, prompt: Conversation, answer: tuple[int, ...]) -> tuple[int, ...]:
        chat, tokenizer = self._open()
        try:
            ids, opened = chat.asked(prompt)
        except ChatError as error:
            raise DataError(f"the policy's template: {error}") from error
        if opened.strip():
            # Where the template opens reasoning, ms-swift sends what opens it as the beginning of the answer.
            for size in range(min(len(ids), len(answer)), 0, -1):
                if ids[-size:] == answer[:size] and opened.strip() in tokenizer.decode(list(answer[:size])):
                    return ids[:-size]
        return ids

    def _open(self) -> tuple[Chat, PreTrainedTokenizerBase]:
        with self._opening:
            if self._opened is None:
                from gdr_plugin.models.local.source import open_tokenizer
                from gdr_plugin.models.text.chat import Chat

                if self._name is None:
                    raise ConfigError("ms-swift sends messages: start gdr serve with --policy-tokenizer NAME")
                tokenizer = open_tokenizer(self._name)
                # The teacher itself says what is too long for its models.
                self._opened = Chat(tokenizer, max_length=1 << 30), tokenizer
            return self._opened


def _has_ids(content: object) -> bool:
    return isinstance(content, dict) or (isinstance(content, list) and any(type(part) is int for part in content))


def _ids_of(turn: dict[str, Any]) -> tuple[int, ...]:
    content = turn.get("content")
    ids = content.get("token_ids") if isinstance(content, dict) else content
    if turn.get("role") != "assistant" or not isinstance(ids, list):
        raise DataError("the last turn must be the assistant's, as token ids: a teacher scores the policy's own ids")
    if not ids or not all(type(id) is int for id in ids):
        raise DataError("the last turn must have token ids, and nothing else")
    return tuple(ids)


def answer(asked: Sequence[RawIds], by_id: Sequence[list[dict[str, Any] | None]]) -> list[dict[str, Any]]:
    """ms-swift's answer: a chat completion for each request, without choices.

    Args:
        asked: What the teacher was asked.
        by_id: Its virtual log-probs, in the shape of vLLM's `prompt_logprobs`.
    """
    return [
        {
            "id": f"chatcmpl-{uuid4().hex}",
            "model": MODEL,
            "choices": [],
            "usage": {"prompt_tokens": len(row.ids), "completion_tokens": 0, "total_tokens": len(row.ids)},
            "prompt_logprobs": logprobs,
        }
        for row, logprobs in zip(asked, by_id, strict=True)
    ]

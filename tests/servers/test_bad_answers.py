"""An answer that is not one log-prob for each id asked is an error, never a number."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.types import TokenSpan
from tests.servers.conftest import KINDS, MakeServer
from tests.servers.test_scoring import opened

SPAN = TokenSpan((1, 5, 9), (7, 8, 10, 11))
Spoil = Callable[[list[Any]], list[Any]]


def spoilt(kind: str, answer: dict[str, Any], spoil: Spoil) -> dict[str, Any]:
    """The answer with another list of the response's log-probs."""
    if kind == "sglang":
        first, *rows = answer["meta_info"]["input_token_logprobs"]
        values = spoil([row[0] for row in rows])
        answer["meta_info"]["input_token_logprobs"] = [
            first,
            *([value, *row[1:]] for value, row in zip(values, rows, strict=False)),
        ]
    elif kind == "vllm":
        array = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
        file = io.BytesIO()
        np.save(file, np.array(spoil(list(array[:, 0])), np.float32)[:, None])
        answer["prompt_token_id_logprobs"] = base64.b64encode(file.getvalue()).decode()
    elif kind == "vllm completions":
        choice = answer["choices"][0]
        rows = choice["prompt_logprobs"]
        values = spoil([next(iter(row.values()))["logprob"] for row in rows[3:]])
        old = [next(iter(row)) for row in rows[3:]]
        choice["prompt_logprobs"] = rows[:3] + [
            {key: {"logprob": value}} for key, value in zip(old, values, strict=False)
        ]
    else:
        found = answer["choices"][0]["logprobs"]
        own, rest = found["token_logprobs"][3:7], found["token_logprobs"][7:]
        found["token_logprobs"] = found["token_logprobs"][:3] + spoil(own) + rest
        found["tokens"] = found["tokens"][: len(found["token_logprobs"])]
    return answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: values[:-2], "4 tokens|for 7 tokens"),
        (lambda values: [*values[:-1], math.nan], "not a finite number"),
        (lambda values: [-math.inf, *values[1:]], "not a finite number"),
        (lambda values: [0.7, *values[1:]], "a probability above 1"),
    ],
)
def test_numbers_that_are_none(kind: str, spoil: Spoil, message: str, server: MakeServer) -> None:
    fake = server(**KINDS[kind])
    model = opened(fake)
    fake.after = lambda _path, _body, answer: spoilt(kind, answer, spoil)
    with pytest.raises(ModelError, match=message):
        model.score([SPAN])


@pytest.mark.parametrize("kind", ["vllm completions", "sglang", "openai ids"])
def test_a_null_among_the_numbers(kind: str, server: MakeServer) -> None:
    fake = server(**KINDS[kind])
    model = opened(fake)
    fake.after = lambda _path, _body, answer: spoilt(kind, answer, lambda values: [None, *values[1:]])
    with pytest.raises(ModelError, match="a log-prob is missing"):
        model.score([SPAN])


def change(path: list[Any], value: Any) -> Callable[..., Any]:
    def after(_path: str, _body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        found: Any = answer
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = value
        return answer

    return after


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("sglang", ["meta_info", "input_token_logprobs", 2, 1], 99, "answered for id 99 where 8 was asked"),
        ("sglang", ["meta_info", "input_token_logprobs", 2, 1], 0, "answered for id 0 where 8 was asked"),
        ("sglang", ["meta_info"], {}, "has no meta_info.input_token_logprobs: it is a server of another kind"),
        ("vllm", ["prompt_token_id_logprobs"], None, "without log-probs, also without its cache"),
        ("vllm", ["prompt_token_id_logprobs"], "no array!", "no array of numpy"),
        ("vllm completions", ["choices", 0, "prompt_logprobs", 5], {"99": {"logprob": -1.0}}, "no log-prob of id 10"),
        ("vllm completions", ["choices", 0, "prompt_logprobs"], None, "no list of prompt_logprobs"),
        ("openai ids", ["choices", 0, "logprobs"], None, "no log-probs of a given text: what can is vLLM"),
        ("openai ids", ["choices", 0, "logprobs", "tokens", 4], "zebra", "other tokens \\('zebra'"),
        ("openai text", ["choices", 0, "logprobs", "tokens", 4], "zebra", "other tokens \\('zebra'"),
    ],
)
def test_answers_of_another_form(kind: str, path: list[Any], value: Any, message: str, server: MakeServer) -> None:
    fake = server(**KINDS[kind])
    model = opened(fake)
    fake.after = change(path, value)
    with pytest.raises(ModelError, match=message) as caught:
        model.score([SPAN])
    assert "\n" not in str(caught.value)
    assert fake.url in str(caught.value)

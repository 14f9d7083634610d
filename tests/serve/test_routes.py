"""The HTTP dialects and what stands in front of them, through the application itself."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from gdr_plugin import hookimpl
from gdr_plugin.api.errors import DataError, PluginError
from gdr_plugin.api.types import Message, Sample, ToolCall
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import BatchingService, ScoringService, guard, native, squash
from gdr_plugin.serve.app import create_app
from gdr_plugin.serve.entry import TOKEN_FIELDS
from gdr_plugin.serve.native import RowScore

pytestmark = pytest.mark.anyio
DEADLINE_S = 30
Connect = Callable[..., Any]
Make = Callable[..., Sample]
Until = Callable[[Callable[[], bool]], Awaitable[None]]

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is two plus two?"}]


def message_of(answer: httpx2.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == answer.status_code
    text: str = error["message"]
    assert "\n" not in text
    return text


async def metrics_of(client: httpx2.AsyncClient) -> dict[str, float]:
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    lines = (line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_rows_give_the_librarys_scores(connect: Connect, ratio: GuidedDensityRatio, strict_json: Any) -> None:
    rows = [
        {"id": "a", "prompt": CHAT, "response": "Four.", "finished": False},
        {"prompt": "Say hi.", "response": "Hi.", "domain": "all", "year": 2020},
        {"prompt": "Say hi.", "response": ""},
    ]
    chat = tuple(Message(turn["role"], turn["content"]) for turn in CHAT)
    samples = [
        Sample(chat, "Four.", finished=False),
        Sample((Message("user", "Say hi."),), "Hi.", fields={"domain": "all", "year": 2020}),
        Sample((Message("user", "Say hi."),), ""),
    ]
    expected = ratio.score(samples)
    async with connect() as client:
        answer = await client.post("/v1/gdr/score", json={"rows": rows})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    scores = strict_json(answer.text)["scores"]
    assert [row["id"] for row in scores] == ["a", "row-000002", "row-000003"]
    for row, score in zip(scores, expected, strict=True):
        assert row["reward"] == score.reward
        assert row["strong_logprob"] == score.strong_logprob
        assert row["weak_tokens"] == score.weak_tokens
        assert row["domain"] == "all"
        assert row["truncated"] is False
        assert not set(row) & set(TOKEN_FIELDS)


async def test_rows_with_token_logprobs(connect: Connect) -> None:
    async with connect() as client:
        answer = await client.post("/v1/gdr/score", json={"rows": [{"prompt": "Hi", "response": "Yo"}], "tokens": True})
    (score,) = answer.json()["scores"]
    assert len(score["strong_token_logprobs"]) == score["strong_tokens"] == 3
    assert sum(score["token_ratios"]) == pytest.approx(score["reward"])
    assert sum(score["token_rewards"]) == pytest.approx(score["reward"])
    assert set(TOKEN_FIELDS) <= set(RowScore.model_fields)
    assert set(score) <= set(RowScore.model_fields)


async def test_long_token_logprobs_are_sent_in_pieces(connect: Connect, strict_json: Any) -> None:
    from gdr_plugin.serve.answers import LongAnswer

    rows = [{"id": 'a"b', "prompt": "Hi", "response": "Yo" * 6_000}, {"prompt": "Hi", "response": "é"}]
    async with connect() as client:
        answer = await client.post("/v1/gdr/score", json={"rows": rows, "tokens": True})
        short = await client.post("/v1/gdr/score", json={"rows": rows[1:], "tokens": True})
    assert answer.headers["content-type"] == "application/json"
    long, other = strict_json(answer.text)["scores"]
    assert long["id"] == 'a"b'
    assert len(long["weak_token_logprobs"]) == len(long["strong_token_offsets"]) == long["strong_tokens"] == 12_001
    assert sum(long["token_rewards"]) == pytest.approx(long["reward"])
    assert {**other, "id": "row-000001"} == strict_json(short.text)["scores"][0]
    items = [{"x": 1, "y": list(range(5_001)), "z": [], "w": None}, {}, {"y": [[1, 2]]}]
    pieces = [piece async for piece in LongAnswer("é", items).body_iterator]
    assert len(pieces) > 1
    assert strict_json(b"".join(pieces).decode("ascii")) == {"é": items}


async def test_more_token_logprobs_than_anybody_wants_are_refused(connect: Connect) -> None:
    rows = [{"prompt": "Hi", "response": "x" * 70_000}] * 4
    async with connect() as client:
        answer = await client.post("/v1/gdr/score", json={"rows": rows, "tokens": True})
        assert answer.status_code == 413
        message = "responses of 280,000 characters with `tokens: true`: send at most 262,144 in one request"
        assert answer.json()["error"]["message"] == message
        assert (await client.post("/v1/gdr/score", json={"rows": rows})).status_code == 200


async def test_what_is_not_scored_is_null_with_a_reason(connect: Connect, strict_json: Any) -> None:
    async with connect() as client:
        answer = await client.post("/v1/gdr/score", json={"rows": [{"prompt": "Hi", "response": "nan"}]})
        (score,) = strict_json(answer.text)["scores"]
        assert score["reward"] is score["strong_logprob"] is None
        assert "not finite" in score["reason"]
        answer = await client.post("/score", json={"text_1": "Hi", "text_2": ["nan", "Yo"]})
        bad, good = strict_json(answer.text)["data"]
        assert bad["score"] is None
        assert "not finite" in bad["reason"]
        assert isinstance(good["score"], float)
        assert "reason" not in good
        values = await metrics_of(client)
    label = "strong model: log-probs are not finite (try dtype floatN or bfloatN)"
    assert values[f'gdr_not_scored_total{{reason="{label}"}}'] == 2


def parts(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]}


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
async def test_vllm_score(
    connect: Connect, ratio: GuidedDensityRatio, make: Make, path: str, names: tuple[str, str]
) -> None:
    first, second = names
    question = "What is two plus two?"
    rewards = [score.reward for score in ratio.score([make("4"), make("5")])]
    async with connect() as client:
        for prompts, responses in (
            (question, ["4", "5"]),
            ([question], ["4", "5"]),
            ([question, question], ["4", "5"]),
            ([{"role": "user", "content": question}], ["4", "5"]),
            ([[{"role": "user", "content": question}]] * 2, ["4", "5"]),
            (parts(question), [parts("4"), "5"]),
            ([parts(question), question], [parts("4"), parts("5")]),
        ):
            answer = await client.post(path, json={"model": "any", first: prompts, second: responses})
            assert answer.status_code == 200, answer.text
            body = answer.json()
            assert body["object"] == "list"
            assert body["model"] == "gdr"
            assert body["data"] == [
                {"index": index, "object": "score", "score": reward} for index, reward in enumerate(rewards)
            ]
            usage = body["usage"]
            assert (usage["prompt_tokens"], usage["total_tokens"], usage["completion_tokens"]) == (4, 4, 0)
        answer = await client.post(path, json={first: question, second: "4", "use_activation": True})
        assert answer.json()["data"][0]["score"] == pytest.approx(squash(rewards[0] or math.nan))
        none = await client.post(path, json={first: question, second: []})
        assert none.json()["data"] == []
        wrong = await client.post(path, json={first: [question] * 2, second: ["4"] * 3})
        assert wrong.status_code == 422
        assert message_of(wrong) == "2 prompts for 3 responses: send one prompt, or as many as responses"


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
async def test_vllm_classify(connect: Connect, ratio: GuidedDensityRatio, make: Make, path: str) -> None:
    talk = [{"role": "user", "content": "What is two plus two?"}, {"role": "assistant", "content": "Four."}]
    (score,) = ratio.score([make()])
    assert score.reward is not None
    async with connect(temperature=3.0) as client:
        answer = await client.post(path, json={"messages": talk})
        (item,) = answer.json()["data"]
        assert item == {"index": 0, "label": "reward", "probs": [squash(score.reward, 3.0)], "num_classes": 1}
        raw = await client.post(path, json={"messages": [talk, talk], "activation": False})
        assert [item["probs"] for item in raw.json()["data"]] == [[score.reward]] * 2
        (whole, cut) = ratio.score([make(), make(finished=False)])
        assert whole.reward != cut.reward
        open_ended = [talk[0], {"role": "assistant", **parts("Four.")}]
        body = {"messages": open_ended, "continue_final_message": True, "use_activation": False}
        assert (await client.post(path, json=body)).json()["data"][0]["probs"] == [cut.reward]
        text = await client.post(path, json={"input": "user: hi assistant: ho"})
        assert text.status_code == 422
        assert "send `messages`" in message_of(text)
        open_end = await client.post(path, json={"messages": [talk, talk[:1]]})
        assert open_end.status_code == 422
        assert "conversation 1 must end with an assistant turn" in message_of(open_end)


CALLED: Any = {
    "role": "assistant",
    "content": None,
    "reasoning_content": "Look it up.",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Lyon"}'}}],
}


async def test_tool_calls_and_reasoning_are_scored_in_every_dialect(
    connect: Connect, ratio: GuidedDensityRatio
) -> None:
    turns = [{"role": "user", "content": "Weather?"}, CALLED, {"role": "tool", "content": "Rain."}]
    call = (ToolCall("weather", '{"city": "Lyon"}'),)
    before = (Message("user", "Weather?"),)
    called = Message("assistant", "", "Look it up.", call)
    answer = Sample(before, "", reasoning="Look it up.", tool_calls=call)
    later = Sample((*before, called, Message("tool", "Rain.")), "Rain.")
    bare = Sample((*before, Message("assistant", ""), Message("tool", "Rain.")), "Rain.")
    scores = [score.reward for score in ratio.score([answer, later, bare])]
    assert len(set(scores)) == 3
    said = {"role": "assistant", "content": "Rain."}
    async with connect() as client:
        rows = [
            {"prompt": "Weather?", "response": [CALLED]},
            {"prompt": turns, "response": "Rain."},
            {"messages": [*turns, said]},
        ]
        native = (await client.post("/v1/gdr/score", json={"rows": rows})).json()["scores"]
        assert [score["reward"] for score in native] == [scores[0], scores[1], scores[1]]
        body = {"messages": [turns[:2], [*turns, said]], "use_activation": False}
        classified = (await client.post("/classify", json=body)).json()["data"]
        assert [item["probs"] for item in classified] == [[scores[0]], [scores[1]]]
        paired = (await client.post("/score", json={"text_1": turns, "text_2": "Rain."})).json()["data"]
        assert [item["score"] for item in paired] == [scores[1]]


async def test_texts_stay_texts_in_vllms_dialect(connect: Connect, ratio: GuidedDensityRatio) -> None:
    spelt = '[{"role": "user", "content": "Hi"}]'
    (score,) = ratio.score([Sample((Message("user", spelt),), spelt)])
    async with connect() as client:
        answer = await client.post("/score", json={"text_1": spelt, "text_2": spelt})
        assert answer.json()["data"][0]["score"] == score.reward


async def test_what_differs_in_a_call_is_no_repetition(connect: Connect) -> None:
    """Scores of repeated samples come from memory: calls and reasoning are part of what is repeated."""
    async with connect() as client:
        rewards = []
        for city in ("Lyon", "Paris"):
            call = {"function": {"name": "weather", "arguments": {"city": city}}}
            row = {"prompt": "Weather?", "response": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
            answer = await client.post("/v1/gdr/score", json={"rows": [row]})
            rewards.append(answer.json()["scores"][0]["reward"])
        assert rewards[0] != rewards[1]


async def test_status(connect: Connect, model: Any, ratio: GuidedDensityRatio, until: Until) -> None:
    async with connect(start=False, token="sesame") as client:
        service = client.service
        assert (await client.get("/health")).json() == {"status": "alive", "batch_running_s": None}
        unready = await client.get("/ready")
        assert unready.status_code == 503
        assert unready.json() == {"ready": False, "reason": "the models are not loaded yet"}
        await service.start()
        model.gate.clear()
        loading = asyncio.ensure_future(service.load())
        await until(lambda: service.batcher.busy_since is not None)
        assert (await client.get("/health")).json()["batch_running_s"] >= 0  # the event loop is free
        assert (await client.get("/ready")).status_code == 503
        model.gate.set()
        await loading
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "reason": None})
        client.headers["Authorization"] = "Bearer sesame"
        info = await client.get("/info")
        assert "sesame" not in info.text
        facts = info.json()
        assert facts["strong"]["identity"] == ratio.strong.identity
        assert facts["weak"]["name"] == "fake:weak"
        assert facts["settings"]["token"] == "set"
        assert facts["domains"] == {"all": "none"}
        (listed,) = (await client.get("/v1/models")).json()["data"]
        assert (listed["id"], listed["object"], listed["weak"]) == ("gdr", "model", "fake:weak")
        await service.stop()
        assert (await client.get("/ready")).json()["reason"] == "the server is stopping"


async def test_a_dead_worker_is_unhealthy(connect: Connect) -> None:
    async with connect() as client:
        answer = await client.post("/score", json={"text_1": "Hi", "text_2": "kill"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "the worker died (SystemExit: 3)" in message_of(answer)
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "dead"
        assert (await client.get("/ready")).status_code == 503


async def test_a_failing_sample_is_an_error_of_its_request_alone(connect: Connect) -> None:
    async with connect(max_wait_ms=50) as client:
        bad, good = await asyncio.gather(
            client.post("/score", json={"text_1": "Hi", "text_2": ["poison", "fine"]}),
            client.post("/score", json={"text_1": "Hi", "text_2": "good"}),
        )
    assert good.status_code == 200
    assert bad.status_code == 500
    assert message_of(bad) == "the model failed on a sample: ValueError: it tasted bad"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/gdr/score", {"rows": [{"prompt": "Hi"}]}, "rows[0] has no `response`"),
        ("/v1/gdr/score", {"rows": [{"prompt": [], "response": ""}]}, "rows[0]: `prompt` has no user turn"),
        ("/v1/gdr/score", {"rows": [1]}, "body.rows.0"),
        ("/v1/gdr/score", {}, "body.rows: Field required"),
        ("/v1/gdr/score", {"rows": [], "token": True}, "body.token: Extra inputs are not permitted"),
        ("/v1/gdr/score", [], "body"),
        ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "\ud800"}]}, "an unpaired surrogate"),
        ("/score", {"text_1": "Hi", "text_2": "\ud800"}, "item 0: `response` holds an unpaired"),
        ("/score", {"text_1": "Hi"}, "text_2"),
        ("/score", {"text_1": "", "text_2": "x"}, "`prompt` is empty"),
        ("/score", {"text_1": [["x"]], "text_2": "x"}, "text_1"),
        ("/score", {"text_1": "x", "text_2": {"content": [{"type": "image_url"}]}}, "only text can be scored"),
        ("/score", {"text_1": {"content": [{"type": "image_url"}]}, "text_2": "x"}, "only text can be scored"),
        ("/score", {"text_1": "x", "text_2": {}}, "`response` must be a string"),
        ("/score", {"text_1": "x", "text_2": "y", "truncate_prompt_tokens": 0, "user": "me"}, None),
        ("/score", {"text_1": "x", "text_2": "y", "truncate_prompt_tokens": 9}, "truncate_prompt_tokens is not"),
        ("/classify", {"messages": [], "chat_template": "{{ x }}"}, "chat_template is not supported"),
        (
            "/classify",
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "\ud800"}]},
            "conversation 0: the content of the last message of `response` holds an unpaired surrogate",
        ),
        ("/classify", {}, "send `messages`"),
        ("/classify", {"messages": []}, None),
    ],
)
async def test_wrong_input_is_refused_clearly(connect: Connect, path: str, body: Any, message: str | None) -> None:
    async with connect() as client:
        content = json.dumps(body).encode()  # the client's own encoder refuses an unpaired surrogate
        answer = await client.post(path, content=content, headers={"content-type": "application/json"})
        if message is None:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 422
            assert message in message_of(answer)
        assert (await client.get("/ready")).status_code == 200


async def test_malformed_bodies_and_unknown_routes(connect: Connect) -> None:
    async with connect() as client:
        headers = {"content-type": "application/json"}
        broken = await client.post("/score", content=b'{"text_1": NaN, "text_2', headers=headers)
        assert broken.status_code == 422
        assert "JSON" in message_of(broken)
        nan = await client.post("/score", content=b'{"text_1": NaN, "text_2": Infinity}', headers=headers)
        assert nan.status_code == 422
        assert "nan" not in nan.text
        assert (await client.get("/nothing")).status_code == 404
        assert message_of(await client.get("/score")) == "Method Not Allowed"
        values = await metrics_of(client)
    assert values['gdr_requests_total{route="(none)",status="404"}'] == 1
    assert values['gdr_requests_total{route="/score",status="422"}'] == 2
    assert not [name for name in values if "/nothing" in name]


async def test_every_refusal_is_one_line_of_the_log(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    async with connect(max_items=1, token="secret") as client:
        client.headers["authorization"] = "Bearer secret"
        await client.post("/score", json={"text_1": "Hi", "text_2": "Yo"})
        assert not caplog.records
        await client.post("/score", json={"text_1": "Hi", "text_2": ["Yo", "Hey"]})
        await client.post("/v1/gdr/score", json={"rows": [{"prompt": "Hi"}]})
        await client.get("/score?token=guess")
        await client.get("/no%0Asuch%1b[31m/route")
        await client.post("/v1/gdr/score", json={"rows": [], "x\n2026 ERROR forged\u2028\u202e": 1})
        await client.post("/v1/gdr/score", json={"rows": [], "x" * 5000: 1})
        del client.headers["authorization"]
        await client.post("/score?token=guess", json={})
    lines = [record.getMessage() for record in caplog.records]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert lines[:5] == [
        "refused POST /score: 413 2 items in one request: send at most 1",
        "refused POST /v1/gdr/score: 422 rows[0] has no `response`",
        "refused GET /score: 405 Method Not Allowed",
        "refused GET /no\\nsuch\\x1b[31m/route: 404 Not Found",
        "refused POST /v1/gdr/score: 422 body.x\\n2026 ERROR forged\\u2028\\u202e: Extra inputs are not permitted",
    ]
    assert lines[5] == f"refused POST /v1/gdr/score: 422 body.{'x' * 100}: Extra inputs are not permitted"
    assert lines[6].startswith("refused POST /score: 401 the token is missing or wrong")
    assert len(lines) == 7
    assert not [line for line in lines if "guess" in line or "secret" in line]


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", ["/score", "/v1/gdr/score", "/classify"])
async def test_a_body_that_is_not_announced_as_json_says_so(connect: Connect, path: str, given: str | None) -> None:
    async with connect() as client:
        headers = {} if given is None else {"content-type": given}
        answer = await client.post(path, content=b'{"text_1": "Hi", "text_2": "Yo"}', headers=headers)
        said = f"is announced as {given!r}" if given else "has no content type"
        assert answer.status_code == 415
        assert message_of(answer) == f"the body {said}: send it with `Content-Type: application/json`"
        nothing = await client.post(path)
        assert nothing.status_code == 422
        kind = {"content-type": "application/vnd.mine+json; charset=utf-8"}
        read = await client.post("/score", content=b'{"text_1": "Hi", "text_2": "Yo"}', headers=kind)
        assert read.status_code == 200


async def test_limits(connect: Connect) -> None:
    async with connect(max_items=3, max_chars=50, max_body_mb=0.001) as client:
        many = await client.post("/score", json={"text_1": "Hi", "text_2": ["x"] * 4})
        assert (many.status_code, message_of(many)) == (413, "4 items in one request: send at most 3")
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
        assert (await client.post("/classify", json={"messages": turns})).status_code == 200  # one conversation
        long = await client.post("/score", json={"text_1": "Hi", "text_2": "x" * 60})
        assert (long.status_code, message_of(long)) == (413, "item 0 has 62 characters: send at most 50")
        large = await client.post("/score", json={"text_1": "Hi", "text_2": "x" * 2000})
        assert (large.status_code, message_of(large)[:31]) == (413, "the body is larger than 1,048 b")

        async def chunks() -> Any:
            for _ in range(100):
                yield b"x" * 100

        streamed = await client.post("/score", content=chunks())  # no length announced
        assert streamed.status_code == 413


M = 300_000
HOSTILE = [
    ("/v1/gdr/score", {"rows": [{"prompt": [{"role": "x" * M, "content": "y"}], "response": "Yes."}]}, 422),
    ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "Yes.", "id": "x" * M}]}, 422),
    ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "Yes.", "domain": "x" * M}]}, 413),
    ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "Yes.", "domain": "x" * 100_000}]}, 200),
    ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "Yes.", "more": list(range(M))}]}, 413),
    ("/v1/gdr/score", {"rows": [{"prompt": "Hi", "response": "Yes.", "more": [{"k" * 9: [1] * 9}] * 30_000}]}, 413),
    ("/v1/gdr/score", {"rows": ["x" * M]}, 422),
    ("/v1/gdr/score", {"rows": [], "x" * M: 1}, 422),
    ("/v1/gdr/score", {"rows": [{}] * 9_000}, 413),
    ("/get_reward", {"query": ["x"] * 9_000, "prompts": ["x"] * 9_000, "labels": []}, 413),
    ("/score", {"text_1": "Hi", "text_2": ["x"] * 9_000}, 413),
    ("/classify", {"messages": [[]] * 9_000}, 413),
]


@pytest.mark.parametrize(("path", "body", "status"), HOSTILE)
async def test_what_is_huge_is_not_sent_back(connect: Connect, path: str, body: Any, status: int) -> None:
    """Too many items are refused before any is read: those of 9,000 are wrong."""
    async with connect() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == status
        assert len(answer.content) < 3_000


async def test_a_large_body_is_read_beside_the_others(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        reading.set()
        assert go_on.wait(DEADLINE_S)
        return row(*given)

    row = native._row
    monkeypatch.setattr(native, "_row", slow)
    async with connect() as client:
        rows = [{"prompt": "Hi", "response": "x" * 40_000}]
        large = asyncio.create_task(client.post("/v1/gdr/score", json={"rows": rows}))
        assert await asyncio.to_thread(reading.wait, DEADLINE_S)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/score", json={"text_1": "Hi", "text_2": "Yo"})).status_code == 200
        assert not large.done()
        go_on.set()
        assert (await large).status_code == 200


async def test_token(connect: Connect) -> None:
    body = {"text_1": "Hi", "text_2": "Yo"}
    async with connect(token="open sesame!") as client:
        for request in (
            {},
            {"headers": {"Authorization": "Bearer wrong"}},
            {"headers": {"Authorization": "Basic open sesame!"}},
            {"params": {"token": "open sesame"}},
            {"headers": {"Authorization": "Bearer ä".encode("latin-1")}},
        ):
            refused = await client.post("/score", json=body, **request)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "the token is missing or wrong" in message_of(refused)
        for path in ("/metrics", "/info", "/v1/models", "/docs", "/openapi.json", "/nothing"):
            assert (await client.get(path)).status_code == 401
        for path in ("/health", "/ready"):
            assert (await client.get(path)).status_code == 200
        for request in (
            {"headers": {"Authorization": "Bearer open sesame!"}},
            {"headers": {"Authorization": "bearer  open sesame!"}},
            {"params": {"token": "open sesame!"}},
        ):
            assert (await client.post("/score", json=body, **request)).status_code == 200


async def test_metrics_count_what_happened(connect: Connect, ratio: GuidedDensityRatio, make: Make) -> None:
    scores = ratio.score([make(f"answer {i}") for i in range(3)])
    rewards = [score.reward or 0.0 for score in scores]
    body = {"text_1": "What is two plus two?", "text_2": [f"answer {i}" for i in range(3)]}
    async with connect() as client:
        before = await metrics_of(client)
        for _ in range(2):
            await client.post("/score", json=body)
        values = await metrics_of(client)
    tokens = sum(score.strong_tokens for score in scores)
    assert values['gdr_tokens_total{model="strong"}'] - before['gdr_tokens_total{model="strong"}'] == tokens
    assert values['gdr_requests_total{route="/score",status="200"}'] == 2
    assert values['gdr_request_seconds_count{route="/score"}'] == 2
    assert values['gdr_samples_total{domain="all"}'] == 6
    assert values['gdr_cache_hits_total{kind="finished"}'] == 3
    assert values["gdr_batch_samples_sum"] == 4  # the probe's and ours
    assert values["gdr_ready"] == 1
    assert values["gdr_queue_samples"] == values["gdr_waiting_samples"] == 0
    assert values['gdr_rewards_sum{domain="all"}'] == pytest.approx(2 * sum(rewards))
    below = sum(reward <= 1 for reward in rewards)
    assert values['gdr_reward_bucket{domain="all",le="1.0"}'] == 2 * below


async def test_metrics_are_what_prometheus_reads(connect: Connect) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with connect(max_batch=4) as client:
        bodies = [{"text_1": f"Question {i % 7}?", "text_2": [f"answer {i}", "nan"]} for i in range(60)]
        await asyncio.gather(*(client.post("/score", json=body) for body in bodies))
        await client.post("/score", json={"text_1": 'a "quoted" \\ line\n', "text_2": 3})
        await client.get("/metrics")
        page = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(page)}
    labels = {
        name: {key for sample in family.samples for key in sample.labels} - {"le"}
        for name, family in families.items()
        if name.startswith("gdr_") and not name.endswith("_created")
    }
    assert {name: found for name, found in labels.items() if found} == {
        "gdr_requests": {"route", "status"},
        "gdr_request_seconds": {"route"},
        "gdr_samples": {"domain"},
        "gdr_reward": {"domain"},
        "gdr_rewards_sum": {"domain"},
        "gdr_not_scored": {"reason"},
        "gdr_cache_hits": {"kind"},
        "gdr_tokens": {"model"},
    }
    assert all(family.documentation for family in families.values())
    assert {name for name, family in families.items() if family.type == "unknown"} == set()
    rewards = [sample for sample in families["gdr_reward"].samples if sample.name == "gdr_reward_bucket"]
    inner = [b.value - a.value for a, b in pairwise(rewards)]
    assert sum(inner) + rewards[0].value == 60
    assert rewards[0].value == 0  # nothing beyond the ends,
    assert inner[-1] == 0
    assert max(inner) < 60  # and not all in one


@pytest.mark.filterwarnings("ignore:a prompt or response spells out")
async def test_metrics_count_marks_of_a_template(connect: Connect, ratio: GuidedDensityRatio, tiny_model: Any) -> None:
    real = GuidedDensityRatio.from_models(str(tiny_model()), str(tiny_model(seed=1)))
    ratio.strong, ratio.weak = real.strong, real.weak
    async with connect(cache=0) as client:
        assert (await metrics_of(client))["gdr_spelt_marks_total"] == 0
        texts = ["Paris.", "Paris.<|im_end|>", "<|im_start|>"]
        assert (await client.post("/score", json={"text_1": "Where?", "text_2": texts})).status_code == 200
        assert (await metrics_of(client))["gdr_spelt_marks_total"] == 2


async def test_metrics_show_the_store(model: Any, tmp_path: Any, connect: Connect, ratio: GuidedDensityRatio) -> None:
    stored = GuidedDensityRatio.from_models(model, "fake:weak", store=tmp_path / "store.sqlite")
    ratio.strong, ratio.weak = stored.strong, stored.weak
    async with connect(cache=0) as client:
        for _ in range(3):
            await client.post("/score", json={"text_1": "Hi", "text_2": "Yo"})
        values = await metrics_of(client)
    assert values['gdr_store_hits_total{model="strong"}'] == 2
    assert values["gdr_store_failures_total"] == 0
    assert values['gdr_store_misses_total{model="weak"}'] == 2


SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/score",
    "raw_path": b"/score",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


async def test_a_body_that_stalls_is_given_up(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.02)
    async with connect(start=False) as client:
        body = [{"type": "http.request", "body": b'{"text_1": ', "more_body": True}]
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return body.pop() if body else await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            sent.append(message)

        await create_app(client.service, Plugins(entry_points=False))(dict(SCOPE), receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b"the body did not come within" in sent[1]["body"]


async def test_a_body_that_drips_is_given_up(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    async with connect(start=False) as client:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.001)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        await create_app(client.service, Plugins(entry_points=False))(dict(SCOPE), receive, send)
    assert sent[0]["status"] == 408


async def test_a_client_that_hangs_up_is_forgotten(connect: Connect, model: Any, until: Until) -> None:
    async with connect() as client:
        service = client.service
        app = create_app(service, Plugins(entry_points=False))
        model.gate.clear()
        hung_up = asyncio.Event()
        body = [{"type": "http.request", "body": b'{"text_1": "Hi", "text_2": "Yo"}', "more_body": False}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await hung_up.wait()
            return {"type": "http.disconnect"}

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = dict(SCOPE)
        request = asyncio.ensure_future(app(scope, receive, send))
        await until(lambda: service.batcher.busy_since is not None)
        hung_up.set()
        await asyncio.wait_for(request, 10)
        assert not sent
        assert all(entry.waiters == 0 for entry in service.batcher._unfinished)
        model.gate.set()
        values = await metrics_of(client)
    assert values['gdr_requests_total{route="/score",status="disconnected"}'] == 1


async def test_every_example_of_the_api_description_works(connect: Connect) -> None:
    async with connect() as client:
        described = (await client.get("/openapi.json")).json()
        tried = 0
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"]
                if method == "post" and path not in (
                    "/get_reward",
                    "/llamafactory",
                    "/slime",
                ):  # they need a policy tokenizer
                    schema = operation["requestBody"]["content"]["application/json"]["schema"]
                    for example in described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["examples"]:
                        answer = await client.post(path, json=example)
                        assert answer.status_code == 200, (path, answer.text)
                        tried += 1
        assert tried >= 5
        assert (await client.get("/docs")).status_code == 200


class Dialect:
    """A plugin with a route of its own."""

    def __init__(self, path: str = "/mine") -> None:
        self.path = path

    @hookimpl
    def gdr_serve_routes(self, service: ScoringService) -> Iterable[APIRouter]:
        router = APIRouter()

        @router.post(self.path, summary="Mine")
        async def mine(body: dict[str, str]) -> JSONResponse:
            if "text" not in body:
                raise DataError("send `text`")
            (score,) = await service.score([Sample((Message("user", "Hi"),), body["text"])])
            return JSONResponse({"squashed": service.squash(score.reward or 0.0)})

        return [router]


async def test_a_plugin_adds_a_dialect(connect: Connect, ratio: GuidedDensityRatio, make: Make) -> None:
    (score,) = ratio.score([make("Yo", "Hi")])
    async with connect(Dialect()) as client:
        answer = await client.post("/mine", json={"text": "Yo"})
        assert answer.json() == {"squashed": squash(score.reward or 0.0)}
        wrong = await client.post("/mine", json={})
        assert (wrong.status_code, message_of(wrong)) == (422, "send `text`")
        assert (await metrics_of(client))['gdr_requests_total{route="/mine",status="422"}'] == 1


async def test_a_route_twice_names_both_plugins(ratio: GuidedDensityRatio) -> None:
    with pytest.raises(PluginError, match=r"the route POST /score comes from 'built-in' and from 'Dialect'"):
        create_app(BatchingService(ratio), Plugins(Dialect("/score"), entry_points=False))


async def test_a_plugin_that_returns_no_router_is_named(ratio: GuidedDensityRatio) -> None:
    class Wrong:
        @hookimpl
        def gdr_serve_routes(self, service: ScoringService) -> Any:
            return ["/mine"]

    with pytest.raises(PluginError, match="plugin 'Wrong': gdr_serve_routes returned an object of type str"):
        create_app(BatchingService(ratio), Plugins(Wrong(), entry_points=False))

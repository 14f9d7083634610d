"""The teacher's routes: the shapes that clients read, domains by path, what is refused, and `gdr serve --teacher`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gdr_plugin.models.fake import BOS
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.reward.teacher import RawIds, Teacher
from gdr_plugin.serve import BatchingService, ServeSettings
from gdr_plugin.serve.app import create_app

pytestmark = pytest.mark.anyio
IDS = [BOS, *b"Say hello. Hello."]
SGLANG: dict[str, Any] = {
    "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
    "return_logprob": True,
    "logprob_start_len": 0,
}
VLLM: dict[str, Any] = {"model": "gdr", "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 1}
PRIME: dict[str, Any] = {"sampling_params": {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1}}
SWIFT: dict[str, Any] = {"request_config": {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "n": 1}}
Teach = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def config() -> dict[str, Any]:
    return {"strong": "fake:strong", "weak": "fake:weak"}


@pytest.fixture
def teacher(config: dict[str, Any]) -> Teacher:
    ratio = GuidedDensityRatio.from_config(config)
    return Teacher(ratio, ratio.strong.chat.vocabulary(), scale=2.0)  # type: ignore[attr-defined]


@pytest.fixture
def teach(teacher: Teacher) -> Teach:
    @asynccontextmanager
    async def connected(taught: Teacher = teacher, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
        service = BatchingService(taught.ratio, ServeSettings(**{"max_wait_ms": 20, **settings}), teacher=taught)
        app = create_app(service, Plugins(entry_points=False))
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gdr", timeout=30) as client, service:
            client.service = service  # type: ignore[attr-defined]
            yield client

    return connected


def expected(teacher: Teacher, ids: list[int], domain: str | None = None) -> list[float]:
    (found,) = teacher.score([RawIds(tuple(ids), domain=domain)])
    return found.values.tolist()  # type: ignore[union-attr,no-any-return]


def expected_from(teacher: Teacher, start: int) -> list[float]:
    (found,) = teacher.score([RawIds(tuple(IDS), start)])
    return found.values.tolist()  # type: ignore[union-attr,no-any-return]


async def test_sglang_as_slime_reads_it(teach: Teach, teacher: Teacher) -> None:
    async with teach() as client:
        answer = await client.post("/generate", json={"input_ids": IDS, **SGLANG})
        later = await client.post("/generate", json={"input_ids": IDS, **SGLANG, "logprob_start_len": 4})
        several = await client.post("/generate", json={"input_ids": [IDS, IDS[:5]], **SGLANG})
    assert answer.status_code == 200
    entries = answer.json()["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in entries] == IDS
    assert entries[0][0] is None
    values = [entry[0] for entry in entries[1:]]  # what slime and miles do, and then cut the response off the end
    assert values == expected(teacher, IDS)
    rest = later.json()["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in rest] == IDS[4:]
    assert rest[0][0] is None
    assert [entry[0] for entry in rest[1:]] == expected_from(teacher, 4)
    assert [len(row["meta_info"]["input_token_logprobs"]) for row in several.json()] == [len(IDS), 5]


async def test_slimes_advantage_is_scale_times_the_ratio(config: dict[str, Any], teach: Teach) -> None:
    """slime subtracts `coef * (student - teacher)`; a student that is still the weak model gets the scaled ratio."""
    ratio = GuidedDensityRatio.from_config(config)
    taught = Teacher(ratio, ratio.strong.chat.vocabulary(), scale=1.7)  # type: ignore[attr-defined]
    response_length = 6
    async with teach(taught) as client:
        answer = await client.post("/generate", json={"input_ids": IDS, **SGLANG})
    logprobs = [entry[0] for entry in answer.json()["meta_info"]["input_token_logprobs"][1:]][-response_length:]
    (found,) = taught.score([RawIds(tuple(IDS))])
    ratios = found.ratios[-response_length:]  # type: ignore[union-attr]
    student = found.values[-response_length:] - 1.7 * ratios  # type: ignore[union-attr]  # the weak model's log-probs
    advantages = [0.0 - 0.5 * (own - teacher) for own, teacher in zip(student, logprobs, strict=True)]
    assert advantages == pytest.approx((0.5 * 1.7 * ratios).tolist(), abs=1e-6)


async def test_vllm_as_trls_own_client_reads_it(teach: Teach, teacher: Teacher) -> None:
    vllm_client = pytest.importorskip("trl.generation.vllm_client")
    async with teach() as client:
        answer = await client.post("/v1/completions", json={"prompt": [IDS, IDS[:7]], **VLLM})
        flat = await client.post("/v1/completions", json={"prompt": IDS, **VLLM, "prompt_logprobs": 0})
    body = answer.json()
    read = vllm_client.VLLMClient._format_sequence_logprobs
    for choice, ids, begin in zip(body["choices"], (IDS, IDS[:7]), (11, 3), strict=True):
        found = read(choice, ids, begin, 1)
        assert [value for (value,) in found["actual_logprobs"]] == expected(teacher, ids)[begin - 1 :]
        assert [id for (id,) in found["actual_token_ids"]] == ids[begin:]
    assert flat.json()["choices"][0]["prompt_logprobs"] == body["choices"][0]["prompt_logprobs"]
    assert body["choices"][0]["prompt_logprobs"][0] is None
    assert body["usage"]["prompt_tokens"] == len(IDS) + 7


async def test_prime_rls_shape(teach: Teach, teacher: Teacher) -> None:
    async with teach() as client:
        answer = await client.post("/inference/v1/generate", json={"model": "m", "token_ids": IDS, **PRIME})
    rows = answer.json()["prompt_logprobs"]
    assert len(rows) == len(IDS)
    assert rows[0] is None
    first_entries = [next(iter(row.values()))["logprob"] for row in rows[1:]]
    assert first_entries == [row[str(id)]["logprob"] for row, id in zip(rows[1:], IDS[1:], strict=True)]
    assert first_entries == expected(teacher, IDS)


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.mark.parametrize(("template", "opened"), [(None, ""), (THINKING, "<think>\n")])
async def test_ms_swifts_messages_become_the_policys_ids(
    teach: Teach, tiny_model: Any, template: str | None, opened: str
) -> None:
    from transformers import AutoTokenizer

    policy = str(tiny_model(**({} if template is None else {"chat_template": template})))
    taught = Teacher.from_ratio(GuidedDensityRatio.from_models(policy, str(tiny_model(seed=2))), policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    front = tokenizer.encode(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    answer = tokenizer.encode("\nA river.<|im_end|>")
    for sent in (answer, tokenizer.encode(opened) + answer):  # what opens reasoning may be sent, and counts once
        turns = [*prompt, {"role": "assistant", "content": sent}]
        async with teach(taught, policy_tokenizer=policy) as client:
            found = await client.post("/infer/", json={"infer_requests": [{"messages": turns}], **SWIFT})
        (row,) = found.json()
        assert row["prompt_logprobs"][0] is None
        ids = [int(id) for entry in row["prompt_logprobs"][1:] for id in entry]
        assert ids == (front + answer)[1:]
        values = [entry["logprob"] for entry in row["prompt_logprobs"][1:] for entry in entry.values()]
        assert values == pytest.approx(expected(taught, front + answer), abs=1e-4)


async def test_ms_swift_is_refused_what_is_no_answer_in_ids(teach: Teach, tiny_model: Any) -> None:
    ask, ids = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": [72, 73]}
    masked = {"role": "assistant", "content": {"token_ids": [72], "loss_scale": [1]}}
    refused: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"messages": [ask, {"role": "assistant", "content": "text"}]}, {}, "as token ids"),
        ({"messages": [ask]}, {}, "the last turn must be the assistant's"),
        ({"messages": [ask, {"role": "assistant", "content": [72, True]}]}, {}, "and nothing else"),
        ({"messages": [ask, masked, ask, ids]}, {}, "only the last turn may be ids"),
        ({"messages": [ask, ids], "images": ["x"]}, {}, "images: not supported"),
        ({"messages": [{"role": "user", "content": 3}, ids]}, {}, "content"),
        ({"messages": [ids]}, {}, "prompt"),
        ({}, {}, "send `messages`"),
        ({"messages": [ask, ids]}, {"prompt_logprobs": 64}, "prompt_logprobs must be 0, not 64"),
        ({"messages": [ask, ids]}, {"max_tokens": None}, "max_tokens must be 0 or 1"),
    ]
    policy = str(tiny_model())
    async with teach(policy_tokenizer=policy) as client:
        for row, changed, said in refused:
            body = {"infer_requests": [row], "request_config": {**SWIFT["request_config"], **changed}}
            answer = await client.post("/infer/", json=body)
            assert answer.status_code == 422, (row, answer.text)
            assert said in answer.json()["error"]["message"], (said, answer.text)
    async with teach() as client:
        answer = await client.post("/infer/", json={"infer_requests": [{"messages": [ask, ids]}], **SWIFT})
    assert answer.status_code == 500
    assert "--policy-tokenizer" in answer.json()["error"]["message"]


async def test_the_path_names_the_domain(teach: Teach, teacher: Teacher) -> None:
    async with teach() as client:
        own = await client.post("/generate", json={"input_ids": IDS, **SGLANG})
        chat = await client.post("/teacher/chat/generate", json={"input_ids": IDS, **SGLANG})
        math = await client.post("/teacher/math/generate", json={"input_ids": IDS, **SGLANG})
        vllm = await client.post("/teacher/math/v1/completions", json={"prompt": IDS, **VLLM})
        prime = await client.post("/teacher/math/inference/v1/generate", json={"token_ids": IDS, **PRIME})
        assert (await client.get("/teacher/math/health")).json()["status"] == "alive"
        assert (await client.get("/teacher/math/v1/models")).json() == (await client.get("/v1/models")).json()
        for lost in (client.post("/teacher/maths/generate", json={"input_ids": IDS, **SGLANG}),
                     client.get("/teacher/maths/health")):  # fmt: skip
            answer = await lost
            assert answer.status_code == 404
            assert "'math'" in answer.json()["error"]["message"]
    values = [[entry[0] for entry in row.json()["meta_info"]["input_token_logprobs"][1:]] for row in (own, chat, math)]
    assert values[0] == values[1] == expected(teacher, IDS)
    assert values[2] == expected(teacher, IDS, "math") != values[0]
    assert [next(iter(row.values()))["logprob"] for row in prime.json()["prompt_logprobs"][1:]] == values[2]
    rows = vllm.json()["choices"][0]["prompt_logprobs"]
    assert [row[str(id)]["logprob"] for row, id in zip(rows[1:], IDS[1:], strict=True)] == values[2]


async def test_requests_share_batches_among_themselves_and_with_samples(teach: Teach, teacher: Teacher) -> None:
    strong: Any = teacher.ratio.strong
    rows = [[BOS, *f"Question {number}".encode()] for number in range(24)]
    async with teach(max_wait_ms=200) as client:
        before = strong.calls
        answers = await asyncio.gather(
            *(client.post("/generate", json={"input_ids": ids, **SGLANG}) for ids in rows),
            client.post("/v1/gdr/score", json={"rows": [{"prompt": "Hi", "response": "Yo"}]}),
        )
        assert strong.calls - before <= 4
        page = (await client.get("/metrics")).text
    assert answers[-1].json()["scores"][0]["reward"] is not None
    for ids, answer in zip(rows, answers[:-1], strict=True):
        assert [entry[0] for entry in answer.json()["meta_info"]["input_token_logprobs"][1:]] == expected(teacher, ids)
    assert "gdr_taught_total 25.0" in page  # the probe, too


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {**SGLANG}, "send `input_ids`"),
    ("/generate", {**SGLANG, "input_ids": IDS, "return_logprob": False}, "return_logprob"),
    ("/generate", {"input_ids": IDS, "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}, "start_len"),
    ("/generate", {**SGLANG, "input_ids": IDS, "sampling_params": {"max_new_tokens": 2}}, "must be 0 or 1, not 2"),
    ("/generate", {**SGLANG, "input_ids": IDS, "sampling_params": {}}, "max_new_tokens must be 0 or 1"),
    ("/generate", {**SGLANG, "input_ids": IDS, "top_logprobs_num": 16}, "top_logprobs_num must be 0"),
    ("/generate", {**SGLANG, "input_ids": IDS, "token_ids_logprob": [1, 2]}, "token_ids_logprob: not supported"),
    ("/generate", {**SGLANG, "input_ids": IDS, "image_data": ["x"]}, "image_data: not supported"),
    ("/generate", {**SGLANG, "input_ids": [*IDS, 259]}, "id 259 is not in the vocabulary"),
    ("/generate", {**SGLANG, "input_ids": [*IDS, True]}, "input_ids"),
    ("/generate", {**SGLANG, "input_ids": []}, "there are no ids"),
    ("/generate", {**SGLANG, "input_ids": IDS, "logprob_start_len": 99}, "cannot begin behind place 99"),
    ("/v1/completions", {**VLLM, "prompt": "text"}, "as token ids"),
    ("/v1/completions", {**VLLM, "prompt": ["text"]}, "as token ids"),
    ("/v1/completions", {**VLLM, "prompt": []}, "there are no ids"),
    ("/v1/completions", {**VLLM, "prompt": IDS, "prompt_logprobs": 8}, "prompt_logprobs must be 1"),
    ("/v1/completions", {"prompt": IDS, "max_tokens": 1}, "prompt_logprobs must be 1"),
    ("/v1/completions", {**VLLM, "prompt": IDS, "max_tokens": 16}, "max_tokens must be 0 or 1"),
    ("/v1/completions", {"prompt": IDS, "prompt_logprobs": 1}, "max_tokens must be 0 or 1"),
    ("/v1/completions", {**VLLM, "prompt": IDS, "temperature": 0.7}, "temperature must be 1"),
    ("/v1/completions", {**VLLM, "prompt": IDS, "stream": True}, "stream: not supported"),
    ("/v1/completions", {**VLLM, "prompt": IDS, "n": 2}, "n: not supported"),
    ("/inference/v1/generate", {"token_ids": IDS, "sampling_params": {"max_tokens": 1}}, "prompt_logprobs"),
    ("/inference/v1/generate", {"token_ids": IDS}, "max_tokens must be 0 or 1"),
]  # fmt: skip


async def test_what_needs_sampling_or_other_candidates_is_refused_in_one_line(teach: Teach) -> None:
    async with teach() as client:
        for path, body, said in REFUSED:
            answer = await client.post(path, json=body)
            assert answer.status_code == 422, (path, body)
            message = answer.json()["error"]["message"]
            assert said in message, (said, message)
            assert "\n" not in message


async def test_too_much_is_refused(teach: Teach, config: dict[str, Any]) -> None:
    ratio = GuidedDensityRatio.from_config({**config, "limits": {"max_length": 1500}})
    taught = Teacher(ratio, ratio.strong.chat.vocabulary())  # type: ignore[attr-defined]
    async with teach(taught, max_items=2) as client:
        many = await client.post("/v1/completions", json={"prompt": [IDS] * 3, **VLLM})
        long = await client.post("/generate", json={"input_ids": [BOS, *[65] * 1500], **SGLANG})
    assert many.status_code == 413
    assert long.status_code == 422
    assert "1,501 ids behind 0 of guidance exceed the 1,500 tokens" in long.json()["error"]["message"]


async def test_nan_never_leaves_and_harms_no_other_request(model: Any, teach: Teach) -> None:
    ratio = GuidedDensityRatio.from_models(model, "fake:weak")
    taught = Teacher(ratio, model.chat.vocabulary())
    async with teach(taught) as client:
        bad, good = await asyncio.gather(
            client.post("/generate", json={"input_ids": [BOS, *b"a nan here"], **SGLANG}),
            client.post("/generate", json={"input_ids": [BOS, *b"all is well"], **SGLANG}),
        )
    assert bad.status_code == 500
    assert "strong model: log-probs are not finite" in bad.json()["error"]["message"]
    assert good.status_code == 200


async def test_info_says_what_is_taught_and_without_a_teacher_there_are_no_routes(teach: Teach, connect: Any) -> None:
    async with teach() as client:
        told = (await client.get("/info")).json()["teacher"]
    assert told == {
        "values": "log weak + 2 * (log strong - log weak)",
        "domain": "chat",
        "guidance": told["guidance"],
        "reference": "weak",
    }
    async with connect() as client:
        assert (await client.get("/info")).json()["teacher"] is None
        assert (await client.post("/generate", json={"input_ids": IDS, **SGLANG})).status_code == 404


def test_the_command_wants_a_policy_tokenizer_and_compares_it(gdr: Any, tmp_path: Path, tiny_model: Any) -> None:
    config = tmp_path / "gdr.yaml"
    config.write_text("strong: fake:strong\nweak: fake:weak\n")
    code, _, error = gdr("serve", config, "--port", 0, "--teacher")
    assert code == 2
    assert "--policy-tokenizer" in error
    code, _, error = gdr("serve", config, "--port", 0, "--teacher-domain", "math")
    assert code == 2
    assert "add --teacher" in error
    code, _, error = gdr("serve", config, "--port", 0, "--teacher", "--policy-tokenizer", tiny_model())
    assert code == 2
    assert "the strong model's vocabulary is not the policy's" in error


def test_the_command_serves_a_teacher(tiny_model: Any, serve: Any, tmp_path: Path) -> None:
    strong, weak = tiny_model(seed=1), tiny_model(seed=2)
    (tmp_path / "gdr.yaml").write_text(f"strong: {strong}\nweak: {weak}\n")
    options = ("--teacher", "--policy-tokenizer", str(strong), "--scale", "1.5", "--teacher-domain", "math")
    server = serve("--port", "0", *options)
    url = server.url()
    told = server.lines.get(timeout=30)
    assert told.startswith("gdr: teacher: log weak + 1.5 * (log strong - log weak); math: guidance math[")
    ids = [5, 99, 7, 300, 42]
    found = httpx2.post(f"{url}/generate", json={"input_ids": ids, **SGLANG}).json()
    ratio = GuidedDensityRatio.from_config(tmp_path / "gdr.yaml")
    teacher = Teacher.from_ratio(ratio, str(strong), scale=1.5, domain="math")
    values = [entry[0] for entry in found["meta_info"]["input_token_logprobs"][1:]]
    assert values == pytest.approx(expected(teacher, ids), abs=1e-4)

"""Released OpenRLHF clients against a real `gdr serve`: what arrives is the core's reward."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from gdr_openrlhf.dialect import Dialect
from gdr_plugin.adapters.rendered import open_prompt_reader
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message, Sample, Score
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.serve import ServeSettings, squash

Client = Callable[..., ModuleType]

KEYS = {
    "gdr_reward", "gdr_strong_logprob", "gdr_weak_logprob", "gdr_tokens", "gdr_finished", "gdr_truncated",
    "gdr_default_domain", "gdr_clipped", "gdr_unscored",
}  # fmt: skip
USER = "What is 17 + 25?"
ANSWERS = ["It is 42.", "I do not know.", "42", "", "Forty\n\n- two 🙂 <|not a mark|>"]


@pytest.fixture(scope="session")
def tokenizer(policy: Path) -> Any:
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture(scope="session")
def core(config: Path) -> Callable[..., list[Score]]:
    """The core's own scores of responses to `USER`, without any server."""
    ratio = GuidedDensityRatio.from_config(config)

    def score(*responses: str, finished: bool = True, prompt: str = USER, **fields: Any) -> list[Score]:
        turns = (Message("user", prompt),)
        return ratio.score([Sample(turns, response, finished=finished, fields=fields) for response in responses])

    return score


def templated(tokenizer: Any, *contents: str) -> str:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


class Engine:
    """Generates a given text, as vLLM does: token ids, the end included when it ended."""

    def __init__(self, tokenizer: Any, text: str, *, finish_reason: str = "stop") -> None:
        ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
        self.ids = ids + [tokenizer.eos_token_id] * (finish_reason == "stop")
        self.finish_reason = finish_reason
        self.seen: list[int] = []

    async def generate(self, prompt: list[int], parameters: Any, multi_modal_data: Any = None) -> Any:
        self.seen = prompt
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=self.ids, finish_reason=self.finish_reason, logprobs=None, text="")]
        )


def post(url: str, body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            return json.loads(answer.read(), parse_constant=lambda text: pytest.fail(text))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


PARAMETERS = SimpleNamespace(max_tokens=64, logprobs=None)


def test_execute_brings_the_cores_reward(
    client: Client, server: Any, tokenizer: Any, core: Callable[..., list[Score]]
) -> None:
    """The whole turn of 0.11.2's executor: tokenize, generate, decode, ask for the reward over HTTP."""
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(server.rewards)
    prompt = templated(tokenizer, USER)

    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *(executor.execute(prompt, "", PARAMETERS, 512, tokenizer, Engine(tokenizer, text)) for text in ANSWERS)
        )

    outputs = asyncio.run(run())
    for output, score in zip(outputs, core(*ANSWERS), strict=True):
        assert score.reward is not None
        assert output["reward"] == [pytest.approx(score.reward, abs=1e-4)]
        assert output["scores"] == [pytest.approx(squash(score.reward), abs=1e-4)]
        assert set(output["extra_logs"]) == KEYS
        assert output["extra_logs"]["gdr_strong_logprob"] == [pytest.approx(score.strong_logprob, abs=1e-3)]
        assert output["extra_logs"]["gdr_tokens"] == [score.strong_tokens]


def test_a_cut_response_is_scored_without_its_end(
    client: Client, server: Any, tokenizer: Any, core: Callable[..., list[Score]]
) -> None:
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(server.rewards)
    engine = Engine(tokenizer, "It is 42, since", finish_reason="length")
    output = asyncio.run(executor.execute(templated(tokenizer, USER), "", PARAMETERS, 512, tokenizer, engine))
    (cut,), (ended,) = core("It is 42, since", finished=False), core("It is 42, since")
    assert output["reward"] == [pytest.approx(cut.reward, abs=1e-4)]
    assert cut.reward != pytest.approx(ended.reward, abs=1e-3)
    assert output["extra_logs"]["gdr_finished"] == [0.0]


def test_a_prompt_cut_on_the_left_is_scored_whole(
    client: Client, server: Any, tokenizer: Any, core: Callable[..., list[Score]]
) -> None:
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(server.rewards)
    long = "Sing of the river, then say: " * 12 + USER
    engine = Engine(tokenizer, "42")
    output = asyncio.run(executor.execute(templated(tokenizer, long), "", PARAMETERS, 128, tokenizer, engine))
    assert len(engine.seen) == 64
    assert output["reward"] == [pytest.approx(core("42", prompt=long)[0].reward, abs=1e-4)]


def test_a_label_routes_and_brings_messages(
    client: Client, server: Any, tokenizer: Any, core: Callable[..., list[Score]]
) -> None:
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(server.rewards)
    prompt = templated(tokenizer, USER)
    query = prompt + "It is 42.<|im_end|>"

    def ask(label: Any) -> Any:
        (answer,) = asyncio.run(executor._fetch_rewards_via_http([query], [prompt], [label]))
        return answer["rewards"]

    (plain,), (guided,) = core("It is 42."), core("It is 42.", domain="math")
    (other,) = core("It is 42.", prompt="Another question")
    for label in ("", None, "42", [1, {"a": None}], 1.5):
        assert ask(label) == [pytest.approx(plain.reward, abs=1e-4)]
    assert ask({"domain": "math", "answer": 42}) == [pytest.approx(guided.reward, abs=1e-4)]
    assert ask({"guidance": "math"}) == [pytest.approx(guided.reward, abs=1e-4)]
    assert ask({"messages": [{"role": "user", "content": "Another question"}], "domain": None}) == [
        pytest.approx(other.reward, abs=1e-4)
    ]


def test_the_samples_generator_takes_the_output(client: Client, server: Any, tokenizer: Any) -> None:
    """What 0.11.2 makes of the executor's output: tensors for the trainer."""
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(server.rewards)
    generator = client("0.11.2", "openrlhf.trainer.ppo_utils.samples_generator").SamplesGenerator
    prompt = templated(tokenizer, USER)
    engine = Engine(tokenizer, "It is 42.")
    output = asyncio.run(executor.execute(prompt, {"domain": "math"}, PARAMETERS, 512, tokenizer, engine))
    experience = generator._process_response_into_experience(None, output, max_len=512)
    assert experience.rewards.numel() == 1
    assert experience.rewards.item() == pytest.approx(output["reward"][0])
    assert 0 < experience.scores[0].item() < 1
    assert {key: experience.info[key].item() for key in KEYS}["gdr_unscored"] == 0.0


def test_an_old_client_sends_a_batch(
    client: Client, server: Any, tokenizer: Any, core: Callable[..., list[Score]]
) -> None:
    """0.9.0: a whole micro-batch with padding on both sides, and empty lists for a server too many."""
    module = client("0.9.0", "openrlhf.utils.remote_rm_utils")
    prompt = templated(tokenizer, USER)
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    rows = [
        [*ids, *tokenizer(text=text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in ANSWERS
    ]
    width = max(map(len, rows)) + 4
    padded = [[tokenizer.pad_token_id] * 4 + row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    queries = tokenizer.batch_decode(padded, skip_special_tokens=False)
    model = module.RemoteRewardModel.remote(None, [server.rewards, server.rewards])
    # Two servers: ceil(5 / 2) items each; for one item the second server gets empty lists.
    answers = model.get_rewards(queries, [prompt] * 5, [""] * 5)
    assert [len(answer["rewards"]) for answer in answers] == [3, 2]
    got = [reward for answer in answers for reward in answer["rewards"]]
    assert got == [pytest.approx(score.reward, abs=1e-4) for score in core(*ANSWERS)]
    alone, nothing = model.get_rewards(queries[:1], [prompt], [""])
    assert alone["rewards"] == [pytest.approx(got[0])]
    assert nothing == {"rewards": [], "scores": [], "extra_logs": {key: [] for key in KEYS}}


def test_thousands_of_queries_in_one_request(server: Any, tokenizer: Any) -> None:
    prompt = templated(tokenizer, USER)
    texts = [str(number % 50) for number in range(2000)]
    answer = post(
        server.rewards,
        {"query": [f"{prompt}{text}<|im_end|>" for text in texts], "prompts": [prompt] * 2000, "labels": [""] * 2000},
    )
    assert len(answer["rewards"]) == len(answer["scores"]) == 2000
    assert answer["rewards"][:50] == answer["rewards"][50:100]
    assert all(0 <= score <= 1 for score in answer["scores"])
    assert {len(values) for values in answer["extra_logs"].values()} == {2000}


def test_every_example_of_the_api_description_works_on_the_running_server(server: Any) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=60) as page:
        described = json.load(page)
    tried = []
    for path, operations in described["paths"].items():
        if "post" not in operations:
            with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
                assert answer.status == 200
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        for example in described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["examples"]:
            assert isinstance(post(f"{server.url}{path}", example), dict | float), path  # else a code and an error
            tried.append(path)
    ours = {"/get_reward", "/llamafactory", "/slime", "/v1/gdr/score"}
    assert set(tried) == ours | {"/score", "/v1/score", "/classify", "/v1/classify"}


def test_empty_lists(server: Any) -> None:
    empty = {"rewards": [], "scores": [], "extra_logs": {key: [] for key in KEYS}}
    assert post(server.rewards, {"query": [], "prompts": [], "labels": []}) == empty
    assert post(server.rewards, {}) == empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "0 prompts for 1 queries"),
        ({"labels": ["", ""]}, "2 labels for 1 queries"),
        ({"query": ["Something else"]}, "item 0: the query does not begin with its prompt"),
        ({"prompts": ["Hi"], "query": ["Hi there"]}, "item 0: the prompt does not end as the template"),
        ({"labels": [{"domain": "cooking"}]}, "item 0 was not scored: column 'domain': unknown domain 'cooking'"),
        ({"labels": [{"guidance": "cooking"}]}, "item 0: label: unknown guidance 'cooking': known are math"),
        ({"labels": [{"messages": "no list"}]}, None),
        ({"labels": [{"messages": []}]}, "item 0: `prompt` has no user turn"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    server: Any, tokenizer: Any, change: dict[str, Any], message: str | None
) -> None:
    prompt = templated(tokenizer, USER)
    answer = post(server.rewards, {"query": [prompt + "42"], "prompts": [prompt], "labels": [""], **change})
    if message is None:
        assert len(answer["rewards"]) == 1  # a text is one user turn
    else:
        assert answer[0] == 422
        assert message in answer[1]["error"]["message"]


@pytest.mark.parametrize("given", [{"queries": ["a"], "prompts_": ["b"]}, {"text": "a"}])
def test_a_request_of_another_shape_names_the_keys(server: Any, given: dict[str, Any]) -> None:
    """It used to be answered with empty lists, as a request without samples is."""
    code, answer = post(server.rewards, given)
    assert code == 422
    names = ", ".join(map(repr, given))
    expected = f"it has {names}, but none of query, prompts and labels: send lists under these keys"
    assert answer["error"]["message"].endswith(expected)


def test_a_refusal_is_in_the_servers_log(serve: Callable[..., Any], tmp_path: Path) -> None:
    """OpenRLHF shows its user the status alone."""
    config = tmp_path / "gdr.yaml"
    config.write_text("strong: fake:a\nweak: fake:b\n")
    one = serve(config)
    assert post(one.rewards, {"query": ["a"], "prompts": [], "labels": []})[0] == 422
    one.end()
    (line,) = [line for line in one.errors if "refused" in line]
    assert line.rstrip().endswith(
        "WARNING gdr_plugin.serve: refused POST /get_reward: 422 0 prompts for 1 queries: send one for each"
    )


def test_a_base_policy_is_scored_from_the_labels_messages(
    config: Path, core: Callable[..., list[Score]], tiny_model: Callable[..., Path]
) -> None:
    """Its tokenizer has no chat template: the label says what was asked, and guidance goes where it belongs."""
    base = str(tiny_model("llama", seed=7, chat_template=None))
    dialect = Dialect(ServeSettings(policy_tokenizer=base), open_prompt_reader(ServeSettings(policy_tokenizer=base)))
    prompt = f"Question: {USER}\nAnswer:"
    label = {"messages": [{"role": "user", "content": USER}], "domain": "math"}
    queries = [f"{prompt} It is 42.<|im_end|>", f"{prompt} It is 42."]
    samples = dialect.samples(queries, [prompt] * 2, [label] * 2)
    assert [(sample.response, sample.finished) for sample in samples] == [("It is 42.", True), ("It is 42.", False)]
    ratio = GuidedDensityRatio.from_config(config)
    (ended,), (cut,) = core("It is 42.", domain="math"), core("It is 42.", finished=False, domain="math")
    rewards = [score.reward for score in ratio.score(samples)]
    assert rewards == [pytest.approx(ended.reward, abs=1e-4), pytest.approx(cut.reward, abs=1e-4)]
    with pytest.raises(DataError, match=r"^item 0: the policy's tokenizer has no chat template, .* into the label as"):
        dialect.samples(queries[:1], [prompt], [""])


def test_a_base_policy_over_http(
    serve: Callable[..., Any], config: Path, core: Callable[..., list[Score]], tiny_model: Callable[..., Path]
) -> None:
    # The last option of a name counts.
    one = serve(config, "--policy-tokenizer", str(tiny_model("llama", seed=7, chat_template=None)))
    prompt = f"Question: {USER}\nAnswer:"
    label = {"messages": [{"role": "user", "content": USER}], "domain": "math"}
    answer = post(one.rewards, {"query": [f"{prompt} It is 42.<|im_end|>"], "prompts": [prompt], "labels": [label]})
    assert answer["rewards"] == [pytest.approx(core("It is 42.", domain="math")[0].reward, abs=1e-4)]
    assert answer["extra_logs"]["gdr_finished"] == [1.0]


def test_an_unpaired_surrogate_is_refused(server: Any) -> None:
    code, answer = post(server.rewards, b'{"query": ["\\ud83d"], "prompts": ["\\ud83d"], "labels": [""]}')
    assert code == 422
    assert "holds an unpaired surrogate" in answer["error"]["message"]


def test_the_client_gives_up_loudly(client: Client, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is refused is refused on every try; the client then raises, and has no reward."""
    module = client("0.11.2", "openrlhf.utils.agent")

    async def at_once(seconds: float) -> None:
        pauses.append(seconds)

    pauses: list[float] = []
    monkeypatch.setattr(module.asyncio, "sleep", at_once)
    executor = module.SingleTurnAgentExecutor(server.rewards)
    with pytest.raises(RuntimeError, match="Request error for 5 times"):
        asyncio.run(executor._fetch_rewards_via_http(["query"], ["prompt"], [""]))
    assert pauses == [1] * 5


@pytest.mark.slow
def test_a_killed_server_that_comes_back_costs_no_reward(
    client: Client, serve: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    """The client's five seconds of tries suffice: the port is open long before the models are loaded."""
    config = tmp_path / "gdr.yaml"
    config.write_text("strong: fake:a\nweak: fake:b\n")
    first = serve(config)
    executor = client("0.11.2", "openrlhf.utils.agent").SingleTurnAgentExecutor(first.rewards)
    prompt = templated(tokenizer, USER)

    async def ask(text: str) -> Any:
        (answer,) = await executor._fetch_rewards_via_http([f"{prompt}{text}<|im_end|>"], [prompt], [""])
        return answer["rewards"]

    async def ask_all(restart: bool) -> list[Any]:
        if restart:
            first.process.kill()
            first.process.wait(30)
        tasks = [asyncio.create_task(ask(str(number))) for number in range(50)]
        await asyncio.sleep(0)  # all are on their way to a closed port
        if restart:
            serve(config, port=int(first.url.rsplit(":", 1)[1]), wait=False)
        return await asyncio.gather(*tasks)

    assert asyncio.run(ask_all(False)) == asyncio.run(ask_all(True))


def test_scale_clip_temperature_and_unscored(
    serve: Callable[..., Any], config: Path, tokenizer: Any, core: Callable[..., list[Score]], tmp_path: Path
) -> None:
    limited = tmp_path / "gdr.yaml"
    limited.write_text(config.read_text() + "limits: {max_length: 128}\n")
    server = serve(limited, "--scale", "0.5", "--clip", "1.5", "--temperature", "4", "--unscored", "-3")
    prompt = templated(tokenizer, USER)
    texts = [*ANSWERS, "long " * 200]
    answer = post(
        server.rewards,
        {"query": [f"{prompt}{text}<|im_end|>" for text in texts], "prompts": [prompt] * 6, "labels": [""] * 6},
    )
    raw = [score.reward for score in core(*ANSWERS)]
    assert answer["rewards"][:5] == [pytest.approx(max(-1.5, min(1.5, reward / 2)), abs=1e-4) for reward in raw]
    assert {abs(reward) for reward in answer["rewards"][:5]} >= {1.5}, "something must be clipped"
    assert answer["scores"][:5] == [pytest.approx(squash(reward, 4), abs=1e-4) for reward in raw]
    logs = answer["extra_logs"]
    assert logs["gdr_reward"][:5] == [pytest.approx(reward, abs=1e-4) for reward in raw]
    assert logs["gdr_clipped"] == [float(abs(reward) > 3) for reward in raw] + [0.0]
    assert answer["rewards"][5] == -3.0
    assert logs["gdr_unscored"] == [0.0] * 5 + [1.0]
    assert answer["scores"][5] == pytest.approx(squash(-6, 4))

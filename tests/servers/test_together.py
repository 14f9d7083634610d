"""Two models on servers, a store, and a reward: nothing is lost, nothing is asked twice, both are asked at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin.api.errors import ModelError
from gdr_plugin.api.types import Message, Sample, TokenSpan
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore
from tests.conftest import Gdr
from tests.servers.conftest import MakeServer
from tests.servers.fake import FakeServer, ReplyError, slowly
from tests.servers.test_scoring import address, opened

SPANS = [TokenSpan((1, 5, 9), (n, n + 1, n + 2)) for n in range(20, 60)]
SAMPLES = [
    Sample((Message("user", prompt),), response)
    for prompt in ("How do I sort a list?", "Is it safe?")
    for response in ("Like this.", "No.", "It depends on many things.")
]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gdr_plugin.models.servers.client._FIRST_PAUSE_S", 0.02)


def dies_after(fake: FakeServer, count: int) -> None:
    """The engine dies: 500 for all from then on, then connections are refused."""
    left = [count]
    lock = threading.Lock()

    def before(_path: str, _body: dict[str, Any]) -> None:
        with lock:
            left[0] -= 1
            alive = left[0] >= 0
        if not alive:
            raise ReplyError(500, {"error": {"message": "EngineCore encountered an issue. See stack trace"}})

    fake.before = before


@pytest.mark.parametrize("kind", ["vllm", "sglang", "openai"])
def test_a_server_that_dies_loses_nothing_that_it_had_scored(kind: str, server: MakeServer, tmp_path: Path) -> None:
    fake = server(kind)
    store = LogprobStore(tmp_path / "store.sqlite")
    model = StoredModel(opened(fake, server={"concurrency": 4}), store)
    dies_after(fake, 17)
    with pytest.raises(ModelError) as caught:
        model.score(SPANS)
    message = str(caught.value)
    assert message.startswith(fake.url)
    assert "500: EngineCore encountered an issue" in message
    assert "was tried 5 times" in message
    assert f"17 texts that were scored meanwhile are in {store.path}: run it again" in message
    assert "\n" not in message

    fake.before = None
    fake.asked.clear()
    again = StoredModel(opened(fake), store)
    opening = len(fake.scored())
    found = again.score(SPANS)
    assert again.hits == 17
    assert len(fake.scored()) - opening == len(SPANS) - 17
    for span, values in zip(SPANS, found, strict=True):
        expected = fake.models["tiny"](span.context + span.response)[3:]
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_a_replica_takes_over_when_the_other_dies(server: MakeServer) -> None:
    fake, other = server("sglang"), server("sglang")
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.models.servers import open_server

    model = open_server(ModelSpec(model=f"sglang:{fake.url},{other.url}/tiny"))
    spans = [TokenSpan((1, n), (7, 8, n)) for n in range(3, 60)]
    first = model.score(spans)
    assert len(fake.scored()) > 10
    assert len(other.scored()) > 10
    fake.kill()
    assert all(np.array_equal(a, b) for a, b in zip(first, model.score(spans), strict=True))


def test_other_weights_under_the_same_name_never_meet_the_store(server: MakeServer, tmp_path: Path) -> None:
    store = LogprobStore(tmp_path / "store.sqlite")
    fake, trained = server("vllm"), server("vllm", seed=1)
    trained.root = fake.root
    StoredModel(opened(fake), store).score(SPANS[:3])
    changed = opened(trained)
    assert changed.identity == opened(fake).identity  # the server tells no difference
    with pytest.raises(ModelError, match=r"is not the one whose log-probs .* holds: a fixed text differs by .* nats"):
        StoredModel(changed, store).score(SPANS[:3])
    found = StoredModel(opened(trained, revision="step-2"), store).score(SPANS[:3])
    expected = trained.models["tiny"](SPANS[0].context + SPANS[0].response)[3:]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def ratio_of(strong: FakeServer, weak: FakeServer, **more: Any) -> GuidedDensityRatio:
    limits = {"max_length": 2000}
    sides = {"strong": address(strong), "weak": address(weak)}
    guidance = {"domains": {"chat": "safety"}}
    return GuidedDensityRatio.from_config({**sides, "limits": limits, "guidance": guidance, **more})


def test_strong_and_weak_are_asked_at_the_same_time(server: MakeServer) -> None:
    strong, weak = server("sglang", seed=1), server("vllm")
    ratio = ratio_of(strong, weak)
    meeting = threading.Barrier(2, timeout=20)
    met = {"strong": False, "weak": False}

    def meets(side: str) -> Any:
        def before(_path: str, _body: dict[str, Any]) -> None:
            if not met[side]:
                met[side] = True
                meeting.wait()  # breaks, where the other side is asked afterwards

        return before

    strong.before, weak.before = meets("strong"), meets("weak")
    scores = ratio.score(SAMPLES)
    assert met == {"strong": True, "weak": True}
    assert not meeting.broken
    assert all(score.reward is not None for score in scores)


def test_the_reward_is_that_of_local_models(server: MakeServer, tiny_model: Any) -> None:
    ratio = ratio_of(server("sglang", seed=1), server("openai"))
    local = GuidedDensityRatio.from_config(
        {
            "strong": str(tiny_model("llama", seed=1)),
            "weak": str(tiny_model("llama", seed=0)),
            "limits": {"max_length": 2000},
            "guidance": {"domains": {"chat": "safety"}},
        }
    )
    for own, expected in zip(ratio.score(SAMPLES, tokens=True), local.score(SAMPLES, tokens=True), strict=True):
        assert own.reward == pytest.approx(expected.reward, abs=2e-3)
        assert own.strong_token_offsets == expected.strong_token_offsets
        np.testing.assert_allclose(own.token_ratios, expected.token_ratios, atol=4e-4)


def test_one_after_the_other_stays_so(server: MakeServer, tmp_path: Path) -> None:
    strong, weak = server("sglang", seed=1), server("sglang")
    ratio = ratio_of(strong, weak, load="sequential", store={"path": str(tmp_path / "store.sqlite")})
    weak.asked.clear()
    strong.before = lambda _path, _body: weak.asked and pytest.fail("weak was asked first")  # type: ignore[func-returns-value]
    assert all(score.reward is not None for score in ratio.score(SAMPLES))


def test_where_both_fail_the_error_is_the_strong_one_s(server: MakeServer) -> None:
    strong, weak = server("sglang", seed=1), server("sglang")
    ratio = ratio_of(strong, weak)
    for fake, wait in ((strong, 0.3), (weak, 0.0)):
        refuse(fake, wait)
    with pytest.raises(ModelError, match=strong.url):
        ratio.score(SAMPLES)
    strong.before = None
    with pytest.raises(ModelError, match=weak.url):
        ratio.score(SAMPLES)


def refuse(fake: FakeServer, wait: float) -> None:
    pause = slowly(wait)

    def before(path: str, body: dict[str, Any]) -> None:
        pause(path, body)
        raise ReplyError(400, {"error": {"message": "no"}})

    fake.before = before


def test_a_base_and_its_adapter_take_turns_on_vllm(server: MakeServer) -> None:
    fake = server("vllm", adapters=("strong",))
    sides = {"strong": {"model": address(fake), "adapter": "strong"}, "weak": address(fake)}
    ratio = GuidedDensityRatio.from_config({**sides, "limits": {"max_length": 2000}})
    assert "take turns" in ratio.weak.describe()["turns"]
    fake.before = slowly(0.01)
    fake.together.clear()
    threads = [threading.Thread(target=ratio.score, args=(SAMPLES,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {frozenset({"tiny"}), frozenset({"strong"})} == fake.together - {frozenset({""})}


def test_check_shows_the_way_and_why(gdr: Gdr, server: MakeServer, tmp_path: Path) -> None:
    strong, weak = server("sglang", seed=1), server("vllm", fast="closed")
    config = tmp_path / "gdr.yaml"
    config.write_text(f"strong: {address(strong)}\nweak: {address(weak)}\n")
    code, out, _ = gdr("check", config, "--load", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["strong"]["strategy"] == "SGLang, /generate"
    assert facts["weak"]["why"].endswith("started without --enable-scale-out, which the faster way needs")
    assert facts["weak"]["dtype"] is None
    assert len(facts["probe"]["answers"]) == 2
    code, out, _ = gdr("check", config)
    assert code == 0
    assert "/v1/completions with prompt_logprobs" in out


@pytest.mark.parametrize("command", [["check"], ["score"]])
def test_a_server_that_is_not_there_is_one_line(
    gdr: Gdr, server: MakeServer, tmp_path: Path, command: list[str]
) -> None:
    strong, weak = server("sglang", seed=1), server("vllm")
    config = tmp_path / "gdr.yaml"
    config.write_text(f"strong: {address(strong)}\nweak: {address(weak)}\n")
    weak.kill()
    more = ["--config", config] if command == ["score"] else [config]
    code, out, err = gdr(*command, *more, stdin='{"prompt": "a", "response": "b"}\n')
    assert code == 2
    assert out == ""
    assert weak.url in err
    assert "is the server running?" in err
    assert len(err.strip().splitlines()) == 1


def test_a_prompt_that_is_too_long_is_a_reason_not_an_error(server: MakeServer) -> None:
    strong, weak = server("sglang", seed=1, longest=300), server("sglang")
    ratio = ratio_of(strong, weak, guidance={"placement": "none"})
    long = Sample((Message("user", "word " * 300),), "Yes.")
    first, second = ratio.score([long, SAMPLES[0]])
    assert first.reward is None
    assert "exceed max_length 299" in str(first.reason)
    assert second.reward is not None

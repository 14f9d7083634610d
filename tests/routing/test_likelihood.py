"""The likelihood router: calibration removes a planted bias, nothing is generated, doubt stays undecided."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.types import Conversation, Logprobs, Message, Sample, TokenSpan
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.routing import LikelihoodRouter
from gdr_plugin.routing.likelihood import HEAD, TAIL

DOMAINS = {"chat": "Everyday talk.", "math": "Sums.", "instruction-following": "Demands on form."}
END = 0x10FFFF


class Chat:
    """One id a character."""

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        text = "\n\n".join(turn.content for turn in conversation)
        return TokenSpan(tuple(map(ord, text)), (*map(ord, response), *([END] if end else [])))


class Planted:
    """Prefers one name whatever is asked, and finds a name likelier by 2 nats when the request says so."""

    name = "planted"
    identity = "0"
    chat = Chat()

    def __init__(self, bias: dict[str, float]) -> None:
        self.bias = bias
        self.calls: list[list[tuple[str, str]]] = []

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        self.calls.append([])
        results = []
        for span in spans:
            text, label = "".join(map(chr, span.context)), "".join(map(chr, span.response))
            self.calls[-1].append((text, label))
            request = text[text.index("Request:") :]
            total = self.bias.get(label, -5.0) + (2.0 if f"say {label}" in request else 0.0)
            # A long name's cost lies in its first token, as in real models.
            results.append(np.array([total] + [0.0] * (len(span.response) - 1), dtype=np.float32))
        return results

    def describe(self) -> dict[str, str]:
        return {}

    def unload(self) -> None:
        pass


def sample(*turns: str) -> Sample:
    roles = ["user", "assistant"]
    return Sample(tuple(Message(roles[i % 2], text) for i, text in enumerate(turns)), "")


def test_calibration_removes_a_planted_bias() -> None:
    model = Planted({"chat": -0.1, "math": -9.0, "instruction-following": -30.0})
    requests = ["say chat", "say math", "say instruction-following"]
    decided = LikelihoodRouter().route([sample(text) for text in requests], RoutingContext(DOMAINS, model))
    assert decided == ["chat", "math", "instruction-following"]
    # Without calibration every request would go to the favourite.
    scored = {(text[text.index("Request:") :], label): (text, label) for text, label in model.calls[1]}
    assert len(scored) == 9


def test_a_request_that_says_nothing_is_left_undecided() -> None:
    context = RoutingContext(DOMAINS, Planted({"chat": -0.1}))
    assert LikelihoodRouter().route([sample("hm"), sample("say math")], context) == [None, "math"]


def test_the_end_counts_only_where_one_name_begins_another() -> None:
    model = Planted({})
    router = LikelihoodRouter()
    router.route([sample("hm")], RoutingContext(DOMAINS, model))
    router.route([sample("hm")], RoutingContext({"code": "", "code-review": "", "chat": ""}, model))
    labels = [{label for _, label in call} for call in model.calls]
    assert labels[1] == set(DOMAINS)
    assert labels[3] == {f"{name}{chr(END)}" for name in ("code", "code-review", "chat")}


def test_margin_is_in_nats() -> None:
    context = RoutingContext(DOMAINS, Planted({}))
    batch = [sample("say math"), sample("say math or say chat")]
    assert LikelihoodRouter().with_options(margin=2).route(batch, context) == ["math", None]
    assert LikelihoodRouter().with_options(margin=2.001).route(batch, context) == [None, None]


def test_one_call_for_all_and_one_calibration() -> None:
    model = Planted({})
    router = LikelihoodRouter()
    context = RoutingContext(DOMAINS, model)
    batch = [sample(f"say math {i % 4}") for i in range(8)]
    assert router.route(batch, context) == ["math"] * 8
    router.route(batch, context)
    assert [len(call) for call in model.calls] == [3 * 3, 4 * 3, 4 * 3]  # calibration once; equal requests once
    texts = [text for call in model.calls for text, _ in call]
    shared = texts[0].index("Request:")
    assert len({text[:shared] for text in texts}) == 1  # the fixed part comes first
    assert "- math: Sums." in texts[0][:shared]


def test_other_domains_are_calibrated_anew() -> None:
    model = Planted({})
    router = LikelihoodRouter()
    router.route([sample("say math")], RoutingContext(DOMAINS, model))
    router.route([sample("say math")], RoutingContext({"chat": "", "math": ""}, model))
    assert [len(call) for call in model.calls] == [9, 3, 6, 2]
    # A domain without a description of its own gets the library's.
    assert "- chat: Everyday conversation" in model.calls[-1][0][0]


def test_the_last_user_turn_is_quoted_and_cut() -> None:
    model = Planted({})
    long = "a" * 5000 + "b" * 5000
    LikelihoodRouter().route([sample("first", "answer", f"say math\nDomain: {long}")], RoutingContext(DOMAINS, model))
    text = model.calls[-1][0][0]
    assert "> say math\n> Domain: aaa" in text  # quoted line by line: a request cannot pose as our question
    assert "first" not in text
    quoted = text[text.index("Request:\n") :]
    assert len(quoted) < HEAD + TAIL + 80
    assert quoted.endswith("b\n\nWhich domain does the request belong to?")


def test_no_user_turn_and_not_finite_are_undecided() -> None:
    class Overflowing(Planted):
        def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
            results = super().score(spans)
            for span, result in zip(spans, results, strict=True):
                if "broken" in "".join(map(chr, span.context)):
                    result[0] = np.nan
            return results

    context = RoutingContext(DOMAINS, Overflowing({}))
    nobody = Sample((Message("system", "say math"),), "")
    batch = [nobody, sample("broken say math"), sample("say math")]
    assert LikelihoodRouter().route(batch, context) == [None, None, "math"]


def test_a_broken_model_is_an_error_not_a_default() -> None:
    context = RoutingContext(DOMAINS, Planted({"math": math.nan}))
    with pytest.raises(ModelError, match="planted: log-probs of domain names are not finite"):
        LikelihoodRouter().route([sample("say math")], context)


def test_one_domain_needs_no_model() -> None:
    model = Planted({})
    assert LikelihoodRouter().route([sample("x")] * 2, RoutingContext({"math": ""}, model)) == ["math"] * 2
    assert model.calls == []


def test_deterministic_and_independent_of_the_batch() -> None:
    context = RoutingContext(DOMAINS, FakeModel("routing"))
    batch = [sample(f"request {i}") for i in range(40)]
    together = LikelihoodRouter().route(batch, context)
    assert together == [LikelihoodRouter().route([asked], context)[0] for asked in batch]
    assert len(set(together)) == 3  # a fake model has no opinion, but it has no favourite either


@pytest.mark.parametrize(
    "options", [{"margins": 1}, {"margin": -1}, {"margin": "1"}, {"margin": True}, {"margin": math.nan}]
)
def test_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"routing\.routers: .*likelihood.*margin"):
        LikelihoodRouter().with_options(**options)


@pytest.mark.thorough
def test_a_real_small_model_is_far_better_than_chance(smol_dir: Path) -> None:
    """135 M parameters make a poor router (41 % of 7 domains, chance 14 %), but what is clear to it is mostly right."""
    from gdr_plugin.api.settings import Limits, ModelSpec
    from gdr_plugin.models.local import open_local

    lines = (Path(__file__).parent / "data" / "labelled_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[::2]]
    model = open_local(ModelSpec(model=str(smol_dir)), Limits())
    context = RoutingContext(dict.fromkeys((row["domain"] for row in rows), ""), model)
    batch = [sample(row["prompt"]) for row in rows]

    def right(decided: Sequence[str | None]) -> float:
        known = [(domain, row) for domain, row in zip(decided, rows, strict=True) if domain]
        return sum(domain in (row["domain"], *row.get("also", ())) for domain, row in known) / len(known)

    assert right(LikelihoodRouter().route(batch, context)) > 0.3
    assert right(LikelihoodRouter(margin=0.5).route(batch, context)) > 0.4

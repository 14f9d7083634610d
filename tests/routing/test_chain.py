"""The chain asks in turn, checks answers, counts, and keeps one bad row from spoiling the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gdr_plugin.api.errors import ChatError, ConfigError, DomainError, ModelError, PluginError
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.routing import FieldRouter, FixedRouter, Routed, RouterChain

CONTEXT = RoutingContext(domains={"chat": "", "safety": "", "math": ""}, model=FakeModel("routing"))


class Recorder:
    """Decides by a function of the prompt's text and remembers what it was asked."""

    def __init__(self, name: str, decide: Callable[[str], Any]) -> None:
        self.name = name
        self.asked: list[list[str]] = []
        self._decide = decide

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        texts = [sample.prompt[-1].content for sample in samples]
        self.asked.append(texts)
        return [self._decide(text) for text in texts]


def sample(text: str, **fields: Any) -> Sample:
    return Sample((Message("user", text),), "", fields=fields)


def samples(*texts: str) -> list[Sample]:
    return [sample(text) for text in texts]


def test_each_router_sees_what_is_undecided() -> None:
    first = Recorder("first", {"a": "math"}.get)
    second = Recorder("second", {"a": "safety", "b": "safety"}.get)
    third = Recorder("third", lambda text: None)
    chain = RouterChain([first, second, third], "chat")
    assert chain.route(samples("a", "b", "c"), CONTEXT) == [
        Routed("math", "first"),
        Routed("safety", "second"),
        Routed("chat", "default"),
    ]
    assert (first.asked, second.asked, third.asked) == ([["a", "b", "c"]], [["b", "c"]], [["c"]])


def test_routers_are_not_asked_about_nothing() -> None:
    last = Recorder("last", lambda text: "chat")
    chain = RouterChain([FixedRouter("math"), last], "chat")
    assert chain.route([], CONTEXT) == []
    assert chain.route(samples("a"), CONTEXT) == [Routed("math", "fixed")]
    assert last.asked == []


def test_no_routers_means_the_default() -> None:
    chain = RouterChain([], "chat")
    assert chain.route(samples("a", "b"), CONTEXT) == [Routed("chat", "default")] * 2


def test_candidates_of_one_prompt_are_routed_once() -> None:
    router = Recorder("r", lambda text: "math")
    chain = RouterChain([router], "chat")
    fields = {"topic": "x"}
    same = [Sample((Message("user", "a"),), response, fields=fields) for response in "123"]
    other = Sample((Message("user", "a"),), "4", fields={"topic": "y"})
    assert chain.route([*same, other, *samples("a", "a")], CONTEXT) == [Routed("math", "r")] * 6
    assert router.asked == [["a", "a", "a"]]  # the shared fields, the other fields, no fields


def test_rows_of_one_prompt_with_equal_columns_are_routed_once() -> None:
    router = Recorder("r", lambda text: "math")
    rows = [sample("a", source="set", score=number % 2 or True) for number in range(2)]  # 1 and True are not the same
    rows += [sample("a", source="set", score=True), sample("a", source="set", score=1.0)]
    rows += [sample("a", tags=["x"]), sample("a", tags=["x"])]  # lists are not looked into
    assert RouterChain([router], "chat").route(rows, CONTEXT) == [Routed("math", "r")] * 6
    assert router.asked == [["a"] * 5]


def test_the_default_must_be_configured() -> None:
    with pytest.raises(ConfigError, match=r"routing\.default_domain: unknown domain 'chit'.*did you mean 'chat'"):
        RouterChain([], "chit").route(samples("a"), CONTEXT)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["math"], "the router 'odd' returned 1 answers for 2 samples; it must return a list with one each"),
        (("math", "math"), "the router 'odd' returned tuple for 2 samples"),
        (None, "the router 'odd' returned NoneType for 2 samples"),
        ([3, None], "the router 'odd' returned 3; it must return a domain's name or None"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_malformed_answer_is_the_plugin_s_fault(answer: Any, message: str, strict: bool) -> None:
    class Odd:
        name = "odd"

        def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
            return answer  # type: ignore[no-any-return]

    with pytest.raises(PluginError) as raised:
        RouterChain([Odd()], "chat").route(samples("a", "b"), CONTEXT, strict=strict)
    assert message in str(raised.value)


def test_an_unknown_domain_is_an_error_that_names_the_router() -> None:
    chain = RouterChain([Recorder("mine", lambda text: "maths")], "chat")
    with pytest.raises(DomainError, match=r"the router 'mine' returned an unknown domain 'maths': .*'math'\?"):
        chain.route(samples("a"), CONTEXT)
    (routed,) = chain.route(samples("a"), CONTEXT, strict=False)
    assert (routed.domain, routed.router) == ("", "mine")
    assert routed.error is not None
    assert "unknown domain 'maths'" in routed.error


def test_bad_rows_do_not_spoil_the_others() -> None:
    rows = [sample(str(i), domain="math" if i % 7 else "nonsense") for i in range(100)]
    last = Recorder("last", lambda text: "safety")
    chain = RouterChain([FieldRouter(), last], "chat")
    with pytest.raises(DomainError, match="nonsense"):
        chain.route(rows, CONTEXT)
    routed = chain.route(rows, CONTEXT, strict=False)
    for index, answer in enumerate(routed):
        if index % 7:
            assert answer == Routed("math", "field")
        else:
            assert (answer.domain, answer.router) == ("", "field")
            assert answer.error is not None
            assert "'nonsense'" in answer.error
    assert last.asked == []  # a bad row is not handed on to the next router
    assert sum(answer.error is not None for answer in routed) == 15


def test_a_row_that_does_not_fit_the_model_is_a_bad_row() -> None:
    def decide(text: str) -> str:
        if text == "long":
            raise ChatError("too long")
        return "math"

    chain = RouterChain([Recorder("r", decide)], "chat")
    routed = chain.route(samples("a", "long", "b"), CONTEXT, strict=False)
    assert routed == [Routed("math", "r"), Routed("", "r", "too long"), Routed("math", "r")]


def test_other_errors_stop_everything() -> None:
    def decide(text: str) -> str:
        raise ModelError("no weights")

    with pytest.raises(ModelError, match="no weights"):
        RouterChain([Recorder("r", decide)], "chat").route(samples("a"), CONTEXT, strict=False)
    with pytest.raises(ConfigError, match="needs a domain"):
        RouterChain([FixedRouter()], "chat").route(samples("a"), CONTEXT, strict=False)

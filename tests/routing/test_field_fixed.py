"""The two routers that look at no text: a column, or always the same domain."""

from __future__ import annotations

from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, DomainError
from gdr_plugin.api.routers import Router, RoutingContext
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.routing import FieldRouter, FixedRouter, KeywordRouter, builtin_routers, field_check

CONTEXT = RoutingContext(domains={"chat": "", "safety": "", "math": ""}, model=FakeModel("routing"))


def sample(**fields: Any) -> Sample:
    return Sample((Message("user", "Hi"),), "Hello", fields=fields)


def test_field_reads_the_column() -> None:
    samples = [sample(domain="math"), sample(), sample(domain=None), sample(domain=""), sample(domain=" safety\n")]
    assert FieldRouter().route(samples, CONTEXT) == ["math", None, None, None, "safety"]
    assert FieldRouter().route([sample(domain=float("nan")), sample(domain="  ")], CONTEXT) == [None, None]


def test_field_reads_another_column() -> None:
    router = FieldRouter().with_options(column="topic")
    assert router.route([sample(topic="math", domain="chat"), sample(domain="chat")], CONTEXT) == ["math", None]


def test_a_huge_name_is_not_repeated() -> None:
    with pytest.raises(DomainError) as caught:
        FieldRouter().domain_of({"domain": "x" * 10_000_000}, ["math"])
    assert str(caught.value) == (
        f"column 'domain': unknown domain '{'x' * 100}...': known are math; guidance.domains lists them"
    )


def test_field_names_what_is_wrong_and_what_is_near() -> None:
    with pytest.raises(DomainError) as raised:
        FieldRouter().route([sample(domain="maths")], CONTEXT)
    assert str(raised.value) == (
        "column 'domain': unknown domain 'maths': known are chat, math, safety (did you mean 'math'?); "
        "guidance.domains lists them"
    )
    with pytest.raises(DomainError, match="column 'domain': must name a domain, not 3"):
        FieldRouter().route([sample(domain=3)], CONTEXT)


@pytest.mark.parametrize("options", [{"colum": "x"}, {"column": ""}, {"column": 3}])
def test_field_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"routing\.routers: .*field.*column"):
        FieldRouter().with_options(**options)


def test_rows_are_checked_by_the_routers_own_rule() -> None:
    check = field_check([KeywordRouter(), FieldRouter("topic"), FieldRouter()], CONTEXT.domains, origin="my.yaml")
    for accepted in ({}, {"domain": None, "topic": float("nan")}, {"topic": " math ", "domain": "x"}):
        check(accepted)
    with pytest.raises(DomainError) as raised:
        check({"topic": "", "domain": "maths"})
    assert str(raised.value) == (
        "column 'domain': unknown domain 'maths': known are chat, math, safety (did you mean 'math'?); "
        "guidance.domains in my.yaml lists them"
    )
    with pytest.raises(DomainError, match="column 'topic': must name a domain, not 3"):
        check({"topic": 3})
    field_check([KeywordRouter()], ["chat"])({"domain": "maths"})


def test_fixed() -> None:
    router = FixedRouter().with_options(domain="math")
    assert router.route([sample(), sample(domain="chat")], CONTEXT) == ["math", "math"]


def test_fixed_needs_its_domain() -> None:
    with pytest.raises(ConfigError, match=r"needs a domain: write \{name: fixed, domain: NAME\}"):
        FixedRouter().route([sample()], CONTEXT)
    with pytest.raises(ConfigError, match=r"needs a domain"):
        FixedRouter().check(["math"])
    FixedRouter("math").check(["math"])
    with pytest.raises(ConfigError, match=r"unknown domain 'mat'.*did you mean 'math'"):
        FixedRouter("mat").route([sample()], CONTEXT)


@pytest.mark.parametrize("options", [{"domains": "x"}, {"domain": 1}, {"domain": ""}, {}])
def test_fixed_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"routing\.routers: .*fixed.*domain"):
        FixedRouter().with_options(**options)


def test_builtin_routers() -> None:
    routers = builtin_routers()
    assert [router.name for router in routers] == ["field", "keyword", "likelihood", "fixed"]
    assert all(isinstance(router, Router) for router in routers)

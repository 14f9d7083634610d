"""The names of a configuration: what they stand for, and one line for all that stand for nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.hooks import hookimpl
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.types import Sample
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import Resolved, resolve_names
from gdr_plugin.routing import FixedRouter, KeywordRouter

OWN = "name: {name}\ninstruction: {instruction}\n"


class Bare:
    """A router without options."""

    def __init__(self, name: str = "bare") -> None:
        self.name = name

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        return [None for _ in samples]


class Checking(Bare):
    """A router with one option, whose domains are told to it."""

    def __init__(self, name: str = "checking", words: int = 1) -> None:
        super().__init__(name)
        self.words = words
        self.told: list[Collection[str]] = []

    def with_options(self, words: int) -> Checking:
        return Checking(self.name, words)

    def check(self, domains: Collection[str]) -> None:
        self.told.append(domains)


class Registers:
    """A plugin with routers."""

    def __init__(self, *routers: Bare) -> None:
        self.routers = routers

    @hookimpl
    def gdr_register_routers(self) -> list[Bare]:
        return list(self.routers)


def config_of(domains: dict[str, str], routers: Sequence[Any] = ("keyword",), files: Sequence[Path] = ()) -> Config:
    guidance = {"domains": domains, "files": list(map(str, files))}
    routing = {"routers": list(routers), "default_domain": next(iter(domains))}
    return parse_config({"strong": "fake:a", "weak": "fake:b", "guidance": guidance, "routing": routing})


def resolved(config: Config, *routers: Bare, **options: str) -> Resolved:
    return resolve_names(config, Plugins(Registers(*routers), entry_points=False), **options)


def own(folder: Path, file: str, name: str, instruction: str) -> Path:
    path = folder / file
    path.write_text(OWN.format(name=name, instruction=instruction), encoding="utf-8")
    return path


def test_every_domain_has_its_guidance_in_the_configurations_order() -> None:
    found = resolved(config_of({"poems": "safety", "chat": "none", "sums": "math"})).guidances
    assert [(domain, guidance and guidance.name) for domain, guidance in found.items()] == [
        ("poems", "safety"),
        ("chat", None),
        ("sums", "math"),
    ]


def test_a_file_of_ones_own_wins_over_the_library(tmp_path: Path) -> None:
    file = own(tmp_path, "mine.yaml", "safety", "Wear a helmet.")
    law = own(tmp_path, "law.yaml", "law", "Name the clause.")
    found = resolved(config_of({"a": "safety", "b": "law", "c": "math"}, files=[file, law])).guidances
    assert [guidance.instruction for guidance in found.values() if guidance][:2] == [
        "Wear a helmet.",
        "Name the clause.",
    ]
    assert found["c"] is not None


def test_a_name_in_two_files_is_refused_with_both(tmp_path: Path) -> None:
    one, other = own(tmp_path, "one.yaml", "law", "Be just."), own(tmp_path, "two.yaml", "law", "Be fair.")
    with pytest.raises(ConfigError) as caught:
        resolved(config_of({"law": "law"}, files=[one, other]))
    assert str(caught.value) == f"guidance.files: the guidance 'law' is in {one} and {other}: rename one"


def test_all_unknown_names_are_told_in_one_line() -> None:
    config = config_of({"a": "saftey", "b": "none", "c": "nun"}, ["bare", "keywrd"])
    with pytest.raises(ConfigError) as caught:
        resolved(config, Bare(), origin="gdr.yaml")
    first, second, third = str(caught.value).split("; ")
    assert first.startswith("gdr.yaml: guidance.domains.a: unknown guidance 'saftey': known are chat, code, ")
    assert first.endswith("(did you mean 'safety'?)")
    assert second.startswith("guidance.domains.c: unknown guidance 'nun': known are chat, ")
    assert ", none, " in second
    assert third == (
        "routing.routers[1]: unknown router 'keywrd': known are bare, field, fixed, keyword, likelihood "
        "(did you mean 'keyword'?)"
    )
    with pytest.raises(ConfigError, match=r"^configuration: guidance\.domains\.a"):
        resolved(config, Bare())


def test_routers_come_in_order_with_their_options_and_learn_the_domains() -> None:
    checking, bare, plain = Checking(), Bare(), Checking("plain")
    chain = ["bare", {"name": "checking", "words": 3}, "plain", {"name": "fixed", "domain": "b"}]
    found = resolved(config_of({"a": "none", "b": "safety"}, chain), checking, bare, plain).routers
    assert found[0] is bare
    assert isinstance(found[1], Checking)
    assert (found[1].words, found[1].told, checking.told) == (3, [("a", "b")], [])
    assert found[2] is plain  # an entry without options is the registered router itself
    assert (plain.words, plain.told) == (1, [("a", "b")])
    assert isinstance(found[3], FixedRouter)
    assert found[3].domain == "b"
    with pytest.raises(ConfigError, match="fixed: needs a domain"):
        resolved(config_of({"a": "none"}, ["fixed"]))
    assert isinstance(resolved(config_of({"a": "none"})).routers[0], KeywordRouter)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "bare", "b": 1, "a": 2}, "routing.routers: the router 'bare' has no option a, b; it has none"),
        ({"name": "bare", "a\nb": 1}, "routing.routers: the router 'bare' has no option 'a\\nb'; it has none"),
        (
            {"name": "checking", "colour": "red"},
            "routing.routers: the router 'checking' refuses its options: Checking.with_options() got an unexpected "
            "keyword argument 'colour'",
        ),
    ],
)
def test_options_that_a_router_does_not_take(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(config_of({"a": "none"}, [entry]), Bare(), Checking())
    assert str(caught.value) == message

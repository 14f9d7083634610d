"""Router and scorer on one model: both keep their prefixes, and a warm round reads only what is new."""

from __future__ import annotations

from typing import Any

import pytest

from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.guidance import apply, library, render
from gdr_plugin.models.local import open_local
from gdr_plugin.models.local.kvcache import PrefixCache
from gdr_plugin.routing import LikelihoodRouter
from gdr_plugin.store.model import StoredModel
from gdr_plugin.store.store import LogprobStore

WORDS = [
    "rivers",
    "stones",
    "sorting",
    "sums",
    "maps",
    "letters",
    "winds",
    "trees",
    "songs",
    "games",
    "shoes",
    "bread",
    "rain",
    "birds",
    "clocks",
    "glass",
]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every prefix that was computed to be kept."""
    found: list[int] = []
    put = PrefixCache.put

    def noted(self: PrefixCache, ids: Any, segment: Any) -> None:
        found.append(len(ids))
        put(self, ids, segment)

    monkeypatch.setattr(PrefixCache, "put", noted)
    return found


def _round(model: Any, router: LikelihoodRouter, number: int) -> None:
    """Route two new prompts for every domain of the library, then score answers under each domain's guidance."""
    guidances = library() * 2
    prompts = [(Message("user", f"{number}: tell me about {word}."),) for word in WORDS][: len(guidances)]
    domains = {guidance.name: guidance.description for guidance in guidances}
    router.route([Sample(prompt, "") for prompt in prompts], RoutingContext(domains=domains, model=model))
    spans = []
    for prompt, guidance in zip(prompts, guidances, strict=False):
        guided = apply(render(guidance, instruction=True, exemplars=0, seed=0), prompt)
        spans += [model.chat.span(guided, answer, end=True) for answer in ("Yes.", "No, and here is why.")]
    model.score(spans)


def test_a_warm_round_computes_no_prefix_again(tiny_model: Any, kept: list[int]) -> None:
    model = open_local(ModelSpec(model=str(tiny_model("llama", max_position_embeddings=4096))))
    read: list[int] = []
    with model.running() as network:
        network.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    router = LikelihoodRouter()
    costs = []
    for number in range(4):
        kept.clear()
        read.clear()
        _round(model, router, number)
        costs.append((len(kept), sum(read)))
    prefixes, cold = costs[0][0] + costs[1][0], costs[0][1]
    assert prefixes >= len(library()) + 1  # each domain's guidance, and the router's task
    assert costs[2][0] == costs[3][0] == 0  # routing between the scorings evicts nothing
    assert costs[3][1] < cold / 3
    model.unload()


def test_routing_that_the_store_knows_costs_nothing(tiny_model: Any, tmp_path: Any) -> None:
    store = LogprobStore(tmp_path / "store.sqlite")
    model = StoredModel(open_local(ModelSpec(model=str(tiny_model("llama", max_position_embeddings=4096)))), store)
    _round(model, LikelihoodRouter(), 0)
    misses = model.misses
    _round(model, LikelihoodRouter(), 0)
    assert model.misses == misses
    model.unload()
    store.close()

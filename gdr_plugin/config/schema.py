"""The schema of gdr.yaml, the file that describes a reward; it is validated before any model is opened.

This module knows the file's shape and what each key allows. It does not know which guidances, routers or models exist;
`gdr_plugin.reward.resolve` looks names up among the plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from gdr_plugin.api.errors import unknown
from gdr_plugin.api.settings import Limits, ModelSpec, SettingsModel
from gdr_plugin.api.types import Placement, Reduction

EndOfTurn = Literal["when-finished", "always", "never"]
Load = Literal["together", "sequential"]
PoolName = Literal["strong", "weak", "both", "policy"]
"""A pool of actors on a Ray cluster, by what each actor of it holds."""


def _spec_from_string(value: object) -> object:
    if not isinstance(value, (str, Mapping, ModelSpec)):
        raise ValueError(f"must be a model's name or a mapping with `model`, not {value!r}")
    return {"model": value} if isinstance(value, str) else value


SpecField = Annotated[ModelSpec, BeforeValidator(_spec_from_string)]


class GuidanceSection(SettingsModel):
    """Which guidance each domain gets, and who sees it."""

    placement: Placement = "both"
    """Which models see the guidance."""
    instruction: bool = True
    """Whether the guidance's instruction is rendered."""
    exemplars: int = Field(default=1, ge=0)
    """How many preference exemplars are drawn from each guidance; 0 for none. All of them where it has fewer."""
    seed: int = 0
    """Seed of the exemplars' choice, the same for all prompts of a domain."""
    domains: dict[str, str] = Field(
        default_factory=lambda: {"chat": "none", "safety": "safety", "math": "math", "code": "code"}, min_length=1
    )
    """Domain -> name of its guidance, or `none`. The keys are the domains that routers may return."""
    files: tuple[str, ...] = ()
    """Guidance files (YAML) of your own; their guidances win over plugins' of the same name."""


class RouterEntry(SettingsModel):
    """A router of the chain with its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(min_length=1)


def _router_from_string(value: object) -> object:
    if not isinstance(value, (str, Mapping, RouterEntry)) or (isinstance(value, Mapping) and "name" not in value):
        raise ValueError(f"must be a router's name, or a mapping with `name` and its options, not {value!r}")
    return {"name": value} if isinstance(value, str) else value


class RoutingSection(SettingsModel):
    """How prompts get their domain."""

    routers: tuple[Annotated[RouterEntry, BeforeValidator(_router_from_string)], ...] = (
        RouterEntry(name="field"),
        RouterEntry(name="keyword"),
    )
    """The chain: each router sees what is still undecided. Entries are names, or mappings with `name` and options."""
    default_domain: str = "chat"
    """The domain of a prompt that no router decided. Must be a key of `guidance.domains`."""

    @field_validator("routers")
    @classmethod
    def _once(cls, routers: tuple[RouterEntry, ...]) -> tuple[RouterEntry, ...]:
        names = [entry.name for entry in routers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is listed twice: a router that did not decide would not decide later")
        return routers


class RewardSection(SettingsModel):
    """How token log-probs become one number."""

    reduction: Reduction = "sum"
    """`sum` reproduces the paper; `mean` divides each side by its tokens; `per_byte` by the response's UTF-8 bytes."""
    end_of_turn: EndOfTurn = "when-finished"
    """Whether the end-of-turn token counts."""


class StoreSection(SettingsModel):
    """Where log-probs are kept."""

    path: str = Field(min_length=1, examples=[".gdr/store.sqlite"])
    """SQLite file; made when missing."""


class RaySection(SettingsModel):
    """How `--engine ray` spreads the work over a cluster, in pools of actors (processes); changes the cost only."""

    pools: Literal["auto", "separate", "shared"] = "auto"
    """`separate`: a pool for each model, called `strong` and `weak`. `shared`: one pool, called `both`, whose actors
    hold both models. `auto`: shared where both have the same `model` (one set of weights, two adapters), else
    separate."""
    actors: dict[PoolName, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, examples=[{"strong": 4, "weak": 2}]
    )
    """Pool -> its number of actors; `policy` is the pool that draws responses. Default: from one to as many as the
    cluster has room for."""
    gpus: dict[PoolName, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, examples=[{"strong": 1, "weak": 0.5}]
    )
    """Pool -> GPUs of one actor. Default: 1 for local models where the cluster has GPUs, else 0, as for servers."""
    cpus: dict[PoolName, Annotated[float, Field(ge=0)]] = Field(default_factory=dict, examples=[{"policy": 4}])
    """Pool -> CPUs of one actor. Default: 1."""

    @model_validator(mode="after")
    def _check(self) -> RaySection:
        unused = {"separate": ("both",), "shared": ("strong", "weak"), "auto": ()}[self.pools]
        for key in ("actors", "gpus", "cpus"):
            if wrong := [name for name in unused if name in getattr(self, key)]:
                raise ValueError(f"{key}: there is no pool {wrong[0]!r} where `pools` is {self.pools}")
        return self


class TeacherSection(SettingsModel):
    """What `gdr serve --teacher` needs beside the reward; it changes no reward."""

    reference: SpecField = Field(examples=["org/policy"])
    """The model whose log-probs the scaled ratio is added to, mostly where the policy started; takes the same keys as
    `strong`, and is shown no guidance. Without it that is the weak model as the ratio asks it, which saves a pass."""


class Config(SettingsModel):
    """A reward: two models, guidance, routing, reduction."""

    strong: SpecField
    """The better-aligned model."""
    weak: SpecField
    """The less-aligned model; takes the same keys as `strong`."""
    guidance: GuidanceSection = GuidanceSection()
    routing: RoutingSection = RoutingSection()
    reward: RewardSection = RewardSection()
    store: StoreSection | None = None
    """Where log-probs are kept. Without it nothing is kept between runs."""
    limits: Limits = Limits()
    load: Load = "together"
    """`sequential`: one model in memory at a time."""
    ray: RaySection | None = None
    """How `--engine ray` spreads the work over a cluster. Without it each model has a pool of its own size."""
    teacher: TeacherSection | None = None
    """What `gdr serve --teacher` needs beside the reward; it changes no reward."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        domains = self.guidance.domains
        if self.routing.default_domain not in domains:
            wrong = unknown("domain", self.routing.default_domain, domains)
            raise ValueError(f"routing.default_domain: {wrong}; guidance.domains lists them")
        if self.strong == self.weak and self.guidance.placement != "strong":
            raise ValueError(
                "weak: is the same model as strong and is shown the same text, so that every reward would be 0: name "
                "another model, or set guidance.placement to strong"
            )
        return self

    def to_yaml(self) -> str:
        """The configuration as a gdr.yaml, every setting spelt out; reading it back gives an equal configuration."""
        data = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)

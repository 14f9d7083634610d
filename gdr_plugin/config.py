"""gdr.yaml: one file that describes a reward, validated before any model is opened.

This module knows the file's shape and what each key allows. It does not know which guidances, routers or models exist;
names are resolved in `gdr_plugin.reward`, which asks the plugins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Placement = Literal["both", "strong", "none"]
Reduction = Literal["sum", "mean", "per_byte"]
EndOfTurn = Literal["when-finished", "always", "never"]
LongInput = Literal["error", "keep_end"]
Load = Literal["together", "sequential"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Section):
    """One model: where it is and how it is loaded."""

    model: str = Field(min_length=1)
    """`hf:org/name`, a local folder, a `.gguf` file, or `scheme:rest` of a registered backend. No scheme means `hf:`."""
    adapter: str | None = None
    """PEFT adapter on top of `model`: a folder or a hub id. Models that share `model` share one set of weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on CPU; on CUDA what the checkpoint says."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    device_map: str | dict[str, int | str] | None = None
    """Sharding through accelerate, as in transformers' `from_pretrained` (`auto`, `balanced`, a mapping)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer where it does not come with the model."""
    chat_template: str | None = None
    """`plain` for our plain-text template (base models), or the path of a Jinja file. Default: the tokenizer's own."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    @property
    def scheme(self) -> str:
        """The backend's scheme: what stands before the first colon, `hf` when there is none."""
        head, colon, _ = self.model.partition(":")
        return head if colon and head.isidentifier() and len(head) > 1 else "hf"

    @property
    def target(self) -> str:
        """What follows the scheme: the hub id, path or address."""
        return self.model[len(self.scheme) + 1 :] if self.model.startswith(self.scheme + ":") else self.model


def _spec_from_string(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


SpecField = Annotated[ModelSpec, BeforeValidator(_spec_from_string)]


class GuidanceSection(_Section):
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


class RouterEntry(_Section):
    """A router of the chain with its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str


def _router_from_string(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class RoutingSection(_Section):
    """How prompts get their domain."""

    routers: tuple[Annotated[RouterEntry, BeforeValidator(_router_from_string)], ...] = (
        RouterEntry(name="field"),
        RouterEntry(name="keyword"),
    )
    """The chain: each router sees what is still undecided. Entries are names, or mappings with `name` and options."""
    default_domain: str = "chat"
    """The domain of a prompt that no router decided. Must be a key of `guidance.domains`."""


class RewardSection(_Section):
    """How token log-probs become one number."""

    reduction: Reduction = "sum"
    """`sum` reproduces the paper; `mean` divides each side by its tokens; `per_byte` by the response's UTF-8 bytes."""
    end_of_turn: EndOfTurn = "when-finished"
    """Whether the end-of-turn token counts."""


class StoreSection(_Section):
    """Where log-probs are kept."""

    path: str
    """SQLite file; made when missing."""


class Limits(_Section):
    """What fits, and what happens to what does not."""

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of context and response together; default: the model's own limit."""
    max_response: int = Field(default=2048, ge=1)
    """Tokens kept free for the response when a prompt is cut; at most half of `max_length` is kept."""
    long_input: LongInput = "error"
    """`error`: the sample is not scored, with the reason. `keep_end`: the start of the prompt (never the guidance) is
    left out until it fits, and the score says so."""
    token_budget: int | None = Field(default=None, ge=1)
    """Tokens in one forward pass; default: 2,048 on CPU, 16,384 on CUDA."""
    kv_cache_mb: int = Field(default=512, ge=0)
    """Memory for guidance kept between calls (keys and values), per model, in MiB."""


class Config(_Section):
    """A reward: two models, guidance, routing, reduction."""

    strong: SpecField
    """The better-aligned model."""
    weak: SpecField
    """The less-aligned model."""
    guidance: GuidanceSection = GuidanceSection()
    routing: RoutingSection = RoutingSection()
    reward: RewardSection = RewardSection()
    store: StoreSection | None = None
    """None: nothing is kept between runs."""
    limits: Limits = Limits()
    load: Load = "together"
    """`sequential`: one model in memory at a time."""


def load_config(path: str | Path) -> Config:
    """Read and validate a gdr.yaml; relative paths in it are relative to its folder.

    Args:
        path: The file.

    Returns:
        The configuration, with local paths made absolute.

    Raises:
        ConfigError: The file is missing, not YAML, or a key is wrong. The message names the file, the key, what is
            allowed, and the nearest valid name.
    """
    raise NotImplementedError


def parse_config(data: dict[str, Any], *, base: Path | None = None, origin: str = "configuration") -> Config:
    """Validate a configuration given as a mapping.

    Args:
        data: What gdr.yaml would hold.
        base: Folder that relative paths are relative to; default: the current folder.
        origin: What error messages call the source.

    Returns:
        The configuration, with local paths made absolute.

    Raises:
        ConfigError: A key is wrong.
    """
    raise NotImplementedError

"""gdr.yaml: one file that describes a reward, validated before any model is opened.

This module knows the file's shape and what each key allows. It does not know which guidances, routers or models exist;
`gdr_plugin.resolve` looks names up among the plugins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from gdr_plugin.configcheck import explain, locate
from gdr_plugin.errors import ConfigError, unknown
from gdr_plugin.yamlfile import read_yaml

Placement = Literal["both", "strong", "none"]
Reduction = Literal["sum", "mean", "per_byte"]
EndOfTurn = Literal["when-finished", "always", "never"]
LongInput = Literal["error", "keep_end"]
Load = Literal["together", "sequential"]


class _Section(BaseModel):
    # The docstrings below the fields become descriptions: `gdr init` writes them into the file.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSpec(_Section):
    """One model: where it is and how it is loaded."""

    model: str = Field(min_length=1)
    """A hub id (`hf:org/name` or `org/name`), a folder, a `.gguf` file, or `scheme:rest` of another backend."""
    adapter: str | None = Field(default=None, examples=["./adapter"])
    """PEFT adapter on top of `model`: a folder or a hub id. Models that share `model` share one set of weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on CPU; on CUDA what the checkpoint says."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    device_map: str | dict[str, int | str] | None = Field(default=None, examples=["auto"])
    """Sharding through accelerate, as in transformers' `from_pretrained` (`auto`, `balanced`, a mapping)."""
    revision: str | None = Field(default=None, examples=["main"])
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = Field(default=None, examples=["org/name"])
    """Folder or hub id of the tokenizer where it does not come with the model."""
    chat_template: str | None = Field(default=None, examples=["plain"])
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
    if not isinstance(value, (str, Mapping, ModelSpec)):
        raise ValueError(f"must be a model's name or a mapping with `model`, not {value!r}")
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
    name: str = Field(min_length=1)


def _router_from_string(value: object) -> object:
    if not isinstance(value, (str, Mapping, RouterEntry)) or (isinstance(value, Mapping) and "name" not in value):
        raise ValueError(f"must be a router's name, or a mapping with `name` and its options, not {value!r}")
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

    @field_validator("routers")
    @classmethod
    def _once(cls, routers: tuple[RouterEntry, ...]) -> tuple[RouterEntry, ...]:
        names = [entry.name for entry in routers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is listed twice: a router that did not decide would not decide later")
        return routers


class RewardSection(_Section):
    """How token log-probs become one number."""

    reduction: Reduction = "sum"
    """`sum` reproduces the paper; `mean` divides each side by its tokens; `per_byte` by the response's UTF-8 bytes."""
    end_of_turn: EndOfTurn = "when-finished"
    """Whether the end-of-turn token counts."""


class StoreSection(_Section):
    """Where log-probs are kept."""

    path: str = Field(min_length=1, examples=[".gdr/store.sqlite"])
    """SQLite file; made when missing."""


class Limits(_Section):
    """What fits, and what happens to what does not."""

    max_length: int | None = Field(default=None, ge=8, examples=[4096])
    """Tokens of context and response together; default: the model's own limit."""
    max_response: int = Field(default=2048, ge=1)
    """Tokens kept free for the response when a prompt is cut; at most half of `max_length` is kept."""
    long_input: LongInput = "error"
    """`error`: the sample is not scored, with the reason. `keep_end`: the start of the prompt (never the guidance) is
    left out until it fits, and the score says so."""
    token_budget: int | None = Field(default=None, ge=1, examples=[2048])
    """Tokens in one forward pass; default: 2,048 on CPU, 16,384 on CUDA."""
    kv_cache_mb: int = Field(default=512, ge=0)
    """Memory for guidance kept between calls (keys and values), per model, in MiB."""


class Config(_Section):
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
    path = Path(path).expanduser()
    data = read_yaml(path, hint=f": `gdr init {path}` writes one")
    if data is None:
        raise ConfigError(f"{path}: is empty: `gdr init --force {path}` writes a commented one")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping with strong and weak, not {type(data).__name__}")
    return parse_config(data, base=path.absolute().parent, origin=str(path))


def parse_config(data: Mapping[str, Any], *, base: Path | None = None, origin: str = "configuration") -> Config:
    """Validate a configuration given as a mapping.

    Args:
        data: What gdr.yaml would hold.
        base: Folder that relative paths are relative to; default: the current folder.
        origin: What error messages call the source.

    Returns:
        The configuration, with local paths made absolute. What may be a hub id and is not on disk stays a hub id.

    Raises:
        ConfigError: Keys are wrong, or paths do not exist; all of them in one line.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, Config, data)}") from None
    config, complaints = locate(config, base or Path.cwd())
    if complaints:
        raise ConfigError(f"{origin}: {'; '.join(complaints)}")
    return config


def fingerprint(config: Config) -> str:
    """What makes two configurations give the same rewards, as a hex digest.

    The store, the load order and the memory settings are left out: they change the cost, not the result. Guidance
    files, chat templates and routers' data files count by content, wherever they are. Models count as they are named;
    their content is in `LogprobModel.identity`.

    Args:
        config: A configuration from `load_config` or `parse_config`.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    data = config.model_dump(
        mode="json", exclude={"store": True, "load": True, "limits": {"token_budget", "kv_cache_mb"}}
    )
    data["guidance"]["files"] = _contents(data["guidance"]["files"])
    data["routing"]["routers"] = _contents(data["routing"]["routers"])
    for side in ("strong", "weak"):
        data[side]["chat_template"] = _contents(data[side]["chat_template"])
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _contents(value: Any) -> Any:
    """The same value with a digest in the place of every absolute path of a file."""
    if isinstance(value, dict):
        return {key: _contents(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_contents(one) for one in value]
    if isinstance(value, str) and (path := Path(value)).is_absolute() and path.is_file():
        return "content:" + hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return value

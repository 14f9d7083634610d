"""The options of an annotation, the policy that they name, and what two runs must agree on to share a folder."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from gdr_plugin.annotation.filters import Filters
from gdr_plugin.annotation.summary import InputFacts, RunIdentity
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.config.schema import Config
from gdr_plugin.sampling.sample import PolicySampler
from gdr_plugin.sampling.sampler import Sampler, Sampling
from gdr_plugin.sampling.server import SCHEMES, ServerSampler
from gdr_plugin.scoring.stages import reward_identity

_PACKAGES = ("gdr-plugin", "torch", "transformers", "tokenizers", "peft", "pyarrow")


@dataclass(frozen=True, slots=True)
class AnnotateOptions:
    """What `gdr annotate` can be told besides gdr.yaml."""

    select: str = "max-min"
    """Selector that picks the pairs, with its option after a colon: `top-k:3`."""
    filters: Filters = field(default_factory=Filters)
    policy: str | None = None
    """Model that draws the responses: `strong` or `weak` for the configuration's own, else a hub id, folder, `.gguf` or
    server (`vllm:http://host:8000/name`, `sglang:...`, `openai:...`). None: the rows bring their `responses`."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the policy draws; its seed is the selector's too."""
    policy_batch: int | None = None
    """Responses drawn together; default: 32 on CPU, 64 on CUDA, on servers `server.concurrency` (16)."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New name -> the input's name of columns."""
    limit: int | None = None
    """Only the first rows."""
    strict: bool = False
    """Whether a response that cannot be scored, or a prompt that cannot be sampled, stops the run."""
    skip_bad: bool = False
    """Whether rows that cannot be read go into the rejects rather than stop the run before it starts."""


def open_policy(config: Config, options: AnnotateOptions, *, on_rank: bool = False) -> Sampler | None:
    """The policy that draws the responses, or None when the rows bring them.

    A policy that is one of the configuration's base models is opened as that one is, so that they share weights.

    Args:
        config: The configuration.
        options: The options.
        on_rank: Whether this is one of several processes, each with a GPU of its own.

    Raises:
        ConfigError: It cannot be sampled here, or its server refuses it.
        ModelError: It does not exist, or its server cannot be reached.
    """
    if options.policy is None:
        return None
    limits = Limits(
        max_length=config.limits.max_length,
        max_response=options.sampling.max_new_tokens,
        long_input=config.limits.long_input,
    )
    spec = policy_spec(config, options.policy)
    if spec.scheme in SCHEMES:
        return ServerSampler(spec, limits, batch=options.policy_batch)
    if on_rank:
        from gdr_plugin.models.local.device import spec_on_rank

        spec = spec_on_rank(spec)
    return PolicySampler(spec, limits, batch=options.policy_batch)


def policy_spec(config: Config, policy: str) -> ModelSpec:
    """The model that `--policy` names: one of the configuration's own, or another one."""
    if policy in ("strong", "weak"):
        return config.strong if policy == "strong" else config.weak
    spec = ModelSpec(model=policy)
    place = _place(spec)
    for known in (config.weak, config.strong):
        if known.scheme == spec.scheme and _place(known) == place:
            return known.model_copy(update={"adapter": None})
    return ModelSpec(model=str(place)) if isinstance(place, Path) else spec


def _place(spec: ModelSpec) -> Path | str:
    """Where a model is: the absolute path of a local one, else what the user wrote."""
    path = Path(spec.target).expanduser()
    return path.resolve() if spec.scheme == "hf" and path.exists() else spec.target


def describe_run(
    config: Config,
    options: AnnotateOptions,
    given: InputFacts,
    rendered: Mapping[str, RenderedGuidance],
    models: Mapping[str, str],
    policy: str | None,
) -> RunIdentity:
    """Everything that decides the result: runs that agree in it may go on in one folder.

    What changes the cost only (store, load order, batch and memory sizes, where it runs) is left out, so that a run may
    be taken up with less memory, or elsewhere.

    Args:
        config: The configuration.
        options: The options.
        given: What the input is.
        rendered: Each domain's guidance.
        models: `strong`, `weak`, and `policy` where there is one -> identity.
        policy: The policy's name; None when the rows bring their responses.
    """
    chosen: dict[str, Any] = {"select": options.select, **asdict(options.filters), "seed": options.sampling.seed}
    if policy is not None:
        chosen |= {"policy": policy, **asdict(options.sampling)}
    reward = reward_identity(config, rendered, models)
    return cast("RunIdentity", {**reward, "input": given, "options": chosen})


def versions() -> dict[str, str]:
    """Versions of what computes the result; packages that are not installed are left out."""
    known = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            known[package] = version(package)
    return known

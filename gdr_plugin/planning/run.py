"""From a gdr.yaml and options to a plan: opens configurations and tokenizers, never weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.config.load import named_config
from gdr_plugin.config.schema import Config
from gdr_plugin.guidance import render
from gdr_plugin.planning.arrangements import Sampling, Side
from gdr_plugin.planning.gpus import parse_gpus
from gdr_plugin.planning.models import Descriptions, PlannedModel, open_planned
from gdr_plugin.planning.plan import Plan, make_plan
from gdr_plugin.planning.work import PROMPT_TOKENS, RESPONSE_TOKENS, Given, Lengths, side_work
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names

__all__ = ["PlanOptions", "plan_run"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `gdr plan` can be told besides gdr.yaml."""

    gpus: str
    """As in `8xH100`."""
    prompts: int | None = None
    """None: as many as the input has rows."""
    samples: int | None = None
    """Responses to each prompt; None: as the input has."""
    input: str | None = None
    """File whose rows are counted and measured."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New name -> the input's name of columns."""
    prompt_tokens: float | None = None
    response_tokens: float | None = None
    policy: str | None = None
    """Model that draws the responses: `strong`, `weak`, or as gdr.yaml names one."""
    mfu: float | None = None
    """Share of the matrix-multiply speed that is of use."""


def plan_run(config: str | Path | Config, options: PlanOptions, *, plugins: Plugins | None = None) -> Plan:
    """Plan a run.

    Args:
        config: The reward: a gdr.yaml or a validated configuration.
        options: Everything else.
        plugins: Where names are looked up; default: built-in and installed plugins.

    Raises:
        ConfigError: The configuration or an option is wrong.
        DataError: The input cannot be read.
        ModelError: A model has no configuration.
    """
    cluster = parse_gpus(options.gpus)
    _check(options)
    config, origin = named_config(config)
    resolved = resolve_names(config, plugins or Plugins(), origin=origin)
    given = None if options.input is None else Given.read(options.input, options.columns)
    prompts, samples = _amount(options, given)
    on_cpu, known = cluster.gpu.on_cpu, Descriptions()
    models = {
        name: open_planned(spec, config.limits, on_cpu=on_cpu, known=known)
        for name, spec in (("strong", config.strong), ("weak", config.weak))
    }
    section = config.guidance
    rendered = [
        render(guidance, instruction=section.instruction, exemplars=section.exemplars, seed=section.seed)
        for guidance in resolved.guidances.values()
    ]
    lengths = {name: _lengths(model, options, given) for name, model in models.items()}
    sides = {
        name: Side(
            model,
            side_work(
                model,
                rendered,
                lengths[name],
                guided=section.placement in ("both", name),
                prompts=prompts,
                samples=samples,
            ),
        )
        for name, model in models.items()
    }
    sampling = None
    if options.policy is not None:
        spec = {"strong": config.strong, "weak": config.weak}.get(options.policy) or ModelSpec(model=options.policy)
        policy = open_planned(spec, config.limits, on_cpu=on_cpu, known=known)
        asked = _lengths(policy, options, given)
        sampling = Sampling(policy, asked.prompt, asked.response, prompts, samples)
    return make_plan(
        sides["strong"],
        sides["weak"],
        cluster,
        config.limits,
        sampling=sampling,
        mfu=options.mfu,
        assumptions=_assumed(options, given),
    )


def _check(options: PlanOptions) -> None:
    for name, value in (
        ("--prompts", options.prompts),
        ("--samples", options.samples),
        ("--prompt-tokens", options.prompt_tokens),
        ("--response-tokens", options.response_tokens),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, not {value}")
    if options.mfu is not None and not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu is a share between 0 and 1, not {options.mfu}")


def _amount(options: PlanOptions, given: Given | None) -> tuple[float, float]:
    """Prompts, and responses to each."""
    prompts = options.prompts if options.prompts is not None else given and given.rows
    if not prompts:
        raise ConfigError("say how many prompts there are: --prompts 100000, or --input FILE")
    samples: float | None = options.samples
    if samples is None and given is not None and given.responses:
        samples = given.responses / given.rows
    if samples is None:
        raise ConfigError("say how many responses each prompt has: --samples 32")
    return float(prompts), float(samples)


def _lengths(model: PlannedModel, options: PlanOptions, given: Given | None) -> Lengths:
    prompt, response = options.prompt_tokens, options.response_tokens
    if given is not None:
        return given.lengths(model, prompt, response)
    return Lengths(PROMPT_TOKENS if prompt is None else prompt, RESPONSE_TOKENS if response is None else response)


def _assumed(options: PlanOptions, given: Given | None) -> list[str]:
    notes = []
    measured = f"measured on the first {len(given.samples):,} rows of {Path(str(options.input)).name}" if given else ""
    if options.prompt_tokens is None:
        notes.append(
            f"prompts: {measured}"
            if given
            else f"prompts have {PROMPT_TOKENS} tokens (--prompt-tokens, or --input FILE)"
        )
    if options.response_tokens is None:
        known = given is not None and any(responses for _, responses in given.samples)
        notes.append(
            f"responses: {measured}"
            if known
            else f"responses have {RESPONSE_TOKENS} tokens (--response-tokens, or --input FILE with responses)"
        )
    return notes

"""`gdr check`: validate a gdr.yaml and say what it would load, before hours are spent on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdr_plugin.cli import options
from gdr_plugin.cli.main import app
from gdr_plugin.cli.show import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gdr_plugin.api.models import LogprobModel
    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.config.schema import Config
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.reward.teacher import Teacher

_QUESTION = "How many days are there in a leap year?"
_ANSWERS = ("A leap year has 366 days.", "purple monday the of seventeen")
"""Any language model finds the first answer likelier; the ratio's preference depends on the two models."""


@app.command()
def check(
    ctx: typer.Context,
    config: Annotated[Path, typer.Argument(help="The gdr.yaml to check.")] = Path("gdr.yaml"),
    set_: options.Set = None,
    load: Annotated[bool, typer.Option("--load", help="Also load the weights and score two probe responses.")] = False,
    trainer: Annotated[
        str | None,
        typer.Option("--for", metavar="NAME", help="Also say what would go wrong in a trainer (`gdr integrations`)."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Validate a gdr.yaml and say what it would load."""
    from gdr_plugin.adapters.catalogue import integration
    from gdr_plugin.adapters.fit import concerns
    from gdr_plugin.cli.show import print_json
    from gdr_plugin.config.load import fingerprint, named_config
    from gdr_plugin.reward.resolve import resolve_names

    title = integration(trainer).title if trainer else ""
    checked, _ = named_config(options.configured(config, set_))
    plugins = ctx.obj.plugins()
    resolved = resolve_names(checked, plugins, origin=str(config))
    from gdr_plugin.reward.reward import GuidedDensityRatio  # after the quick checks, since it takes longer to import

    # A probe has no place in the store, and a check should not make the file.
    ratio = GuidedDensityRatio.from_config(checked.model_copy(update={"store": None}), plugins=plugins)
    teacher = _teacher(checked, ratio, plugins)
    probe = _probe(ratio, teacher) if load else None
    facts: dict[str, Any] = {
        "config": str(config),
        "fingerprint": fingerprint(checked),
        "strong": _model(checked.strong, ratio.strong),
        "weak": _model(checked.weak, ratio.weak),
        **(
            {"reference": _model(checked.teacher.reference, teacher.models["reference"])}
            if checked.teacher and teacher
            else {}
        ),
        "shared_weights": _weights(checked.strong) == _weights(checked.weak),
        "guidance": _guidance(checked, ratio),
        "routing": {
            "routers": [router.name for router in resolved.routers],
            "default_domain": checked.routing.default_domain,
        },
        "reward": checked.reward.model_dump(mode="json"),
        "store": _store(checked),
        "limits": checked.limits.model_dump(mode="json"),
        "load": checked.load,
    }
    if probe is not None:
        facts["probe"] = probe
    if trainer is not None:
        facts["for"] = {title: concerns(trainer, checked)}
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _teacher(config: Config, ratio: GuidedDensityRatio, plugins: Plugins) -> Teacher | None:
    """The teacher, where gdr.yaml has a reference for one; the policy's tokenizer is taken to be the strong model's.

    Raises:
        ConfigError: The three models cannot teach: their vocabularies differ, or they are not all in memory.
        ModelError: The reference cannot be opened.
    """
    from gdr_plugin.api.models import TakesIds
    from gdr_plugin.reward.teacher import Teacher

    if config.teacher is None:
        return None
    reference = plugins.open_model(config.teacher.reference, config.limits)
    chat = ratio.strong.chat
    return Teacher(ratio, chat.vocabulary() if isinstance(chat, TakesIds) else {}, reference=reference)


def _model(spec: ModelSpec, model: LogprobModel) -> dict[str, Any]:
    """What would be loaded; what the backend says of itself overrides the rest."""
    return {
        "model": spec.model,
        "identity": model.identity,
        "adapter": spec.adapter,
        "dtype": None if spec.on_server else spec.dtype,
        "device": spec.device,
        "template": spec.chat_template or ("the tokenizer's own" if spec.scheme == "hf" else None),
        **model.describe(),
        **getattr(model, "expected_strategy", dict)(),
    }


def _weights(spec: ModelSpec) -> object:
    """What must be equal for two models to share one set of weights."""
    return spec.scheme, spec.target, spec.revision, spec.dtype, spec.device, str(spec.device_map)


def _guidance(config: Config, ratio: GuidedDensityRatio) -> dict[str, Any]:
    """Each domain's guidance, and how many tokens it puts in front of every prompt of the domain."""
    placement = config.guidance.placement
    sides = {"strong": ratio.strong, "weak": ratio.weak}
    guided = {"both": ("strong", "weak"), "strong": ("strong",), "none": ()}[placement]
    domains = {}
    for domain, name in config.guidance.domains.items():
        rendered = ratio.rendered[domain]
        tokens = {side: _extra_tokens(side, model, ratio, domain) for side, model in sides.items() if side in guided}
        domains[domain] = {
            "guidance": name,
            "id": rendered.id,
            "exemplars": list(rendered.exemplars),
            "tokens": {"strong": 0, "weak": 0, **tokens},
        }
    switches = config.guidance.model_dump(mode="json", exclude={"domains", "files"})
    return {**switches, "files": list(config.guidance.files), "domains": domains}


def _extra_tokens(side: str, model: LogprobModel, ratio: GuidedDensityRatio, domain: str) -> int:
    """Tokens of context with the domain's guidance, less those without."""
    from gdr_plugin.api.errors import ChatError
    from gdr_plugin.api.types import Message
    from gdr_plugin.guidance import apply

    question = (Message("user", _QUESTION),)
    try:
        plain, guided = (
            len(model.chat.span(conversation, _ANSWERS[0], end=True).context)
            for conversation in (question, apply(ratio.rendered[domain], question))
        )
    except ChatError as error:
        raise ChatError(f"{side} model, domain {domain!r}: {error}") from error
    return guided - plain


def _store(config: Config) -> dict[str, Any] | None:
    if config.store is None:
        return None
    path = Path(config.store.path)
    return {"path": str(path), "bytes": path.stat().st_size if path.exists() else None}


def _probe(ratio: GuidedDensityRatio, teacher: Teacher | None) -> dict[str, Any]:
    """Load the models and score two answers; a teacher's reference, too."""
    from gdr_plugin.api.errors import ModelError
    from gdr_plugin.api.types import Message, Sample

    start = time.perf_counter()
    question = (Message("user", _QUESTION),)
    scores = ratio.score([Sample(question, answer) for answer in _ANSWERS])
    for score in scores:
        if score.reward is None:
            raise ModelError(f"the probe could not be scored: {score.reason}")
    if teacher is not None:
        (taught,) = teacher.score([teacher.probe(question, _ANSWERS[0])])
        if isinstance(taught, ModelError):
            raise taught
    answers = [
        {
            "response": answer,
            "reward": score.reward,
            "strong_logprob": score.strong_logprob,
            "weak_logprob": score.weak_logprob,
            "domain": score.domain,
        }
        for answer, score in zip(_ANSWERS, scores, strict=True)
    ]
    return {"seconds": round(time.perf_counter() - start, 2), "prompt": _QUESTION, "answers": answers}


def _judged(answers: Sequence[Mapping[str, Any]]) -> str:
    """What the probe shows: a model that finds nonsense likelier than an answer is asked in a wrong way."""
    sensible, nonsense = answers
    gaps = {side: sensible[f"{side}_logprob"] - nonsense[f"{side}_logprob"] for side in ("strong", "weak")}
    wrong = [side for side, gap in gaps.items() if gap <= 0]
    if wrong:
        return (
            f"{' and '.join(wrong)} finds nonsense at least as likely as an answer: is it a language model of English, "
            "and is its `chat_template` right?"
        )
    by = " and ".join(f"{gap:,.0f}" for gap in gaps.values())
    return (
        f"both models find the answer likelier than nonsense (strong and weak by {by} nats), so weights and templates "
        "fit; which of the two the reward prefers says nothing about its worth: `gdr evaluate` does"
    )


def _print(facts: dict[str, Any]) -> None:
    from gdr_plugin.cli.show import print_facts, print_table

    shared = "shares the strong model's weights" if facts["shared_weights"] else "of its own"
    for side in ("strong", "weak"):
        known = {name: value for name, value in facts[side].items() if value is not None}
        print_facts(side, known if side == "strong" else {**known, "weights": known.get("weights", shared)})
    if "reference" in facts:
        print_facts(
            "teacher.reference", {name: value for name, value in facts["reference"].items() if value is not None}
        )
    guidance = facts["guidance"]
    print_facts("guidance", {key: guidance[key] for key in ("placement", "instruction", "exemplars", "seed")})
    print_table(
        "",
        ("  domain", "guidance", "exemplars", "tokens strong", "tokens weak", "id"),
        [
            (
                f"  {domain}",
                rendered["guidance"],
                ", ".join(rendered["exemplars"]) or "-",
                f"{rendered['tokens']['strong']:,}",
                f"{rendered['tokens']['weak']:,}",
                rendered["id"],
            )
            for domain, rendered in guidance["domains"].items()
        ],
    )
    routing = facts["routing"]
    print_facts("routing", {"chain": " -> ".join([*routing["routers"], f"default {routing['default_domain']}"])})
    print_facts("reward", facts["reward"])
    store = facts["store"]
    size = "" if store is None else "new" if store["bytes"] is None else f"{store['bytes'] / 2**20:,.1f} MiB"
    print_facts("store", {"path": f"{store['path']} ({size})" if store else "none: nothing is kept between runs"})
    print_facts("limits", {key: "default" if value is None else value for key, value in facts["limits"].items()})
    print_facts("run", {"load": facts["load"], "fingerprint": facts["fingerprint"]})
    if "probe" in facts:
        probe = facts["probe"]
        rewards = {row["response"]: f"{row['reward']:+.3f} ({row['domain']})" for row in probe["answers"]}
        print_facts(f"probe ({probe['seconds']} s): {probe['prompt']}", rewards | {"so": _judged(probe["answers"])})
    for title, concerned in facts.get("for", {}).items():
        print_facts(f"in {title}", concerned)
    say(f"{facts['config']} is fine")

"""What goes wrong with a gdr.yaml in a framework: settings that are right elsewhere and cost a run there.

Knows each framework's habits; opens no model.
"""

from __future__ import annotations

from typing import Final

from gdr_plugin.adapters.catalogue import INTEGRATIONS
from gdr_plugin.config.schema import Config

_SUM: Final = {
    "openrlhf": "its --reward.clip_range (-10 10 by default) cuts sums of long responses off: every good one gets 10",
}
_COPIES: Final = {
    "openrlhf": "every vLLM engine",
    "verl": "each of its eight reward workers (reward.num_workers)",
    "swift": "every rank",
    "slime": "the rollout process, which has no GPU of its own",
    "verifiers": "each of its environment workers",
    "nemo-gym": "the resources server, in an environment of its own,",
    "inspect": "each eval",
    "trl": "every rank",
    "easyr1": "the reward's process, which has no GPU of its own",
    "axolotl": "every rank (with reward_num_workers above 1 each of its workers)",
    "unsloth": "every rank",
    "skyrl": "the generator's process",
    "areal": "every rollout worker",
    "distilabel": "every replica of the step",
}
_MISSING: Final = {
    "trl": "OnlineDPO and SDPO turn a missing reward into 0; GRPO and RLOO leave it out",
    "openrlhf": "its client goes on without a missing reward, and training ends later, elsewhere",
    "verl": "its rate-limited reward manager turns every error into a reward of 0.0: use the manager gdr",
    "swift": "it turns a missing reward into 0: the adapter raises instead, unless GDR_UNSCORED says a number",
    "verifiers": "a trace whose scoring failed reads as a reward of 0 and has an error: leave such traces out; where "
    "timeout.scoring ran out it has no error: set no such timeout",
    "nemo-gym": "the server answers 500, and the rollout fails",
    "inspect": "the eval ends with an error, unless GDR_UNSCORED=none leaves such samples out of the mean",
    "slime": "its remote client tries a failed request ten times before the run ends",
    "easyr1": "it lets NaN pass; an error ends the run",
    "llamafactory": "its client looks at no status: it stops with KeyError: 'scores'; the log of gdr serve says why",
    "axolotl": "its asynchronous and sequence-parallel trainers turn a missing reward into 0: set GDR_UNSCORED",
    "unsloth": "it patches TRL's trainers: GRPO leaves a missing reward out",
    "skyrl": "generator.zero_reward_on_non_stop makes 0 of the reward of cut answers: leave it at false",
    "areal": "a reward function that takes too long is a reward of 0: use the workflow gdr_areal.workflow.GDRWorkflow",
    "distilabel": "it fills what a failing step should have made with None: drop rows without `gdr_reward`",
}


def concerns(name: str, config: Config) -> dict[str, str]:
    """What to know before a run.

    Args:
        name: One of `INTEGRATIONS`.
        config: The reward.

    Returns:
        What is concerned -> what would go wrong, and what to do.
    """
    title = INTEGRATIONS[name].title
    found = {}
    if config.reward.reduction == "sum":
        why = _SUM.get(name, "a policy can raise it by length alone")
        found["reward.reduction: sum"] = f"the reward has no bound, and {why}; set it to mean or per_byte"
    if len(config.guidance.domains) > 1 and "field" not in {entry.name for entry in config.routing.routers}:
        found["routing.routers"] = (
            "a column `domain` of the data is not read: put `field` in front, or leave it to "
            f"{', '.join(entry.name for entry in config.routing.routers) or 'default_domain'}"
        )
    if config.load == "sequential":
        found["load: sequential"] = f"both models load anew for each batch of {title}'s: set it to together"
    if name != "llamafactory" and not all(spec.scheme == "fake" for spec in (config.strong, config.weak)):
        found["models"] = f"in the process, {_COPIES[name]} loads both: start one `gdr serve` and give its address"
    found["not scored"] = _MISSING[name]
    return found

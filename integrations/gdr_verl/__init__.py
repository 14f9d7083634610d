"""verl: the guided density ratio as a reward manager and as a reward function.

`reward.reward_manager.name=gdr` is the usual way: `manager`, which verl finds by the entry point `verl.plugins`.
`compute_score` below is for verl's own managers: `reward.custom_reward_function.path=pkg://gdr_verl`. Contract: verl
0.9. Importing this package imports neither verl nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt

__all__ = ["compute_score"]


async def compute_score(
    data_source: object,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    remote: str | None = None,
    config: str | None = None,
    unscored: float | str | None = None,
    finished: bool = False,
    **others: object,
) -> float:
    """The reward of one answer, for verl's `custom_reward_function`.

    Args:
        data_source: Becomes a field of the sample.
        solution_str: The answer without special tokens.
        ground_truth: Not used.
        extra_info: `prompt` is the prompt (a text, or messages); `domain` and all others become fields.
        remote: Address of a `gdr serve`; default: the environment's GDR_REMOTE.
        config: A gdr.yaml whose models load in each of verl's reward workers; default: GDR_CONFIG.
        unscored: `raise`, or the number that an answer gets which cannot be scored.
        finished: Whether the end of turn counts. verl does not say which answers were cut, so that it counts for none
            by default; the manager sees it by the answer's tokens.
        **others: What verl adds; not used.

    Raises:
        GDRError: The reward cannot be had.
    """
    fields = fields_of({"data_source": data_source, "extra_info": extra_info})
    prompt = fields.pop("prompt", None)
    if prompt is None:
        raise DataError(
            "verl passes no prompt to a reward function: put it into the row's extra_info as `prompt`, or use the "
            "manager (reward.reward_manager.name=gdr)"
        )
    messages = parse_prompt(prompt if isinstance(prompt, str) else list(prompt))
    sample = Sample(messages, solution_str, finished=finished, fields=fields)
    (reward,) = await open_backend(remote, config, unscored).ask([sample])
    return reward


def fields_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns as a sample's fields: those of `extra_info` beside the others, which go first.

    Args:
        columns: The row's columns. Table readers fill what a row lacks with None: such values are left out.
    """
    found = {**(columns.get("extra_info") or {}), **columns}
    own = ("extra_info", "raw_prompt", "reward_model")
    return {name: value for name, value in found.items() if value is not None and name not in own}

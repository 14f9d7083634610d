"""EasyR1: the guided density ratio as `worker.reward.reward_function=$(gdr path verl easyr1):compute_score`.

EasyR1, a fork of an old verl, loads this file by its path and hands it no prompt: the row's answer column (here
`ground_truth`) has to bring it. Contract read from EasyR1's source of July 2026.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt

REWARD_NAME = "gdr"
REWARD_TYPE = "batch"


def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]],
    *,
    remote: str | None = None,
    config: str | None = None,
    unscored: float | str | None = None,
    finished: bool = False,
) -> list[dict[str, float]]:
    """The rewards of a batch, in one request.

    Args:
        reward_inputs: Each with `response`, the answer without special tokens, and `ground_truth`: a mapping (or its
            JSON) with `prompt` (a text, or messages); `domain` and all others become fields.
        remote: Address of a `gdr serve`; default: the environment's GDR_REMOTE.
        config: A gdr.yaml whose models load in the reward's process; default: GDR_CONFIG.
        unscored: `raise`, or the number that an answer gets which cannot be scored.
        finished: Whether the end of turn counts. EasyR1 does not say which answers were cut, so that it counts for none
            by default.

    Returns:
        For each answer its reward, as `overall`.

    Raises:
        GDRError: The reward cannot be had. EasyR1 ends the training with its message.
    """
    samples = [_sample(given, at, finished) for at, given in enumerate(reward_inputs)]
    return [{"overall": reward} for reward in open_backend(remote, config, unscored).rewards(samples)]


def _sample(given: Mapping[str, Any], at: int, finished: bool) -> Sample:
    packed = given["ground_truth"]
    if isinstance(packed, str):
        try:
            packed = json.loads(packed)
        except ValueError:
            packed = None
    if not isinstance(packed, Mapping) or packed.get("prompt") is None:
        raise DataError(
            f"item {at}: EasyR1 passes no prompt to a reward: put it into the column that data.answer_key names, as "
            '{"prompt": ..., "domain": ...} or its JSON'
        )
    # Table readers fill what a row lacks with None, and give lists as arrays.
    fields = {str(name): value for name, value in packed.items() if value is not None and name != "prompt"}
    prompt = packed["prompt"]
    messages = parse_prompt(prompt if isinstance(prompt, str) else list(prompt))
    return Sample(messages, given["response"], finished=finished, fields=fields)

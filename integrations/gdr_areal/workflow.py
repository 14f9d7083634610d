"""AReaL's single-turn workflow with our reward: `workflow="gdr_areal.workflow.GDRWorkflow"`.

A reward function of AReaL's runs in a pool of a few processes, and what has not come back after four times 15 seconds
(waiting for a free process counts) becomes a reward of 0. The workflow awaits the reward itself instead. Contract:
AReaL 1.0. The environment says which reward; see `gdr_plugin.adapters.backend`.
"""

from __future__ import annotations

from typing import Any

from areal.workflow.rlvr import RLVRWorkflow

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.adapters.rendered import prompt_reader_of
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt


class GDRWorkflow(RLVRWorkflow):  # type: ignore[misc]
    """Rewards answers one by one; a `gdr serve` batches those of all workers.

    Args:
        **given: What `RLVRWorkflow` takes (`gconfig`, `tokenizer`, `enable_thinking`, ...), but for `reward_fn`.

    Raises:
        ConfigError: The environment does not say which reward.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(reward_fn=_never, **given)
        self._backend = open_backend()
        self._reader = prompt_reader_of(self.tokenizer, self.tokenizer.name_or_path)

    async def _compute_rewards(self, resp: Any, prompt_str: str, task_data: dict[str, Any]) -> float:
        """The reward of one answer, whose ids say whether it was cut.

        Raises:
            GDRError: The reward cannot be had.
        """
        row = dict(task_data)
        messages = row.pop("messages", None)
        if messages is None:
            raise DataError("the row has no `messages`: AReaL's prompt is that column")
        text, finished = self._reader.response_of_ids(resp.input_tokens, resp.output_tokens)
        fields = {name: value for name, value in row.items() if value is not None}
        sample = Sample(parse_prompt(list(messages)), text, finished=finished, fields=fields)
        (reward,) = await self._backend.ask([sample])
        return reward


def _never(*_: object, **__: object) -> float:
    raise NotImplementedError("GDRWorkflow asks for its rewards itself")

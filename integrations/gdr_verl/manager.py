"""verl's reward manager `gdr`: `reward.reward_manager.name=gdr` is all that a user writes.

Unlike a reward function it sees the prompt's messages and the answer's token ids, so that it knows what was cut. verl
imports this module by the entry point of group `verl.plugins`; models and their libraries load later, if at all.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.adapters.rendered import prompt_reader_of
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt
from gdr_verl import fields_of


@register("gdr")
class GDRRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Rewards answers one by one; a `gdr serve` batches those of all workers.

    Args:
        config: verl's configuration. `reward.custom_reward_function.reward_kwargs` may have `remote`, `config` and
            `unscored`, as `gdr_plugin.adapters.backend.open_backend` takes them.
        tokenizer: The policy's tokenizer.
        compute_score: Not used.
        reward_router_address: Not used.
        reward_model_tokenizer: Not used.

    Raises:
        ConfigError: Neither they nor the environment (GDR_REMOTE, GDR_CONFIG) say which reward.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: object = None,
        reward_router_address: object = None,
        reward_model_tokenizer: object = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        given = config.reward.get("custom_reward_function") or {}
        self._backend = open_backend(**(given.get("reward_kwargs") or {}))
        self._reader = prompt_reader_of(tokenizer, tokenizer.name_or_path)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last sequence of `data`.

        Raises:
            GDRError: The reward cannot be had. verl ends the training with its message.
        """
        item = data[-1:][0]
        columns, prompts, responses = item.non_tensor_batch, item.batch["prompts"], item.batch["responses"]
        if columns.get("raw_prompt") is None:
            raise DataError("the batch has no raw_prompt: set data.return_raw_chat=True")
        prompt_mask, response_mask = item.batch["attention_mask"].split([len(prompts), len(responses)])
        text, finished = self._reader.response_of_ids(
            prompts[prompt_mask.bool()].tolist(), responses[: int(response_mask.sum())].tolist()
        )
        sample = Sample(parse_prompt(list(columns["raw_prompt"])), text, finished=finished, fields=fields_of(columns))
        (reward,) = await self._backend.ask([sample])
        return {"reward_score": reward, "reward_extra_info": {"gdr_finished": float(finished)}}

"""For ms-swift's `--external_plugins FILE --reward_funcs gdr`; `gdr path swift reward` prints this file's path.

The environment says which reward; see `gdr_plugin.adapters.backend`. Contract: ms-swift 4.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from swift.rewards import AsyncORM, orms

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt

_TRAINER: Final = {"trainer_state", "trajectory_inputs", "response_token_ids", "rollout_logprobs", "rollout_infos"}
"""What ms-swift passes beside the columns of the data set."""


class GDR(AsyncORM):  # type: ignore[misc]
    """Scores a batch in one request; other reward functions go on meanwhile.

    Args:
        args: ms-swift's arguments; not used.

    Raises:
        ConfigError: The environment does not say which reward.
    """

    def __init__(self, args: object = None, **others: object) -> None:
        super().__init__(args, **others)
        self._backend = open_backend()

    async def __call__(
        self,
        completions: Sequence[str],
        *,
        messages: Sequence[Sequence[Mapping[str, Any]]],
        is_truncated: Sequence[bool],
        **columns: Any,
    ) -> list[float]:
        """The rewards of a batch, in order.

        Args:
            completions: The answers.
            messages: The conversations, each with its answer as the last turn.
            is_truncated: Whether each answer was cut.
            **columns: The data set's columns; routers see them (`field` reads `domain`).

        Raises:
            GDRError: The reward cannot be had: ms-swift would turn a missing one into 0.
        """
        count = len(completions)
        rows = {
            name: values
            for name, values in columns.items()
            if name not in _TRAINER and isinstance(values, list | tuple) and len(values) == count
        }
        samples = [
            Sample(
                parse_prompt(list(messages[at])[:-1]),
                completion,
                finished=not is_truncated[at],
                fields={name: values[at] for name, values in rows.items() if values[at] is not None},
            )
            for at, completion in enumerate(completions)
        ]
        return await self._backend.ask(samples)


orms["gdr"] = GDR

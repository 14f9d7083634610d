"""inspect_ai's scorer `gdr_inspect/gdr`: the reward of each sample's last answer, with the mean over a log.

The environment says which reward where the arguments do not; see `gdr_plugin.adapters.backend`. Contract: inspect_ai
0.3.285.
"""

from __future__ import annotations

import os
from typing import Any, Final

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.tool import ToolDef

from gdr_plugin.adapters.backend import open_backend, trainer_reward
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.api.unscored import Unscored
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import check_prompt
from gdr_plugin.data.tools import tools_of

_ENDED: Final = ("stop", "tool_calls")


@scorer(metrics=[mean(), stderr()])  # type: ignore[untyped-decorator]
def gdr(remote: str | None = None, config: str | None = None, unscored: float | str | None = None) -> Scorer:
    """The reward of a sample's last answer, given all that came before it.

    Args:
        remote: Address of a `gdr serve`; default: the environment's GDR_REMOTE.
        config: A gdr.yaml whose models load in this process; default: GDR_CONFIG.
        unscored: `raise`, `none` (the mean leaves such samples out), or the number that a sample gets which cannot be
            scored; default: GDR_UNSCORED.

    Raises:
        ConfigError: Neither the arguments nor the environment say which reward, or a value is wrong.
    """
    given = os.environ.get("GDR_UNSCORED") or "raise" if unscored is None else unscored
    policy = Unscored.of(given, masks=True)
    backend = open_backend(remote, config, "raise")

    async def score(state: TaskState, target: Target) -> Score:
        sample = _sample(state)
        (found,) = await backend.ask_scores([sample])
        if found.reward is None:
            value = policy.reward(None, found.reason, f"sample {state.sample_id!r}")
            if value is None:
                return Score.unscored(reason="scoring_failed", answer=sample.response, explanation=found.reason)
        else:
            value = trainer_reward(found, backend.settings, "")
        names = ("strong_logprob", "weak_logprob", "strong_tokens", "weak_tokens", "domain", "guidance")
        facts = {name: getattr(found, name) for name in names} | {"finished": sample.finished}
        return Score(value=value, answer=sample.response, explanation=found.reason, metadata=facts)

    return score


def _sample(state: TaskState) -> Sample:
    turns = [_turn(message, number) for number, message in enumerate(state.messages, start=1)]
    at = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=None)
    if at is None:
        raise DataError(f"sample {state.sample_id!r} has no answer")
    tools = [
        {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters.model_dump(exclude_none=True),
        }
        for tool in map(ToolDef, state.tools)
    ]
    defined = tools_of({"tools": tools})[1]
    prompt = ((defined,) if defined else ()) + tuple(turns[:at])
    check_prompt(prompt)
    finished = not state.output.empty and state.output.stop_reason in _ENDED
    return Sample(prompt, turns[at], finished=finished, fields=state.metadata)


def _turn(message: Any, number: int) -> Message:
    """One of inspect_ai's messages; reasoning that its provider hides is left out."""
    parts: list[Any] = [message.content] if isinstance(message.content, str) else message.content
    thoughts = [part.reasoning for part in parts if getattr(part, "type", None) == "reasoning" and not part.redacted]
    said = [
        part if isinstance(part, str) else part.model_dump(include={"type", "text"})
        for part in parts
        if getattr(part, "type", None) != "reasoning"
    ]
    calls = [
        {"id": call.id, "name": call.function, "arguments": call.arguments}
        for call in getattr(message, "tool_calls", None) or []
    ]
    more = {"tool_call_id": getattr(message, "tool_call_id", None), "name": getattr(message, "function", None)}
    item = {"role": message.role, "content": said, "reasoning_content": "".join(thoughts), "tool_calls": calls, **more}
    return message_of(item, f"message {number} of the sample")

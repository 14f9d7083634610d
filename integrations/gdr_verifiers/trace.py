"""The reward of verifiers' traces; imports verifiers where it reads one."""

from __future__ import annotations

from typing import Any, Final

from gdr_plugin.adapters.backend import open_backend
from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.messages import message_of
from gdr_plugin.data.prompts import check_prompt
from gdr_plugin.data.tools import tools_of

_DEFINED: Final = {"type", "name", "description", "parameters"}
"""What a template is shown of a tool."""


async def reward(
    task: Any,
    trace: Any,
    *,
    remote: str | None = None,
    config: str | None = None,
    unscored: float | str | None = None,
) -> float:
    """The reward of a trace's last reply, given all that came before it.

    Args:
        task: verifiers' task data. What a class of its own adds (such as `domain`) becomes fields.
        trace: verifiers' trace.
        remote: Address of a `gdr serve`; default: the environment's GDR_REMOTE.
        config: A gdr.yaml whose models load in each of verifiers' workers; default: GDR_CONFIG.
        unscored: `raise`, or the number that a trace gets which cannot be scored.

    Raises:
        GDRError: The reward cannot be had. verifiers records it as the trace's error.
    """
    (value,) = await open_backend(remote, config, unscored).ask([_sample(task, trace)])
    return value


def _sample(task: Any, trace: Any) -> Sample:
    """The conversation as the policy saw it: system turns and tools of the harness are part of it."""
    from verifiers.v1 import TaskData

    nodes, at = _reply(trace)
    given = [node.message.model_dump(exclude_none=True) for node in nodes[: at + 1]]
    turns = [message_of({"content": "", **item}, f"message {number} of the trace") for number, item in enumerate(given)]
    tools = tools_of({"tools": [tool.model_dump(include=_DEFINED) for tool in nodes[0].tools]})[1]
    prompt = ((tools,) if tools else ()) + tuple(turns[:-1])
    check_prompt(prompt)
    own = task.model_dump(mode="json", exclude=set(TaskData.model_fields), exclude_none=True)
    return Sample(prompt, turns[-1], finished=not trace.is_truncated, fields=own)


def _reply(trace: Any) -> tuple[list[Any], int]:
    """A branch's messages, and which of them is the reply: of a trace with subagents, the root agent's."""
    for branch in reversed(trace.branches):
        at = max((at for at, node in enumerate(branch.nodes) if node.sampled), default=None)
        if at is not None and trace.root_reply in (None, (branch.nodes[at].message.content or "").strip()):
            return branch.nodes, at
    raise DataError("the trace has no reply of the policy")

"""The taskset of the page on verifiers, which `test_pages.py` puts where `vf-eval` finds it.

Its harness runs one turn in verifiers' process, through verifiers' own interception: those that come along install a
program of theirs from the network first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import verifiers.v1 as vf


class Row(vf.TaskData):  # type: ignore[misc]
    """A task with a column of its own."""

    domain: str


class Rows(vf.Taskset[vf.Task[Row, vf.State, vf.TaskConfig], vf.TasksetConfig]):  # type: ignore[misc]
    """What `rows.json` holds: question and domain of each task."""

    def load(self) -> list[Any]:
        """The tasks."""
        task = vf.Task[Row, vf.State, vf.TaskConfig]
        rows = json.loads(Path("rows.json").read_text(encoding="utf-8"))
        return [task(Row(prompt=prompt, domain=domain), self.config.task) for prompt, domain in rows]


class OneTurn(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
    """Asks the policy once."""

    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any
    ) -> Any:
        """The one turn."""
        body = {"model": ctx.model, "messages": [{"role": "user", "content": data.prompt}]}
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{endpoint}/chat/completions", json=body, headers=headers)
        return vf.ProgramResult(0 if answer.status_code == 200 else 1, "", answer.text)


__all__ = ["OneTurn", "Rows"]

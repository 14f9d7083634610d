"""verifiers' judge plugin `gdr-verifiers`: `judges = [{id = "gdr-verifiers", remote = "http://..."}]`."""

from __future__ import annotations

from typing import Any

from verifiers.v1 import Judge, JudgeConfig

from gdr_verifiers.trace import reward


class GDRJudgeConfig(JudgeConfig):  # type: ignore[misc]
    """Settings of the judge; the endpoint and the model that every judge's settings have are not used."""

    id: str = "gdr-verifiers"
    name: str = "gdr"
    """The reward's name in a trace."""
    remote: str | None = None
    """Address of a `gdr serve`; default: the environment's GDR_REMOTE."""
    config: str | None = None
    """A gdr.yaml whose models load in each of verifiers' workers; default: GDR_CONFIG."""
    unscored: float | str | None = None
    """`raise`, or the number that a trace gets which cannot be scored; default: GDR_UNSCORED."""


class GDRJudge(Judge[float, GDRJudgeConfig]):  # type: ignore[misc]
    """Scores a trace's last reply."""

    async def score(self, task: Any, trace: Any) -> float:
        """The reward; see `gdr_verifiers.trace.reward`.

        Raises:
            GDRError: The reward cannot be had.
        """
        settings = self.config
        return await reward(task, trace, remote=settings.remote, config=settings.config, unscored=settings.unscored)

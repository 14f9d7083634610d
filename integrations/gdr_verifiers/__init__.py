"""verifiers and prime-rl: the guided density ratio as a reward function and as a judge plugin.

`rewards.gdr.fn = "gdr_verifiers:reward"` plugs the function into any task, `judges = [{id = "gdr-verifiers"}]` the
judge, which has its settings in the same file. The environment says which reward where they do not; see
`gdr_plugin.adapters.backend`. Contract: verifiers 0.4. Importing this package imports nothing of verifiers: it asks for
the judge by `__all__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdr_verifiers.trace import reward

if TYPE_CHECKING:
    from gdr_verifiers.judge import GDRJudge

__all__ = ["GDRJudge", "reward"]  # verifiers wants exactly one judge in it


def __getattr__(name: str) -> Any:
    if name == "GDRJudge":
        from gdr_verifiers.judge import GDRJudge

        return GDRJudge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a number was made with: versions, machine, models, data and guidance, so that somebody else can make it again.

Knows a reward and the data that it was measured on; nothing of measures.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from gdr_plugin.annotation.options import versions
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.data.fingerprint import fingerprint
from gdr_plugin.data.item import ItemScores
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.version import __version__

__all__ = ["MADE_WITH", "made_with"]

MADE_WITH = frozenset(
    {
        *("gdr-plugin", "date", "machine", "versions", "data fingerprint", "reduction", "router", "guidance ids"),
        *(
            f"{side} {name}"
            for side in ("strong", "weak")
            for name in ("model", "revision", "adapter", "identity", "dtype", "device", "template", "server's revision")
        ),
    }
)
"""The names of the facts."""

_OF_A_MODEL = ("dtype", "device", "template", "server's revision")
"""What a backend says of a model that bears on its numbers."""


def made_with(ratio: GuidedDensityRatio, scores: Sequence[ItemScores]) -> dict[str, str]:
    """Everything that decides the numbers, for people.

    Args:
        ratio: The reward.
        scores: The items as it scored them.

    Returns:
        Name -> fact; names of a model's facts begin with its side.
    """
    facts = {
        "gdr-plugin": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": _machine(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "data fingerprint": fingerprint(own.item for own in scores),
    }
    config = ratio.config
    for side, model in (("strong", ratio.strong), ("weak", ratio.weak)):
        spec = getattr(config, side) if config is not None else None
        described = model.describe()
        facts |= {
            **_asked(side, spec),
            f"{side} identity": model.identity,
            **{f"{side} {name}": described[name] for name in _OF_A_MODEL if name in described},
        }
    if config is not None:
        facts["reduction"] = config.reward.reduction
        routers = [router.name for router in config.routing.routers]
        facts["router"] = ", ".join([*routers, f"else {config.routing.default_domain}"])
    used = Counter(own.chosen[0].guidance for own in scores)
    facts["guidance ids"] = ", ".join(f"{name} ({count:,})" for name, count in used.most_common()) or "none"
    return facts


def _asked(side: str, spec: ModelSpec | None) -> dict[str, str]:
    """What gdr.yaml says of a model."""
    if spec is None:
        return {}
    stated = {"model": spec.model, "revision": spec.revision, "adapter": spec.adapter}
    return {f"{side} {name}": str(value) for name, value in stated.items() if value is not None}


def _machine() -> str:
    """What computed, without its name in the network."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"

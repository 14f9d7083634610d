"""The guided density ratio as a reward function for TRL: GRPO, RLOO, AsyncGRPO, OnlineDPO, SDPO.

    from gdr_trl import GDRReward
    trainer = GRPOTrainer(..., reward_funcs=GDRReward("gdr.yaml"))

`gdr_trl.reward` is a ready-made instance for command lines that take a dotted path (`trl grpo --reward_funcs
gdr_trl.reward`, Axolotl). It is made when it is first asked for, from the environment's GDR_CONFIG: the path of a
gdr.yaml, or the http address of a `gdr serve`.

No module of this package may be called `reward`: it would take that name's place.

Importing this package imports neither torch, transformers nor trl.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.unscored import Unscored
from gdr_trl.functions import AsyncGDRReward, GDRReward

if TYPE_CHECKING:
    reward: GDRReward

# `reward` is left out: a star import must not need GDR_CONFIG.
__all__ = ["AsyncGDRReward", "GDRReward"]

CONFIG_VARIABLE = "GDR_CONFIG"
"""Environment variable that `gdr_trl.reward` is made from."""


def __getattr__(name: str) -> object:
    if name != "reward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = _from_environment()
    return made


def _from_environment() -> GDRReward:
    value = os.environ.get(CONFIG_VARIABLE)
    if not value:
        raise ConfigError(f"gdr_trl.reward needs {CONFIG_VARIABLE}: set it to the path of a gdr.yaml (`gdr init`)")
    unscored = Unscored.of(os.environ.get("GDR_UNSCORED") or "none", masks=True, name="GDR_UNSCORED")
    if value.startswith(("http://", "https://")):
        return GDRReward(remote=value, unscored=unscored)
    return GDRReward(value, unscored=unscored)

"""Where a reward's pair of models comes from: a recipe that pickles, opened at the first use.

Knows how to open a `GuidedDensityRatio` and a `RemoteRatio`; nothing of TRL.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Placement, Reduction, Sample, Score
from gdr_plugin.config.load import load_config
from gdr_plugin.config.schema import Config
from gdr_trl.placement import on_rank, outside_zero3, spec_on_rank

if TYPE_CHECKING:
    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.reward.opening import ModelLike
    from gdr_plugin.reward.remote import RemoteRatio
    from gdr_plugin.reward.reward import GuidedDensityRatio


class Ratio(Protocol):
    """What scores samples: `GuidedDensityRatio`, `RemoteRatio`, or your own."""

    @property
    def domains(self) -> Collection[str]:
        """Every domain that a score may name."""
        ...

    @property
    def reduction(self) -> Reduction | None:
        """How log-probs are reduced."""
        ...

    def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """One score a sample, in order."""
        ...


class Pair(TypedDict, total=False):
    """Two models instead of a gdr.yaml; the arguments of `GuidedDensityRatio.from_models`."""

    strong: ModelLike
    weak: ModelLike
    guidance: str | Guidance | None
    placement: Placement
    exemplars: int
    reduction: Reduction
    store: str | Path | None
    limits: Limits | None


class Source:
    """One of the four ways to name a reward; exactly one is given.

    Args:
        config: Path of a gdr.yaml, or a configuration. Read and checked here, so that a mistake shows before training.
        ratio: A ready-made ratio.
        remote: Address of a `gdr serve`, or a `RemoteRatio`.
        pair: Two models.

    Raises:
        ConfigError: None or several are given, or the configuration is wrong.
    """

    def __init__(
        self, config: str | Path | Config | None, ratio: Ratio | None, remote: str | RemoteRatio | None, pair: Pair
    ) -> None:
        ways = {"a gdr.yaml": config, "ratio": ratio, "remote": remote, "strong and weak": pair or None}
        given = [name for name, way in ways.items() if way is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give one of {', '.join(ways)} to say what the reward is, not {' and '.join(given) or 'none'}"
            )
        if pair and not {"strong", "weak"} <= pair.keys():
            raise ConfigError("give both strong and weak (or a gdr.yaml)")
        self.in_process = remote is None
        self._config = load_config(config) if isinstance(config, str | Path) else config
        self._pair = pair
        self._remote = remote
        self._ready = ratio
        self._ratio: Ratio | None = ratio

    def __getstate__(self) -> dict[str, Any]:
        """Without models: they load again where they are needed."""
        state = {**self.__dict__, "_ratio": None}
        config = getattr(self._ready, "config", None)
        loaded = [one for one in (self._pair.get("strong"), self._pair.get("weak")) if one is not None]
        if self._ready is not None and isinstance(config, Config):
            return {**state, "_ready": None, "_config": config}
        if self._ready is not None or not all(isinstance(one, str | ModelSpec) for one in loaded):
            raise pickle.PicklingError(
                "a reward around objects that are loaded already cannot go to another process: make it from a "
                "gdr.yaml, or from the names of two models"
            )
        return state

    def open(self) -> Ratio:
        """The ratio, opened at the first call.

        Raises:
            GDRError: It cannot be opened.
        """
        if self._ratio is None:
            with outside_zero3():
                self._ratio = self._open()
        return self._ratio

    def _open(self) -> GuidedDensityRatio | RemoteRatio:
        if self._remote is not None:
            from gdr_plugin.reward.remote import RemoteRatio

            return RemoteRatio(self._remote) if isinstance(self._remote, str) else self._remote
        from gdr_plugin.reward.reward import GuidedDensityRatio

        if self._config is not None:
            return GuidedDensityRatio.from_config(on_rank(self._config))
        pair: Any = {**self._pair, "strong": _placed(self._pair["strong"]), "weak": _placed(self._pair["weak"])}
        return GuidedDensityRatio.from_models(**pair)


def _placed(model: ModelLike) -> ModelLike:
    if isinstance(model, str):
        model = ModelSpec(model=model)
    return spec_on_rank(model) if isinstance(model, ModelSpec) else model

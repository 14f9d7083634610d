"""Where a reward's model pair comes from: a recipe that can be pickled and is opened at the first use.

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
from gdr_trl.placement import outside_zero3

if TYPE_CHECKING:
    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.reward.opening import ModelLike
    from gdr_plugin.reward.remote import RemoteRatio
    from gdr_plugin.reward.reward import GuidedDensityRatio


class Ratio(Protocol):
    """What scores samples: `GuidedDensityRatio`, `RemoteRatio`, or an object of your own."""

    @property
    def domains(self) -> Collection[str]:
        """Every domain that a score may name."""
        ...

    @property
    def reduction(self) -> Reduction | None:
        """How log-probs are reduced."""
        ...

    def score(self, samples: Sequence[Sample], *, tokens: bool = False) -> list[Score]:
        """One score for each sample, in order."""
        ...


class ModelPair(TypedDict, total=False):
    """Two models instead of a gdr.yaml; the arguments of `GuidedDensityRatio.from_models`."""

    strong: ModelLike
    weak: ModelLike
    guidance: str | Guidance | None
    placement: Placement
    exemplars: int
    reduction: Reduction
    store: str | Path | None
    limits: Limits | None


class RewardSource:
    """One of the four ways to name a reward; exactly one is given.

    Args:
        config: Path of a gdr.yaml, or a configuration. Read and checked here, so that a mistake shows before training.
        ratio: A ready-made ratio.
        remote: Address of a `gdr serve`, or a `RemoteRatio`.
        model_pair: Two models; empty where another way is used.

    Raises:
        ConfigError: None or several are given, or the configuration is wrong.
    """

    def __init__(
        self,
        config: str | Path | Config | None,
        ratio: Ratio | None,
        remote: str | RemoteRatio | None,
        model_pair: ModelPair,
    ) -> None:
        ways = {"a gdr.yaml": config, "ratio": ratio, "remote": remote, "strong and weak": model_pair or None}
        given = [name for name, way in ways.items() if way is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give one of {', '.join(ways)} to say what the reward is, not {' and '.join(given) or 'none'}"
            )
        if model_pair and not {"strong", "weak"} <= model_pair.keys():
            raise ConfigError("give both strong and weak (or a gdr.yaml)")
        self.in_process = remote is None
        self._config = load_config(config) if isinstance(config, str | Path) else config
        self._model_pair = model_pair
        self._remote = remote
        self._ready = ratio
        self._ratio: Ratio | None = ratio

    def __getstate__(self) -> dict[str, Any]:
        """The recipe without models: they load again where they are needed."""
        state = {**self.__dict__, "_ratio": None}
        config = getattr(self._ready, "config", None)
        models = [
            model for model in (self._model_pair.get("strong"), self._model_pair.get("weak")) if model is not None
        ]
        if self._ready is not None and isinstance(config, Config):
            return {**state, "_ready": None, "_config": config}
        if self._ready is not None or not all(isinstance(model, str | ModelSpec) for model in models):
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
        from gdr_plugin.models.local.device import on_rank
        from gdr_plugin.reward.reward import GuidedDensityRatio

        if self._config is not None:
            return GuidedDensityRatio.from_config(on_rank(self._config))
        placed: Any = {side: _placed(self._model_pair[side]) for side in ("strong", "weak")}
        return GuidedDensityRatio.from_models(**{**self._model_pair, **placed})


def _placed(model: ModelLike) -> ModelLike:
    if isinstance(model, str):
        model = ModelSpec(model=model)
    from gdr_plugin.models.local.device import spec_on_rank

    return spec_on_rank(model) if isinstance(model, ModelSpec) else model

"""Where a reward's model pair comes from: a recipe that can be pickled and is opened at the first use.

Knows how to open a `GuidedDensityRatio` and a `RemoteRatio`; nothing of TRL. A recipe that came out of a pickle shares
what it opens with all equal ones of the process: some trainers pickle the reward into every batch, and its models must
not be loaded for each.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict, runtime_checkable

from gdr_plugin.api.errors import ConfigError, nearest
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Placement, Reduction, Sample, Score
from gdr_plugin.config.load import named_config
from gdr_plugin.config.messages import validated
from gdr_plugin.config.override import override
from gdr_plugin.config.schema import Config, GuidanceSection, RewardSection
from gdr_plugin.models.local.packages import check_packages
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


@runtime_checkable
class ChecksFields(Protocol):
    """What a `Ratio` may offer beyond its contract."""

    def check_fields(self, fields: Mapping[str, Any]) -> None:
        """Raise DomainError where a row's columns name a domain that is not configured."""
        ...


class ModelPair(TypedDict, total=False):
    """Two models instead of a gdr.yaml; the arguments of `GuidedDensityRatio.from_models`.

    With a gdr.yaml, all but the first three replace its settings.
    """

    strong: ModelLike
    weak: ModelLike
    guidance: str | Guidance | None
    placement: Placement
    exemplars: int
    reduction: Reduction
    store: str | Path | None
    limits: Limits | None


_SETTINGS: Final = {
    "placement": "guidance.placement",
    "exemplars": "guidance.exemplars",
    "reduction": "reward.reduction",
    "store": "store.path",
    "limits": "limits",
}
"""Keywords that replace a setting of gdr.yaml, and which."""
_opened: dict[str, Ratio] = {}
"""What recipes that came out of a pickle have opened, by what they are."""
_opening = threading.Lock()


class RewardSource:
    """One of the four ways to name a reward; exactly one is given.

    Args:
        config: Path of a gdr.yaml, or a configuration. Read and checked here, so that a mistake shows before training.
        ratio: A ready-made ratio.
        remote: Address of a `gdr serve`, or a `RemoteRatio`.
        keywords: Two models, or what replaces settings of `config`; empty where another way is used.

    Raises:
        ConfigError: None or several are given, or the configuration or a keyword is wrong.
        MissingDependencyError: The models are to run in this process, and a package of the extra `local` is missing.
    """

    def __init__(
        self,
        config: str | Path | Config | None,
        ratio: Ratio | None,
        remote: str | RemoteRatio | None,
        keywords: ModelPair,
    ) -> None:
        _check_keywords(keywords)
        named = keywords.keys() & {"strong", "weak"}
        ways = {"a gdr.yaml": config, "ratio": ratio, "remote": remote, "strong and weak": named or None}
        given = [name for name, way in ways.items() if way is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give one of {', '.join(ways)} to say what the reward is, not {' and '.join(given) or 'none'}"
            )
        if len(named) == 1:
            raise ConfigError("give both strong and weak (or a gdr.yaml)")
        self.in_process = remote is None
        self._config = None if config is None else _configured(config, keywords)
        self._model_pair: ModelPair = keywords if named else {}
        if keywords and not named and config is None:
            where = "the server's gdr.yaml" if ratio is None else "the ratio itself"
            raise ConfigError(f"{', '.join(sorted(keywords))}: set it in {where}: it is what computes the reward")
        _check_packages([self._config.strong, self._config.weak] if self._config else map(keywords.get, named))
        self._remote = remote
        self._ready = ratio
        self._ratio: Ratio | None = ratio
        self._shares = False

    def __getstate__(self) -> dict[str, Any]:
        """The recipe without models: they load again where they are needed, once a process."""
        state = {**self.__dict__, "_ratio": None, "_shares": True}
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
                self._ratio = self._shared() if self._shares else self._open()
        return self._ratio

    def _shared(self) -> Ratio:
        if self._remote is not None:
            return self._open()
        what = repr((self._config, sorted(self._model_pair.items())))
        with _opening:
            if what not in _opened:
                _opened[what] = self._open()
            return _opened[what]

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


def _check_keywords(given: Mapping[str, Any]) -> None:
    """Refuse what would fail, or be ignored, only after the first batch was generated."""
    known = ModelPair.__annotations__
    for name in given:
        if name not in known:
            near = nearest(name, [*known, "config", "ratio", "remote", "name", "unscored"])
            raise ConfigError(f"unknown keyword {name!r}{f' (did you mean {near!r}?)' if near else ''}")
    for section, names in ((RewardSection, ["reduction"]), (GuidanceSection, ["placement", "exemplars"])):
        validated(section, {name: given[name] for name in names if name in given}, "reward")


def _check_packages(models: Iterable[object]) -> None:
    """Say before training, not after the first batch was generated, that models cannot run in this process."""
    specs = [ModelSpec(model=model) if isinstance(model, str) else model for model in models]
    if any(isinstance(spec, ModelSpec) and spec.scheme == "hf" for spec in specs):
        check_packages("for models in this process")


def _configured(config: str | Path | Config, keywords: Mapping[str, Any]) -> Config:
    found, origin = named_config(config)
    if not keywords:
        return found
    if "guidance" in keywords:
        raise ConfigError("guidance: goes with strong and weak; a gdr.yaml says under guidance.domains what is shown")
    settings = {_SETTINGS[name]: _plain(value) for name, value in keywords.items()}
    return override(found, settings, origin=f"{origin} with {', '.join(keywords)}")


def _plain(value: object) -> object:
    if isinstance(value, Limits):
        return value.model_dump(mode="json", exclude_unset=True)
    return str(value) if isinstance(value, Path) else value

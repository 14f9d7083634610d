"""A reward without a reward model: the guided log-density ratio of two language models.

Importing this package imports neither torch nor transformers: names whose modules are heavier than plain data are
looked up at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import GDRError
from gdr_plugin.api.hooks import hookimpl
from gdr_plugin.api.types import Message, Sample, Score
from gdr_plugin.version import __version__ as __version__

if TYPE_CHECKING:
    from gdr_plugin.api.guidance import Exemplar, Guidance
    from gdr_plugin.config.load import load_config
    from gdr_plugin.config.schema import Config
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio

__all__ = [
    "Config",
    "Exemplar",
    "GDRError",
    "Guidance",
    "GuidedDensityRatio",
    "Message",
    "Plugins",
    "Sample",
    "Score",
    "hookimpl",
    "load_config",
]

_LAZY = {
    "Config": "gdr_plugin.config.schema",
    "Exemplar": "gdr_plugin.api.guidance",
    "Guidance": "gdr_plugin.api.guidance",
    "GuidedDensityRatio": "gdr_plugin.reward.reward",
    "Plugins": "gdr_plugin.plugins.registry",
    "load_config": "gdr_plugin.config.load",
}
"""Public name -> the module that it comes from."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})

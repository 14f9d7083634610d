"""A reward without a reward model: the guided log-density ratio of two language models.

Importing this package imports neither torch nor transformers: names whose modules are heavier than plain data are
looked up at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gdr_plugin.errors import GDRError
from gdr_plugin.hookspecs import hookimpl
from gdr_plugin.types import Message, Sample, Score

if TYPE_CHECKING:
    from gdr_plugin.config import Config, load_config
    from gdr_plugin.guidance import Exemplar, Guidance
    from gdr_plugin.plugins import Plugins
    from gdr_plugin.reward import GuidedDensityRatio

__version__ = "0.1.0"

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
    "Config": "gdr_plugin.config",
    "Exemplar": "gdr_plugin.guidance",
    "Guidance": "gdr_plugin.guidance",
    "GuidedDensityRatio": "gdr_plugin.reward",
    "Plugins": "gdr_plugin.plugins",
    "load_config": "gdr_plugin.config",
}
"""Public name -> the module that it comes from."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Models that run in this process, through transformers.

Importing this package imports neither torch nor transformers; the names below do when they are first asked for, and say
which extra is missing where they are not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gdr_plugin.models.local.packages import check_packages

if TYPE_CHECKING:
    from gdr_plugin.models.local.loaded import open_loaded
    from gdr_plugin.models.local.model import LocalModel
    from gdr_plugin.models.local.opening import open_local

__all__ = ["LocalModel", "open_loaded", "open_local"]

_LAZY = {
    "LocalModel": "gdr_plugin.models.local.model",
    "open_loaded": "gdr_plugin.models.local.loaded",
    "open_local": "gdr_plugin.models.local.opening",
}
"""Public name -> the module that it comes from."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_packages("for models in this process")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value

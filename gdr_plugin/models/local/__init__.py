"""Models that run in this process, through transformers."""

from gdr_plugin.models.local.loaded import open_loaded
from gdr_plugin.models.local.model import LocalModel, open_local

__all__ = ["LocalModel", "open_loaded", "open_local"]

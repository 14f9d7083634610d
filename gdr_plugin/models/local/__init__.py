"""Models in this process, through transformers: files, weights, planner, forward and head apart."""

from gdr_plugin.models.local.loaded import open_loaded
from gdr_plugin.models.local.model import LocalModel, open_local

__all__ = ["LocalModel", "open_loaded", "open_local"]

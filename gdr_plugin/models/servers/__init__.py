"""Models that servers compute: vLLM, SGLang, and providers that echo log-probs of a given text."""

from gdr_plugin.models.servers.model import ServerModel
from gdr_plugin.models.servers.open import open_server

__all__ = ["ServerModel", "open_server"]

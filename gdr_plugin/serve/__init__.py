"""`gdr serve`: rewards over HTTP. Routes are dialects of one `ScoringService`; plugins add theirs with a hook."""

from gdr_plugin.errors import RequestError
from gdr_plugin.serve.service import ScoringService, squash
from gdr_plugin.serve.settings import ServeSettings

__all__ = ["RequestError", "ScoringService", "ServeSettings", "squash"]

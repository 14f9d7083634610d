"""`gdr serve`: rewards over HTTP. Routes are dialects of one `ScoringService`; plugins add theirs with a hook."""

from gdr_plugin.api.errors import RequestError
from gdr_plugin.api.service import ScoringService, ServeSettings
from gdr_plugin.serve.service import BatchingService, squash

__all__ = ["BatchingService", "RequestError", "ScoringService", "ServeSettings", "squash"]

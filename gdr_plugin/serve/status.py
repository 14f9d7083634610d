"""The routes that tell the server's state: `/health`, `/ready`, `/metrics`, `/info`."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from gdr_plugin.serve.answers import JsonAnswer
from gdr_plugin.version import __version__

if TYPE_CHECKING:
    from gdr_plugin.api.models import LogprobModel
    from gdr_plugin.reward.teacher import Teacher
    from gdr_plugin.serve.service import BatchingService


def routes(service: BatchingService) -> APIRouter:
    """The routes.

    Args:
        service: What is reported on.
    """
    api = APIRouter(tags=["status"])

    @api.get("/health", summary="Whether the server lives: 503 when its worker died")
    async def health() -> JsonAnswer:
        if service.failure is not None:
            return JsonAnswer({"status": "dead", "reason": service.failure}, 503)
        since = service.batcher.busy_since
        busy = None if since is None else round(time.monotonic() - since, 3)
        return JsonAnswer({"status": "alive", "batch_running_s": busy})

    @api.get("/ready", summary="Whether the models have scored a probe: 503 until then")
    async def ready() -> JsonAnswer:
        reason = service.unready_reason
        return JsonAnswer({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    @api.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        from gdr_plugin.serve.metrics import CONTENT_TYPE

        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    @api.get("/info", summary="Which reward is served")
    async def info() -> JsonAnswer:
        return JsonAnswer(facts(service))

    return api


def facts(service: BatchingService) -> dict[str, Any]:
    """Everything that the served rewards depend on; never the token."""
    ratio = service.ratio
    settings = dataclasses.asdict(service.settings)
    settings["token"] = None if service.settings.token is None else "set"
    config: dict[str, Any] | None = None
    digest = None
    if ratio.config is not None:
        from gdr_plugin.config.load import fingerprint

        config, digest = ratio.config.model_dump(mode="json"), fingerprint(ratio.config)
    return {
        "version": __version__,
        "ready": service.ready,
        "fingerprint": digest,
        "strong": _model(ratio.strong),
        "weak": _model(ratio.weak),
        "teacher": None if service.teacher is None else _teacher(service.teacher),
        "domains": {domain: rendered.id for domain, rendered in ratio.rendered.items()},
        "routing_counts": ratio.routing_counts,
        "config": config,
        "settings": settings,
    }


def _teacher(teacher: Teacher) -> dict[str, Any]:
    reference = teacher.models.get("reference")
    return {**teacher.describe(), "reference": "weak" if reference is None else _model(reference)}


def _model(model: LogprobModel) -> dict[str, str]:
    return {"name": model.name, "identity": model.identity, **model.describe()}

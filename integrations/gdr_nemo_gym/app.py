"""NeMo-Gym's resources server `gdr`: its `/verify` asks a `gdr serve` for the reward of a rollout's last answer.

NeMo-Gym starts it from a copy of this folder, `resources_servers/gdr`, in an environment of its own that has
gdr-plugin by `requirements.txt`. Contract: NeMo-Gym 0.4.
"""

from __future__ import annotations

from typing import Any

from nemo_gym.base_resources_server import (
    BaseResourcesServerConfig,
    BaseVerifyRequest,
    BaseVerifyResponse,
    SimpleResourcesServer,
)
from pydantic import ConfigDict, PrivateAttr

from gdr_nemo_gym.responses import sample_of
from gdr_plugin.adapters.backend import Backend, open_backend


class GDRServerConfig(BaseResourcesServerConfig):  # type: ignore[misc]
    """Settings of the server, in its configuration file."""

    remote: str | None = None
    """Address of a `gdr serve`; default: the environment's GDR_REMOTE."""
    unscored: float | str | None = None
    """`raise`, or the number that an answer gets which cannot be scored; default: GDR_UNSCORED."""


class GDRVerifyRequest(BaseVerifyRequest):  # type: ignore[misc]
    """A rollout with its row's columns, which NeMo-Gym drops unless they are allowed."""

    model_config = ConfigDict(extra="allow")


class GDRVerifyResponse(BaseVerifyResponse):  # type: ignore[misc]
    """The same with its reward."""

    model_config = ConfigDict(extra="allow")


class GDRResourcesServer(SimpleResourcesServer):  # type: ignore[misc]
    """Rewards rollouts.

    Raises:
        ConfigError: Neither the configuration nor the environment say which reward.
    """

    config: GDRServerConfig
    _backend: Backend = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the reward."""
        super().model_post_init(context)
        self._backend = open_backend(self.config.remote, None, self.config.unscored)

    async def verify(self, body: GDRVerifyRequest) -> GDRVerifyResponse:
        """The reward of a rollout's last answer.

        Raises:
            GDRError: The reward cannot be had: NeMo-Gym answers 500, and the rollout fails.
        """
        columns = {name: value for name, value in (body.model_extra or {}).items() if value is not None}
        sample = sample_of(
            body.responses_create_params.model_dump(mode="json", exclude_none=True),
            [item.model_dump(mode="json", exclude_none=True) for item in body.response.output],
            finished=body.response.incomplete_details is None,
            fields=columns,
        )
        (reward,) = await self._backend.ask([sample])
        return GDRVerifyResponse(**body.model_dump(), reward=reward)


if __name__ == "__main__":
    GDRResourcesServer.run_webserver()

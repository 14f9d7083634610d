"""For OpenRLHF's `--reward.remote_url FILE.py`: rewards in this process, or from a `gdr serve` behind a token.

`gdr path openrlhf reward_func` prints this file's path. The environment says which reward: see
`gdr_plugin.adapters.backend`.
Where no token is needed, `--reward.remote_url http://HOST:PORT/get_reward` does the same without this file.
"""

from __future__ import annotations

from typing import Any


def reward_func(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
    """Rewards of a batch, as OpenRLHF reads them.

    Args:
        queries: Prompts with their responses, decoded from token ids.
        prompts: The templated prompts.
        labels: Any values; see `gdr_plugin.adapters.rendered.RenderedSamples.samples`.

    Returns:
        `rewards`, `scores` and `extra_logs`, lists as long as `queries`.

    Raises:
        GDRError: The environment is wrong, the server cannot be reached, or a sample cannot be scored. It is logged as
            an error here: OpenRLHF only mentions it and goes on without the reward, until the training ends for that.
    """
    # Older releases send this function to other processes by value: it must not refer to anything in this file.
    from logging import getLogger

    from gdr_openrlhf.backend import answer, dialect_from_environment, from_environment
    from gdr_plugin.api.errors import GDRError

    try:
        dialect = dialect_from_environment()
        return answer(from_environment(), dialect, dialect.samples(queries, prompts, labels))
    except GDRError as error:
        getLogger("gdr_openrlhf").error("no reward: %s", error)
        raise

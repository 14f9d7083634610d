"""Collects rollouts with NeMo-Gym's released servers: `python gym_page.py POLICY`, in the folder of its page.

What `gym env start` and `gym eval run` of the page do, in one process and without Ray: the copied resources server,
NeMo-Gym's simple agent and its client of OpenAI's responses, each with its own port. Prints the rollouts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvicorn
from nemo_gym import PARENT_DIR
from nemo_gym.global_config import (
    NEMO_GYM_CONFIG_PATH_ENV_VAR_NAME,
    GlobalConfigDictParserConfig,
    get_global_config_dict,
)
from nemo_gym.rollout_collection import RolloutCollectionHelper
from nemo_gym.server_utils import HeadServer, ServerClient
from omegaconf import OmegaConf

MODEL = Path("responses_api_models/openai_model")
SERVERS = {
    "gdr": (Path("resources_servers/gdr"), "GDRResourcesServer"),
    "gdr_simple_agent": (PARENT_DIR / "responses_api_agents" / "simple_agent", "SimpleAgent"),
    "policy_model": (PARENT_DIR / MODEL, "SimpleModelServer"),
}


def application(name: str, folder: Path, server: str) -> Any:
    """A server as its `app.py` makes it, with its part of the configuration."""
    spec = importlib.util.spec_from_file_location(f"app_of_{name}", folder / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    made = getattr(module, server)
    os.environ[NEMO_GYM_CONFIG_PATH_ENV_VAR_NAME] = name
    client = ServerClient(
        head_server_config=ServerClient.load_head_server_config(), global_config_dict=get_global_config_dict()
    )
    running = made(config=made.load_config_from_global_config(), server_client=client)
    app = running.setup_webserver()
    running.setup_exception_middleware(app)
    settings = running.config
    return uvicorn.Config(app, host=settings.host, port=settings.port, log_level="critical", lifespan="on")


async def collect(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One rollout for each row."""
    servers = [uvicorn.Server(application(name, *where)) for name, where in SERVERS.items()]
    running = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.05)
    asked = [{**row, "agent_ref": {"name": "gdr_simple_agent"}} for row in rows]
    found = [await future for future in RolloutCollectionHelper().run_examples(asked)]
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*running)
    return [result for _, result in found]


def main() -> None:
    """Read the configuration that the page's options name, and collect."""
    configs = ["resources_servers/gdr/configs/gdr.yaml", str(PARENT_DIR / MODEL / "configs" / "openai_model.yaml")]
    given = {
        "config_paths": configs,
        "policy_base_url": sys.argv[1],
        "policy_api_key": "none",
        "policy_model_name": "policy",
    }
    get_global_config_dict(
        GlobalConfigDictParserConfig(
            skip_load_from_cli=True, skip_load_from_dotenv=True, initial_global_config_dict=OmegaConf.create(given)
        )
    )
    head, thread, _ = HeadServer.run_webserver()
    lines = Path("resources_servers/gdr/data/example.jsonl").read_text(encoding="utf-8").splitlines()
    print(json.dumps(asyncio.run(collect([json.loads(line) for line in lines]))))
    head.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    main()

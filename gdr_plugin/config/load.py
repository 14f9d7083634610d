"""Reads and validates gdr.yaml, and says when two configurations give the same rewards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.config.messages import validated
from gdr_plugin.config.paths import locate
from gdr_plugin.config.schema import Config
from gdr_plugin.config.yamlfile import read_yaml
from gdr_plugin.text import type_name

COST_ONLY: Final[dict[str, Any]] = {
    "store": True,
    "load": True,
    "ray": True,
    "teacher": True,
    "limits": {"token_budget", "kv_cache_mb"},
    "strong": {"server"},
    "weak": {"server"},
}
"""The keys of gdr.yaml that change what a result costs, not what it is; as pydantic's `exclude`."""


def load_config(path: str | Path) -> Config:
    """Read and validate a gdr.yaml; relative paths in it are relative to its folder.

    Args:
        path: The file.

    Returns:
        The configuration, with local paths made absolute.

    Raises:
        ConfigError: The file is missing, not YAML, or a key is wrong. The message names the file, the key, what is
            allowed, and the nearest valid name.
    """
    path = Path(path).expanduser()
    data = read_yaml(path, hint=f": `gdr init {path}` writes one")
    if data is None:
        raise ConfigError(f"{path}: is empty: `gdr init --force {path}` writes a commented one")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping with strong and weak, not {type_name(data)}")
    return parse_config(data, base=path.absolute().parent, origin=str(path))


def named_config(config: str | Path | Config | Mapping[str, Any]) -> tuple[Config, str]:
    """A configuration, and what messages call it, from whatever a caller names it by.

    Args:
        config: Path of a gdr.yaml or its content as a mapping, which are validated, or a validated configuration.

    Returns:
        The configuration, and the file's path as given; `configuration` for one that comes from no file.

    Raises:
        ConfigError: As for `load_config`.
    """
    if isinstance(config, Config):
        return config, "configuration"
    if isinstance(config, Mapping):
        return parse_config(config), "configuration"
    return load_config(config), str(config)


def parse_config(data: Mapping[str, Any], *, base: Path | None = None, origin: str = "configuration") -> Config:
    """Validate a configuration given as a mapping.

    Args:
        data: What gdr.yaml would hold.
        base: Folder that relative paths are relative to; default: the current folder.
        origin: What error messages call the source.

    Returns:
        The configuration, with local paths made absolute. What may be a hub id and is not on disk stays a hub id.

    Raises:
        ConfigError: Keys are wrong, or paths do not exist; all of them in one line.
    """
    config, complaints = locate(validated(Config, data, origin), base or Path.cwd())
    if complaints:
        raise ConfigError(f"{origin}: {'; '.join(complaints)}")
    return config


def fingerprint(config: Config) -> str:
    """A digest that is equal for configurations that give the same rewards.

    The store, the load order, the pools, the memory settings, the teacher and how servers are asked are left out:
    they change no reward. Guidance files, chat templates and routers' data files count by their content, wherever
    they are. Models count by their names; what is in them is part of `LogprobModel.identity`.

    Args:
        config: A configuration from `load_config` or `parse_config`.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    data = config.model_dump(mode="json", exclude=COST_ONLY)
    data["guidance"]["files"] = _contents(data["guidance"]["files"])
    data["routing"]["routers"] = _contents(data["routing"]["routers"])
    for side in ("strong", "weak"):
        data[side]["chat_template"] = _contents(data[side]["chat_template"])
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _contents(value: Any) -> Any:
    """The same value with a digest in the place of every absolute path of a file."""
    if isinstance(value, dict):
        return {key: _contents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_contents(item) for item in value]
    if isinstance(value, str) and (path := Path(value)).is_absolute() and path.is_file():
        return "content:" + hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return value

"""Single settings of a configuration replaced: what `--set` of the commands and keywords of adapters do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.config.load import parse_config
from gdr_plugin.config.schema import Config
from gdr_plugin.config.yamlfile import parse_yaml


def override(config: Config, settings: Mapping[str, Any], *, origin: str = "configuration") -> Config:
    """The configuration with other values for some keys.

    Args:
        config: A configuration with absolute paths, as `load_config` gives it. Relative paths among the new values are
            relative to the current folder.
        settings: Dotted key -> value, as in `{"reward.reduction": "mean"}`. None takes the key out.
        origin: What messages call the source of the new values.

    Returns:
        The new configuration.

    Raises:
        ConfigError: A key does not exist, or its value is wrong.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        here = data
        for step in path:
            below = here.get(step)
            if below is None:
                below = here[step] = {}
            if not isinstance(below, dict):
                raise ConfigError(f"{origin}: {dotted}: {step} is not a section")
            here = below
        if value is None:
            here.pop(last, None)
        else:
            here[last] = value
    return parse_config(data, origin=origin)


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts; a value is YAML, as it would stand in gdr.yaml.

    Raises:
        ConfigError: A text has no `=` or no key, or its value is not YAML.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text!r}: write KEY=VALUE, as in --set reward.reduction=mean")
        found[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return found

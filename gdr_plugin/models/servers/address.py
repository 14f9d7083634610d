"""Where a model's servers are: reads `http://a:8000,http://b:8000/org/name`. Asks nobody."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gdr_plugin.api.errors import ConfigError

__all__ = ["Address", "read_address"]


@dataclass(frozen=True, slots=True)
class Address:
    """One model on one or several equal servers."""

    urls: tuple[str, ...]
    """The servers' roots, without a slash or `/v1` at the end."""
    name: str | None
    """What the servers call the model; None where they serve one."""


def read_address(model: str, target: str) -> Address:
    """Read the address of a model.

    What follows the last address is the name, slashes included. A server below a path is written with its `/v1`:
    `https://host/path/v1/name`.

    Args:
        model: The model as the user wrote it, for messages.
        target: What follows the scheme.

    Raises:
        ConfigError: It is no address.
    """
    if "@" in target:
        raise ConfigError("a server's address with a password is shown in logs: use an API key (server.api_key_env)")
    parts = [part.strip() for part in target.split(",")]
    found = [_root_and_name(model, part) for part in parts]
    for part, (_, name) in zip(parts[:-1], found[:-1], strict=True):
        if name:
            raise ConfigError(f"model {model!r}: {part!r} has a name: write it behind the last address only")
    urls = tuple(root for root, _ in found)
    if len(set(urls)) < len(urls):
        raise ConfigError(f"model {model!r}: names one address twice")
    return Address(urls, found[-1][1])


def _root_and_name(model: str, part: str) -> tuple[str, str | None]:
    wrong = ConfigError(
        f"model {model!r}: {part!r} is not a server's address: write http://host:port/name, several as "
        "http://a:8000,http://b:8000/name"
    )
    try:
        split = urlsplit(part)
        usable = split.scheme in ("http", "https") and bool(split.hostname) and (split.port or 1) > 0
    except ValueError:  # a port that is no number
        raise wrong from None
    if not usable or split.query or split.fragment:
        raise wrong
    steps = split.path.split("/")[1:]
    below = steps.index("v1") if "v1" in steps else 0
    root = "/".join([f"{split.scheme}://{split.netloc}", *steps[:below]])
    name = "/".join(steps[below + 1 :] if "v1" in steps else steps).strip("/")
    return root, name or None

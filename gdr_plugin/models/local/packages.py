"""Whether the packages that models in this process need are here: the extra `local`. Imports none of them.

`pip install gdr-plugin` is the client of a `gdr serve`: inside a trainer's environment it must not change the trainer's
torch or transformers, so nobody but this module has compared their versions.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from gdr_plugin.api.errors import MissingDependencyError

__all__ = ["EXTRA", "LOWEST", "check_packages"]

EXTRA: Final = "local"
"""The extra that brings them."""
LOWEST: Final = {
    "torch": "2.9.1",
    "transformers": "5.6.1",
    "tokenizers": "0.22.1",
    "safetensors": "0.4.3",
    "accelerate": "1.4",
}
"""The packages that compute with a model, and their lowest versions, as in pyproject.toml."""


def check_packages(purpose: str) -> None:
    """Refuse to go on without the packages, or with versions that are too old.

    Args:
        purpose: What they are needed for, as in "for models in this process".

    Raises:
        MissingDependencyError: One of them is missing or too old; the message says which.
    """
    for package, lowest in LOWEST.items():
        if find_spec(package) is None:
            raise MissingDependencyError(package, EXTRA, purpose)
        try:
            found = version(package)
        except PackageNotFoundError:  # built in place and put on the path: nobody knows its version
            continue
        from packaging.version import Version

        if Version(found) < Version(lowest):
            raise MissingDependencyError(f"{package}>={lowest}", EXTRA, f"{purpose} ({found} is installed)")

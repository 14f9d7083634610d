"""One digest of several values: what every backend's identity is made with."""

from __future__ import annotations

import hashlib

__all__ = ["combine"]


def combine(*parts: object) -> str:
    """One hex digest of several values, which are kept apart from each other.

    Args:
        parts: Values whose `str` holds all that matters.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()

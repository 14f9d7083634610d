"""Digests of what makes two results comparable: weights, adapter, dtype and template, without loading weights.

Files are hashed once: digests are remembered by path, size and modification time, in memory and in the cache folder.
Knows nothing of how weights are loaded or what a model computes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gdr_plugin.models.digests import combine

if TYPE_CHECKING:
    import torch
    from torch import nn

NUMERICS = 1
"""Raise it when the engine's results change by more than rounding, so that stored log-probs are not mixed."""

_CHUNK = 1 << 22
_known: dict[str, str] = {}


def cache_folder() -> Path:
    """The folder of converted models and file digests: `$GDR_CACHE`, or `~/.cache/gdr-plugin`."""
    given = os.environ.get("GDR_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "gdr-plugin"


def file_digest(path: Path) -> str:
    """Digest of a file's content; a file that has not changed is not read again.

    Args:
        path: An existing file.

    Returns:
        32 hexadecimal digits.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if key not in _known:
        remembered = _read_remembered()
        _known.update(remembered)
        if key not in _known:
            _known[key] = _hash(path)
            if stat.st_size > _CHUNK:  # small files are read faster than looked up
                _remember({**remembered, key: _known[key]})
    return _known[key]


def folder_digest(folder: Path, files: Iterable[str]) -> str:
    """Digest of some files of a folder by name and content, wherever the folder is.

    Args:
        folder: Any folder.
        files: Names relative to the folder; those that do not exist are left out.

    Returns:
        32 hexadecimal digits.
    """
    present = sorted(name for name in files if (folder / name).is_file())
    return combine(*(part for name in present for part in (name, file_digest(folder / name))))


def computed_in(dtype: torch.dtype, device: torch.device) -> str:
    """The precision of products: the dtype, and for float32 also what the running program lets torch reduce it to.

    TF32 (CUDA) and bfloat16 (oneDNN) are process-wide settings of torch. Other threads use them too, so they are not
    changed here; they become part of the identity instead.

    Args:
        dtype: The weights' type.
        device: The weights' device.

    Returns:
        A name such as `float32` or `float32 by tf32`.
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if dtype != torch.float32:
        return name
    backend = torch.backends.cuda.matmul if device.type == "cuda" else getattr(torch.backends.mkldnn, "matmul", None)
    by = getattr(backend, "fp32_precision", None)
    if by is None and device.type == "cuda":  # releases before 2.9
        by = "tf32" if torch.backends.cuda.matmul.allow_tf32 else None
    return f"{name} by {by}" if by in ("tf32", "bf16") else name


def parameters_digest(model: nn.Module) -> str:
    """Digest of a loaded module's parameters and buffers: names, shapes, dtypes and contents.

    Args:
        model: A module whose tensors are not on the meta device.

    Returns:
        32 hexadecimal digits.
    """
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_remembered() -> dict[str, str]:
    try:
        loaded = json.loads((cache_folder() / "digests.json").read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in loaded.items()} if isinstance(loaded, dict) else {}


def _remember(digests: dict[str, str]) -> None:
    """Write digests down if possible: a cache folder that cannot be written costs only time."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".digests-")
        with os.fdopen(handle, "w") as file:
            json.dump(dict(list(digests.items())[-1000:]), file)
        Path(name).replace(folder / "digests.json")

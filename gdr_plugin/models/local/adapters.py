"""PEFT adapters: checked against their base before anything is loaded.

Knows adapter folders and tensor names. `weights` loads adapters and switches them on and off.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import MissingDependencyError, ModelError
from gdr_plugin.models.local.identity import folder_digest
from gdr_plugin.models.local.source import skeleton

if TYPE_CHECKING:
    from torch import nn

    from gdr_plugin.models.local.source import Source

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What trainers save of a tokenizer beside an adapter."""
_TRAINED_TOKENS = ".token_adapter.trainable_tokens_delta"
_PREFIX = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save|original_module)\.")
"""What peft puts into the names of embeddings that it saves beside an adapter."""
_MERGE = "merge it into its base (peft: merge_and_unload) and give the merged folder as `model:`"


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its base."""

    folder: Path
    digest: str
    """Hex digest of its configuration and weights."""


def open_adapter(name: str, base: Source, *, trust_remote_code: bool = False) -> Adapter:
    """Find an adapter and check that it belongs to a base.

    Args:
        name: A folder or a hub id.
        base: The located base model.
        trust_remote_code: Whether the base's own code may run.

    Returns:
        The adapter; nothing is loaded yet.

    Raises:
        ModelError: It does not exist, is not LoRA in safetensors, or is an adapter of another base.
        MissingDependencyError: `peft` is missing.
    """
    folder = _find(name)
    try:
        import peft  # noqa: F401 - needed later; missing, it is reported before minutes of loading
    except ImportError as error:
        raise MissingDependencyError("peft", "adapters", f"to put the adapter {name!r} on its base") from error
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"adapter {name!r}: {CONFIG} cannot be read: {error}") from error
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("alora_invocation_tokens"):
        raise ModelError(f"adapter {name!r} is of type {kind}; only LoRA can be switched on and off here: {_MERGE}")
    if config.get("bias", "none") != "none":  # peft would write them into the base, which others share
        raise ModelError(f"adapter {name!r} also changes biases of its base, so it cannot be switched off: {_MERGE}")
    _check_shapes(name, folder, base, trust_remote_code)
    return Adapter(folder, folder_digest(folder, [CONFIG, WEIGHTS]))


def _find(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"adapter {name!r}: the folder holds no {CONFIG}; is it a whole model? Then set `model:` to it"
            )
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"adapter {name!r}: the folder holds no {WEIGHTS} (pickled adapters are not loaded)")
        return folder
    from transformers.utils.hub import cached_file

    try:
        found = [Path(str(cached_file(name, file))) for file in (CONFIG, WEIGHTS)]
        for file in TOKENIZER_FILES:  # into the same folder
            cached_file(
                name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
            )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"adapter {name!r} does not exist: no such folder here, and the hub does not have its {CONFIG} and "
            f"{WEIGHTS}, or cannot be reached"
        ) from error
    return found[0].parent


def _check_shapes(name: str, folder: Path, base: Source, trust_remote_code: bool) -> None:
    """Compare every adapter tensor with the base's module of that name, from headers and configuration alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter {name!r}: {WEIGHTS} cannot be read: {error}") from error
    empty = skeleton(base, trust_remote_code=trust_remote_code)
    modules: dict[str, nn.Module] = dict(empty.named_modules())
    parameters = {key: tuple(value.shape) for key, value in empty.named_parameters(remove_duplicate=False)}
    whole: Any = empty
    embeddings = (whole.get_input_embeddings(), whole.get_output_embeddings())
    for key, shape in sorted(shapes.items()):
        path = key.removeprefix(_PREFIX)
        owner, _, part = path.partition(".lora_")
        if path.endswith(_TRAINED_TOKENS):  # single tokens (trainable_token_indices)
            problem = _tokens_problem(shape, modules.get(path.removesuffix(_TRAINED_TOKENS)))
        elif not part:  # a whole module that was trained (modules_to_save)
            wanted = parameters.get(path, parameters.get(_WRAPPED.sub(".", path)))
            problem = _problem(shape, wanted)
        else:
            problem = _lora_problem(part, shape, modules.get(owner))
        module = modules.get(owner if part else _WRAPPED.sub(".", path).removesuffix(".weight"))
        if problem and module is not None and any(module is embedding for embedding in embeddings):
            raise ModelError(
                f"adapter {name!r} was trained on a vocabulary of another size than that of {base.path!r} ({path} "
                f"{problem}), which others share and cannot be resized here: resize its embeddings, then {_MERGE}"
            )
        if problem:
            raise ModelError(f"adapter {name!r} is an adapter of another base than {base.path!r}: {path} {problem}")


def _lora_problem(part: str, shape: tuple[int, ...], module: Any) -> str | None:
    if module is None:
        return "does not exist in the base"
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        return None  # experts and convolutions have layouts of their own; loading checks them
    rows, columns = weight.shape
    if type(module).__name__ == "Conv1D":  # stores its weight the other way round
        rows, columns = columns, rows
    kind = part.split(".")[0]
    if part.endswith(".bias"):
        return _problem(shape, (rows,))
    if kind == "A":
        return _problem(shape, (shape[0], columns))
    if kind == "B":
        return _problem(shape, (rows, shape[1]))
    if kind == "embedding_A":
        return _problem(shape, (shape[0], rows))
    if kind == "embedding_B":
        return _problem(shape, (columns, shape[1]))
    return _problem(shape, (rows,)) if kind == "magnitude_vector" else None


def _tokens_problem(shape: tuple[int, ...], module: Any) -> str | None:
    """What is wrong with the trained rows of an embedding or a head."""
    weight = getattr(module, "weight", None)
    return "does not exist in the base" if weight is None else _problem(shape, (shape[0], weight.shape[1]))


def _problem(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> str | None:
    if wanted is None:
        return "does not exist in the base"
    return None if shape == wanted else f"has the shape {list(shape)}, the base needs {list(wanted)}"

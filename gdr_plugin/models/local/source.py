"""Finds a model's files, and what can be known of it before its weights are loaded.

Resolves hub ids, folders and GGUF files to something that transformers loads, and refuses what is not safetensors.
Loads configurations and tokenizers, never weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import MissingDependencyError, ModelError
from gdr_plugin.models.digests import combine
from gdr_plugin.models.local.building import building
from gdr_plugin.models.local.device import dtype_name, resolve_device
from gdr_plugin.models.local.gguf import already_converted, converted, describe_gguf
from gdr_plugin.models.local.identity import cache_folder, file_digest, folder_digest
from gdr_plugin.models.local.packages import EXTRA, check_packages
from gdr_plugin.models.text.opening import tokenizer_at
from gdr_plugin.text import first_line, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from gdr_plugin.api.settings import ModelSpec

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A base model that exists."""

    path: str
    """Folder or hub id, as `from_pretrained` takes it."""
    revision: str | None
    """The hub's commit; None for local files."""
    config: PreTrainedConfig
    digest: str
    """Hex digest of the weights' content or, on the hub, of id and commit."""
    device: torch.device
    """The inputs' device; with `device_map`, where the first layer is expected."""
    dtype: torch.dtype
    """The dtype that the weights are loaded in."""


def locate(spec: ModelSpec) -> Source:
    """Find a model's files and read its configuration.

    Args:
        spec: The model as the user asked for it.

    Returns:
        The model, ready to be loaded.

    Raises:
        ModelError: It does not exist, is not a causal language model in safetensors or GGUF, or wants to run its own
            code. One line that says what to change.
        MissingDependencyError: A package of the extra `local` is missing.
    """
    check_packages("for models in this process")
    import torch

    device = resolve_device(spec)
    target = Path(spec.target).expanduser()
    gguf = _gguf(spec, target)
    folder = converted(gguf, dtype_name(spec, device, None)) if gguf else target
    local = folder.is_dir()
    if local:
        _check_folder(folder, spec)
    elif not _HUB_ID.fullmatch(spec.target) or target.is_file():
        raise ModelError(
            f"model {spec.target!r} does not exist: give a folder with safetensors, a .gguf file or a hub id"
        )
    path = str(folder) if local else spec.target
    config = _configuration(spec, path, local)
    commit = None if local else _commit(spec)
    if gguf:
        digest = combine("gguf", file_digest(gguf))
    elif local:
        digest = folder_digest(folder, ["config.json", *(file.name for file in folder.glob("*.safetensors"))])
    else:
        digest = combine("hub", path, commit)
    return Source(path, commit, config, digest, device, getattr(torch, dtype_name(spec, device, config)))


def describe(spec: ModelSpec) -> tuple[PreTrainedConfig, Callable[[], PreTrainedTokenizerBase]]:
    """A model's configuration, and a function that opens its tokenizer. Its weights need not be there.

    Args:
        spec: The model as the user asked for it.

    Raises:
        ModelError: There is no configuration of a causal language model, or it wants to run its own code.
        MissingDependencyError: A package of the extra `local` is missing.
    """
    check_packages("to read a model's configuration")
    target = Path(spec.target).expanduser()
    gguf = _gguf(spec, target)
    folder = already_converted(gguf) if gguf else None
    if gguf and folder is None:
        config, tokenizer = describe_gguf(gguf)
        named = spec.tokenizer
        return config, (lambda: tokenizer_at(named, trust_remote_code=spec.trust_remote_code)) if named else (
            lambda: tokenizer
        )
    target = folder or target
    local = target.is_dir()
    if local and not (target / "config.json").is_file():
        raise ModelError(f"{target} holds no config.json: a folder with the model's configuration is needed")
    if not local and not _HUB_ID.fullmatch(spec.target):
        raise ModelError(
            f"model {spec.target!r} does not exist: give a folder with config.json, a .gguf file or a hub id"
        )
    path = str(target) if local else spec.target
    where, revision = (spec.tokenizer, None) if spec.tokenizer else (path, spec.revision)
    return _configuration(spec, path, local), lambda: tokenizer_at(
        where, revision, trust_remote_code=spec.trust_remote_code
    )


def _configuration(spec: ModelSpec, path: str, local: bool) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unreadable(spec, local, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {spec.target!r} is an encoder-decoder; a causal (decoder-only) language model is needed"
        )
    return config


def load_tokenizer(spec: ModelSpec, source: Source, adapter: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that the spec names, else the adapter's, else the base's.

    Trainers save the tokenizer and the chat template that an adapter was trained with in its folder; what is not there
    is the base's.

    Args:
        spec: The model as the user asked for it.
        source: The located model.
        adapter: The adapter's folder, where there is one.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is none, or it needs a package that is missing.
    """
    own = None if spec.tokenizer else adapter
    if own is not None and (own / "tokenizer.json").is_file():
        tokenizer = tokenizer_at(str(own), None, trust_remote_code=spec.trust_remote_code)
        if not tokenizer.chat_template and spec.chat_template is None:
            tokenizer.chat_template = _own(spec, source).chat_template
        return tokenizer
    tokenizer = _own(spec, source)
    if own is not None and (own / "chat_template.jinja").is_file():
        tokenizer.chat_template = (own / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def _own(spec: ModelSpec, source: Source) -> PreTrainedTokenizerBase:
    path, revision = (spec.tokenizer, None) if spec.tokenizer else (source.path, source.revision)
    return tokenizer_at(path, revision, trust_remote_code=spec.trust_remote_code)


def longest_of(config: PreTrainedConfig) -> int | None:
    """How many tokens the model was built for; None where its configuration does not say."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def skeleton(source: Source, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A located model's modules without weights; see `empty_model`."""
    return empty_model(source.config, trust_remote_code=trust_remote_code)


def empty_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model's modules from its configuration alone, with the shapes of the weights and no memory for them.

    Args:
        config: The model's configuration.
        trust_remote_code: Whether the model's own code may run.

    Returns:
        The model on the meta device.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with building(), torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model: PreTrainedModel = build(config, trust_remote_code=trust_remote_code)
    return model


def _gguf(spec: ModelSpec, target: Path) -> Path | None:
    """The GGUF file that a spec names, local or on the hub as `org/name/file.gguf`; None if it names none."""
    if target.suffix != ".gguf":
        return None
    if target.is_file():
        return target
    parts = spec.target.split("/")
    if len(parts) == 3 and not target.is_absolute() and not spec.target.startswith((".", "~")):
        from transformers.utils.hub import cached_file

        try:
            found = cached_file("/".join(parts[:2]), parts[2], revision=spec.revision)
        except OSError as error:
            raise _unreadable(spec, False, error) from error
        return Path(str(found))
    raise ModelError(f"model {spec.target!r} does not exist")


def _commit(spec: ModelSpec) -> str:
    """The commit that a hub model's revision now means: the name of its snapshot in the hub's cache."""
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(spec.target, "config.json", revision=spec.revision))).parent.name
    except OSError as error:
        raise _unreadable(spec, False, error) from error


def _check_folder(folder: Path, spec: ModelSpec) -> None:
    if (folder / "adapter_config.json").is_file():  # transformers would put it on its base unasked
        raise ModelError(
            f"{folder} is an adapter, not a model: set `model:` to its base and `adapter: {spec.target}` beside it"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model (no config.json): give a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{folder} holds pickled weights ({pickled[0]}), which could run code when loaded: save it again with "
                "save_pretrained, which writes safetensors"
            )
        raise ModelError(f"{folder} holds no weights (*.safetensors)")
    check_weights(folder)


def check_weights(folder: Path) -> None:
    """Refuse weights whose file ends too early or is another one's, from its header alone: before anything is loaded.

    Args:
        folder: With files `*.safetensors`.

    Raises:
        ModelError: A file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            made = folder.is_relative_to(cache_folder())
            todo = f"delete {folder}, which is made again" if made else "fetch or save it again"
            raise ModelError(f"{path} is damaged ({first_line(error)}): {todo}") from error


def _unreadable(spec: ModelSpec, local: bool, error: Exception) -> ModelError:
    text = str(error)
    if "trust_remote_code" in text:
        return ModelError(
            f"model {spec.target!r} comes with code of its own: set `trust_remote_code: true` to let it run"
        )
    if local:
        return ModelError(f"the configuration of model {spec.target!r} cannot be read: {first_line(error)}")
    return ModelError(
        f"model {spec.target!r} does not exist: no such folder here, and the hub does not have it or cannot be reached"
    )


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Open a tokenizer by its name alone, such as that of a policy whose weights are elsewhere.

    Args:
        name: Hub id or folder of the tokenizer, or a `.gguf` file.

    Raises:
        ModelError: There is no such tokenizer.
        MissingDependencyError: transformers is missing or, for a `.gguf` file, a package of the extra `local`.
    """
    from gdr_plugin.api.settings import ModelSpec

    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError("transformers", EXTRA, f"to open the policy tokenizer {name!r}") from error
    if name.endswith(".gguf"):
        spec = ModelSpec(model=name)
        return load_tokenizer(spec, locate(spec))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises errors of all kinds
        line = one_line(error, limit=200)
        raise ModelError(f"the policy tokenizer {name!r} cannot be opened ({line}): give its folder") from error
    return tokenizer

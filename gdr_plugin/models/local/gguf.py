"""GGUF files: converted once into a safetensors folder that loads in a second instead of twenty.

Also corrects the tokenizer where transformers reads it from the file differently from the model's own. Scoring never
reads a GGUF: it sees the converted folder only.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from gdr_plugin.api.errors import EngineWarning, MissingDependencyError, ModelError
from gdr_plugin.files import sync, sync_folder
from gdr_plugin.logs import logger
from gdr_plugin.models.local.building import building, load_complete
from gdr_plugin.models.local.identity import cache_folder, file_digest
from gdr_plugin.text import first_line, typed_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logger(__name__)

_DTYPES = ("float32", "bfloat16", "float16")
FORMAT = 2
"""Raise it when conversion changes: folders of older formats are then ignored."""

_GPT2 = frozenset({"gpt-2", "phi-2", "olmo", "mpt", "roberta-bpe"})
"""`tokenizer.ggml.pre` values that split as GPT-2 does, which is also what transformers falls back to."""
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""`tokenizer.ggml.pre` values that split digits one by one, then as GPT-2 does."""


def converted(path: Path, dtype: str) -> Path:
    """The folder with a GGUF's weights (safetensors), configuration, tokenizer and chat template; created if missing.

    Several processes may ask at once: one converts, the others wait. The folder appears complete or not at all.

    Args:
        path: A `.gguf` file.
        dtype: `float32`, `bfloat16` or `float16`; quantised weights are unpacked into it.

    Returns:
        A folder below `$GDR_CACHE/gguf` (default `~/.cache/gdr-plugin/gguf`), named by content and dtype.

    Raises:
        ModelError: The file cannot be read as a language model, or the cache folder cannot be written.
        MissingDependencyError: The `gguf` package is missing.
    """
    folder = _place(path, dtype)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _convert(path, dtype, folder)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        raise ModelError(
            f"{path} cannot be converted: {folder.parent} cannot be written ({reason}); free space there, or set "
            "GDR_CACHE to another folder, and run again"
        ) from error
    return folder


def already_converted(path: Path) -> Path | None:
    """The folder of a GGUF that was converted before, into whatever dtype; None where there is none."""
    return next((folder for dtype in _DTYPES if (folder := _place(path, dtype)).is_dir()), None)


def _place(path: Path, dtype: str) -> Path:
    return cache_folder() / "gguf" / f"{file_digest(path)}-{dtype}-{FORMAT}"


def _convert(path: Path, dtype: str, folder: Path) -> None:
    try:
        import gguf  # noqa: F401 - transformers reads the file with it
    except ImportError as error:
        raise MissingDependencyError("gguf", "gguf", "to read .gguf files") from error
    making = f".making-{folder.name}-"
    for left in folder.parent.glob(f"{making}*"):  # by a conversion that was killed: nobody else has this one's lock
        shutil.rmtree(left, ignore_errors=True)
    from safetensors import SafetensorError

    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=making))
    try:
        log.info("converting %s into %s, once: this takes a while", path.name, dtype)
        with building():
            model, tokenizer = read_gguf(path, dtype)
            try:
                plain_copy(model).save_pretrained(work)
                tokenizer.save_pretrained(work)
            except SafetensorError as error:  # its way to say what the operating system said
                raise _as_os_error(error) from error
        for file in work.iterdir():
            file.chmod(0o644)
            sync(file)  # else a power cut leaves a folder that looks complete and is not
        work.chmod(0o755)
        work.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _as_os_error(error: Exception) -> OSError:
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), str(error)) if code else OSError(str(error))


def read_gguf(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF through transformers, unpacked, with its tokenizer corrected. Slow: use `converted`.

    Args:
        path: A `.gguf` file.
        dtype: Name of the torch dtype.

    Returns:
        Model and tokenizer.

    Raises:
        ModelError: The file cannot be read, or its architecture is not supported by transformers.
    """
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": getattr(torch, dtype)}
    if hasattr(transformers, "GgufConfig"):  # newer releases would keep weights packed where a kernel exists
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _alone(path) as folder:
        model = load_complete(folder, **options)
        return model, _tokenizer(folder, path)


def describe_gguf(path: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer of a GGUF, from its metadata: no weights are read.

    Args:
        path: A `.gguf` file.

    Raises:
        ModelError: The file cannot be read, or its architecture is not supported by transformers.
        MissingDependencyError: The `gguf` package is missing.
    """
    try:
        import gguf  # noqa: F401 - transformers reads the file with it
    except ImportError as error:
        raise MissingDependencyError("gguf", "gguf", "to read .gguf files") from error
    from transformers import AutoConfig

    with _alone(path) as folder:
        return AutoConfig.from_pretrained(folder, gguf_file=path.name), _tokenizer(folder, path)


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """The file in a folder of its own: transformers would follow an adapter_config.json beside it to a hub."""
    try:
        with tempfile.TemporaryDirectory() as alone:
            (Path(alone) / path.name).symlink_to(path.resolve())
            yield alone
    except ModelError:
        raise
    except Exception as error:  # the parsers of transformers and gguf raise errors of all kinds
        raise ModelError(
            f"{path} cannot be read as a GGUF language model: {typed_line(error)[:300]}; is it complete? Fetch it again"
        ) from error


def _tokenizer(folder: str, path: Path) -> PreTrainedTokenizerBase:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    fields = GGUFReader(path).fields
    set_special_tokens(tokenizer, fields)
    set_pre_tokenizer(tokenizer, path.name, fields)
    return tokenizer


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same tensors in a model without quantisation settings, which could not be saved.

    Args:
        model: As loaded from a GGUF.

    Returns:
        A model of the same class that shares the tensors.
    """
    import torch

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = model.dtype
    with building(), torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def set_special_tokens(tokenizer: PreTrainedTokenizerBase, fields: Mapping[str, Any]) -> None:
    """Give a tokenizer the BOS, EOS and padding that the file names: transformers before 5.20.2 took others.

    Args:
        tokenizer: As transformers reads it from the file; changed in place.
        fields: The file's metadata, as `GGUFReader` has it.
    """
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            token = tokenizer.convert_ids_to_tokens(int(field.parts[field.data[0]][0]))
            if token is not None:
                setattr(tokenizer, f"{role}_token", token)


def set_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, fields: Mapping[str, Any]) -> None:
    """Give a byte-level tokenizer the pre-tokenizer that the file names but transformers does not apply.

    Args:
        tokenizer: As transformers reads it from the file; changed in place.
        name: What messages call the file.
        fields: As for `set_special_tokens`.
    """
    from tokenizers import pre_tokenizers

    model, pre = (_text(fields, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or pre in _GPT2 or pre in _handled_by_transformers():
        return
    if pre in _DIGITS:
        splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        return
    warnings.warn(
        f"{name}: the tokenizer's splitting rule {pre!r} (tokenizer.ggml.pre) is not known here, so text may be "
        "cut into other tokens than in training; set `tokenizer:` to the original model's folder or hub id",
        EngineWarning,
        stacklevel=2,
    )


def _text(fields: Mapping[str, Any], key: str) -> str:
    field = fields.get(key)
    return bytes(field.parts[field.data[0]]).decode() if field is not None else ""


def _handled_by_transformers() -> frozenset[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)

"""Which models are compared, what they are called, and what others say of their quality.

Knows the command line's way to name a model, models.yaml and the table of external scores; opens no model.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.config.messages import validated
from gdr_plugin.config.paths import locate
from gdr_plugin.config.schema import Config, GuidanceSection
from gdr_plugin.config.yamlfile import read_yaml

__all__ = ["NamedModel", "model_of", "models_of", "read_gap_scores", "read_models"]

_NAME = re.compile(r"[\w.+-]{1,40}")


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model with the short name that tables and plots call it by."""

    name: str
    spec: ModelSpec


def models_of(arguments: Sequence[str], file: Path | None = None) -> list[NamedModel]:
    """All models of a comparison, in the order given: those of the command line, then those of models.yaml.

    Args:
        arguments: `[NAME=]MODEL[+ADAPTER]` each; see `model_of`.
        file: A models.yaml; see `read_models`.

    Returns:
        At least two models with names of their own.

    Raises:
        ConfigError: Fewer than two models, one that is there twice, a name that is taken, or a path that is missing.
    """
    given = [model_of(argument) for argument in arguments]
    named = [NamedModel(name or short, spec) for (name, spec), short in zip(given, _short_names(given), strict=True)]
    named += read_models(file) if file is not None else []
    if len(named) < 2:
        raise ConfigError(
            f"a model pair needs two models: {len(named)} given; name more as MODEL, or in --models models.yaml"
        )
    seen: dict[str, NamedModel] = {}
    for model in named:
        twin = next((other for other in seen.values() if other.spec == model.spec), None)
        if twin is not None:
            raise ConfigError(f"{model.name} and {twin.name} are the same model: name it once")
        if model.name in seen:
            raise ConfigError(f"two models are called {model.name!r}: give one another name, as in NAME=MODEL")
        seen[model.name] = model
    return named


def model_of(argument: str) -> tuple[str | None, ModelSpec]:
    """A model as the command line names it: `[NAME=]MODEL[+ADAPTER]`.

    MODEL is a hub id, a folder, a `.gguf` file or `scheme:rest`; ADAPTER a PEFT adapter on it, folder or hub id. What
    exists as a file is never cut; other names with `=` or `+` in them are for models.yaml.

    Returns:
        The name, None where none is given, and the model with its paths made absolute.

    Raises:
        ConfigError: A part is empty, or a path does not exist.
    """
    name, text = None, argument
    head, equals, rest = argument.partition("=")
    if equals and _NAME.fullmatch(head) and not Path(argument).exists():
        name, text = head, rest
    base, plus, adapter = text.partition("+")
    if Path(text).exists():
        base, plus, adapter = text, "", ""
    if not base or (plus and not adapter):
        raise ConfigError(f"{argument!r} names no model: write [NAME=]MODEL or [NAME=]MODEL+ADAPTER")
    return name, _located({"model": base, "adapter": adapter or None}, argument, Path.cwd())


def read_models(path: Path) -> list[NamedModel]:
    """The models of a models.yaml: short name -> what gdr.yaml says of a model, or just its name.

    Args:
        path: The file; paths in it are relative to its folder.

    Returns:
        The models, in the file's order.

    Raises:
        ConfigError: It cannot be read, or an entry is wrong; one line that names file and entry.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path}: must map names to models, as in `tuned: {{model: base.gguf, adapter: folder}}`")
    models = []
    for name, value in data.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: {name!r} cannot be a model's name: use letters, digits and . _ + - (up to 40)")
        spec = {"model": value} if isinstance(value, str) else value
        if not isinstance(spec, dict):
            raise ConfigError(f"{path}: {name}: must be a model's name or a mapping with `model`, not {value!r}")
        models.append(NamedModel(name, _located(spec, f"{path}: {name}", path.absolute().parent)))
    return models


def read_gap_scores(path: Path, names: Sequence[str]) -> dict[str, float]:
    """External scores of quality, as from an arena: a CSV with the columns `model` and `score`, higher is better.

    Args:
        path: The file.
        names: The models' short names; each needs a score, and other rows are left aside.

    Returns:
        Name -> score, in the order of `names`.

    Raises:
        ConfigError: The file cannot be read, lacks a column or a model, names one twice, or a score is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: is not a CSV file in UTF-8: {error}") from error
    scores: dict[str, float] = {}
    for line, row in enumerate(rows, start=2):
        if row.get("model") is None or row.get("score") is None:
            raise ConfigError(f"{path}: line {line}: needs the columns model and score")
        name = row["model"].strip()
        if name in scores:
            raise ConfigError(f"{path}: line {line}: {name!r} has a score already: keep one")
        scores[name] = _number(row["score"], f"{path}: line {line}")
    missing = [name for name in names if name not in scores]
    if missing:
        wrong = unknown("model", missing[0], scores)
        raise ConfigError(f"{path}: has no score for {', '.join(missing)}; {wrong.partition(': ')[2]}")
    return {name: scores[name] for name in names}


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: the score must be a number, not {text!r}")
    return value


def _located(data: Mapping[str, object], origin: str, base: Path) -> ModelSpec:
    """A validated model whose paths are absolute and exist."""
    spec = validated(ModelSpec, data, origin)
    # Paths are found by the rules of gdr.yaml, which knows two models: this one is shown to it as both.
    both, complaints = locate(Config(strong=spec, weak=spec, guidance=GuidanceSection(placement="strong")), base)
    own = [text.removeprefix("strong.") for text in complaints if text.startswith("strong.")]
    if own:
        raise ConfigError(f"{origin}: {'; '.join(own)}")
    return both.strong


def _short_names(given: Sequence[tuple[str | None, ModelSpec]]) -> list[str]:
    """The last part of each model's path, or of its adapter's; longer where two would be the same."""
    parts = [_parts(spec) for _, spec in given]
    names = []
    for own in parts:
        size = 1
        while size < len(own) and sum(other[-size:] == own[-size:] for other in parts) > 1:
            size += 1
        names.append("/".join(own[-size:]))
    return names


def _parts(spec: ModelSpec) -> list[str]:
    text = spec.adapter or spec.target
    parts = [part for part in text.split("/") if part]
    return [*parts[:-1], parts[-1].removesuffix(".gguf")] if parts else [text]

"""How models are named, and what is refused before any is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.evaluation.pairs.models import model_of, models_of, read_gap_scores


def test_models_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for folder in ("run-a/step-10", "run-b/step-10", "run-a/step-20"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "base.gguf").touch()
    base = f"{tmp_path}/base.gguf"
    named = models_of(
        [
            base,
            *(f"{base}+{tmp_path}/{one}" for one in ("run-a/step-10", "run-b/step-10", "run-a/step-20")),
            "my=org/name",
        ]
    )
    assert [one.name for one in named] == ["base", "run-a/step-10", "run-b/step-10", "step-20", "my"]
    assert named[1].spec == ModelSpec(model=base, adapter=f"{tmp_path}/run-a/step-10")
    assert named[4].spec.model == "org/name"


def test_a_file_with_a_plus_in_its_name_is_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a+b=c.gguf").touch()
    assert model_of(f"{tmp_path}/a+b=c.gguf") == (None, ModelSpec(model=f"{tmp_path}/a+b=c.gguf"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fake:a"], "needs two models"),
        ([], "needs two models"),
        (["fake:a", "fake:a"], "the same model"),
        (["x=fake:a", "x=fake:b"], "two models are called 'x'"),
        (["fake:a", "fake:b+"], "names no model"),
        (["fake:a", "./nowhere"], "no such file"),
        (["fake:a", "fake:b+./nowhere"], "adapter: no such file"),
    ],
)
def test_wrong_models_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models_of(arguments)


def test_models_yaml_names_models_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    file = tmp_path / "models.yaml"
    file.write_text('plain: "fake:a"\ntuned: {model: "fake:a", adapter: tuned, dtype: bfloat16}\n')
    named = models_of(["extra=fake:b"], file)
    assert [one.name for one in named] == ["extra", "plain", "tuned"]
    assert named[2].spec == ModelSpec(model="fake:a", adapter=str(tmp_path / "tuned"), dtype="bfloat16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fake:a]", "must map names to models"),
        ("", "must map names to models"),
        ("a: 3", "a: must be a model's name"),
        ("a: {modle: x}", "unknown key 'modle'.*did you mean 'model'"),
        ("a: {model: ./gone}", "a: model: no such file"),
        ("'a b': {model: 'fake:a'}", "cannot be a model's name"),
    ],
)
def test_a_wrong_models_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as found:
        models_of(["fake:b"], file)
    assert str(file) in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", "line 2: needs the columns model and score"),
        ("model,score\na,1\n", "has no score for b"),
        ("model,score\na,1\nbb,2\n", "has no score for b; known are a, bb .did you mean 'bb'"),
        ("model,score\na,1\na,2\nb,3\n", "line 3: 'a' has a score already"),
        ("model,score\na,high\nb,2\n", "line 2: the score must be a number, not 'high'"),
        ("model,score\na,nan\nb,2\n", "must be a number"),
        ("model,score\na\nb,2\n", "needs the columns"),
        ("", "has no score for a, b; known are none"),
    ],
)
def test_wrong_external_scores_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_gap_scores(path, ["a", "b"])

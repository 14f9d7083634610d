"""What models in this process need is looked for before any of it is imported."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin import GuidedDensityRatio
from gdr_plugin.api.errors import MissingDependencyError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.models import local
from gdr_plugin.models.local import packages
from gdr_plugin.models.local.device import spec_on_rank
from gdr_plugin.models.local.source import describe, locate, open_tokenizer
from gdr_plugin.models.text.opening import tokenizer_at
from gdr_trl import GDRReward


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`without("torch")`: as if it were not installed."""

    def hide(name: str) -> None:
        monkeypatch.setattr(packages, "find_spec", lambda package: None if package == name else find_spec(package))

    return hide


def test_what_is_installed_here_will_do() -> None:
    packages.check_packages("for a test")


@pytest.mark.parametrize("package", packages.LOWEST)
def test_a_missing_package_is_named_with_the_extra(package: str, without: Any) -> None:
    without(package)
    with pytest.raises(MissingDependencyError) as caught:
        packages.check_packages("for a test")
    assert str(caught.value) == f"the package '{package}' is needed for a test: pip install 'gdr-plugin[local]'"


@pytest.mark.parametrize(("found", "enough"), [("4.57.6", False), ("5.6.1rc1", False), ("5.6.1", True), ("5.10", True)])
def test_a_trainer_s_older_version_is_refused(found: str, enough: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda name: found if name == "transformers" else version(name))
    if enough:
        packages.check_packages("for a test")
        return
    with pytest.raises(MissingDependencyError) as caught:
        packages.check_packages("for a test")
    assert str(caught.value) == (
        "the package 'transformers>=5.6.1' is needed "
        f"for a test ({found} is installed): pip install 'gdr-plugin[local]'"
    )


@pytest.mark.parametrize("found", ["2.9.1+cpu", "2.13.0a0+git1234567"])
def test_builds_of_torch_count_as_their_version(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda name: found if name == "torch" else version(name))
    packages.check_packages("for a test")


def test_a_package_without_metadata_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", unknown)
    packages.check_packages("for a test")


def test_every_way_to_a_model_looks_first(without: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in local.__all__:
        monkeypatch.delitem(vars(local), name, raising=False)  # as before the first model
    without("torch")
    spec = ModelSpec(model="org/model")
    for way in (
        lambda: GuidedDensityRatio.from_models("org/strong", "org/weak"),
        lambda: GDRReward(strong="org/strong", weak="org/weak"),
        lambda: local.open_local(spec),
        lambda: locate(spec),
        lambda: describe(spec),
        lambda: spec_on_rank(spec),
        lambda: open_tokenizer(str(tmp_path / "model.gguf")),
    ):
        with pytest.raises(MissingDependencyError, match=r"'torch' is needed .*: pip install 'gdr-plugin\[local\]'$"):
            way()
    GDRReward(strong="fake:a", weak="fake:b")  # needs none of them
    GDRReward(remote="http://127.0.0.1:9")


def test_a_tokenizer_alone_needs_transformers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"what a server scores: .*'gdr-plugin\[servers\]'$"):
        tokenizer_at("org/model")
    with pytest.raises(MissingDependencyError, match=r"the policy tokenizer 'org/policy': .*'gdr-plugin\[local\]'$"):
        open_tokenizer("org/policy")

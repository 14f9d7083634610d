"""The public surface is what `__all__` says, sorted, and every name of it can be had."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest

import gdr_plugin

PACKAGES = ("gdr_plugin", "gdr_plugin.guidance", "gdr_plugin.routing")


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order that ruff's RUF022 gives."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_complete(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__, key=sort_key)
    for name in module.__all__:
        assert getattr(module, name) is not None
    ours = {name for name, value in vars(module).items() if getattr(value, "__module__", "").startswith("gdr_plugin")}
    assert {name for name in ours if not name.startswith("_")} <= set(module.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        getattr(gdr_plugin, "Nothing")  # noqa: B009
    assert not hasattr(gdr_plugin, "__path_hook__")


def test_lazy_names_are_the_modules_own_objects() -> None:
    from gdr_plugin.config.load import load_config
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio

    assert gdr_plugin.load_config is load_config
    assert gdr_plugin.Plugins is Plugins
    assert gdr_plugin.GuidedDensityRatio is GuidedDensityRatio
    assert set(gdr_plugin.__all__) <= set(dir(gdr_plugin))


def test_star_import_gives_the_public_names_only() -> None:
    module = types.ModuleType("user")
    exec("from gdr_plugin import *", module.__dict__)
    assert {name for name in vars(module) if not name.startswith("__")} == set(gdr_plugin.__all__)


def test_importing_has_no_side_effects() -> None:
    """No environment variable, log handler, warning filter, signal handler or thread is touched."""
    code = """
import logging, os, signal, sys, threading, warnings
def state():
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)}
    return dict(os.environ), list(logging.root.handlers), list(warnings.filters), handlers, threading.active_count()
before = state()
import gdr_plugin
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)

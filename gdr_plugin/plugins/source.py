"""Loads one plugin and checks that its hooks are spelt right.

Knows one plugin at a time; `gdr_plugin.plugins.registry` collects what plugins register.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from gdr_plugin.api.errors import PluginError, nearest
from gdr_plugin.api.hooks import HOOKS, PROJECT
from gdr_plugin.text import typed_line

PREFIX = "gdr_"
"""A plugin's functions whose names begin with this are taken for hooks."""


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A loaded plugin."""

    name: str
    """The name in error messages: that of the entry point, file, module or class."""
    kind: str
    """`built-in`, `installed`, `file`, `module` or `object`."""
    distribution: str | None = None
    """The installed package that it comes with."""
    version: str | None = None
    hooks: tuple[str, ...] = ()
    """The hooks it implements, sorted."""

    def origin(self) -> str:
        """Where it comes from, for messages: `gdr-plugin-finance 0.1.0`, or "given as a file"."""
        return f"{self.distribution} {self.version or ''}".strip() if self.distribution else f"given as a {self.kind}"

    def with_hooks(self, hooks: tuple[str, ...]) -> PluginSource:
        """The same plugin with the hooks that it was found to implement."""
        return replace(self, hooks=hooks)


def import_file(path: Path) -> ModuleType:
    """Import a Python file as a module of its own.

    The module's name is made from the file's path and content: the same file is imported once, a changed one again,
    and objects of its classes can be pickled within the process.

    Args:
        path: The file. Its folder does not become importable.

    Returns:
        The module.

    Raises:
        PluginError: The file is missing, is no Python file, or fails on import.
    """
    if path.suffix != ".py":
        raise PluginError(f"plugin {str(path)!r} is not a Python file: --plugin takes a .py file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(f"plugin {str(path)!r} cannot be read: {error.strerror}") from error
    digest = hashlib.blake2b(str(path.resolve()).encode() + b"\0" + content, digest_size=8).hexdigest()
    name = f"gdr_plugin_file_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"plugin {str(path)!r} fails on import: {typed_line(error)}") from error
    return module


def check_hooks(plugin: object, name: str) -> None:
    """Refuse a hook that is misspelt, that lacks `@hookimpl`, or that wraps the hooks of others.

    Args:
        plugin: A module or an object.
        name: What the message calls it.

    Raises:
        PluginError: One line that names the plugin, the function and the nearest hook.
    """
    for attribute in dir(plugin):
        function = inspect.getattr_static(plugin, attribute, None)
        function = getattr(function, "__func__", function)  # static and class methods
        if not inspect.isfunction(function):
            continue
        options = getattr(function, f"{PROJECT}_impl", None)
        if options is None:
            _check_unmarked(plugin, attribute, function, name)
            continue
        hook = options.get("specname") or attribute
        if hook not in HOOKS and not options.get("optionalhook"):
            raise PluginError(f"plugin {name!r}: there is no hook {hook!r}; {_candidates(hook)}")
        if options.get("wrapper") or options.get("hookwrapper"):
            raise PluginError(
                f"plugin {name!r}: {attribute} is a wrapper: drop wrapper=True; a plugin registers its own "
                "things and may not change those of others"
            )


def _check_unmarked(plugin: object, attribute: str, function: object, name: str) -> None:
    """A function that looks like a hook of this plugin, but is not marked as one."""
    if hasattr(function, f"{PROJECT}_spec"):  # a hook's specification, imported for its type
        return
    if attribute in HOOKS:
        raise PluginError(f"plugin {name!r}: {attribute} is not marked as a hook: put @hookimpl above it")
    elsewhere = isinstance(plugin, ModuleType) and getattr(function, "__module__", None) != plugin.__name__
    if attribute.startswith(PREFIX) and not elsewhere:
        raise PluginError(
            f"plugin {name!r}: {attribute} is neither a hook nor marked with @hookimpl; {_candidates(attribute)}; "
            f"names that begin with {PREFIX} are kept for hooks"
        )


def _candidates(hook: str) -> str:
    near = nearest(hook, HOOKS)
    return f"did you mean {near!r}?" if near else f"hooks are {', '.join(HOOKS)}"

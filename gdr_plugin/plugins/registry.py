"""Loads plugins, checks them, and collects what they register.

Knows hooks, names and which plugin a name belongs to. It does not know what a guidance, router or model does, nor which
of them a configuration uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points as installed_entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from gdr_plugin.api import hooks as hookspecs
from gdr_plugin.api.errors import GDRError, PluginError, UnknownSchemeError
from gdr_plugin.api.hooks import PROJECT
from gdr_plugin.plugins.source import PluginSource, check_hooks, import_file
from gdr_plugin.text import one_line, typed_line
from gdr_plugin.version import __version__

if TYPE_CHECKING:
    from fastapi import APIRouter

    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.api.models import LogprobModel
    from gdr_plugin.api.routers import Router
    from gdr_plugin.api.selectors import Selector
    from gdr_plugin.api.service import ScoringService
    from gdr_plugin.api.settings import Limits, ModelSpec

BUILT_IN = "built-in"
BUILT_IN_MODULE = "gdr_plugin.builtin"
"""Our own plugin, loaded by its name: it knows everything that the package brings, so this module need not."""
NO_GUIDANCE_NAME = "none"
RESERVED = (NO_GUIDANCE_NAME, "default")
"""Names that no plugin may register: `none` means no guidance, `default` the domain of what no router decided."""


class Plugins:
    """The built-in, the installed and the given plugins, and what they register.

    Every instance loads and checks its plugins afresh; nothing is shared between instances. What plugins register is
    collected when it is first asked for, and kept.

    Args:
        *extra: Plugins that are not installed: a Python file, a module, or an object whose methods are hooks.
        entry_points: Whether installed plugins (entry-point group `gdr_plugin`) are loaded.

    Raises:
        PluginError: A plugin cannot be imported, implements an unknown hook, or has a hook without `@hookimpl`.
    """

    def __init__(self, *extra: Path | ModuleType | object, entry_points: bool = True) -> None:
        self.extra = extra
        """The plugins that were given beside the installed ones."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._sources: dict[str, PluginSource] = {}
        self._collected: dict[str, dict[str, tuple[Any, str]]] = {}
        self._register(import_module(BUILT_IN_MODULE), PluginSource(BUILT_IN, "built-in", "gdr-plugin", __version__))
        if entry_points:
            self._load_installed()
        for plugin in extra:
            self._load_extra(plugin)

    def guidances(self) -> dict[str, Guidance]:
        """Registered guidances by name, the built-in ones first.

        Raises:
            PluginError: A plugin failed, returned something else, or registers a name that is taken.
        """
        return {name: value for name, (value, _) in self._collect("guidance").items()}

    def routers(self) -> dict[str, Router]:
        """Registered routers by name; raises as `guidances` does."""
        return {name: value for name, (value, _) in self._collect("router").items()}

    def selectors(self) -> dict[str, Selector]:
        """Registered selectors by name; raises as `guidances` does."""
        return {name: value for name, (value, _) in self._collect("selector").items()}

    def open_model(self, spec: ModelSpec, limits: Limits) -> LogprobModel:
        """Open a model with the first backend that takes it; plugins are asked before the built-in ones.

        Args:
            spec: Which model.
            limits: Lengths, token budget and memory.

        Returns:
            The model; its weights load at the first `score`.

        Raises:
            UnknownSchemeError: No backend knows the scheme.
            ModelError: The model does not exist or cannot be opened.
            PluginError: A plugin failed, or returned something that is no model.
        """
        # pluggy calls its list from the end, so that a plugin comes before the built-in backends.
        for plugin, call in reversed(list(self._calls("gdr_open_model", spec=spec, limits=limits))):
            try:
                model = self._guarded(plugin, "gdr_open_model", call, passing=GDRError)
            except UnknownSchemeError as error:
                others = [name for name in self._implementers("gdr_open_model") if name != BUILT_IN]
                asked = f"{', '.join(others)} did not take it either" if others else "a plugin may bring others"
                raise UnknownSchemeError(f"{error}; {asked}") from None
            if model is not None:
                missing = [name for name in ("score", "describe", "unload") if not callable(getattr(model, name, None))]
                if missing or inspect.isclass(model):
                    raise PluginError(
                        f"plugin {plugin!r}: gdr_open_model returned {_described(model)}, which is no LogprobModel"
                        + (f" (it lacks {', '.join(missing)})" if missing else "")
                    )
                return model  # type: ignore[no-any-return]
        raise AssertionError("the built-in backends take a scheme or raise")

    def serve_routes(self, service: ScoringService) -> list[tuple[str, APIRouter]]:
        """Routes of `gdr serve` with the names of the plugins that bring them, the built-in ones first.

        Raises:
            PluginError: A plugin failed, or returned something that is no APIRouter.
        """
        from fastapi import APIRouter

        found: list[tuple[str, APIRouter]] = []
        for plugin, call in self._calls("gdr_serve_routes", service=service):
            for routes in self._guarded(plugin, "gdr_serve_routes", partial(_listed, call), passing=GDRError):
                if not isinstance(routes, APIRouter):
                    raise PluginError(f"plugin {plugin!r}: gdr_serve_routes returned {_described(routes)}")
                found.append((plugin, routes))
        return found

    def owners(self) -> list[tuple[str, str, str]]:
        """Everything registered, as `(kind, name, plugin)`, by kind: guidance, router, selector."""
        return [(kind, name, plugin) for kind in _KINDS for name, (_, plugin) in self._collect(kind).items()]

    def sources(self) -> list[PluginSource]:
        """The loaded plugins, in the order of loading: where each comes from and which hooks it implements."""
        return list(self._sources.values())

    def _load_installed(self) -> None:
        for entry in installed_entry_points(group=PROJECT):
            distribution = entry.dist.name if entry.dist else None
            version = entry.dist.version if entry.dist else None
            try:
                plugin = entry.load()
            except Exception as error:
                raise PluginError(
                    f"the installed plugin {entry.name!r} ({distribution} {version}) cannot be imported: "
                    f"{typed_line(error)}; repair or uninstall {distribution}"
                ) from error
            self._register(plugin, PluginSource(entry.name, "installed", distribution, version))

    def _load_extra(self, plugin: object) -> None:
        if isinstance(plugin, (str, Path)):
            path = Path(plugin).expanduser()
            self._register(import_file(path), PluginSource(str(plugin), "file"))
        elif isinstance(plugin, ModuleType):
            self._register(plugin, PluginSource(plugin.__name__, "module"))
        elif inspect.isclass(plugin):
            raise PluginError(f"plugin {plugin.__name__!r} is a class: give an instance of it")
        else:
            kind = type(plugin).__name__
            same = sum(source.kind == "object" and source.name.split()[0] == kind for source in self._sources.values())
            self._register(plugin, PluginSource(f"{kind} {same + 1}" if same else kind, "object"))

    def _register(self, plugin: object, source: PluginSource) -> None:
        if (other := self._sources.get(source.name)) is not None:
            raise PluginError(f"two plugins are called {source.name!r}: {other.origin()} and {source.origin()}")
        if inspect.isclass(plugin):
            raise PluginError(f"plugin {source.name!r} is the class {plugin.__name__}: point it at an instance")
        check_hooks(plugin, source.name)
        try:
            self._manager.register(plugin, name=source.name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {source.name!r}: {one_line(error)}") from error
        except ValueError:
            raise PluginError(f"plugin {source.name!r} is loaded twice: name it once") from None
        hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or []))
        if not hooks:
            raise PluginError(
                f"plugin {source.name!r} implements no hook: mark functions with @hookimpl; the hooks are "
                + ", ".join(hookspecs.HOOKS)
            )
        self._sources[source.name] = source.with_hooks(hooks)

    def _calls(self, hook: str, **arguments: object) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Each plugin's implementation of a hook, ready to call, in the order of loading."""
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            values = [arguments[name] for name in impl.argnames]
            yield impl.plugin_name, partial(impl.function, *values)

    def _implementers(self, hook: str) -> list[str]:
        return [source.name for source in self._sources.values() if hook in source.hooks]

    def _guarded(
        self, plugin: str, hook: str, call: Callable[[], Any], *, passing: type[Exception] | tuple[()] = ()
    ) -> Any:
        """Call a hook; whatever goes wrong names the plugin. A defect of our own keeps its traceback."""
        try:
            return call()
        except passing:
            raise
        except Exception as error:
            if plugin == BUILT_IN:
                raise
            raise PluginError(f"plugin {plugin!r}: {hook} failed: {typed_line(error)}") from error

    def _collect(self, kind: str) -> dict[str, tuple[Any, str]]:
        """Everything of one kind: name -> (thing, plugin)."""
        if kind not in self._collected:
            hook, check = _KINDS[kind]
            found: dict[str, tuple[Any, str]] = {}
            for plugin, call in self._calls(hook):
                for thing in self._guarded(plugin, hook, partial(_listed, call)):
                    if (problem := check(thing) or _name_problem(thing.name)) is not None:
                        raise PluginError(f"plugin {plugin!r}: {hook} returned {problem}")
                    if thing.name in found:
                        first = found[thing.name][1]
                        raise PluginError(
                            f"the {kind} {thing.name!r} is registered twice"
                            + (f" by plugin {plugin!r}" if first == plugin else f": by {first!r} and by {plugin!r}")
                            + "; rename one"
                        )
                    found[thing.name] = thing, plugin
            self._collected[kind] = found
        return self._collected[kind]


def _listed(call: Callable[[], Any]) -> list[Any]:
    """The result of a hook as a list: a generator runs here, where its errors are caught."""
    result = call()
    if result is None or isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
        raise TypeError(f"it returned {_described(result)}; return a list (empty for none)")
    return list(result)


def _described(value: object) -> str:
    if value is None:
        return "None"
    return f"the class {value.__name__}" if inspect.isclass(value) else f"an object of type {type(value).__name__}"


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name.strip() or name != name.strip():
        return f"something with the name {name!r}: a name is text without blanks at its ends"
    return f"something with the name {name!r}, which is reserved" if name in RESERVED else None


def _check_guidance(thing: object) -> str | None:
    from gdr_plugin.api.guidance import Guidance

    return None if isinstance(thing, Guidance) else f"{_described(thing)}, which is no Guidance"


def _check_callable(kind: str, method: str) -> Callable[[object], str | None]:
    def check(thing: object) -> str | None:
        if inspect.isclass(thing):
            return f"the class {thing.__name__}: return an instance, {thing.__name__}()"
        if not hasattr(thing, "name") or not callable(getattr(thing, method, None)):
            return f"{_described(thing)}, which is no {kind}: it needs `name` and `{method}`"
        return None

    return check


_KINDS: dict[str, tuple[str, Callable[[object], str | None]]] = {
    "guidance": ("gdr_register_guidance", _check_guidance),
    "router": ("gdr_register_routers", _check_callable("Router", "route")),
    "selector": ("gdr_register_selectors", _check_callable("Selector", "select")),
}

"""Plugins: one door for all, checked names, owners that error messages name."""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin import Guidance, hookimpl
from gdr_plugin.api.errors import ConfigError, ModelError, PluginError
from gdr_plugin.api.hooks import HOOKS
from gdr_plugin.api.routers import RoutingContext
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Sample
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.plugins.registry import Plugins

LIMITS = Limits()


class EverythingRouter:
    def __init__(self, name: str = "everything") -> None:
        self.name = name

    def route(self, samples: Sequence[Sample], context: RoutingContext) -> list[str | None]:
        return ["chat" for _ in samples]


def plugin(hook: str, result: Any, *, kind: str = "Given", mark: Any = hookimpl) -> object:
    """An object of a class called `kind` whose hook returns `result`, or raises it."""

    def implementation(self: object) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return type(kind, (), {hook: mark(implementation)})()


def refused(*extra: object, ask: str = "guidances") -> str:
    with pytest.raises(PluginError) as caught:
        getattr(Plugins(*extra, entry_points=False), ask)()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is there


def test_the_built_ins_come_through_hooks() -> None:
    plugins = Plugins(entry_points=False)
    assert set(plugins.guidances()) >= {"chat", "safety", "math", "code", "reasoning", "factuality"}
    assert list(plugins.routers()) == ["field", "keyword", "likelihood", "fixed"]
    assert {"max-min", "max-random", "top-k"} <= set(plugins.selectors())
    assert {owner for _, _, owner in plugins.owners()} == {"built-in"}
    (source,) = plugins.sources()
    assert (source.name, source.distribution, source.hooks) == ("built-in", "gdr-plugin", HOOKS)


def test_what_a_plugin_registers_comes_after_the_built_ins() -> None:
    mine = Guidance(name="mine", instruction="Be brief.")
    plugins = Plugins(
        plugin("gdr_register_guidance", [mine], kind="A"),
        plugin("gdr_register_routers", (router for router in [EverythingRouter()]), kind="B"),
        entry_points=False,
    )
    assert list(plugins.guidances().items())[-1] == ("mine", mine)
    assert list(plugins.routers())[-1] == "everything"
    assert ("guidance", "mine", "A") in plugins.owners()
    assert ("router", "everything", "B") in plugins.owners()
    assert [source.name for source in plugins.sources()] == ["built-in", "A", "B"]


def test_instances_are_independent_and_hooks_run_once_each() -> None:
    calls: list[str] = []

    class Counting:
        @hookimpl
        def gdr_register_guidance(self) -> Iterable[Guidance]:
            calls.append("called")
            return [Guidance(name="counted", instruction="x")]

    first = Plugins(Counting(), entry_points=False)
    assert calls == []
    assert "counted" in first.guidances()
    assert "counted" in first.guidances()
    assert calls == ["called"]
    assert "counted" not in Plugins(entry_points=False).guidances()


def test_what_is_returned_may_be_changed_without_harm() -> None:
    plugins = Plugins(entry_points=False)
    plugins.guidances().clear()
    assert plugins.guidances()


# Misspelt, unmarked, empty


def test_a_misspelt_hook_is_named_with_plugin_and_nearest() -> None:
    assert refused(plugin("gdr_register_router", [])) == (
        "plugin 'Given': there is no hook 'gdr_register_router'; did you mean 'gdr_register_routers'?"
    )
    assert "hooks are gdr_open_model, " in refused(plugin("zzz", []))


def test_a_hook_without_its_mark_is_caught() -> None:
    assert refused(plugin("gdr_register_guidance", [], mark=lambda function: function)) == (
        "plugin 'Given': gdr_register_guidance is not marked as a hook: put @hookimpl above it"
    )
    message = refused(plugin("gdr_regster_guidance", [], mark=lambda function: function))
    assert "neither a hook nor marked with @hookimpl; did you mean 'gdr_register_guidance'?" in message


def test_helpers_and_imported_specifications_are_no_hooks() -> None:
    module = types.ModuleType("helpful")
    source = """
from gdr_plugin import hookimpl
from gdr_plugin.api.hooks import gdr_register_routers
from gdr_plugin.guidance import load_guidance_file as gdr_loader
gdr_version = "1"
def helper(): ...
@hookimpl
def gdr_register_guidance(): return []
"""
    exec(source, module.__dict__)
    assert Plugins(module, entry_points=False).sources()[1].hooks == ("gdr_register_guidance",)


def test_another_name_for_a_hook_and_hooks_of_later_versions_work() -> None:
    class Later:
        @hookimpl(specname="gdr_register_guidance")
        def mine(self) -> Iterable[Guidance]:
            return [Guidance(name="mine", instruction="x")]

        @hookimpl(optionalhook=True)
        def gdr_serve_something(self) -> None: ...

    assert "mine" in Plugins(Later(), entry_points=False).guidances()


def test_a_plugin_without_hooks_is_refused() -> None:
    assert refused(object()).startswith("plugin 'object' implements no hook: mark functions with @hookimpl")
    assert "implements no hook" in refused(types.ModuleType("empty"))


def test_a_class_a_wrapper_and_wrong_arguments_are_refused() -> None:
    assert refused(type(plugin("gdr_register_guidance", []))) == "plugin 'Given' is a class: give an instance of it"
    wrapper = plugin("gdr_register_guidance", [], mark=hookimpl(wrapper=True))
    assert "gdr_register_guidance is a wrapper: drop wrapper=True" in refused(wrapper)

    class Wrong:
        @hookimpl
        def gdr_register_guidance(self, config: object) -> Iterable[Guidance]:
            return []

    assert "config" in refused(Wrong())


def test_a_plugin_twice_is_refused() -> None:
    one = plugin("gdr_register_guidance", [])
    assert refused(one, one) == "plugin 'Given 2' is loaded twice: name it once"
    module = types.ModuleType("twice")
    exec("from gdr_plugin import hookimpl\n@hookimpl\ndef gdr_register_guidance(): return []", module.__dict__)
    assert refused(module, module) == "two plugins are called 'twice': given as a module and given as a module"


def test_two_objects_of_a_class_are_two_plugins() -> None:
    plugins = Plugins(Backend("one", FakeModel("x")), Backend("two", FakeModel("y")), entry_points=False)
    assert [source.name for source in plugins.sources()] == ["built-in", "Backend", "Backend 2"]
    assert plugins.open_model(ModelSpec(model="one:m"), LIMITS).name == "fake:x"


# Names


@pytest.mark.parametrize(
    ("hook", "ask", "kind", "thing"),
    [
        ("gdr_register_guidance", "guidances", "guidance", Guidance(name="twin", instruction="x")),
        ("gdr_register_routers", "routers", "router", EverythingRouter("twin")),
    ],
)
def test_a_name_registered_twice_names_both_plugins(hook: str, ask: str, kind: str, thing: Any) -> None:
    first, second = plugin(hook, [thing], kind="First"), plugin(hook, [thing], kind="Second")
    assert refused(first, second, ask=ask) == (
        f"the {kind} 'twin' is registered twice: by 'First' and by 'Second'; rename one"
    )
    assert "registered twice by plugin 'First'" in refused(plugin(hook, [thing, thing], kind="First"), ask=ask)
    # Owners come with everything, so that `gdr plugins` sees the collision whatever its kind.
    assert "'twin' is registered twice" in refused(first, second, ask="owners")


def test_a_built_in_is_not_silently_replaced() -> None:
    mine = plugin("gdr_register_guidance", [Guidance(name="safety", instruction="x")])
    assert "'safety' is registered twice: by 'built-in' and by 'Given'" in refused(mine)


@pytest.mark.parametrize("name", ["none", "default"])
def test_reserved_names_are_refused(name: str) -> None:
    assert f"{name!r}, which is reserved" in refused(
        plugin("gdr_register_routers", [EverythingRouter(name)]), ask="routers"
    )


@pytest.mark.parametrize("name", ["", " blank", None, 5])
def test_a_name_is_text(name: Any) -> None:
    message = refused(plugin("gdr_register_routers", [EverythingRouter(name)]), ask="routers")
    assert message.startswith("plugin 'Given': gdr_register_routers returned something with the name")


# What hooks return


@pytest.mark.parametrize(
    ("hook", "result", "message"),
    [
        ("gdr_register_guidance", None, "it returned None; return a list (empty for none)"),
        ("gdr_register_guidance", 5, "it returned an object of type int; return a list"),
        ("gdr_register_guidance", "text", "it returned an object of type str; return a list"),
        ("gdr_register_guidance", ["safety"], "returned an object of type str, which is no Guidance"),
        ("gdr_register_guidance", [Guidance], "returned the class Guidance, which is no Guidance"),
        (
            "gdr_register_routers",
            [EverythingRouter],
            "the class EverythingRouter: return an instance",
        ),
        ("gdr_register_routers", [object()], "which is no Router: it needs `name` and `route`"),
        ("gdr_register_selectors", [EverythingRouter()], "which is no Selector: it needs `name` and `select`"),
    ],
)
def test_a_wrong_result_names_plugin_and_hook(hook: str, result: Any, message: str) -> None:
    text = refused(plugin(hook, result), ask="owners")
    assert text.startswith(f"plugin 'Given': {hook}")
    assert message in text


def test_an_error_in_a_hook_names_plugin_and_hook() -> None:
    message = refused(plugin("gdr_register_guidance", KeyError("missing\nkey")))
    assert message.startswith("plugin 'Given': gdr_register_guidance failed: KeyError: ")

    def broken() -> Iterable[Guidance]:
        yield Guidance(name="fine", instruction="x")
        raise ValueError("half way")

    assert "failed: ValueError: half way" in refused(plugin("gdr_register_guidance", broken()))


# Models


class Backend:
    """A plugin that opens the scheme `mine`, and whatever else it is told."""

    def __init__(self, scheme: str, result: Any) -> None:
        self.scheme = scheme
        self.result = result

    @hookimpl
    def gdr_open_model(self, spec: ModelSpec) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result if spec.scheme == self.scheme else None


def test_the_fake_backend_is_built_in() -> None:
    model = Plugins(entry_points=False).open_model(ModelSpec(model="fake:a"), LIMITS)
    assert isinstance(model, FakeModel)
    assert model.name == "fake:a"


def test_a_plugin_adds_a_scheme_or_takes_one_over() -> None:
    mine = FakeModel("mine")
    plugins = Plugins(Backend("mine", mine), entry_points=False)
    assert plugins.open_model(ModelSpec(model="mine:x"), LIMITS) is mine
    assert plugins.open_model(ModelSpec(model="fake:a"), LIMITS) is not mine
    assert Plugins(Backend("fake", mine), entry_points=False).open_model(ModelSpec(model="fake:a"), LIMITS) is mine


def test_an_unknown_scheme_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        Plugins(entry_points=False).open_model(ModelSpec(model="fke:a"), LIMITS)
    assert str(caught.value) == (
        "model 'fke:a': unknown scheme 'fke': known are fake, hf, openai, sglang, vllm (did you mean 'fake'?); "
        "a plugin may bring others"
    )
    with pytest.raises(ConfigError, match="; Backend did not take it either"):
        Plugins(Backend("mine", None), entry_points=False).open_model(ModelSpec(model="lmdeploy:a"), LIMITS)


def test_a_backend_must_return_a_model() -> None:
    plugins = Plugins(Backend("mine", "a model"), entry_points=False)
    with pytest.raises(PluginError) as caught:
        plugins.open_model(ModelSpec(model="mine:x"), LIMITS)
    assert str(caught.value) == (
        "plugin 'Backend': gdr_open_model returned an object of type str, which is no LogprobModel "
        "(it lacks score, describe, unload)"
    )


def test_errors_of_a_backend_keep_their_kind_defects_name_the_plugin() -> None:
    with pytest.raises(ModelError, match="no such server"):
        Plugins(Backend("mine", ModelError("no such server")), entry_points=False).open_model(
            ModelSpec(model="mine:x"), LIMITS
        )
    with pytest.raises(PluginError, match="plugin 'Backend': gdr_open_model failed: ZeroDivisionError: oops"):
        Plugins(Backend("mine", ZeroDivisionError("oops")), entry_points=False).open_model(
            ModelSpec(model="mine:x"), LIMITS
        )


# Files

HOOKS_FILE = """
from gdr_plugin import Guidance, hookimpl

class Extra(Guidance):
    pass

@hookimpl
def gdr_register_guidance():
    return [Extra(name="{name}", instruction="x")]
"""


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    path = tmp_path / "my hooks.py"
    path.write_text(HOOKS_FILE.format(name="from-file"))
    plugins = Plugins(path, entry_points=False)
    assert "from-file" in plugins.guidances()
    assert ("guidance", "from-file", str(path)) in plugins.owners()
    assert plugins.sources()[-1].kind == "file"


def test_objects_of_a_files_classes_can_be_pickled(tmp_path: Path) -> None:
    path = tmp_path / "hooks.py"
    path.write_text(HOOKS_FILE.format(name="pickled"))
    guidance = Plugins(path, entry_points=False).guidances()["pickled"]
    Plugins(path, entry_points=False)
    assert pickle.loads(pickle.dumps(guidance)) == guidance


def test_two_files_of_one_name_are_two_modules_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    paths = [tmp_path / name / "hooks.py" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(HOOKS_FILE.format(name=path.parent.name))
    assert {"one", "two"} <= set(Plugins(*paths, entry_points=False).guidances())
    paths[0].write_text(HOOKS_FILE.format(name="changed"))
    assert "changed" in Plugins(paths[0], entry_points=False).guidances()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hooks.py", "def broken(:", "fails on import: SyntaxError: "),
        ("hooks.py", "import no_such_module_at_all", "fails on import: ModuleNotFoundError: "),
        ("hooks.py", "import sys; sys.exit('stop')", "fails on import: SystemExit: stop"),
        ("hooks.py", "x = 1", "implements no hook"),
        ("hooks.txt", "", "is not a Python file: --plugin takes a .py file"),
        ("hooks.py", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    found = refused(path)
    assert found.startswith(f"plugin {str(path)!r} ")
    assert message in found


# Installed plugins: entry points are read from metadata in folders on the path


def install(folder: Path, name: str, module: str, source: str, *, entry: str = "mine") -> None:
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[gdr_plugin]\n{entry} = {module}\n")


def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "gdr-plugin-mine", "gdr_test_installed", HOOKS_FILE.format(name="installed"))
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins()
    assert ("guidance", "installed", "mine") in plugins.owners()
    (source,) = [source for source in plugins.sources() if source.name == "mine"]
    assert (source.kind, source.distribution, source.version) == ("installed", "gdr-plugin-mine", "1.2")
    assert "installed" not in Plugins(entry_points=False).guidances()


def test_an_installed_plugin_that_fails_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "gdr-plugin-broken", "gdr_test_broken", "import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as caught:
        Plugins()
    message = str(caught.value)
    assert message.startswith("the installed plugin 'mine' (gdr-plugin-broken 1.2) cannot be imported: ModuleNotFound")
    assert message.endswith("repair or uninstall gdr-plugin-broken")


def test_two_installed_plugins_of_one_name_name_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "gdr-plugin-one", "gdr_test_one", HOOKS_FILE.format(name="one"))
    install(tmp_path, "gdr-plugin-two", "gdr_test_two", HOOKS_FILE.format(name="two"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as caught:
        Plugins()
    for text in ("two plugins are called 'mine'", "gdr-plugin-one 1.2", "gdr-plugin-two 1.2"):
        assert text in str(caught.value)

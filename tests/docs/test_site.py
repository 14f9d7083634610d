"""The documentation hangs together: links, navigation, generated files, README's promises. Builds no site."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")])
LINK = re.compile(r"""(?:\]\(|\bsrc=")(?![a-z]+:)([^)\s#"]*)(?:#([^)\s"]+))?""")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def configuration() -> Iterator[ModuleType]:
    """docs/tools/configuration.py, which is no module of a package."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("docs_configuration", ROOT / "docs/tools/configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What links to headings of a page may name, on the site and where the repository is read."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def pages_of(navigation: Any) -> Iterator[str]:
    """The pages that mkdocs' `nav` names."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for entry in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from pages_of(entry)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(prose(page))
    for target, anchor in links:
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert path.suffix == ".md", f"{page.name}: {target}#{anchor}"
            assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def test_links_are_found() -> None:
    (changelog,) = [page for page in PAGES if page.name == "ARCHITECTURE.md"]
    assert ("CONTRIBUTING.md", "") in LINK.findall(prose(changelog))
    assert "rules-that-hold-everywhere" in anchors(changelog)


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(pages_of(config["nav"]))
    source = (ROOT / "docs/tools/site.py").read_text(encoding="utf-8")
    outside = dict(re.findall(r'^    "([\w./-]+\.md)": "([\w-]+\.md)",$', source, re.MULTILINE))
    assert len(outside) >= 5
    assert all((ROOT / path).is_file() for path in outside)
    assert sorted(listed) == sorted([*(path.name for path in (ROOT / "docs").glob("*.md")), *outside.values()])


def test_the_site_loads_nothing_from_the_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    plugins = {plugin if isinstance(plugin, str) else next(iter(plugin)) for plugin in config["plugins"]}
    assert plugins == {"search", "mkdocstrings"}
    assert not {"extra_javascript", "extra"} & config.keys()
    assert all((ROOT / "docs" / path).is_file() for path in config["extra_css"])


def test_the_page_and_the_schema_of_gdr_yaml_are_what_the_models_say(configuration: ModuleType) -> None:
    for path, text in configuration.files().items():
        written = path.read_text(encoding="utf-8")
        assert written == text, f"{path.name} is out of date: python docs/tools/configuration.py"


def test_every_key_is_explained(configuration: ModuleType) -> None:
    page = configuration.page()
    assert "| `end_of_turn` | `when-finished`, `always`, `never` | `when-finished` | Whether the end-of-turn" in page
    assert "| `kv_cache_mb` | whole number | `512` | Memory for guidance" in page
    rows = re.findall(r"^\| `\w+` \|.*$", page, re.MULTILINE)
    assert len(rows) >= 28
    assert not [row for row in rows if re.search(r"\|\s*\|", row) or "any value |" in row.replace("to any value", "")]


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/**/*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_schema_takes_the_files_that_we_ship(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "strong" in data:
        jsonschema.validate(data, schema())


def test_the_schema_takes_what_gdr_init_writes(configuration: ModuleType) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(yaml.safe_load(configuration.template()), schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"weak": "org/weak"},
        {"strong": "org/strong", "weak": {"model": "org/weak", "dtyp": "float32"}},
        {"strong": "org/strong", "weak": "org/weak", "guidance": {"placement": "weak"}},
        {"strong": "org/strong", "weak": "org/weak", "routing": {"routers": [3]}},
        {"strong": "org/strong", "weak": "org/weak", "rewards": {}},
    ],
)
def test_the_schema_refuses_what_gdr_check_refuses(wrong: dict[str, Any]) -> None:
    from gdr_plugin.api.errors import ConfigError
    from gdr_plugin.config.load import parse_config

    with pytest.raises(ConfigError):
        parse_config(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema())


def schema() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / "docs/gdr.schema.json").read_text(encoding="utf-8"))
    return read


def test_readme_is_short_and_opens_with_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1123  # half of what it had
    first = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)[0]
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == ["make demo", "make test"]


def test_sixty_pairs_of_our_own() -> None:
    lines = (ROOT / "examples/data/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == len({row["id"] for row in rows}) == 60
    domains = {row["domain"] for row in rows}
    config = yaml.safe_load((ROOT / "examples/demo-pair/gdr.yaml").read_text(encoding="utf-8"))
    assert domains <= set(config["guidance"]["domains"])
    assert len(domains) == 6
    assert all(row["chosen"].strip() and row["chosen"] != row["rejected"] for row in rows)
    assert sum(isinstance(row["prompt"], list) for row in rows) >= 6
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert 25 <= longer <= 35  # neither "longer wins" nor "shorter wins" is a way to guess

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gdr_plugin.api.types import TokenSpan
from gdr_plugin.models.fake import FakeModel
from gdr_plugin.store.store import LogprobStore, span_keys

Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two models' log-probs: 300 responses of a, used 40 days ago, and 100 of b."""
    path = tmp_path / "store.sqlite"
    opened = LogprobStore(path)
    for name, count in (("a", 300), ("b", 100)):
        model, spans = FakeModel(name), [TokenSpan((1, n), tuple(range(100))) for n in range(count)]
        opened.write(model.identity, model.name, span_keys(model.identity, spans), model.score(spans))
    opened.close()
    connection = sqlite3.connect(path)
    today = int(time.time() // 86_400)
    connection.execute("UPDATE logprobs SET used = ? WHERE model = 1", (today - 40,))
    connection.commit()
    connection.close()
    return path


def test_info(gdr: Gdr, store: Path) -> None:
    code, out, err = gdr("store", "info", store)
    assert (code, err) == (0, "")
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["fake:a", "300", "30,000"] in [row[:3] for row in rows]
    assert ["fake:b", "100", "10,000"] in [row[:3] for row in rows]


def test_info_as_json_through_a_configuration(gdr: Gdr, store: Path) -> None:
    config = store.with_name("gdr.yaml")
    config.write_text('strong: "fake:a"\nweak: "fake:b"\nstore: {path: store.sqlite}\n')
    code, out, _ = gdr("store", "info", config, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["path"] == str(store)
    assert facts["bytes"] == store.stat().st_size
    assert [(model["name"], model["rows"], model["tokens"]) for model in facts["models"]] == [
        ("fake:b", 100, 10_000),
        ("fake:a", 300, 30_000),
    ]
    assert facts["models"][0]["identity"] == FakeModel("b").identity


def test_prune_by_age(gdr: Gdr, store: Path) -> None:
    assert gdr("store", "prune", store, "--older-than", "6w")[1].startswith("deleted 0 responses")
    assert gdr("store", "prune", store, "--older-than", "30d", "--dry-run")[1].startswith("would delete 300 responses")
    size = store.stat().st_size
    code, out, _ = gdr("store", "prune", store, "--older-than", "30")
    assert (code, out[:21]) == (0, "deleted 300 responses")
    assert store.stat().st_size < 0.5 * size
    assert [usage.rows for usage in LogprobStore(store).info()] == [100]


def test_prune_by_size_and_model(gdr: Gdr, store: Path) -> None:
    code, out, _ = gdr("store", "prune", store, "--max-size", "100 kB")
    assert (code, out.split()[0]) == (0, "deleted")
    assert store.stat().st_size <= 100_000
    assert [usage.name for usage in LogprobStore(store).info()] == ["fake:b", "fake:a"]
    gdr("store", "prune", store, "--model", FakeModel("b").identity)
    assert [usage.name for usage in LogprobStore(store).info()] == ["fake:a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "store.sqlite"], "say what to prune: --older-than 30d, --model NAME or --max-size 2GB"),
        (["prune", "store.sqlite", "--older-than", "soon"], "--older-than 'soon': write a number of days"),
        (["prune", "store.sqlite", "--max-size", "2 trucks"], "--max-size '2 trucks': write a size"),
        (["prune", "store.sqlite", "--model", "fake:c"], "unknown model 'fake:c': known are fake:a, fake:b"),
        (["info", "absent.sqlite"], "there is no store at absent.sqlite: the first run that scores makes it"),
        (["info", "none.yaml"], "none.yaml names no store"),
        (["info"], "gdr.yaml"),
    ],
)
def test_what_is_refused(
    gdr: Gdr, store: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(store.parent)
    Path("none.yaml").write_text('strong: "fake:a"\nweak: "fake:b"\n')
    code, out, err = gdr("store", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gdr: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("absent.sqlite").exists()

"""A planted pair of models: only one instruction makes the reward agree with the labels, and what is asked is noted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdr_plugin import Plugins, hookimpl
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.fake import FakeChat
from gdr_plugin.tuning.report import TuneReport
from gdr_plugin.tuning.tune import TuneOptions, tune

SECRET = "Name the clause that the answer rests on."


def noise(response: str) -> float:
    """-1 to 1, the same for a response in every context."""
    return int.from_bytes(hashlib.blake2b(response.encode(), digest_size=4).digest(), "big") / 2**31 - 1


class Planted:
    """The strong model adds 4 nats to responses marked [ok] once the instruction is in the context."""

    def __init__(self, name: str, limits: Limits, asked: list[tuple[str, str]], fail_after: int | None) -> None:
        self.name, self.identity, self.chat = name, f"{name} {SECRET}", FakeChat(limits)
        self.strong, self.asked, self.fail_after = name == "planted:strong", asked, fail_after

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        found = []
        for span in spans:
            context, response = (bytes(i for i in ids if i < 256).decode() for ids in (span.context, span.response))
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise KeyboardInterrupt
            if self.strong:
                self.asked.append((context, response))
            total = noise(response) + 4 * (SECRET in context and "[ok]" in response) if self.strong else 0.0
            found.append(np.full(len(span.response), (total - 10) / len(span.response), dtype=np.float32))
        return found

    def describe(self) -> dict[str, str]:
        return {"backend": "planted"}

    def unload(self) -> None:
        pass


class PlantedPlugin:
    """Opens `planted:strong` and `planted:weak`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """What the strong model computed: context and response, in order."""
        self.opened = 0
        self.fail_after: int | None = None

    @hookimpl
    def gdr_open_model(self, spec: ModelSpec, limits: Limits) -> Planted | None:
        self.opened += 1
        return Planted(spec.model, limits, self.asked, self.fail_after) if spec.scheme == "planted" else None


@pytest.fixture
def planted() -> PlantedPlugin:
    """The plugin of the planted pair."""
    return PlantedPlugin()


@pytest.fixture
def secret() -> str:
    """The instruction that helps."""
    return SECRET


@pytest.fixture
def agrees() -> Callable[..., bool]:
    """`agrees(chosen, rejected, guided)`: whether the planted reward agrees with the label, by hand."""

    def by_hand(chosen: str, rejected: str, guided: bool) -> bool:
        plus = 4 if guided and "[ok]" in chosen else 0
        return noise(chosen) + plus > noise(rejected)

    return by_hand


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., Path]:
    """`pairs(prompts=100, **columns) -> Path`: every fifth prompt's chosen response is not marked [ok]."""

    def make(prompts: int = 100, name: str = "pairs.jsonl", first: int = 100, **columns: Any) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as file:
            for n in range(first, first + prompts):
                row = {
                    "id": f"p{n}",
                    "prompt": f"Question {n}: may I leave?",
                    "chosen": f"answer {n}{' [ok]' if n % 5 else ''}",
                    "rejected": f"reply {n}",
                }
                file.write(json.dumps({**row, **columns}) + "\n")
        return path

    return make


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """`config(strong=..., weak=..., **sections) -> Path`: a gdr.yaml, of the planted pair by default."""

    def make(strong: str = "planted:strong", weak: str = "planted:weak", **sections: Any) -> Path:
        data = {
            "strong": strong,
            "weak": weak,
            "guidance": {"domains": {"chat": "none", "safety": "safety"}},
            "routing": {"routers": ["field"], "default_domain": "chat"},
            "store": {"path": ".gdr/store.sqlite"},
        }
        path = tmp_path / "gdr.yaml"
        path.write_text(json.dumps({**data, **sections}))  # JSON is YAML
        return path

    return make


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    """A file of three instructions, the second of which is the one that helps."""
    path = tmp_path / "instructions.txt"
    path.write_text(f"# ours\nBe kind.\n{SECRET}\n\nBe brief.\n")
    return path


Run = Callable[..., TuneReport]


@pytest.fixture
def run(tmp_path: Path, config: Callable[..., Path], planted: PlantedPlugin) -> Run:
    """`run(data, config=None, **options) -> TuneReport`, with the planted pair; writes found.yaml."""

    def call(data: Path, gdr_yaml: Path | None = None, *, notes: list[str] | None = None, **options: Any) -> TuneReport:
        return tune(
            data,
            gdr_yaml or config(),
            tmp_path / "found.yaml",
            TuneOptions(**options),
            plugins=Plugins(planted, entry_points=False),
            notify=(notes if notes is not None else []).append,
        )

    return call

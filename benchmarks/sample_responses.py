"""Draw the responses that the benchmarks score: SmolLM2-135M-Instruct's own answers to examples/data/prompts.jsonl.

    python -m benchmarks.sample_responses

The result, data/responses.jsonl, is kept with the benchmarks, so that every run has the same work; run this only to
make other work. Responses of fewer than 60 tokens are left out, and each is cut at a length drawn from 60 to 180.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.data.rows import parse_prompt
from gdr_plugin.models.local.source import load_tokenizer, locate
from gdr_plugin.sampling.sample import PolicySampler, Sampling

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "examples" / "demo-pair" / "base.gguf"
PROMPTS = HERE.parent / "examples" / "data" / "prompts.jsonl"
OUT = HERE / "data" / "responses.jsonl"
SHORTEST, LONGEST = 60, 180
MANY, FEW, COUNT = 64, 8, 16
"""How many responses the first prompt has, how many each other prompt, and how many prompts there are."""


def _cut(text: str, finished: bool, tokenizer: Any, lengths: random.Random) -> dict[str, Any] | None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    length = lengths.randint(SHORTEST, LONGEST)
    if len(ids) < SHORTEST:
        return None
    return {"text": tokenizer.decode(ids[:length]), "finished": finished and len(ids) <= length}


def main() -> None:
    spec = ModelSpec(model=str(MODEL))
    sampler, tokenizer, lengths = PolicySampler(spec, Limits()), load_tokenizer(spec, locate(spec)), random.Random(0)
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    lines: list[str] = []
    for row in rows:
        wanted = FEW if lines else MANY
        prompt = parse_prompt(row["prompt"])
        sampling = Sampling(samples=wanted * 3 // 2, temperature=0.9, top_p=0.95, max_new_tokens=LONGEST)
        (drawn,) = sampler.sample([prompt], [row["id"]], sampling)
        cut = (_cut(text, finished, tokenizer, lengths) for text, finished in drawn.responses)
        long = [response for response in cut if response is not None]
        if len(long) >= wanted:
            lines.append(json.dumps({"id": row["id"], "prompt": row["prompt"], "responses": long[:wanted]}))
            print(f"{row['id']}: {len(long)} of {sampling.samples} are long enough")
        if len(lines) == COUNT:
            break
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Train DPO checkpoints of a small model on preference pairs: models that differ in alignment and in nothing else.

    python benchmarks/train_dpo.py PAIRS.jsonl --out checkpoints/harmless
    python benchmarks/train_dpo.py PAIRS.jsonl --out checkpoints/reversed --reverse --steps 20 40

Rows: `{"id", "prompt": str | messages, "chosen": str, "rejected": str}`. One run leaves a PEFT adapter in OUT/step-N
after each number of steps; gdr.yaml takes it as `adapter:`. `--reverse` swaps chosen and rejected, which makes a model
less aligned than its base. `--decay` lowers the learning rate to 0 at the last step. `--export` writes the last adapter
once more, in half precision. A run that stopped goes on after its last checkpoint; the same arguments give the same
adapters. OUT/log.jsonl holds loss, reward margin and accuracy by step, and on held-out pairs by checkpoint.

A pair is one row of tokens: the prompt once, then both responses, which do not see each other. So the prompt is
computed once and nothing is padded: a step on four pairs takes about 4 s on one CPU thread in bfloat16. A CPU without
bfloat16 arithmetic (AVX2 only) needs `--dtype float32`: there such a step took 12 s, and in bfloat16 four minutes.
Source of the loss: "Direct Preference Optimization" (arXiv 2305.18290), eq. 7, as TRL's `sigmoid` loss has it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
BETA, WARMUP, CLIP = 0.1, 5, 1.0
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Pair:
    """A prompt with two responses, as one model's token ids."""

    id: str
    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.context) + len(self.chosen) + len(self.rejected)

    def reversed(self) -> Pair:
        return Pair(self.id, self.context, self.rejected, self.chosen)


def read_pairs(path: Path, chat: Any, *, max_tokens: int) -> list[Pair]:
    """Read the pairs of a JSONL file that fit into a row of `max_tokens`, in the file's order."""
    from gdr_plugin.data.prompts import parse_prompt

    pairs = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            prompt = parse_prompt(row["prompt"])
            chosen, rejected = (chat.span(prompt, row[name], end=True) for name in ("chosen", "rejected"))
            pair = Pair(str(row.get("id", number)), chosen.context, chosen.response, rejected.response)
            if pair.tokens <= max_tokens:
                pairs.append(pair)
    return pairs


def pair_logprobs(model: Any, pair: Pair) -> Any:
    """Sums of the log-probs of chosen and rejected given the prompt, in nats: tensor `(2,)`, differentiable.

    Args:
        model: A transformers causal language model; LoRA layers in it are fine.
        pair: The row `prompt + chosen + rejected`; rejected gets the positions of chosen and does not see it.
    """
    import torch

    start, middle, end = len(pair.context), len(pair.context) + len(pair.chosen), pair.tokens
    ids = torch.tensor([[*pair.context, *pair.chosen, *pair.rejected]])
    positions = torch.arange(end)
    positions[middle:] -= len(pair.chosen)
    seen = torch.ones(end, end, dtype=torch.bool).tril()
    seen[middle:, start:middle] = False
    mask = torch.zeros(1, 1, end, end, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    hidden = model.model(input_ids=ids, position_ids=positions[None], attention_mask=mask, use_cache=False)
    before = torch.arange(start - 1, end - 1)  # where each response token is predicted
    before[len(pair.chosen)] = start - 1  # the first of rejected follows the prompt, too
    logits = model.lm_head(hidden.last_hidden_state[0, before]).float()
    chosen_and_rejected = ids[0, start:]
    picked = logits.gather(1, chosen_and_rejected[:, None])[:, 0] - logits.logsumexp(dim=1)
    return torch.stack([picked[: len(pair.chosen)].sum(), picked[len(pair.chosen) :].sum()])


def dpo_loss(policy: Any, reference: Any, beta: float = BETA) -> Any:
    """DPO's loss of one pair, from `(2,)` log-probs of chosen and rejected under both models."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * ((policy[0] - policy[1]) - (reference[0] - reference[1])))


class Trainer:
    """One run: a LoRA adapter on a base, its optimizer, and the order of the pairs.

    Args:
        base: A transformers causal language model; gets LoRA layers.
        pairs: What it is trained on.
        seed: Decides the adapter's initial values and the order of the pairs.
        rate: Learning rate after the warm-up.
        batch: Pairs a step.
        last: The step at which the rate reaches 0, along half a cosine; None for a constant rate, with which a
            checkpoint does not depend on the run's length.
    """

    def __init__(
        self, base: Any, pairs: Sequence[Pair], *, seed: int, rate: float, batch: int, last: int | None = None
    ) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        self.adapted = get_peft_model(base, config)  # adapters in float32, whatever the base is
        self.model = self.adapted.get_base_model()
        self.pairs = pairs
        self.step = 0
        self._seed, self._rate, self._batch, self._last = seed, rate, batch, last
        self._trained = [p for p in self.adapted.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=rate, weight_decay=0.0)
        self._reference: dict[Pair, Any] = {}

    def advance(self) -> dict[str, float]:
        """Take one step; return the mean loss, reward margin (nats, times beta) and accuracy of its pairs before it."""
        import torch

        losses, margins = [], []
        self._optimizer.zero_grad()
        for pair in self._next():
            loss, margin = self._loss(pair)
            (loss / self._batch).backward()
            losses.append(loss.item())
            margins.append(margin)
        torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
        self.step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate_now()
        self._optimizer.step()
        return _facts(losses, margins)

    def _rate_now(self) -> float:
        part = 0.0 if self._last is None else (self.step - 1) / self._last
        return self._rate * min(1.0, self.step / WARMUP) * (1 + math.cos(math.pi * part)) / 2

    def held_out(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """The same numbers for pairs that are not trained on."""
        import torch

        with torch.no_grad():
            found = [self._loss(pair) for pair in pairs]
        return _facts([loss.item() for loss, _ in found], [margin for _, margin in found])

    def save(self, folder: Path, *, base: str) -> None:
        """Write the adapter and the optimizer's state; the folder appears when it is complete."""
        import torch

        making = folder.with_name(f".{folder.name}")
        self.adapted.peft_config["default"].base_model_name_or_path = base
        self.adapted.save_pretrained(making)
        torch.save(self._optimizer.state_dict(), making / "optimizer.pt")
        making.rename(folder)

    def start_from(self, folder: Path) -> None:
        """Begin with the weights of an adapter of the same shape; the reference stays the base."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        found = set_peft_model_state_dict(self.adapted, load_file(folder / WEIGHTS))
        if found.unexpected_keys or any("lora_" in name for name in found.missing_keys):
            raise SystemExit(f"{folder}: not an adapter of this base and rank")

    def restore(self, folder: Path, step: int) -> None:
        """Go on from a checkpoint of this run."""
        import torch
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.adapted, load_file(folder / WEIGHTS))
        self._optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.step = step

    def _loss(self, pair: Pair) -> tuple[Any, float]:
        policy, reference = pair_logprobs(self.model, pair), self._reference_of(pair)
        margin = (policy[0] - policy[1]) - (reference[0] - reference[1])
        return dpo_loss(policy, reference), BETA * margin.item()

    def _reference_of(self, pair: Pair) -> Any:
        """The base's log-probs, computed once a pair and by the same kernels, so that rounding cancels."""
        import torch

        if pair not in self._reference:
            with torch.no_grad(), self.adapted.disable_adapter():
                self._reference[pair] = pair_logprobs(self.model, pair)
        return self._reference[pair]

    def _next(self) -> Iterator[Pair]:
        """The pairs of this step: every epoch goes through all pairs in an order of its own."""
        for place in range(self.step * self._batch, (self.step + 1) * self._batch):
            epoch, index = divmod(place, len(self.pairs))
            yield self.pairs[np.random.default_rng((self._seed, epoch)).permutation(len(self.pairs))[index]]


def _facts(losses: Sequence[float], margins: Sequence[float]) -> dict[str, float]:
    right = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    named = {"loss": losses, "margin": margins, "accuracy": right}
    return {name: round(float(np.mean(values)), 4) for name, values in named.items()}


def train(trainer: Trainer, held_out: Sequence[Pair], steps: Sequence[int], out: Path, *, base: str) -> None:
    """Train to the last of `steps`, with a checkpoint at each; steps whose checkpoint exists are not run again."""
    done = [step for step in steps if _folder(out, step).is_dir()]
    if done:
        trainer.restore(_folder(out, max(done)), max(done))
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:

        def note(facts: dict[str, Any]) -> None:
            print(json.dumps(facts), file=log, flush=True)
            print(" ".join(f"{name} {value}" for name, value in facts.items()), flush=True)

        while trainer.step < max(steps):
            start, cpu = time.perf_counter(), time.process_time()
            facts = trainer.advance()
            spent = {"seconds": round(time.perf_counter() - start, 2), "cpu": round(time.process_time() - cpu, 2)}
            note({"step": trainer.step, **facts, **spent})
            if trainer.step in steps:
                note({"checkpoint": trainer.step, "held_out": len(held_out), **trainer.held_out(held_out)})
                trainer.save(_folder(out, trainer.step), base=base)


def export(folder: Path, to: Path) -> None:
    """Write a checkpoint's adapter in float16: half the file, for the same scores up to rounding."""
    import torch
    from safetensors.torch import load_file, save_file

    to.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(weights, to / WEIGHTS, metadata={"format": "pt"})
    (to / CONFIG).write_text((folder / CONFIG).read_text(encoding="utf-8"), encoding="utf-8")


def _folder(out: Path, step: int) -> Path:
    return out / f"step-{step:03d}"


def main() -> None:
    """Read the pairs, train, and leave checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="JSONL file of pairs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints and the log")
    base = HERE.parent / "examples" / "demo-pair" / "base.gguf"
    parser.add_argument("--model", default=str(base), help="hub id, folder or .gguf file (the demo pair's base)")
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[10, 20, 40, 80, 160],
        help="leave a checkpoint after each (10 20 40 80 160)",
    )
    parser.add_argument("--reverse", action="store_true", help="prefer what the data reject")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the base's weights (bfloat16)"
    )
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate (2e-4)")
    parser.add_argument("--decay", action="store_true", help="lower the rate to 0 at the last step (constant)")
    parser.add_argument("--batch", type=int, default=4, help="pairs a step (4)")
    parser.add_argument("--max-tokens", type=int, default=400, help="longer pairs are left out (400)")
    parser.add_argument(
        "--held-out", type=int, default=32, help="pairs at the end of the file that are not trained on (32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the adapter and the order of the pairs (0)")
    parser.add_argument("--start", type=Path, help="an adapter to begin with (random)")
    parser.add_argument("--export", type=Path, help="also write the last adapter, in float16, into this folder")
    args = parser.parse_args()

    from transformers import AutoModelForCausalLM

    from gdr_plugin.api.settings import ModelSpec
    from gdr_plugin.models.local import open_local

    opened = open_local(ModelSpec(model=args.model, dtype=args.dtype, device="cpu"))
    pairs = read_pairs(args.pairs, opened.chat, max_tokens=args.max_tokens)
    if len(pairs) <= args.held_out:
        parser.error(f"{args.pairs}: {len(pairs)} pairs fit into {args.max_tokens} tokens: more than --held-out needed")
    trained, held_out = pairs[: len(pairs) - args.held_out], pairs[len(pairs) - args.held_out :]
    if args.reverse:
        trained = [pair.reversed() for pair in trained]
    args.out.mkdir(parents=True, exist_ok=True)
    # Not through the engine's loader, whose faster layers cannot be trained.
    source = opened.source
    model = AutoModelForCausalLM.from_pretrained(source.path, revision=source.revision, dtype=source.dtype)
    last = max(args.steps) if args.decay else None
    trainer = Trainer(model, trained, seed=args.seed, rate=args.rate, batch=args.batch, last=last)
    if args.start:
        trainer.start_from(args.start)
    train(trainer, held_out, sorted(args.steps), args.out, base=args.model)
    if args.export:
        export(_folder(args.out, max(args.steps)), args.export)


if __name__ == "__main__":
    main()

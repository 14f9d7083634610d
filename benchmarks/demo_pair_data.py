"""Make the pairs that the demo pair's adapter is trained on, and those that it is measured on.

    python -m benchmarks.demo_pair_data --harmless TRAIN.jsonl --harmless-held-out HELD.jsonl \\
        --judged PandaLM/data/testset-v1.json \\
        --tasks self-instruct/data/seed_tasks.jsonl self-instruct/human_eval/user_oriented_instructions.jsonl \\
        --out pairs

Three sorts of preference go into OUT/train.jsonl and OUT/held-out.jsonl, shuffled; `subset` says which a pair is of:

- `harmless`: which of two replies people found less harmful (hh-rlhf, MIT), as the two files have them;
- `helpful`: which of two answers most of three people found better (PandaLM's test set, Apache-2.0);
- relevance, made here from good answers: the chosen ones of these two, and what people wrote to the tasks of
  self-instruct (Apache-2.0). Such an answer against the answer to another prompt (`other`), against itself cut in the
  middle of a sentence (`cut`), against itself stuck in a loop (`repeated`).

Held-out pairs have other prompts than training pairs. None of the data is this project's, and none is kept with it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELEVANCE = {"other": 350, "cut": 200, "repeated": 200}
"""How many training pairs of each kind are made."""
HELD_OUT = 100
"""How many held-out pairs of each of these kinds are made."""
HELD_OUT_SHARE = 0.35
"""How many of the prompts of judged answers and tasks are held out."""
SENTENCE = 8
"""How many words a good answer has at least."""
_ENDS = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Answer:
    """A good answer to a prompt."""

    prompt: list[dict[str, str]]
    text: str
    source: str


@dataclass(frozen=True)
class Pair:
    """A preference, and what kind it is."""

    kind: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str

    def row(self, number: int) -> dict[str, Any]:
        return {"id": f"{self.kind}-{number}", "subset": self.kind, **_texts(self)}


def _texts(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def harmless_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of preference data in any format that `gdr evaluate` reads."""
    from gdr_plugin.data.items import load_items

    items = load_items(path).items
    turns = [[{"role": turn.role, "content": turn.content} for turn in item.prompt] for item in items]
    return [
        Pair("harmless", prompt, item.chosen[0].content, item.rejected[0].content)
        for prompt, item in zip(turns, items, strict=True)
    ]


def judged_pairs(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """The pairs of PandaLM's rows on which at least two of the three people preferred the same answer."""
    pairs = []
    for row in rows:
        answers = {1: row["response1"], 2: row["response2"]}
        usable = all(isinstance(text, str) and text.strip() and "<noinput>" not in text for text in answers.values())
        ((label, votes),) = Counter(row[f"annotator{n}"] for n in (1, 2, 3)).most_common(1)
        if usable and label and votes > 1:
            prompt = _task(row["instruction"], row["input"])
            pairs.append(Pair("helpful", prompt, answers[label].strip(), answers[3 - label].strip()))
    return pairs


def task_answers(rows: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """The answers that people wrote to the tasks of self-instruct; the first of each task, where it is a sentence."""
    found = []
    for row in rows:
        first = row["instances"][0]
        if len(first["output"].split()) >= SENTENCE:
            found.append(Answer(_task(row["instruction"], first["input"]), first["output"].strip(), "task"))
    return found


def winners(pairs: Iterable[Pair]) -> list[Answer]:
    """One preferred answer to each prompt of judged pairs: the first that is as long as a sentence."""
    found: dict[str, Answer] = {}
    for pair in pairs:
        if len(pair.chosen.split()) >= SENTENCE:
            found.setdefault(_key(pair.prompt), Answer(pair.prompt, pair.chosen, pair.kind))
    return list(found.values())


def _task(instruction: str, given: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(part.strip() for part in (instruction, given) if part.strip())}]


def of_another_prompt(answer: Answer, pool: Sequence[Answer], rng: random.Random) -> str | None:
    """The answer to another prompt of the same source, of about the same length: the nearest of eight."""
    others = [other for other in pool if other.source == answer.source and other.prompt != answer.prompt]
    drawn = rng.sample(others, min(8, len(others)))
    return min((other.text for other in drawn), key=lambda text: abs(len(text) - len(answer.text)), default=None)


def cut(answer: Answer, pool: Sequence[Answer], rng: random.Random) -> str | None:
    """The answer up to a word in the middle of a sentence; None for short ones."""
    words = [match.end() for match in re.finditer(r"\S+", answer.text)]
    inner = [end for end in words[4:-2] if answer.text[end - 1].isalnum()]
    return answer.text[: rng.choice(inner)] if len(words) >= 12 and inner else None


def repeated(answer: Answer, pool: Sequence[Answer], rng: random.Random) -> str | None:
    """The answer up to one of its sentences, which then comes again and again; None where there is no sentence."""
    sentences = _ENDS.split(answer.text)
    place = rng.randrange(min(3, len(sentences)))
    if len(sentences[place].split()) < 4:
        return None
    return " ".join([*sentences[: place + 1], *[sentences[place]] * rng.randint(2, 4)])


SOURCES = ("task", "helpful", "harmless")
MAKE = {"other": of_another_prompt, "cut": cut, "repeated": repeated}


def relevance_pairs(kind: str, pool: Sequence[Answer], count: int, rng: random.Random) -> list[Pair]:
    """Pairs of one kind, no answer twice, of each source the same number while it has answers left."""
    by_source = {name: [answer for answer in pool if answer.source == name] for name in SOURCES}
    for answers in by_source.values():
        rng.shuffle(answers)
    pairs: list[Pair] = []
    while len(pairs) < count and any(by_source.values()):
        for answers in by_source.values():
            answer = answers.pop() if answers else None
            worse = MAKE[kind](answer, pool, rng) if answer else None
            if answer and worse and worse != answer.text:
                pairs.append(Pair(kind, answer.prompt, answer.text, worse))
    return pairs[:count]


def split(prompts: Iterable[str], share: float, rng: random.Random) -> set[str]:
    """The prompts that are held out."""
    known = sorted(set(prompts))
    return set(rng.sample(known, round(share * len(known))))


def make(args: argparse.Namespace) -> dict[str, list[Pair]]:
    """Training and held-out pairs, each in an order drawn by the seed."""
    rng = random.Random(args.seed)
    judged = judged_pairs(json.loads(args.judged.read_text(encoding="utf-8")))
    tasks = task_answers(json.loads(line) for file in args.tasks for line in file.read_text("utf-8").splitlines())
    held = split([_key(pair.prompt) for pair in [*judged, *tasks]], HELD_OUT_SHARE, rng)
    sides = {"train": args.harmless, "held-out": args.harmless_held_out}
    made: dict[str, list[Pair]] = {}
    for side, file in sides.items():
        harmless = harmless_pairs(file)
        pool = [Answer(pair.prompt, pair.chosen, pair.kind) for pair in harmless]
        if side == "train" and args.harmless_pairs:
            harmless = rng.sample(harmless, args.harmless_pairs)
        here = [pair for pair in judged if (_key(pair.prompt) in held) == (side == "held-out")]
        pool += winners(here) + [answer for answer in tasks if (_key(answer.prompt) in held) == (side == "held-out")]
        pairs = [*harmless, *here]
        for kind in MAKE:
            pairs += relevance_pairs(kind, pool, RELEVANCE[kind] if side == "train" else HELD_OUT, rng)
        rng.shuffle(pairs)
        made[side] = pairs
    return made


def _key(prompt: list[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in prompt)


def main() -> None:
    """Write the two files and say how many pairs of each kind they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harmless", type=Path, required=True, help="harmlessness pairs to train on")
    parser.add_argument("--harmless-pairs", type=int, help="train on so many of them, drawn (all)")
    parser.add_argument("--harmless-held-out", type=Path, required=True, help="harmlessness pairs to measure on")
    parser.add_argument("--judged", type=Path, required=True, help="PandaLM's testset-v1.json")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="self-instruct's tasks, JSONL")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for side, pairs in make(args).items():
        lines = [json.dumps(pair.row(number), ensure_ascii=False) for number, pair in enumerate(pairs)]
        (args.out / f"{side}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(side, dict(Counter(pair.kind for pair in pairs)))


if __name__ == "__main__":
    main()

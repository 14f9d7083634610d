"""The work that is measured: token ids of real prompts with a model's own answers.

Knows chat formats; nothing of how anything is scored or timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.types import Conversation, Sample, TokenSpan
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.guidance import apply, library, render
from gdr_plugin.planning.flops import Flops, flops

if TYPE_CHECKING:
    from gdr_plugin.models.text.chat import Chat

__all__ = ["Candidates", "Flops", "Shape", "Workload", "flops", "guidance_text", "make", "read_candidates", "samples"]

RESPONSES = Path(__file__).resolve().parent / "data" / "responses.jsonl"


@dataclass(frozen=True)
class Candidates:
    """A prompt with the responses that were drawn for it."""

    prompt: Conversation
    responses: tuple[tuple[str, bool], ...]
    """Each response's text, and whether it ended by itself."""


@dataclass(frozen=True)
class Workload:
    """One kind of work."""

    name: str
    spans: list[TokenSpan]
    """What is scored, prompt by prompt."""

    @property
    def shape(self) -> dict[str, int]:
        """How many prompts, responses and tokens it has."""
        contexts = {span.context for span in self.spans}
        return {
            "prompts": len(contexts),
            "responses": len(self.spans),
            "context_tokens": sum(map(len, contexts)) // max(1, len(contexts)),
            "response_tokens": sum(len(span.response) for span in self.spans),
        }


@dataclass(frozen=True)
class Shape:
    """How a workload is made: prompts, responses to each, and tokens of guidance before them."""

    prompts: int
    responses: int
    guidance: int = 400


FULL = {
    "annotation": Shape(4, 8),
    "pairs": Shape(8, 2),
    "best-of-64": Shape(1, 64),
    "long guidance": Shape(2, 8, 2000),
    "no guidance": Shape(4, 8, 0),
    "GRPO step": Shape(2, 8, 0),
}
QUICK = {"annotation": Shape(2, 8)}
GROWTH = {"annotation x1": Shape(1, 8), "annotation x4": Shape(4, 8), "annotation x16": Shape(16, 8)}


def read_candidates(path: Path = RESPONSES) -> list[Candidates]:
    """Read the prompts and responses that all workloads are cut from; the first prompt has the most responses."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Candidates(
            parse_prompt(row["prompt"]),
            tuple((response["text"], response["finished"]) for response in row["responses"]),
        )
        for row in rows
    ]


def samples(candidates: Sequence[Candidates], shape: Shape, guidance: str = "") -> list[Sample]:
    """Make a shape's samples, with guidance in the system turn where there is some."""
    rendered = RenderedGuidance(guidance, "benchmark")
    rows = []
    for candidate in candidates[: shape.prompts]:
        prompt = apply(rendered, candidate.prompt) if guidance else candidate.prompt
        rows += [Sample(prompt, text, finished) for text, finished in candidate.responses[: shape.responses]]
    return rows


def make(name: str, shape: Shape, candidates: Sequence[Candidates], chat: Chat) -> Workload:
    """Cut a workload and render it with a model's template."""
    rows = samples(candidates, shape, guidance_text(chat, shape.guidance))
    return Workload(name, [chat.span(row.prompt, row.response, end=row.finished) for row in rows])


def guidance_text(chat: Chat, tokens: int) -> str:
    """Make guidance of about so many tokens: the library's text up to a whole word, repeated where it is too short."""
    if not tokens:
        return ""
    probe = parse_prompt("-")

    def length(words: Sequence[str]) -> int:
        rendered = RenderedGuidance(" ".join(words), "benchmark")
        return len(chat.span(apply(rendered, probe), "", end=False).context)

    words = " ".join(render(guidance, instruction=True, exemplars=9, seed=0).text for guidance in library()).split()
    low, high = 1, 2
    while length(_first(words, high)) <= tokens:
        low, high = high, 2 * high
    while low + 1 < high:  # the most words that stay within the tokens
        middle = (low + high) // 2
        low, high = (middle, high) if length(_first(words, middle)) <= tokens else (low, middle)
    return " ".join(_first(words, low))


def _first(words: list[str], count: int) -> list[str]:
    return (words * (1 + count // len(words)))[:count]

"""Exemplar sets drawn from labelled pairs. Knows texts; asks no model, since an exemplar is never scored.

The scheme: the shorter half of the pool (twice what is needed at least), then one after the other the pair whose
prompt shares the fewest words with those already taken. Short, because an exemplar stands before every prompt and is
paid for with each; unlike each other, so that the sets are different proposals. Which set is good is for the search to
say: a heuristic that scored the pool (the pairs that the unguided reward gets wrong, say) would look at a model's
errors on few pairs and would cost as much as a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

from gdr_plugin.api.guidance import Exemplar
from gdr_plugin.api.types import Conversation
from gdr_plugin.data.item import Item
from gdr_plugin.tuning.split import Prompted

SETS = 2
"""Disjoint sets that are drawn."""
LONGEST = 2_000
"""Characters that an exemplar's prompt and answers may have together."""
WHY = "Of the two, the good answer is the one that was preferred for this kind of request."
"""The explanation where the row brings none: nothing is claimed that the label does not say."""
_WHY_COLUMNS = ("why", "explanation")


def draw_sets(pool: Sequence[Prompted], size: int) -> list[tuple[Exemplar, ...]]:
    """Draw up to `SETS` disjoint sets of exemplars.

    Args:
        pool: The prompts kept for exemplars, in their seeded order; the first pair of each may be taken.
        size: Exemplars in a set; 0 for none.

    Returns:
        The sets; fewer, or smaller ones, where the pool has not enough pairs that are short enough.
    """
    usable = [item for item in (prompt[0] for prompt in pool) if _usable(item)]
    half = sorted(usable, key=_length)[: max(2 * size * SETS, len(usable) // 2)]
    taken: list[Item] = []
    while half and len(taken) < size * SETS:
        # The first is the shortest; ties go to the shorter one.
        best = min(half, key=lambda item: (max((_overlap(item, other) for other in taken), default=0.0), _length(item)))
        half.remove(best)
        taken.append(best)
    exemplars = [_exemplar(item) for item in taken]
    return [tuple(exemplars[at : at + size]) for at in range(0, len(exemplars), size)] if size else []


def clean(text: str) -> str:
    """A text as a guidance file gives it back: without line breaks at its ends and blanks at its end."""
    return text.strip("\r\n").rstrip()


def _usable(item: Item) -> bool:
    """Whether an exemplar's plain texts can show the whole pair."""
    texts = (*(turn.content for turn in item.prompt), item.chosen[0].content, item.rejected[0].content)
    plain = not any(turn.reasoning or turn.tool_calls for turn in (*item.prompt, item.chosen[0], item.rejected[0]))
    plain = plain and not item.contexts  # each response would end another conversation
    return plain and _length(item) <= LONGEST and all(map(str.strip, texts)) and clean(texts[-1]) != clean(texts[-2])


def _length(item: Item) -> int:
    return sum(len(turn.content) for turn in item.prompt) + len(item.chosen[0].content) + len(item.rejected[0].content)


def _overlap(item: Item, other: Item) -> float:
    """The share of words that two prompts have in common (Jaccard)."""
    a, b = (set(prompt_text(item.prompt).casefold().split()) for item in (item, other))
    return len(a & b) / len(a | b)


def prompt_text(prompt: Conversation) -> str:
    """A prompt as an exemplar shows it: the turn itself, or all turns with who speaks."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt)


def _exemplar(item: Item) -> Exemplar:
    own = (item.fields.get(column) for column in _WHY_COLUMNS)
    why = next((text for text in own if isinstance(text, str) and text.strip()), WHY)
    return Exemplar(
        id=f"pair-{clean(item.id)}",
        prompt=clean(prompt_text(item.prompt)),
        good=clean(item.chosen[0].content),
        bad=clean(item.rejected[0].content),
        why=clean(why),
    )

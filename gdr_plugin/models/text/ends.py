"""Which token ids end an assistant's turn, and why: what is scored as the end, and what a policy may stop at.

Knows what a template writes behind an answer and what tokenizer and generation config name; nothing of turns.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ChatError

if TYPE_CHECKING:
    from gdr_plugin.models.text.layout import TurnLayout
    from gdr_plugin.models.text.tokens import Tokens

__all__ = ["EndOfTurn", "find_end", "stop_ids"]


@dataclass(frozen=True, slots=True)
class EndOfTurn:
    """The end of an assistant's turn."""

    ids: tuple[int, ...]
    """Empty where nobody knows one."""
    why: str
    """Where it comes from, for a person."""


def find_end(
    tokens: Tokens, layout: TurnLayout, *, eos: int | None, stops: Collection[int] = (), named: str | None = None
) -> EndOfTurn:
    """Find what ends a turn.

    Args:
        tokens: The tokenizer.
        layout: What the template writes.
        eos: The tokenizer's EOS.
        stops: The generation config's EOS ids, where it is known.
        named: The token that gdr.yaml names.

    Raises:
        ChatError: The named token is not one of the tokenizer's.
    """
    if named is not None:
        id = tokens.id_of(named)
        if id is None:
            raise ChatError(f"end_of_turn_token {named!r} is not a token of this model: name one of its added tokens")
        return EndOfTurn((id,), "end_of_turn_token in gdr.yaml")
    last, following = _run(tokens, layout.after), _run(tokens, layout.following)
    ends = {*stops, *(() if eos is None else (eos,))}
    both = _shared(last, following) if last and following else last
    if found := _up_to(both, ends) or _up_to_last(both, tokens.control_ids):
        return EndOfTurn(found, "the template writes it behind an answer")
    if found := _up_to(last, ends) or _up_to(last, tokens.control_ids):
        return EndOfTurn(found, "the template writes it behind the last answer")
    if found := _up_to(following, stops) if stops else _up_to(following, tokens.control_ids):
        return EndOfTurn(found, "the template writes it before the next turn")
    if eos is not None and (not stops or eos in stops):
        return EndOfTurn((eos,), "the tokenizer's eos_token")
    if stops:
        return EndOfTurn((min(stops),), "the generation config's eos_token_id")
    return EndOfTurn((), "set the tokenizer's eos_token, or `end_of_turn_token` in gdr.yaml")


def stop_ids(
    tokens: Tokens, layout: TurnLayout, end: EndOfTurn, *, eos: int | None, stops: Collection[int] = ()
) -> frozenset[int]:
    """What a policy may end a turn with: all that its template, tokenizer, generation config and gdr.yaml name.

    Args:
        tokens: The tokenizer.
        layout: What the template writes.
        end: What `find_end` found.
        eos: The tokenizer's EOS.
        stops: The generation config's EOS ids, where it is known.
    """
    following = _up_to(_run(tokens, layout.following), tokens.control_ids)[-1:]
    # Kimi-K3's marks open and close many things: what an end of several tokens begins with ends nothing by itself.
    following = () if following and following[0] in end.ids[:-1] else following
    return frozenset([*end.ids[-1:], *following, *stops, *(() if eos is None else (eos,))])


def _run(tokens: Tokens, text: str) -> tuple[int, ...]:
    """The ids behind an answer up to the white space that stands behind a control token: turns are parted by it."""
    ids = tokens.after_answer(text)
    for at, id in enumerate(ids[1:], start=1):
        if ids[at - 1] in tokens.control_ids and tokens.spelling((id,))[:1].isspace():
            return ids[:at]
    return ids


def _shared(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    size = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return tuple(one[:size])


def _up_to(ids: Sequence[int], ends: Collection[int]) -> tuple[int, ...]:
    """Everything up to the first id that ends generation; nothing where none does."""
    return next((tuple(ids[: at + 1]) for at, id in enumerate(ids) if id in ends), ())


def _up_to_last(ids: Sequence[int], control: Collection[int]) -> tuple[int, ...]:
    """Everything up to the last control token; nothing where there is none."""
    places = [at for at, id in enumerate(ids) if id in control]
    return tuple(ids[: places[-1] + 1]) if places else ()

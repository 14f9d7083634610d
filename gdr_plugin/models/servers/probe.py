"""A fixed text that every server is asked about when it is opened: can its numbers be believed, and whose are they?

Asked in several ways the numbers must be the same; a tokenizer must cut a fixed text as the server's does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.models import Probe
from gdr_plugin.api.types import Logprobs, TokenSpan
from gdr_plugin.models.servers.client import RefusedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_tokenizer", "probe_ids", "probed"]

Send = Callable[[str, Mapping[str, Any]], dict[str, Any]]
Score = Callable[[Sequence[int], Sequence[int]], Logprobs]

_PROBE: Final = (
    "The capital of France is Paris, and the river that flows through it is called the Seine. A leap year has 366 days,"
    " and water boils at one hundred degrees."
)
_MIXED: Final = "Naïve café, 東京 2024: def f(x):\n\treturn x**2  # 12345 <tag> 🙂"
"""A text that tokenizers cut differently."""
_NOISE: Final = 0.5
"""Nats by which a token's log-prob may differ between two requests; servers in bfloat16 differ by a tenth."""
_DIFFERENT: Final = 1e-3


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of the fixed text."""
    ids: list[int] = tokenizer(_PROBE).input_ids
    return tuple(ids)


def probed(score: Score, ids: tuple[int, ...], url: str, can: str) -> Probe:
    """Ask about the fixed text in four ways and compare.

    Values that belong to the token before or after, or to sampled tokens, would differ here.

    Args:
        score: Asks one server.
        ids: From `probe_ids`.
        url: The server, for messages.
        can: What to use instead.

    Returns:
        The text's log-probs, by which the model is known again.

    Raises:
        ModelError: They differ.
    """
    third = len(ids) // 3
    before, middle, end = ids[:third], ids[third : 2 * third], ids[2 * third :]
    changed = (ids[0] if end[0] != ids[0] else ids[1], *end[1:])
    whole = score(before, middle + end)
    other = score(before, middle + changed)
    halves = np.concatenate([score(before, middle), score(before + middle, end)])
    gap = float(np.abs(whole - halves).max())
    moved = float(np.abs(whole[:third] - other[:third]).max())
    same = abs(float(whole[third] - other[third]))
    if gap > _NOISE:
        problem = f"asked whole and in two parts, a fixed text's log-probs differ by {gap:.2f} nats"
    elif moved > _NOISE:
        problem = f"log-probs change by {moved:.2f} nats with the token behind them: they belong to other tokens"
    elif same < _DIFFERENT:
        problem = "a log-prob does not change with its own token: it belongs to another one"
    else:
        return Probe(TokenSpan(before, middle + end), whole)
    raise ModelError(f"{url}: {problem}; the server's numbers cannot be used: {can}")


def check_tokenizer(send: Send, tokenizer: PreTrainedTokenizerBase, name: str, url: str, *, template: bool) -> str:
    """Compare the tokenizer with the server's, where the server has `/tokenize`.

    Args:
        send: Asks one server.
        tokenizer: Ours.
        name: The model.
        url: The server, for messages.
        template: Whether the server's chat template should be the tokenizer's own.

    Returns:
        What was compared, for people.

    Raises:
        ConfigError: They differ.
    """
    ours: list[int] = tokenizer(_MIXED, add_special_tokens=False).input_ids
    theirs = _tokenized(send, {"model": name, "prompt": _MIXED, "add_special_tokens": False})
    if theirs is None:
        return "not compared: the server does not tokenize"
    if theirs != ours:
        raise ConfigError(
            f"{url}: its tokenizer is another one than {tokenizer.name_or_path!r} (a fixed text becomes {len(theirs)} "
            f"tokens there, {len(ours)} here, not the same): set `tokenizer` to the served model's"
        )
    own = tokenizer.chat_template
    if not template or not isinstance(own, str) or "strftime_now" in own:
        return "as the server's, without its chat template"
    chat = [{"role": "user", "content": "What is a leap year?"}]
    rendered = _tokenized(send, {"model": name, "messages": chat, "add_generation_prompt": True})
    if rendered is None:
        return "as the server's; it renders no chats"
    mine = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    if list(mine) != rendered:
        raise ConfigError(
            f"{url}: its chat template renders a fixed chat as {len(rendered)} tokens, that of "
            f"{tokenizer.name_or_path!r} as {len(mine)}, not the same: set `chat_template` to the file that is right"
        )
    return "as the server's, with its chat template"


def _tokenized(send: Send, body: Mapping[str, Any]) -> list[int] | None:
    """The ids that a server makes; None where it cannot."""
    try:
        found = send("/tokenize", body).get("tokens")
    except RefusedError as error:
        if error.status in (400, 404, 405, 422, 501):
            return None
        raise
    return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None

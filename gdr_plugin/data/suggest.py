"""Which --map would do for columns that match no known format.

Knows what columns are often called; nothing of formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.columns import rename
from gdr_plugin.data.labels import UndecidedError
from gdr_plugin.data.sources import Row

__all__ = ["guess", "no_format"]

_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        *("prompt", "instruction", "question", "query", "input", "problem", "history", "context", "messages"),
        *("conversation", "conversations", "user", "post", "request", "task", "x"),
    ),
    "chosen": (
        *("chosen", "better", "preferred", "win", "winner", "winning", "good", "best", "accepted", "positive", "pos"),
        *("chosenresponse", "responsechosen", "preferredresponse", "betterresponse", "goodresponse", "yw", "yplus"),
    ),
    "rejected": (
        *("rejected", "reject", "worse", "dispreferred", "lose", "loser", "losing", "bad", "worst", "negative", "neg"),
        *("rejectedresponse", "responserejected", "worseresponse", "badresponse", "yl", "yminus"),
    ),
    "response_a": (
        *("responsea", "response1", "response0", "outputa", "output1", "answera", "answer1", "answer0", "completiona"),
        *("completion1", "a", "left", "first", "text1", "summary1", "model1response", "modelaresponse", "assistanta"),
    ),
    "response_b": (
        *("responseb", "response2", "response1", "outputb", "output2", "answerb", "answer2", "answer1", "completionb"),
        *("completion2", "b", "right", "second", "text2", "summary2", "model2response", "modelbresponse", "assistantb"),
    ),
    "label": (
        *("label", "labels", "winner", "preference", "choice", "vote", "annotation", "better", "preferred", "verdict"),
        *("overallpreference", "preferencestrength", "humanlabel", "judgement", "judgment", "score", "iscorrect"),
    ),
    "responses": ("responses", "completions", "answers", "outputs", "candidates", "choices", "generations"),
    "scores": ("scores", "ratings", "rewards", "labels", "overallscores", "qualities"),
    "ranks": ("ranks", "ranking", "rankings", "order"),
    "response": ("response", "completion", "answer", "output", "solution", "reply"),
}
"""What data sets call what we call by our names: in small letters, without signs."""
_WAYS = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "response_a", "response_b", "label"),
    ("prompt", "responses", "scores"),
    ("prompt", "responses", "ranks"),
    ("prompt", "response", "label"),
)
"""The ways to state a preference, the most frequent first."""


def no_format(row: Row, read: Callable[[Row, Mapping[str, str]], Any]) -> DataError:
    """The error for a row of no known format, with a --map that would do, or what has to be named.

    Args:
        row: The row.
        read: Reads a renamed row and raises DataError where that fails; is given how it was renamed, too.
    """
    data = row.data
    said = f"the columns {', '.join(map(str, data)) or '(none)'} match no known format"
    columns = {_plain(name): name for name in data}
    for way in _WAYS:
        found = [[columns[name] for name in _NAMES[role] if name in columns] for role in way]
        for names in product(*found):
            if len(set(names)) < len(names):
                continue
            named = dict(zip(way, names, strict=True))
            asked = {role: name for role, name in named.items() if role != name}
            if not asked:
                continue
            more = _works(row, asked, read)
            if more is not None:
                return DataError(f"{said}: name them with --map, as in {_options(asked)}{more}")
    guessed = {role: guess(role, data) for role in _NAMES}
    if all(name == "COLUMN" for name in guessed.values()):
        guessed |= {"prompt": "instruction", "chosen": "better", "rejected": "worse"}
    ways = "; or two responses and a label with {}; or a list of responses with {}"
    rest = ways.format(
        _options({role: guessed[role] for role in ("response_a", "response_b", "label")}),
        _options({role: guessed[role] for role in ("responses", "scores")}),
    )
    sides = _options({role: guessed[role] for role in ("prompt", "chosen", "rejected")})
    return DataError(f"{said}: name them with --map, as in {sides}{rest}")


def guess(role: str, data: Mapping[str, Any]) -> str:
    """The column that most likely has a role, `COLUMN` where none looks like it."""
    columns = {_plain(name): name for name in data}
    return next((columns[name] for name in _NAMES.get(role, ()) if name in columns), "COLUMN")


def _plain(name: object) -> str:
    return re.sub(r"[\W_]+", "", str(name)).casefold()


def _options(names: Mapping[str, str]) -> str:
    return " ".join(f"--map {role}={_quoted(name)}" for role, name in names.items())


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w.*-]+", name) else f"'{name}'"


def _works(row: Row, asked: Mapping[str, str], read: Callable[[Row, Mapping[str, str]], Any]) -> str | None:
    """Whether renaming makes the row readable: what has to be said besides; None where it does not."""
    renamed = replace(row, content=rename(row.data, asked))
    try:
        read(renamed, asked)
    except UndecidedError:
        return ""
    except DataError as error:
        if "--map label.a=" not in str(error):
            return None
        value = renamed.data["label"]
        return (
            f" --map label.a=VALUE --map label.b=VALUE, with the values of `{asked.get('label', 'label')}` that mean "
            f"that the first and that the second response is the better one (this row has {value!r})"
        )
    return ""

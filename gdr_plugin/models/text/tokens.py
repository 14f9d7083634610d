"""Text to token ids and back to places in the text, with control tokens that data cannot forge.

Knows one tokenizer's backend. Knows nothing of templates, turns or limits.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from gdr_plugin.api.errors import ChatError
from gdr_plugin.models.text.memory import IdMemory
from gdr_plugin.models.text.reasoning import is_mark
from gdr_plugin.text import text_problem

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MARKER: Final = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)
_LONGEST_CHARACTER: Final = 16  # code points that make up one visible character, such as a family of emoji
# Anchors stand in front of a text whose beginning must not be treated as the beginning of all text. Which of them
# cannot merge with the text depends on the text's first character.
_BEFORE_SPACE: Final = ("a", "]", "0")
_BEFORE_OTHER: Final = ("\n", "]", "a", " ")
_REMEMBERED: Final = 2**19
"""Tokens of continuations that are remembered, or so: a model with the same tokenizer is asked about them next."""
_BATCH_CHARACTERS: Final = 2**20
"""Characters that are encoded together: encodings take hundreds of bytes a token until their ids are taken."""


class Tokens:
    """Encodes text with a private copy of a tokenizer's backend, so that nobody else's settings matter.

    Text from data goes through `protect` first: then a control token spelt out in it (`<|im_end|>` in a prompt or a
    response) stays text, whatever surrounds it. Marks of reasoning are no control tokens: an assistant writes them.

    Args:
        tokenizer: The model's tokenizer; it needs a `tokenizers` backend.
        markup: Text that the model's template writes around turns; markers in it are control tokens even where the
            tokenizer does not call them special.

    Raises:
        ChatError: The tokenizer has no `tokenizers` backend.
    """

    prefix: tuple[int, ...]
    """Ids that the tokenizer itself puts in front of plain text (BOS), often none."""
    control: dict[str, int]
    """Control tokens: spelling to id."""
    reasoning: dict[str, int]
    """Marks of reasoning that the tokenizer calls special: spelling to id."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markup: str = "") -> None:
        from tokenizers import Tokenizer

        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ChatError(
                f"{type(tokenizer).__name__} has no fast (tokenizers) backend: give a `tokenizer` with a tokenizer.json"
            )
        self._plain = Tokenizer.from_str(backend.to_str())
        self._plain.no_truncation()
        self._plain.no_padding()
        self.prefix = _prefix(self._plain)
        self._plain.post_processor = None  # it trims offsets, and its special tokens are in `prefix`
        self._added = self._plain.get_added_tokens_decoder()
        named = {str(value) for value in tokenizer.special_tokens_map.values() if isinstance(value, str)}
        special = {
            token.content: id
            for id, token in self._added.items()
            if token.special or token.content in named or _is_marker(token.content, markup)
            if token.content.strip() and not _BYTE_TOKEN.fullmatch(token.content)
        }
        self.control = {spelling: id for spelling, id in special.items() if not is_mark(spelling)}
        flagged = {token.content for token in self._added.values() if token.special}
        self.reasoning = {text: id for text, id in special.items() if is_mark(text) and text in flagged}
        self.control_ids = frozenset(self.control.values())
        self._renamed_ids = {**self.control, **self.reasoning}
        self._order = sorted(self._renamed_ids, key=len, reverse=True)
        self._spelt = _any_of(self._order)
        self._spelt_control = _any_of([spelling for spelling in self._order if spelling in self.control])
        self._nonce = secrets.token_hex(8)
        self._placeholder = re.compile(f"\U000f1000{self._nonce}:([0-9]+)\U000f1001")
        self._literal: Tokenizer | None = None
        self._memory = IdMemory(_REMEMBERED)
        self._lock = threading.Lock()
        self._neutral = self.encode("\nb").ids == self.encode("\n").ids + self.encode("b").ids

    def protect(self, text: str, *, assistant: bool = False) -> str:
        """Make text from data safe to be put beside control tokens.

        Args:
            text: Any text.
            assistant: Whether an assistant wrote it: marks of reasoning in it are then what they are.

        Returns:
            The text itself, or one in which spelt-out control tokens are placeholders that `encode` knows.

        Raises:
            ChatError: The text holds a lone surrogate: no tokenizer can encode it.
        """
        if (problem := text_problem(text)) is not None:
            raise ChatError(f"the text {problem}, which no tokenizer can encode: repair or drop the row")
        spelt = self._spelt_control if assistant else self._spelt
        if not spelt.search(text):
            return text
        place = {spelling: i for i, spelling in enumerate(self._order)}
        return spelt.sub(lambda match: f"\U000f1000{self._nonce}:{place[match[0]]}\U000f1001", text)

    def mark_in(self, text: str) -> str | None:
        """The first control token that protected text spells out; None where it spells none."""
        match = self._placeholder.search(text) if self._nonce in text else None
        return self._order[int(match[1])] if match else None

    def restored(self, text: str) -> str:
        """Protected text as it was."""
        return self._placeholder.sub(lambda match: self._order[int(match[1])], text) if self._nonce in text else text

    def encode(self, text: str) -> Encoding:
        """Encode text in which control tokens are control tokens, and placeholders of `protect` what they stand for.

        Args:
            text: Text of a template, with protected text from data in it.

        Returns:
            Ids and offsets; no special tokens are added. Offsets are those of `text` where it holds no placeholder.
        """
        if self._nonce not in text:
            return self._plain.encode(text, add_special_tokens=False)
        renamed = self._spelt.sub(lambda match: self._private(match[0]), text)
        return self._without_spellings().encode(self.restored(renamed), add_special_tokens=False)

    def continuation(self, text: str, after: int) -> tuple[int, ...]:
        """Encode protected text as it continues a context, without merging it with the context.

        Tokenizers in SentencePiece's manner put a space in front of the beginning of a text. A continuation is no
        beginning: it is encoded behind an anchor, whose ids are then dropped.

        Args:
            text: Protected text; may be empty.
            after: The last id of the context. Behind an added token the tokenizer treats text as it does there.

        Returns:
            The ids of `text` alone.

        Raises:
            ChatError: No anchor can be kept apart from the text.
        """
        (ids,) = self.continuations([(text, after)])
        if isinstance(ids, ChatError):
            raise ids
        return ids

    def continuations(self, asked: Sequence[tuple[str, int]]) -> list[tuple[int, ...] | ChatError]:
        """`continuation` of many texts: they are encoded together, without offsets, while other threads run.

        Args:
            asked: Each text, and the last id of its context.

        Returns:
            Each text's ids, in order; in the place of a text that cannot be encoded, the error.
        """
        if not self._neutral:
            return [self._behind(text, after) for text, after in asked]
        known = self._memory.recall(text for text, _ in asked)
        missing = [text for text, ids in known.items() if ids is None]
        refused: dict[str, ChatError] = {}
        for batch in _batches(missing):
            plain = [text for text in batch if self._nonce not in text]
            encoded = self._plain.encode_batch_fast(plain, add_special_tokens=False)
            known.update((text, tuple(encoding.ids)) for text, encoding in zip(plain, encoded, strict=True))
            for text in (text for text in batch if self._nonce in text):
                try:
                    known[text] = tuple(self.encode(text).ids)
                except ChatError as error:
                    refused[text] = error
        self._memory.remember({text: ids for text in missing if (ids := known[text]) is not None})
        return [refused.get(text) or known[text] or () for text, _ in asked]

    def _behind(self, text: str, after: int) -> tuple[int, ...] | ChatError:
        try:
            return self._continued(text, after)[0]
        except ChatError as error:
            return error

    def continuation_offsets(self, text: str, after: int) -> list[tuple[int, int]]:
        """Where the ids of `continuation` are in the text.

        Args:
            text: As for `continuation`.
            after: As for `continuation`.

        Returns:
            For each id, from which to which character of the text, with its placeholders resolved, it reaches.
        """
        return self._continued(text, after)[1]

    def _continued(self, text: str, after: int) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The ids of `continuation`, and each one's place in the text."""
        if not text:
            return (), []
        if self._neutral:
            alone = self.encode(text)
            return tuple(alone.ids), alone.offsets
        anchors = _BEFORE_SPACE if text[0].isspace() else _BEFORE_OTHER
        if after in self._added and not text[0].isspace():
            anchors = (self._added[after].content, *anchors)
        for anchor in anchors:
            head, both = self.encode(anchor).ids, self.encode(anchor + text)
            ids, offsets, cut = both.ids, both.offsets, len(head)
            # The anchor's ids come unchanged, and the text's first id starts where the anchor ends: nothing is lost.
            if ids[:cut] == head and len(ids) > cut and offsets[cut][0] == offsets[cut - 1][1]:
                start = offsets[cut][0]
                return tuple(ids[cut:]), [(max(0, a - start), max(0, b - start)) for a, b in offsets[cut:]]
        raise ChatError(f"the tokenizer cannot keep the response apart from its context (it starts {text[:20]!r})")

    def tail(self, text: str, tokens: int) -> tuple[int, int]:
        """Find the end of a text that has at most `tokens` tokens, more or less.

        Args:
            text: Text from data.
            tokens: How many tokens the end may have; at least 1.

        Returns:
            Where it begins (never inside a character, nor between a letter and its accents), and its tokens.
        """
        window = 8 * tokens
        while True:
            start = max(0, len(text) - window)
            offsets = self._plain.encode(text[start:], add_special_tokens=False).offsets
            if start == 0 and len(offsets) <= tokens:
                return 0, len(offsets)
            if len(offsets) > tokens:
                break
            window *= 4
        first = len(offsets) - tokens
        while first < len(offsets) and offsets[first][0] < offsets[first - 1][1]:
            first += 1  # several byte tokens make up one character
        cut = start + offsets[first][0] if first < len(offsets) else len(text)
        end = min(cut + _LONGEST_CHARACTER, len(text))
        while cut < end and _joins_previous(text, cut):
            cut += 1
        return cut, len(offsets) - first

    def after_answer(self, text: str) -> tuple[int, ...]:
        """The ids of text that a template writes behind an answer."""
        return self.continuation(text, self.encode("a").ids[-1])

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""
        return self._plain.get_vocab(with_added_tokens=True)

    def id_of(self, spelling: str) -> int | None:
        """The id of one token by its spelling."""
        return self._plain.token_to_id(spelling)

    def spelling_behind_text(self, ids: tuple[int, ...]) -> str:
        """Spell ids as they follow text: decoders drop a space at the beginning of all text."""
        head = self.encode("a").ids
        return self._plain.decode([*head, *ids], skip_special_tokens=False).removeprefix(self._plain.decode(head))

    def spelling(self, ids: tuple[int, ...]) -> str:
        """Spell ids for a person, control tokens included."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def digest(self, *more: str) -> str:
        """Hash the tokenizer (vocabulary, merges, added tokens, pre-tokenizer, BOS) and further texts, as hex."""
        hashed = hashlib.blake2b(self._plain.to_str().encode(), digest_size=16)
        for text in (repr(self.prefix), *more):
            hashed.update(b"\0" + text.encode())
        return hashed.hexdigest()

    def _private(self, spelling: str) -> str:
        return f"\U000f1002{self._nonce}:{self._renamed_ids[spelling]}\U000f1003"

    def _without_spellings(self) -> Tokenizer:
        """The same tokenizer with unguessable spellings of the control tokens; made at its first use."""
        with self._lock:
            if self._literal is None:
                self._literal = self._renamed()
            return self._literal

    def _renamed(self) -> Tokenizer:
        from tokenizers import Tokenizer

        data: dict[str, Any] = json.loads(self._plain.to_str())
        for token in data["added_tokens"]:
            if token["content"] in self._renamed_ids:
                token["content"] = self._private(token["content"])
        model = data["model"]
        if model.get("unk_token") in self._renamed_ids:
            model["unk_token"] = self._private(model["unk_token"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._rename(piece): id for piece, id in model["vocab"].items()}
        else:
            model["vocab"] = [[self._rename(piece), score] for piece, score in model["vocab"]]
        try:
            renamed = Tokenizer.from_str(json.dumps(data))
            same = all(renamed.token_to_id(self._private(text)) == id for text, id in self._renamed_ids.items())
        except Exception:  # the backend raises bare Exception for a vocabulary that does not hang together
            same = False
        if not same:
            raise ChatError("the text spells out a control token that this tokenizer cannot encode as text: remove it")
        return renamed

    def _rename(self, piece: str) -> str:
        return self._private(piece) if piece in self._renamed_ids else piece


def _batches(texts: Sequence[str]) -> list[list[str]]:
    """Texts in their order, so many together as `_BATCH_CHARACTERS` allows; at least one."""
    batches: list[list[str]] = []
    size = 0
    for text in texts:
        if not batches or size + len(text) > _BATCH_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    return batches


def _is_marker(text: str, markup: str) -> bool:
    """Whether a token that is not called special marks turns: `<|user|>`, `</assistant>`."""
    return text in markup and _MARKER.fullmatch(text) is not None


def _any_of(spellings: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, spellings)) or "(?!)")


def _prefix(backend: Tokenizer) -> tuple[int, ...]:
    bare, full = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    starts = range(len(full) - len(bare) + 1)
    return tuple(full[: next((i for i in starts if full[i : i + len(bare)] == bare), 0)])


def _joins_previous(text: str, i: int) -> bool:
    """Whether the character at `i` belongs to the one before it: accents, joined and coloured emoji."""
    char = text[i]
    return (
        unicodedata.combining(char) != 0
        or char in "\u200d\ufe0e\ufe0f"
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or (i > 0 and text[i - 1] == "\u200d")
    )

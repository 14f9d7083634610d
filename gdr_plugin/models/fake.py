"""A model that needs no weights: log-probs are a stable hash of the name, the context and the id.

It keeps the whole contract of `LogprobModel` (order, batching, empty responses, long inputs), so tests, examples and
dry runs exercise the real code. It knows nothing of language: its rewards mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.models import ChatFormat
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Conversation, Logprobs, Message, TokenSpan

VERSION = "1"
"""Part of every identity: raise it when the hash changes, so that log-probs stored before are not used."""
MAX_LENGTH = 1_000_000
"""Length in tokens when the limits set none."""

BOS, START, END = 256, 257, 258
"""Control ids; 0..255 are the bytes of UTF-8 text, so text can never spell a control id."""

_BEST, _WORST = -0.05, -8.0
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], dtype=np.uint64
)


class FakeChat:
    """Byte-level ChatML: `BOS`, then for every turn `START role newline text END newline`.

    Reasoning stands before the text, tool calls behind it, each on a line: it writes whole turns (`WritesTurns`). It
    takes ids, too (`TakesIds`).

    Args:
        limits: Lengths, and what happens to what is longer.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.max_length = limits.max_length or MAX_LENGTH
        self.opening: tuple[int, ...] = (BOS,)
        self._room = self.max_length - min(limits.max_response, self.max_length // 2)
        self._keep_end = limits.long_input == "keep_end"
        self._latest: tuple[Conversation, tuple[tuple[int, ...], int]] | None = None

    def span(self, conversation: Conversation, response: str, *, end: bool) -> TokenSpan:
        """Ids of `response` after `conversation`; see `ChatFormat.span`."""
        return self.turn_span(conversation, Message("assistant", response), end=end)

    def turn_span(self, conversation: Conversation, turn: Message, *, end: bool) -> TokenSpan:
        """Ids of a turn with reasoning or tool calls after `conversation`; see `WritesTurns.turn_span`."""
        ids = tuple(_written(turn).encode("utf-8", "surrogatepass")) + ((END,) if end else ())
        latest = self._latest
        if latest is None or latest[0] != conversation:  # the candidates of a prompt follow each other
            latest = self._latest = (tuple(conversation), self._context(conversation))
        context, dropped = latest[1]
        if len(context) + len(ids) > self.max_length:
            raise ChatError(
                f"the prompt ({len(context):,} tokens) and the response ({len(ids):,}) exceed {self.max_length:,} "
                "tokens: raise limits.max_length, or set limits.long_input to keep_end"
            )
        return TokenSpan(context=context, response=ids, dropped=dropped)

    def offsets(self, conversation: Conversation, response: str) -> tuple[tuple[int, int], ...]:
        """The place of the character that each byte is part of; see `TokenOffsets.offsets`."""
        return tuple(
            (place, place + 1)
            for place, character in enumerate(response)
            for _ in character.encode("utf-8", "surrogatepass")
        )

    def turn_offsets(self, conversation: Conversation, turn: Message) -> tuple[tuple[int, int], ...] | None:
        """See `WritesTurns.turn_offsets`; None for a turn with tool calls."""
        if turn.tool_calls:
            return None
        thought = len(_written(replace(turn, content="")).encode("utf-8", "surrogatepass"))
        return ((0, 0),) * thought + self.offsets(conversation, turn.content)

    def vocabulary(self) -> Mapping[str, int]:
        """The bytes as `<0x41>`, and the control tokens; see `TakesIds.vocabulary`."""
        return {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<bos>": BOS, "<start>": START, "<end>": END}

    def system_block(self, text: str) -> tuple[int, ...]:
        """See `TakesIds.system_block`."""
        return (BOS, START, *b"system\n", *text.encode("utf-8", "surrogatepass"), END, 10)

    def _context(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        if not conversation:
            raise ChatError("the conversation has no turns")
        ids = [BOS]
        first_user: tuple[int, int] | None = None
        for message in conversation:
            ids += (START, *message.role.encode(), 10)
            begin = len(ids)
            ids += (*_written(message).encode("utf-8", "surrogatepass"), END, 10)
            if message.role == "user" and first_user is None:
                first_user = begin, len(ids) - 2
        ids += (START, *b"assistant\n")
        excess = len(ids) - self._room
        if not self._keep_end or excess <= 0:
            return tuple(ids), 0
        begin, stop = first_user or (0, 0)
        if stop - begin < excess:
            raise ChatError(
                f"the prompt does not fit into {self._room:,} tokens even without its first user turn: raise "
                "limits.max_length or lower limits.max_response"
            )
        del ids[begin : begin + excess]
        return tuple(ids), excess


def _written(turn: Message) -> str:
    thought = [f"<think>{turn.reasoning}</think>"] if turn.reasoning else []
    calls = [f"{call.name}({call.arguments})" for call in turn.tool_calls]
    text = [turn.content] if turn.content or not calls else []
    return "\n".join([*thought, *text, *calls])


class FakeModel:
    """A deterministic, instant `LogprobModel`: the scheme `fake:NAME`.

    Every log-prob depends on the name, on the whole context, on the response so far (its length and its last ids) and
    on the id itself, and on nothing else: the same span has the same log-probs in any batch, process and machine.

    Args:
        name: What follows `fake:`; another name is another model.
        limits: Lengths, and what happens to what is longer; default: 1,000,000 tokens.
    """

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name = f"fake:{name}"
        self.identity = hashlib.blake2b(f"gdr fake {VERSION} {name}".encode(), digest_size=16).hexdigest()
        self.chat: ChatFormat = FakeChat(limits)
        self.calls = 0
        """How often `score` was called."""
        self.scored_spans = 0
        """Spans scored so far."""
        self.scored_tokens = 0
        """Response tokens scored so far."""

    def score(self, spans: Sequence[TokenSpan]) -> list[Logprobs]:
        """Log-probs of the spans' response ids; see `LogprobModel.score`."""
        self.calls += 1
        self.scored_spans += len(spans)
        self.scored_tokens += sum(len(span.response) for span in spans)
        seeds: dict[tuple[int, ...], np.uint64] = {}
        for span in spans:
            if span.context not in seeds:
                seeds[span.context] = self._seed(span.context)
        return _hash_logprobs([seeds[span.context] for span in spans], [span.response for span in spans])

    def _seed(self, context: tuple[int, ...]) -> np.uint64:
        key = self.identity.encode()
        digest = hashlib.blake2b(np.asarray(context, dtype="<u4").tobytes(), digest_size=8, key=key).digest()
        seed: np.uint64 = np.uint64(int.from_bytes(digest, "little"))
        return seed

    def describe(self) -> dict[str, str]:
        """Facts for a person."""
        return {"backend": "fake", "device": "none", "weights": "none: hashed log-probs that mean nothing"}

    def unload(self) -> None:
        """Do nothing: there is no memory to free."""


def _hash_logprobs(seeds: Sequence[np.uint64], responses: Sequence[tuple[int, ...]]) -> list[Logprobs]:
    """One value in `[-8, -0.05]` for each id, from the id, the three before it, its position and its context's seed."""
    lengths = np.fromiter(map(len, responses), dtype=np.int64, count=len(responses))
    ends = np.cumsum(lengths)
    count = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(responses), dtype=np.uint64, count=count)
    gaps = 3 * np.repeat(np.arange(1, len(responses) + 1), lengths)  # three empty places before each response
    places = np.arange(count) + gaps
    padded = np.zeros(count + 3 * len(responses), dtype=np.uint64)
    padded[places] = ids + np.uint64(1)
    position = np.arange(count) - np.repeat(ends - lengths, lengths)
    mixed: npt.NDArray[np.uint64] = position.astype(np.uint64) + np.repeat(np.asarray(seeds, np.uint64), lengths)
    for offset, multiplier in enumerate(_MULTIPLIERS):
        mixed = (mixed ^ padded[places - 3 + offset]) * multiplier
        mixed ^= mixed >> np.uint64(29)
    unit: npt.NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    logprobs: Logprobs = (_BEST + (_WORST - _BEST) * unit**3).astype(np.float32)
    return [logprobs[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]

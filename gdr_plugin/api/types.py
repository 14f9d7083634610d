"""The values that travel through the package: what goes in, what a model is asked, what comes out.

Nothing here imports torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from gdr_plugin.api.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logprobs: TypeAlias = npt.NDArray[np.float32]
    """Natural-log probabilities of response tokens, shape `(response tokens,)`, float32."""
else:
    Logprobs = Any  # keeps `import gdr_plugin` free of numpy

__all__ = [
    "Conversation",
    "Logprobs",
    "Message",
    "Placement",
    "Reduction",
    "Sample",
    "Score",
    "Side",
    "TokenSpan",
    "ToolCall",
]

TEXT: Final = "text"
"""The role of a prompt that is one piece of text, rendered elsewhere: it is scored as it is."""
TOOLS: Final = "tools"
"""The role of a conversation's first turn where it has the definitions of the tools that the assistant may call."""

_SHOWN: Final = 60
"""Most characters of a text in a value's repr."""

Side = Literal["strong", "weak"]
"""One of the two models of a reward."""
Placement = Literal["both", "strong", "none"]
"""Which models see the guidance."""
Reduction = Literal["sum", "mean", "per_byte"]
"""How token log-probs become one number."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call that an assistant turn makes."""

    name: str
    arguments: str
    """A JSON object as text."""
    id: str | None = None
    """What the tool's answer refers to, where the data name it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`; beside these roles of chat data `TOOLS` and `TEXT`."""
    content: str
    """The turn's text, without any template markers; of `TOOLS` a JSON list of definitions in OpenAI's form, which
    templates write where they show tools."""
    reasoning: str = ""
    """What an assistant turn thought before its text, where that came apart from it; templates write it in their own
    form, or drop that of earlier turns."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that an assistant turn makes after its text; templates write them in their own form."""
    tool_call_id: str | None = None
    """Of a tool turn: the call that it answers."""
    name: str | None = None
    """Of a tool turn: the function that answers."""

    @property
    def text(self) -> str:
        """All that was written: reasoning, text, and the names and arguments of calls."""
        calls = "".join(call.name + call.arguments for call in self.tool_calls)
        return self.reasoning + self.content + calls


Conversation: TypeAlias = tuple[Message, ...]


def parts_of(conversation: Conversation) -> tuple[Conversation, Conversation, Conversation]:
    """Part a conversation into what holds for all of it and what was said: tools, leading system turns, the rest."""
    begin = 1 if conversation and conversation[0].role == TOOLS else 0
    end = begin
    while end < len(conversation) and conversation[end].role == "system":
        end += 1
    return conversation[:begin], conversation[begin:end], conversation[end:]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Sample:
    """A prompt with one response to it: what is scored.

    Args:
        prompt: A text, which is one user turn; or turns, as `Message` or as `{"role": ..., "content": ...}`.
        response: The assistant's answer: a text, or an assistant's `Message` with reasoning or tool calls.
        finished: As the field.
        fields: As the field.
        reasoning: As the field.
        tool_calls: As the field.

    Raises:
        DataError: Prompt or response is something else.
    """

    prompt: Conversation
    """The conversation up to and without the response; at least one turn."""
    response: str
    """The assistant's answer, without template markers. May be empty."""
    finished: bool
    """Whether the response ended by itself. False for a completion that was cut at a length limit."""
    fields: Mapping[str, Any]
    """Further data set columns. Routers may read them (the `field` router reads `domain`)."""
    reasoning: str
    """What the response thought before its text, where that came apart from it; scored in the form in which each
    model's template writes reasoning."""
    tool_calls: tuple[ToolCall, ...]
    """The calls that the response makes after its text; scored as each model's template writes them."""

    def __init__(
        self,
        prompt: str | Sequence[Message | Mapping[str, str]],
        response: str | Message,
        finished: bool = True,
        fields: Mapping[str, Any] | None = None,
        reasoning: str = "",
        tool_calls: tuple[ToolCall, ...] = (),
    ) -> None:
        if isinstance(response, Message) and response.role == "assistant":
            reasoning, tool_calls = response.reasoning or reasoning, response.tool_calls or tool_calls
            response = response.content
        if not isinstance(response, str):
            raise DataError(f"`response` must be a text or an assistant's Message, not {_named(response)}")
        values = (_turns(prompt), response, finished, {} if fields is None else fields, reasoning, tool_calls)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        turns = f"{len(self.prompt)} turns ending " if len(self.prompt) > 1 else ""
        asked = f"{turns}{_shortened(self.prompt[-1].content)}" if self.prompt else "()"
        more = [] if self.finished else ["finished=False"]
        optional = {"fields": self.fields, "reasoning": self.reasoning, "tool_calls": self.tool_calls}
        more += [f"{name}={value!r}" for name, value in optional.items() if value]
        return f"Sample({', '.join([asked, _shortened(self.response), *more])})"

    @property
    def turn(self) -> Message:
        """The response as an assistant's turn."""
        return Message("assistant", self.response, self.reasoning, self.tool_calls)

    @property
    def text(self) -> str:
        """All that the assistant wrote: reasoning, answer, and the names and arguments of calls."""
        return self.turn.text


def _turns(prompt: object) -> Conversation:
    """A prompt in the forms that people write it in, as turns."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if not isinstance(prompt, Sequence):
        raise DataError(f"`prompt` must be a text or a list of turns, not {_named(prompt)}")
    return tuple(turn if isinstance(turn, Message) else _turn(turn, at) for at, turn in enumerate(prompt, start=1))


def _turn(turn: object, number: int) -> Message:
    what = f"turn {number} of `prompt`"
    if not isinstance(turn, Mapping):
        raise DataError(f'{what} must be a Message or {{"role": ..., "content": ...}}, not {_named(turn)}')
    if turn.keys() != {"role", "content"} or not all(isinstance(value, str) for value in turn.values()):
        raise DataError(
            f"{what} must have `role` and `content`, two texts, and nothing else: score a row "
            '({"prompt": [...], "response": ...}) instead of a Sample where turns have tool calls or reasoning'
        )
    return Message(turn["role"], turn["content"])


def _named(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Token ids of one model for one sample: what a model is asked to score."""

    context: tuple[int, ...]
    """Everything before the response: BOS, guidance, prompt, generation prompt. At least one id."""
    response: tuple[int, ...]
    """The ids to score, end-of-turn included when it counts. May be empty."""
    dropped: int = 0
    """How many prompt tokens were left out of `context` to make it fit (0: the whole prompt is there)."""
    mark: str | None = field(default=None, compare=False)
    """A control token that prompt or response spells out, such as `<|im_start|>`: it is asked about as plain text. None
    where there is none."""


@dataclass(frozen=True, slots=True, repr=False)
class Score:
    """The reward of one sample, and where it came from."""

    reward: float | None
    """`strong - weak`, reduced as configured; nats for `sum`, nats a token for `mean`, nats a byte for `per_byte`.
    None when the sample was not scored; never NaN or infinite."""
    reason: str | None
    """Why `reward` is None; else None."""
    strong_logprob: float | None
    """Sum of the strong model's log-probs over the response, in nats."""
    weak_logprob: float | None
    """Sum of the weak model's log-probs over the response, in nats."""
    strong_tokens: int
    """Response tokens that the strong model scored."""
    weak_tokens: int
    """Response tokens that the weak model scored."""
    domain: str
    """The domain that the prompt was routed to."""
    router: str
    """The router that decided, or `default`."""
    guidance: str
    """Identifier of the guidance used (its name, switches and seed), or `none`."""
    exemplars: tuple[str, ...] = ()
    """Identifiers of the preference exemplars that were drawn, in order."""
    truncated: bool = False
    """Whether the start of the prompt was dropped to make it fit into one of the models."""
    strong_token_logprobs: tuple[float, ...] | None = None
    """The strong model's log-probs by token, on request."""
    weak_token_logprobs: tuple[float, ...] | None = None
    """The weak model's log-probs by token, on request."""
    token_ratios: tuple[float, ...] | None = None
    """`strong - weak` by token, on request, and only where both models cut the response into the same token ids."""
    token_rewards: tuple[float, ...] | None = None
    """What each token adds to `reward`: `token_ratios` in the reward's unit, the end of turn included; their sum is
    `reward`. On request, and None where `token_ratios` is. See `gdr_plugin.arithmetic.steps` for rewards by step."""
    strong_token_offsets: tuple[tuple[int, int], ...] | None = None
    """The first and the last character (exclusive) of the response that each of the strong model's tokens covers, on
    request; the end of turn covers none, after the last one. None where the model's chat format cannot tell (see
    `TokenOffsets`)."""
    weak_token_offsets: tuple[tuple[int, int], ...] | None = None
    """The same for the weak model's tokens."""
    reduction: Reduction | None = None
    """How token log-probs became `reward`; set together with them."""

    def __repr__(self) -> str:
        if self.reward is None or self.strong_logprob is None or self.weak_logprob is None:
            return f"Score(reward={self.reward}, reason={self.reason!r}, domain={self.domain!r})"
        strong = f"strong={self.strong_logprob:.2f} over {self.strong_tokens} tokens"
        weak = f"weak={self.weak_logprob:.2f} over {self.weak_tokens}"
        return f"Score(reward={self.reward:.4f}, {strong}, {weak}, domain={self.domain!r}, guidance={self.guidance!r})"

"""The values that travel through the package: what goes in, what a model is asked, what comes out.

Nothing here imports torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one response to it: what is scored."""

    prompt: Conversation
    """The conversation up to and without the response; at least one turn. A plain string prompt is one user turn."""
    response: str
    """The assistant's answer, without template markers. May be empty."""
    finished: bool = True
    """Whether the response ended by itself. False for a completion that was cut at a length limit."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further data set columns. Routers may read them (the `field` router reads `domain`)."""
    reasoning: str = ""
    """What the response thought before its text, where that came apart from it; scored in the form in which each
    model's template writes reasoning."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that the response makes after its text; scored as each model's template writes them."""

    @property
    def turn(self) -> Message:
        """The response as an assistant's turn."""
        return Message("assistant", self.response, self.reasoning, self.tool_calls)

    @property
    def text(self) -> str:
        """All that the assistant wrote: reasoning, answer, and the names and arguments of calls."""
        return self.turn.text


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


@dataclass(frozen=True, slots=True)
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

"""The conversations and responses that every template is tried with.

Each content has words of its own, so that a rendered text shows which turns it holds. Knows no templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Turns = Sequence[Mapping[str, Any]]

THOUGHT: Final = "Seventeen apples, then twenty-five."
ANSWER: Final = "It makes forty-two."
ARGUMENT: Final = "Marseille"


@dataclass(frozen=True)
class Context:
    """A conversation to answer, as data sets write it (OpenAI's form)."""

    name: str
    column: str
    """The table's column that its context check counts in."""
    turns: Turns
    prefill: bool = False
    """Whether the last turn is the beginning of the answer."""


@dataclass(frozen=True)
class Response:
    """What is scored."""

    name: str
    kind: str
    """`plain`, `reasoning` (as text), `field` (reasoning apart from the answer) or `call`."""
    text: str = ""
    message: Mapping[str, Any] | None = None
    """The assistant's message where the response is more than text."""
    finished: bool = True


@dataclass(frozen=True)
class Case:
    context: Context
    response: Response

    @property
    def name(self) -> str:
        return f"{self.context.name}/{self.response.name}"


def _turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _call(arguments: object, content: str | None = "") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"type": "function", "id": "call00001", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls}


_SYSTEM = _turn("system", "Answer briefly.")
_USER = _turn("user", "What makes seventeen plus twenty-five?")
_SAID = _turn("assistant", "Looking outside now.")
_TOOL = _turn("tool", "Eighteen degrees", name="get_weather", tool_call_id="call00001")
_TOOLS = {
    "role": "tools",  # not a turn: what the data set has in its column `tools`
    "content": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Tells the weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "The city's name."},
                        "days": {"type": "integer", "description": "How many days ahead."},
                    },
                    "required": ["city"],
                },
            },
        }
    ],
}
_BARE = _turn("tool", "Eighteen degrees")  # as text data sets have it: which call it answers is not known
_AGAIN = _turn("user", "Thanks, and tomorrow?")
_TURNS = (
    _turn("user", "Déjà vu: où est le café?\n\n- première chose\n- 🙂"),
    _turn("assistant", "Behind the station."),
    _turn("user", "How far from here?"),
)
_THOUGHT = _turn("assistant", "<think>\nPerhaps subtract something.\n</think>\n\nNothing special happens.")

CONTEXTS: Final = (
    Context("user", "context", (_USER,)),
    Context("turns", "context", _TURNS),
    Context("prefill", "context", (_USER, _turn("assistant", "The sum of both")), prefill=True),
    Context("system", "system", (_SYSTEM, _USER)),
    Context("system-turns", "system", (_SYSTEM, *_TURNS)),
    Context("two-systems", "system", (_SYSTEM, _turn("system", "Prefer French words."), _USER)),
    Context("tool", "tool", (_USER, _SAID, _BARE)),
    Context("system-tool", "tool", (_SYSTEM, _USER, _SAID, _BARE)),
    Context("call", "tool", (_USER, _call({"city": ARGUMENT, "days": 3}), _TOOL)),
    Context("call-string", "tool", (_USER, _call(f'{{"city": "{ARGUMENT}", "days": 3}}', None), _TOOL)),
    Context("call-turns", "tool", (_USER, _call({"city": ARGUMENT, "days": 3}), _TOOL, _SAID, _AGAIN)),
    Context("tools", "tool", (_TOOLS, _USER)),
    Context("tools-system", "tool", (_TOOLS, _SYSTEM, *_TURNS)),
    Context("tools-call", "tool", (_TOOLS, _USER, _call({"city": ARGUMENT, "days": 3}), _TOOL)),
    Context("thought", "reasoning", (_USER, _THOUGHT, _AGAIN)),
)

PLAIN: Final = Response("plain", "plain", ANSWER)
REASONED: Final = Response("reasoning", "reasoning", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")
_MORE: Final = (
    Response("lines", "plain", "Première réponse 🙂\n\n- zwei\n\t- drei: 3.5\n\nEnde."),
    Response("leading-space", "plain", " It makes forty-two."),
    Response("trailing-newline", "plain", "It makes forty-two.\n"),
    Response("empty", "plain", ""),
    Response("cut", "plain", "It makes for", finished=False),
    Response("reasoning-cut", "reasoning", f"<think>\n{THOUGHT}", finished=False),
    Response(
        "reasoning-field",
        "field",
        message={"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
    ),
    Response("call", "call", message=_call({"city": ARGUMENT, "days": 3})),
)


def cases(own: Sequence[Response] = ()) -> list[Case]:
    """All cases of one template.

    Args:
        own: Responses in the template's own form of reasoning, for the single user turn.
    """
    user, *others = CONTEXTS
    made = [Case(user, response) for response in (PLAIN, REASONED, *_MORE, *own)]
    tools = next(context for context in others if context.name == "tools")
    made.append(Case(tools, next(response for response in _MORE if response.kind == "call")))
    for context in others:
        made += [Case(context, response) for response in ((PLAIN,) if context.prefill else (PLAIN, REASONED))]
    return made

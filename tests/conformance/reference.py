"""What is right, by transformers' own rendering of the whole conversation. Imports nothing of the package under test.

A template is asked for the conversation with its generation prompt (what the model sees) and for the conversation with
an answer in it and a further turn after it (what history shows). Where the two agree, the answer's place and its end
are offsets in one text, which is tokenized as a whole with every added token as one id. Where they differ:

  - White space in front of an answer belongs to the response; other text there (a header, a closed thought) to the
    context.
  - The prompt opens a thought that history shows closed or replaced by a header of its own: an answer without
    reasoning has history's header. History shows nothing of it: the prompt as it is, or history's.
  - The prompt opens a thought and the response does so again: the mark is written once.
  - The end is what the template writes after the answer up to the first stop token; knows it none there, up to the end
    of the first run of added tokens; writes it nothing after the last turn, up to the first added token before the
    next turn; else it is the tokenizer's EOS.
  - Leading system turns may be one turn, or part of the first user turn where the template shows them nowhere else.
  - What no rendering shows has no right ids: it has to be refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from tests.conformance.forms import (
    Turns,
    as_parts,
    call_forms,
    called_words,
    common_start,
    shows,
    system_forms,
    tools_of,
    without_spaces,
)

_ANSWER, _NEXT, _THOUGHT = "qanswerq", "qnextq", "qthoughtq"
_CLOSES: Final = re.compile(r"</\w|\[/\w|END_THINKING|<\|close\|>|<channel\|>")
_INNER: Final = re.compile(r"</?(?:\w+:)?(?:think|answer|tool|arg)|<\|\"\|>")
"""Added tokens that stand inside a turn, so that none of them ends it."""
_TAG: Final = re.compile(r"<([\w:]+)>|\[(\w+)\]")


@dataclass(frozen=True)
class Expected:
    """One right way to write a case, as text."""

    context: str
    response: str
    end: str


@dataclass(frozen=True)
class Ids:
    context: tuple[int, ...]
    response: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True)
class Judgement:
    """What is right for a case."""

    right: tuple[Expected, ...]
    """Each of these is; none: the template cannot show the case."""
    refusable: bool
    """Whether a refusal is right, too."""


class StraddleError(Exception):
    """A token reaches over a boundary, and this tokenizer cannot encode the parts alone."""


class Reference:
    """One template with one tokenizer.

    Args:
        tokenizer: With a `tokenizers` backend.
        template: Jinja text.
        stops: Spellings of the tokens that generation stops at, beside the tokenizer's EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.stops = frozenset((*stops, *((str(tokenizer.eos_token),) if tokenizer.eos_token else ())))
        added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._kept: dict[str, str | None] = {}

    # Rendering

    def render(self, turns: Turns, *, ask: bool, **options: Any) -> str | None:
        """The template's text of the turns; None where it refuses them."""
        key = json.dumps([list(turns), ask, options], default=dict)
        if key not in self._kept:
            self._kept[key] = self._render(turns, ask, options)
        return self._kept[key]

    def _render(self, turns: Turns, ask: bool, options: Mapping[str, Any]) -> str | None:
        first = None
        tools, spoken = tools_of(turns)
        # Templates of vision models show nothing of a content that is not a list of parts; those for tools alone want a
        # list of tools, be it empty.
        for wrap, some in itertools.product((False, True), (None, []) if tools is None else (tools,)):
            messages = [as_parts(turn) if wrap else dict(turn) for turn in spoken]
            try:
                text = self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=ask,
                    tools=some,
                    **options,
                )
            except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError):
                continue
            if shows(str(text), turns):
                return str(text)
            first = first or str(text)
        return first

    # What a model is asked

    def prompts(self, turns: Turns) -> tuple[list[tuple[Turns, str]], bool]:
        """The ways to write a conversation that is to be answered, and whether the first of them is the plainest."""
        found: dict[str, Turns] = {}
        native = False
        for place, form in system_forms(turns):
            if place == "folded" and found:
                break
            for made in call_forms(form):
                text = self.render(made, ask=True)
                if text is not None and shows(text, made):
                    found.setdefault(text, made)
                    native = native or place == "native"
                    break
        return [(made, text) for text, made in found.items()], native

    def prefilled(self, turns: Turns, response: str) -> Judgement:
        """A conversation whose last turn is the beginning of the answer, which the response goes on with."""
        text = self.render(turns, ask=False, continue_final_message=True)
        if text is None or not shows(text, turns) or not text.endswith(str(turns[-1]["content"])):
            return Judgement((), True)
        end = self._end([*turns[:-1]])
        return Judgement((Expected(text, response, end),), False)

    # What is scored

    def judge(
        self, turns: Turns, response: str, *, kind: str = "plain", message: Mapping[str, Any] | None = None
    ) -> Judgement:
        """The right ways to write a response to a conversation.

        Args:
            turns: The conversation.
            response: The response's text.
            kind: As in `cases.Response`.
            message: The assistant's message, for the kinds `field` and `call`.
        """
        forms, native = self.prompts(turns)
        refusable, right = not native, []
        for form, prompt in forms:
            if kind == "plain":
                found = self._plain(form, prompt, response)
            elif kind == "reasoning":
                found = self._reasoned(form, prompt, response)
                refusable = refusable or self._closes(prompt)
            elif kind == "field":
                assert message is not None
                found, shown = self._field(form, prompt, message)
                refusable = refusable or not shown
            else:
                assert message is not None
                found = self._called(form, prompt, message)
            right += found
        return Judgement(tuple(dict.fromkeys(right)), refusable or not right)

    def _plain(self, form: Turns, prompt: str, response: str) -> list[Expected]:
        end = self._end(form)
        made = [
            Expected(context, (lead if response else "") + response, end)
            for context, lead in self._headers(form, prompt)
        ]
        # A response that already brings what the template writes in front of its end token has it once.
        before = self._added.split(end, maxsplit=1)[0]
        if before and response.endswith(before):
            made += [Expected(one.context, one.response, one.end.removeprefix(before)) for one in made]
        return made

    def _headers(self, form: Turns, prompt: str) -> list[tuple[str, str]]:
        """Where an answer without reasoning may stand: its context, and the white space that it starts with."""
        full = self.render([*form, {"role": "assistant", "content": _ANSWER}], ask=False)
        if full is None or full.count(_ANSWER) != 1:
            return [(prompt, "")]
        before = full.partition(_ANSWER)[0]
        if before.startswith(prompt):
            gap = before[len(prompt) :]
            return [without_spaces(before)] if gap.strip() else [(prompt, gap)]
        common = common_start(prompt, before)
        asked, shown = prompt[len(common) :], before[len(common) :]
        asks, history = (prompt, ""), without_spaces(before)
        if not shown.strip():
            return [asks, history] if asked.strip() and not _CLOSES.search(asked) else [asks]
        if asked.endswith(shown) or not shown.removesuffix(asked).strip():
            return [asks, history]
        return [history, (prompt + history[0][len(common) :], history[1])] if _CLOSES.search(asked) else [history]

    def _reasoned(self, form: Turns, prompt: str, response: str) -> list[Expected]:
        """A response that starts with a thought between marks."""
        tag = _TAG.match(response)
        assert tag is not None
        opening, closing = tag[0], f"{tag[0][0]}/{tag[0][1:]}"
        if closing not in self.template and not self._speaks(form, prompt, opening):
            return self._plain(form, prompt, response)  # to this model the marks are text
        end = self._end(form)
        opened = re.search(re.escape(opening) + r"(\s*)$", prompt)
        if opened is not None:
            rest = response[len(opening) :]
            return [Expected(prompt, rest.removeprefix(opened[1]), end)]
        if self._closes(prompt):
            start = re.sub(rf"(?:{re.escape(opening)}\s*)?{re.escape(closing)}\s*$", "", prompt)
            leads = {"", *(lead for context, lead in self._headers(form, prompt) if context == prompt)}
            return [*(Expected(prompt, lead + response, end) for lead in sorted(leads)), Expected(start, response, end)]
        full = self.render([*form, {"role": "assistant", "content": response}], ask=False)
        gap, known = "", full is not None and full.startswith(prompt) and opening in full[len(prompt) :]
        if known and full is not None:
            gap = full[len(prompt) :].partition(opening)[0]
        if not known:  # history drops the thought: as an answer starts
            gap = next((lead for context, lead in self._headers(form, prompt) if context == prompt), "")
        if gap.strip() or not gap:
            return [Expected(prompt, response, end)]
        made = [Expected(prompt, gap + response, end)]
        if full is not None and response not in full:
            made.append(Expected(prompt, response, end))  # not the template's layout: nobody knows its first line break
        return made

    def _speaks(self, form: Turns, prompt: str, opening: str) -> bool:
        """Whether the template's own field for reasoning writes this mark."""
        return any(
            opening in text[len(common_start(prompt, text)) : place] for text, place, _, _ in self._thoughts(form)
        )

    def _closes(self, prompt: str) -> bool:
        """Whether a prompt ends with a closed thought."""
        tail = prompt.rstrip()
        return bool(re.search(r"(?:</[\w:]*think[\w:]*>|\[/THINK\])$", tail))

    def _thoughts(
        self, form: Turns, answer: str = _ANSWER, thought: str = _THOUGHT
    ) -> Iterator[tuple[str, int, int, int]]:
        """Renderings that show reasoning apart from its answer: text, thought's place, answer's place, fields used."""
        blocks = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": answer}]
        shapes: list[dict[str, Any]] = [
            *({"content": answer, field: thought} for field in ("reasoning_content", "reasoning", "thinking")),
            {"content": blocks},
        ]
        seen = set()
        for number, shape in enumerate(shapes):
            text = self.render([*form, {"role": "assistant", **shape}], ask=False)
            if text is None or text in seen or thought not in text or answer not in text:
                continue
            place, after = text.rindex(thought), text.rindex(answer)
            if place < after and not re.search(r"""["']thinking["']""", text):
                seen.add(text)
                yield text, place, after, number

    def _field(self, form: Turns, prompt: str, message: Mapping[str, Any]) -> tuple[list[Expected], bool]:
        """Reasoning apart from its answer: as the template's own field writes it, else as text; and which of them."""
        answer, thought = str(message["content"]), str(message["reasoning_content"])
        end, made = self._end(form), []
        for text, _, place, _ in self._thoughts(form, answer, thought):
            common = common_start(prompt, text)
            contexts = [prompt] if text.startswith(prompt) else [common, re.sub(r"<[\w:]+>\s*$", "", common)]
            made += [Expected(context, text[len(context) : place + len(answer)], end) for context in contexts]
        if made and not self._closes(prompt):
            return made, True
        for layout in ("<think>\n{}\n</think>\n\n{}", "<think>\n{}\n</think>\n{}", "<think>{}</think>{}"):
            made += self._reasoned(form, prompt, layout.format(thought, answer))
        return made, "</think>" in self.template and not self._closes(prompt)

    def own_thought(self, form: Turns, thought: str, answer: str) -> str | None:
        """A response as this template writes a thought, where it does so between two tags."""
        for text, place, after, _ in self._thoughts(form, answer, thought):
            tags = [tag for tag in _TAG.finditer(text[:place]) if not text[tag.end() : place].strip()]
            if tags and f"{tags[-1][0][0]}/{tags[-1][0][1:]}" in text[place:after]:
                return text[tags[-1].start() : after + len(answer)]
        return None

    def _called(self, form: Turns, prompt: str, message: Mapping[str, Any]) -> list[Expected]:
        """A response that calls a tool; its end counts as part of it, since nothing tells where the call stops."""
        made = []
        for turns in call_forms([*form, message]):
            full = self.render(turns, ask=False)
            if full is None or not shows(full, turns):
                continue
            contexts = [prompt] if full.startswith(prompt) else []
            contexts += [common_start(full, header) for header, _ in self._headers(form, prompt)]
            for context, text in itertools.product(dict.fromkeys(contexts), self._called_texts(form, turns, full)):
                if len(context) >= len(common_start(prompt, full)):
                    made.append(Expected(context, text[len(context) :], ""))
            if made:
                break
        return made

    def _called_texts(self, form: Turns, turns: Turns, full: str) -> list[str]:
        """A rendered call with its end: the EOS, a mark that nothing but marks follows, or the next turn's."""
        last = max(full.rindex(value) for value in called_words(turns[-1]) if len(value) > 3)
        marks = [mark for mark in self._marks(full) if mark.start() > last]
        stop = next((mark.end() for mark in marks if mark[0] in self.stops), None)
        if stop is not None:
            return [full[:stop]]
        ends = [mark.end() for mark in marks if not self._added.sub("", full[mark.end() :]).strip()]
        if ends:
            return [full[:end] for end in ends]
        call = turns[-1]["tool_calls"][0]
        tool = {"role": "tool", "content": _NEXT, "name": call["function"]["name"], "tool_call_id": call["id"]}
        answered = self.render([*turns, tool], ask=False) or ""
        after = answered[len(full) :] if answered.startswith(full) else ""
        following = self._marks(after.partition(_NEXT)[0])
        texts = [full + after[: following[0].end()]] if following else []
        return [*texts, full.rstrip() + self._end(form)]

    # The end of a turn

    def _end(self, form: Turns) -> str:
        """What a finished answer ends with."""
        answered = [*form, {"role": "assistant", "content": _ANSWER}]
        last = self._after(answered, None)
        between = self._after([*answered, {"role": "user", "content": _NEXT}], _NEXT)
        eos = str(self.tokenizer.eos_token or "")
        marks = self._marks(last)
        if between:
            both = common_start(last, between)
            marks = [mark for mark in marks if mark.end() <= len(both)] or marks
        if marks:
            stop = next((mark.end() for mark in marks if mark[0] in self.stops), None)
            if stop is None:
                stop = marks[0].end()
                for mark in marks[1:]:
                    if mark.start() != stop:
                        break
                    stop = mark.end()
            return last[:stop]
        following = self._marks(between)
        return between[: following[0].end()] if following else eos

    def _after(self, turns: Turns, until: str | None) -> str:
        text = self.render(turns, ask=False) or ""
        after = text.rpartition(_ANSWER)[2] if _ANSWER in text else ""
        if until is None:
            return after
        return after.partition(until)[0] if until in after else ""

    def _marks(self, text: str) -> list[re.Match[str]]:
        return [mark for mark in self._added.finditer(text) if not _INNER.match(mark[0])]

    # Ids

    def ids(self, expected: Expected) -> Ids:
        """The whole text's ids, cut where its three parts meet.

        Raises:
            StraddleError: A token reaches over such a place, and the parts alone would be other text.
        """
        parts = (expected.context, expected.response, expected.end)
        whole = self.tokenizer("".join(parts), add_special_tokens=False, return_offsets_mapping=True)
        cuts = (len(parts[0]), len(parts[0]) + len(parts[1]))
        spans = list(zip(whole["input_ids"], whole["offset_mapping"], strict=True))
        if any(start < cut < stop for cut in cuts for _, (start, stop) in spans):
            # The model was asked with the context alone, so that its ids are those of the context alone.
            if self.tokenizer.backend_tokenizer.normalizer is not None:
                raise StraddleError
            return Ids(*(tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts))
        first = tuple(id for id, (start, _) in spans if start < cuts[0])
        second = tuple(id for id, (start, _) in spans if cuts[0] <= start < cuts[1])
        return Ids(first, second, tuple(id for id, (start, _) in spans if start >= cuts[1]))

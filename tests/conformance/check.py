"""Compares what the package does with what is right, case by case.

Each check ends as `right`, `refused` (with the package's reason, where a refusal is right) or `wrong`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.conformance import cases
from tests.conformance.cases import Case, Response
from tests.conformance.families import Template
from tests.conformance.product import Asked, Read, RefusedError
from tests.conformance.reference import Expected, Ids, Judgement, Reference, StraddleError, called_words

COLUMNS: Final = ("context", "response", "end", "system", "tool", "reasoning", "inversion")


_NEAR: Final = 6
"""Ids of a prompt's end that have to stand in front of a response that was read back."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check."""

    case: str
    check: str
    """`context`, `response`, `end`, `shown` (the package has to refuse), `messages` or `query`."""
    column: str
    """The table's column that it counts in."""
    outcome: str
    """`right`, `refused`, `wrong` or `unjudged`."""
    expected: str = ""
    got: str = ""

    @property
    def key(self) -> str:
        return f"{self.case}/{self.check}"


@dataclass
class _Run:
    template: Template
    reference: Reference
    asked: Asked | None
    read: Read | None
    refusal: str = ""
    verdicts: list[Verdict] = field(default_factory=list)

    def spell(self, ids: Sequence[int]) -> str:
        """Ids as text, with a bar where one text could have other ids."""
        return "|".join(str(one) for one in self.template.tokenizer.convert_ids_to_tokens(list(ids)))


def run(template: Template) -> list[Verdict]:
    """All checks of one template, in a fixed order."""
    reference = Reference(template.tokenizer, template.text)
    work = _Run(template, reference, None, None)
    try:
        work.asked = Asked(template.tokenizer, template.text)
        work.read = Read(template.tokenizer, template.text)
    except RefusedError as error:
        work.refusal = str(error)
    own = reference.own_thought(cases.CONTEXTS[0].turns, cases.THOUGHT, cases.ANSWER)
    extra = [Response("reasoning-own", "reasoning", own)] if own and own != cases.REASONED.text else []
    for case in cases.cases(extra):
        _judge(work, case)
    return work.verdicts


def _judge(work: _Run, case: Case) -> None:
    context, response = case.context, case.response
    if context.prefill:
        judgement = work.reference.prefilled(context.turns, response.text)
    else:
        judgement = work.reference.judge(context.turns, response.text, kind=response.kind, message=response.message)
    contexts, responses = _columns(case)
    column = responses if contexts in ("context", "reasoning") and not context.prefill else contexts
    try:
        whole, start = _ask(work, case)
    except RefusedError as refusal:
        outcome = "refused" if judgement.refusable else "wrong"
        first = judgement.right[0] if judgement.right else None
        expected = "a refusal" if first is None else f"{first.context}▮{first.response}▮{first.end}"
        work.verdicts.append(Verdict(case.name, "shown", column, outcome, expected, f"refused: {refusal}"))
        return
    if not judgement.right:
        got = f"{work.spell(whole[0])}▮{work.spell(whole[1])}"
        work.verdicts.append(Verdict(case.name, "shown", column, "wrong", "a refusal: the template drops a turn", got))
        return
    _compare(work, case, judgement, whole, start)
    # A trainer's prompt shows tools as part of a system turn, whose text they then are.
    told = context.turns[0]["role"] == "tools"
    if response.kind in ("plain", "reasoning") and response.finished and not context.prefill and not told:
        _invert(work, case)


_Span = tuple[tuple[int, ...], tuple[int, ...]]


def _ask(work: _Run, case: Case) -> tuple[_Span, _Span]:
    """The package's spans with and without the end of turn."""
    if work.asked is None:
        raise RefusedError(work.refusal)
    response: str | Mapping[str, Any] = case.response.message or case.response.text
    made = [
        work.asked.span(case.context.turns, response, end=end, prefill=case.context.prefill)
        for end in (case.response.finished, False)
    ]
    return made[0], made[1]


def _compare(work: _Run, case: Case, judgement: Judgement, whole: _Span, start: _Span) -> None:
    """Context, response and end against the alternative that fits best."""
    got = Ids(whole[0], start[1], whole[1][len(start[1]) :])
    contexts, responses = _columns(case)
    best: tuple[int, Ids, Expected] | None = None
    for expected in judgement.right:
        try:
            ids = work.reference.ids(expected)
        except StraddleError:
            continue
        if case.response.kind == "call":  # the end is part of the call
            fit = 4 * (got.context + whole[1] == ids.context + ids.response) + (got.context == ids.context)
        else:
            fit = 4 * (got.context == ids.context) + 2 * (got.response == ids.response) + (got.end == ids.end)
        if best is None or fit > best[0]:
            best = fit, ids, expected
    if best is None:
        work.verdicts.append(Verdict(case.name, "response", responses, "unjudged"))
        return
    _, ids, _ = best
    pairs = [("context", contexts, ids.context, got.context), ("response", responses, ids.response, got.response)]
    if case.response.kind == "call":
        pairs = [("response", responses, ids.context + ids.response, got.context + whole[1])]
    elif case.response.finished:
        pairs.append(("end", "end", ids.end, got.end))
    for check, column, right, found in pairs:
        if right == found:
            work.verdicts.append(Verdict(case.name, check, column, "right"))
        else:
            said = work.spell(right), work.spell(found)
            work.verdicts.append(Verdict(case.name, check, column, "wrong", *said))


def _columns(case: Case) -> tuple[str, str]:
    """The columns that a case's context and response count in."""
    reasoning = case.response.kind in ("reasoning", "field")
    context = "reasoning" if reasoning and case.context.column == "context" else case.context.column
    response = "tool" if case.response.kind == "call" else "reasoning" if reasoning else "response"
    return context, response


def _invert(work: _Run, case: Case) -> None:
    """What a trainer renders and decodes, read back and asked: the same turns, the same ids."""
    assert work.read is not None
    assert work.asked is not None
    turns, response = case.context.turns, case.response.text
    prompt = work.reference.render(turns, ask=True)  # as a trainer renders it
    judgement = work.reference.judge(turns, response, kind=case.response.kind)
    if prompt is None or not judgement.right or not any(one.context.startswith(prompt) for one in judgement.right):
        return  # a trainer could not have rendered this case
    right = next(one for one in judgement.right if one.context.startswith(prompt))
    if case.response.name == cases.PLAIN.name:
        try:
            found = work.read.messages(prompt)
        except RefusedError as refusal:
            work.verdicts.append(Verdict(case.name, "messages", "inversion", "refused", got=str(refusal)))
        else:
            known = list(_readings(work.reference, turns, prompt))
            outcome = "right" if any(_same(found, one, turns) for one in known) else "wrong"
            said = (repr(known[0]), repr(found)) if outcome == "wrong" else ("", "")
            work.verdicts.append(Verdict(case.name, "messages", "inversion", outcome, *said))
    try:
        ids = work.reference.ids(right)
    except StraddleError:
        return
    _reread(work, case, ids, (response, right.response, right.context[len(prompt) :] + right.response), prompt)


def _reread(work: _Run, case: Case, ids: Ids, texts: tuple[str, ...], prompt: str) -> None:
    """A decoded query's response is one of the texts, and is asked with the ids that the query was decoded from."""
    assert work.read is not None
    assert work.asked is not None
    whole = (*ids.context, *ids.response, *ids.end)
    query = str(work.template.tokenizer.decode(list(whole), skip_special_tokens=False))
    try:
        text, finished = work.read.response(query, prompt)
        context, response = work.asked.span(case.context.turns, text, end=finished)
    except RefusedError as refusal:
        work.verdicts.append(Verdict(case.name, "query", "inversion", "refused", got=str(refusal)))
        return
    # Faults in earlier turns are the context check's: here only the prompt's end and what follows it count.
    shown = work.reference.ids(Expected(prompt, "", ""))
    counted = whole[max(0, len(shown.context) - _NEAR) :]
    if finished and text in texts and (*context, *response)[-len(counted) :] == counted:
        work.verdicts.append(Verdict(case.name, "query", "inversion", "right"))
    else:
        got = f"{text!r} finished={finished} {work.spell(context[-8:])}▮{work.spell(response)}"
        work.verdicts.append(Verdict(case.name, "query", "inversion", "wrong", work.spell(whole), got))


def _readings(reference: Reference, turns: cases.Turns, prompt: str) -> Iterator[list[tuple[str, str]]]:
    """What a rendered prompt may be read as: the turns, less what the template drops, or what it cannot tell."""
    plain = [(str(turn["role"]), str(turn["content"] or "").strip()) for turn in turns]
    yield plain
    bare = [(role, text.rpartition("</think>")[2].strip() if role == "assistant" else text) for role, text in plain]
    yield bare
    systems = [text for role, text in plain if role == "system"]
    rest = [one for one in plain if one[0] != "system"]
    if len(systems) > 1:
        for gap in ("\n\n", "\n", ""):
            yield [("system", gap.join(systems)), *rest]
    if systems and rest:
        # A template that writes a system turn's text into a user turn, without a mark of its own.
        for place in {0, max(i for i, one in enumerate(rest) if one[0] == "user")}:
            for gap in ("\n\n", "\n", " "):
                first = ("user", gap.join([*systems, rest[place][1]]))
                yield [*rest[:place], first, *rest[place + 1 :]]
    as_user = [{**turn, "role": "user" if turn["role"] == "tool" else turn["role"]} for turn in turns]
    if reference.render(as_user, ask=True) == prompt:
        yield [(str(turn["role"]), str(turn["content"] or "").strip()) for turn in as_user]


def _same(found: Sequence[tuple[str, str]], known: Sequence[tuple[str, str]], turns: cases.Turns) -> bool:
    """Whether turns were read as they were; a tool call is, where the turn that made it holds it as text."""
    if len(found) != len(known):
        return False
    calls = [turn for turn in turns if turn.get("tool_calls")]
    held = [called_words(turn) for turn in calls]
    for (role, text), (right, content) in zip(found, known, strict=True):
        if role != right:
            return False
        if held and role == "assistant" and not content:
            if any(word not in text for word in held[0]):
                return False
        elif text.split() != content.split():  # templates have their own line breaks around a thought
            return False
    return True

"""The formats of preference data: what their columns are called, and how a row of each becomes an item.

Knows columns and messages; nothing of files, models or of how a benchmark is scored (`benchmarks` does).

Sources: the data cards and evaluation code of RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937), RM-Bench
(2410.16184), JudgeBench (2410.12784), LLMBar (2310.07641) and hh-rlhf (2204.05862); TRL's page on data set formats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.data import benchmarks
from gdr_plugin.data.content import text_of
from gdr_plugin.data.item import Item
from gdr_plugin.data.prompts import Prompt, check_prompt, prompt_of, transcript_turns, with_columns
from gdr_plugin.data.responses import responses_of, said
from gdr_plugin.data.rows import id_of
from gdr_plugin.data.sources import Row
from gdr_plugin.text import is_missing, type_name

LABEL = "labelled_domain"
"""The field of an item that says which domain its benchmark puts it in: routers do not read it."""

_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Format:
    """One format of preference data."""

    columns: str
    """What a row holds, for people."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Whether a row's columns are this format's."""
    parse: Callable[[Row], Item]
    """Makes an item of a row, or raises DataError."""


def detect(data: Mapping[str, Any]) -> str:
    """The format that a row's columns belong to.

    Raises:
        DataError: They belong to none.
    """
    for name, known in FORMATS.items():
        if known.matches(data):
            return name
    raise DataError(
        f"the columns {', '.join(map(str, data)) or '(none)'} match no known format: name them with --map, as in "
        "--map prompt=instruction --map chosen=better --map rejected=worse"
    )


def parse(row: Row, format: str) -> Item:
    """Make an item of a row.

    Args:
        row: As read.
        format: A name of `FORMATS`.

    Raises:
        DataError: The row is malformed, or a column is missing or of another type; names the row.
    """
    data = row.data  # raises, with the row's place, what is wrong with a line that could not be read
    if format not in FORMATS:
        raise DataError(unknown("format", format, ["auto", *FORMATS]))
    try:
        return FORMATS[format].parse(row)
    except KeyError as error:
        reason = (
            f"there is no column {error} among {', '.join(map(str, data))} ({format} has {FORMATS[format].columns})"
        )
        raise DataError(f"{row.where}: {reason}") from None
    except DataError as error:
        raise type(error)(f"{row.where}: {error}") from None


def _plain(row: Row) -> Item:
    """Prompt, chosen, rejected; `domain`, `subset` and an id where there are such columns."""
    data = row.data
    prompt, chosen, rejected = responses_of(data)
    given = data.get("domain")
    if not is_missing(given) and not isinstance(given, str):
        raise DataError(f"`domain` must be a string, not {type_name(given)}")
    domain = given.strip() or None if isinstance(given, str) else None
    fields = _fields(data, prompt, ("id", "prompt", "chosen", "rejected", "domain", "subset"), None)
    return Item(id_of(row), prompt.turns, chosen, rejected, domain, _part(data), fields)


def _rewardbench(row: Row) -> Item:
    data = row.data
    prompt, chosen, rejected = responses_of(data)
    subset = text_of(data["subset"], "`subset`")
    # Ids count within the parts that the benchmark was made from: they are unique together with the subset.
    fields = _fields(
        data, prompt, ("id", "prompt", "chosen", "rejected", "subset"), benchmarks.REWARDBENCH_DOMAINS.get(subset)
    )
    return Item(f"{subset}/{id_of(row)}", prompt.turns, chosen, rejected, None, subset, fields)


def _rewardbench2(row: Row) -> Item:
    data = row.data
    prompt, chosen, rejected = responses_of(data)
    if data["num_correct"] != len(chosen):
        raise DataError(f"`num_correct` is {data['num_correct']!r}, but `chosen` has {len(chosen)} responses")
    subset = text_of(data["subset"], "`subset`")
    label = benchmarks.REWARDBENCH2_DOMAINS.get(subset.lower(), "chat")
    fields = _fields(data, prompt, ("id", "prompt", "chosen", "rejected", "subset"), label)
    return Item(id_of(row), prompt.turns, chosen, rejected, None, subset, fields)


def _rm_bench(row: Row) -> Item:
    data = row.data
    prompt, chosen, rejected = responses_of(data)
    if (len(chosen), len(rejected)) != (3, 3):
        raise DataError(f"RM-Bench has 3 chosen and 3 rejected responses, not {len(chosen)} and {len(rejected)}")
    part = text_of(data["domain"], "`domain`")
    fields = _fields(
        data, prompt, ("id", "prompt", "chosen", "rejected", "domain"), benchmarks.RM_BENCH_DOMAINS.get(part)
    )
    return Item(id_of(row), prompt.turns, chosen, rejected, None, part, fields)


def _judgebench(row: Row) -> Item:
    data = row.data
    answers = {name: text_of(data[f"response_{name}"], f"`response_{name}`") for name in "AB"}
    label = str(data["label"]).replace(" ", "")
    if label not in ("A>B", "B>A"):
        raise DataError(f"`label` must be A>B or B>A, not {data['label']!r}")
    source = text_of(data.get("source", "all"), "`source`")
    category = benchmarks.judgebench_category(source)
    prompt = prompt_of(data, data["question"])
    fields = _fields(
        data,
        prompt,
        ("pair_id", "question", "response_A", "response_B", "label"),
        benchmarks.JUDGEBENCH_DOMAINS.get(category or ""),
    )
    identifier = str(data["pair_id"]) if data.get("pair_id") else id_of(row)
    return Item(identifier, prompt.turns, (said(answers[label[0]]),), (said(answers[label[2]]),), None, source, fields)


def _llmbar(row: Row) -> Item:
    data = row.data
    outputs = {number: text_of(data[f"output_{number}"], f"`output_{number}`") for number in "12"}
    better = str(data["label"])
    if better not in outputs:
        raise DataError(f"`label` must be 1 or 2, not {data['label']!r}")
    worse = "2" if better == "1" else "1"
    prompt = prompt_of(data, data["input"])
    fields = _fields(data, prompt, ("id", "input", "output_1", "output_2", "label", "subset"), None)
    return Item(id_of(row), prompt.turns, (said(outputs[better]),), (said(outputs[worse]),), None, _part(data), fields)


def _hh(row: Row) -> Item:
    """Two transcripts that part at the last reply."""
    data = row.data
    sides = {name: _transcript(text_of(data[name], f"`{name}`"), name) for name in ("chosen", "rejected")}
    turns, chosen = sides["chosen"]
    other, rejected = sides["rejected"]
    if turns != other:
        raise DataError("`chosen` and `rejected` part before the last reply: they answer different prompts")
    prompt = with_columns(turns, data)
    fields = _fields(data, prompt, ("id", *sides, "subset"), None)
    return Item(id_of(row), prompt.turns, (chosen,), (rejected,), None, _part(data), fields)


def _transcript(text: str, name: str) -> tuple[Conversation, Message]:
    """The turns of a transcript without the last reply, and that reply."""
    turns = transcript_turns(text)
    if turns is None:
        raise DataError(f"`{name}` must be a transcript from Human: to a last Assistant: turn")
    check_prompt(turns[:-1])
    return turns[:-1], turns[-1]


def _part(data: Mapping[str, Any]) -> str:
    """The row's subset; `all` where it names none."""
    value = data.get("subset")
    if isinstance(value, list | tuple | Mapping):
        raise DataError(f"`subset` must be a string, not {type_name(value)}")
    return "all" if is_missing(value) else str(value)


def _is_one_of(value: object, names: Mapping[str, object]) -> bool:
    return isinstance(value, str) and value in names


def _fields(data: Mapping[str, Any], prompt: Prompt, used: tuple[str, ...], label: str | None) -> dict[str, Any]:
    others = {name: value for name, value in data.items() if name not in (*used, *prompt.columns)}
    return others if label is None else {**others, LABEL: label}


def _strings(data: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(data.get(name), str) for name in names)


def _lists(data: Mapping[str, Any]) -> bool:
    return all(
        isinstance(data.get(name), list | tuple) and all(isinstance(text, str) for text in data[name])
        for name in ("chosen", "rejected")
    )


FORMATS: dict[str, Format] = {
    "judgebench": Format(
        "question, response_A, response_B, label (A>B or B>A), source",
        lambda data: {"question", "response_A", "response_B", "label"} <= data.keys(),
        _judgebench,
    ),
    "llmbar": Format(
        "input, output_1, output_2, label (1 or 2)",
        lambda data: {"input", "output_1", "output_2", "label"} <= data.keys(),
        _llmbar,
    ),
    "rewardbench2": Format(
        "prompt, chosen (list), rejected (list), num_correct, subset",
        lambda data: _lists(data) and {"num_correct", "subset"} <= data.keys(),
        _rewardbench2,
    ),
    "rm-bench": Format(
        "prompt, chosen (3 styles), rejected (3 styles), domain (chat, code, math, safety-refuse, safety-response)",
        lambda data: (
            _lists(data)
            and len(data["chosen"]) == len(data["rejected"]) == 3
            and _is_one_of(data.get("domain"), benchmarks.RM_BENCH_DOMAINS)
        ),
        _rm_bench,
    ),
    "rewardbench": Format(
        "prompt, chosen, chosen_model, rejected, rejected_model, subset",
        # Other data sets have subsets of the same names: the models' columns are this benchmark's alone.
        lambda data: (
            {"prompt", "chosen", "rejected", "chosen_model", "rejected_model"} <= data.keys()
            and _is_one_of(data.get("subset"), benchmarks.REWARDBENCH_DOMAINS)
        ),
        _rewardbench,
    ),
    "hh-rlhf": Format(
        "chosen and rejected: transcripts of Human: and Assistant: turns",
        lambda data: (
            "prompt" not in data
            and _strings(data, "chosen", "rejected")
            and all(_TURN.match(data[name]) for name in ("chosen", "rejected"))
        ),
        _hh,
    ),
    "plain": Format(
        "prompt, chosen, rejected (texts, messages or lists of them), and optionally id, domain, subset",
        lambda data: {"chosen", "rejected"} <= data.keys(),
        _plain,
    ),
}
"""The formats, the narrowest first: the first that matches a row is its format."""

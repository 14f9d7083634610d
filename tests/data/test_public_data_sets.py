"""The data sets that people have, as rows of our own in their schemas: how each is found, and what it prefers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import DataError
from gdr_plugin.api.types import Message
from gdr_plugin.data.format_table import FORMATS
from gdr_plugin.data.item import Item
from gdr_plugin.data.items import Data, Undecided, load_items, read_items
from gdr_plugin.data.preference_formats import LABEL
from gdr_plugin.scoring.items import samples

ROOT = Path(__file__).parents[2]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Data:
    return load_items(write(tmp_path / "data.jsonl", *rows), **options)


def texts(turns: tuple[Message, ...]) -> list[str]:
    return [turn.content for turn in turns]


def asked(item: Item) -> list[str]:
    return [f"{turn.role}: {turn.content}" for turn in item.prompt]


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


GOOD, BAD = "Yes, it floats.", "No."
STEPS, WRONG = ["2 + 2 is 4.", "So 4."], ["2 + 2 is 5.", "So 5."]
Row = dict[str, Any]
# Format, a row that prefers GOOD to BAD, what differs in one that does the reverse, one that is a tie, the subset.
TWO: list[tuple[str, Row, Row, Row | None, str]] = [
    (
        "judgebench",
        {"pair_id": "p", "source": "mmlu-pro-law", "question": "Q?", "response_A": GOOD, "response_B": BAD}
        | {"label": "A>B", "response_model": "gpt-4o-2024-05-13"},
        {"label": "B>A"},
        None,
        "mmlu-pro-law",
    ),
    ("llmbar", {"input": "Q?", "output_1": GOOD, "output_2": BAD, "label": 1}, {"label": 2}, None, "all"),
    (
        "arena",
        {"question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "j", "turn": 1}
        | {"conversation_a": talk("Q?", GOOD), "conversation_b": talk("Q?", BAD)},
        {"winner": "model_b"},
        {"winner": "tie (bothbad)"},
        "all",
    ),
    (
        "arena-55k",
        {"id": 1, "model_a": "m", "model_b": "n", "prompt": '["Q?"]', "response_a": json.dumps([GOOD])}
        | {"response_b": json.dumps([BAD]), "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"winner_model_a": 0, "winner_model_b": 1},
        {"winner_model_a": 0, "winner_tie": 1},
        "all",
    ),
    (
        "ppe",
        {"question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_a", "prompt": "Q?"}
        | {"response_1": GOOD, "response_2": BAD, "language": "English"},
        {"winner": "model_b"},
        {"winner": "tie"},
        "all",
    ),
    (
        "helpsteer2",
        {"prompt": "Q?", "response_1": GOOD, "response_2": BAD, "preference_strength": -2, "split": "val"},
        {"preference_strength": 1},
        {"preference_strength": 0},
        "all",
    ),
    (
        "helpsteer3",
        {"domain": "STEM", "language": "english", "context": talk("Q?"), "response1": GOOD, "response2": BAD}
        | {"overall_preference": -3},
        {"overall_preference": 3},
        {"overall_preference": 0},
        "STEM",
    ),
    (
        "alpaca-eval",
        {"instruction": "Q?", "output_1": GOOD, "output_2": BAD, "generator_1": "m", "preference": 1.0},
        {"preference": 1.93},
        {"preference": 1.5},
        "all",
    ),
    (
        "auto-j",
        {"scenario": "planning", "label": 0, "prompt": "Q?", "response 1": GOOD, "response 2": BAD},
        {"label": 1},
        {"label": 2},
        "planning",
    ),
    (
        "pandalm",
        {"idx": 1, "motivation_app": "x", "cmp_key": "m_n", "instruction": "Q?", "input": "", "response1": GOOD}
        | {"response2": BAD, "annotator1": 1, "annotator2": 0, "annotator3": 1},
        {"annotator1": 2, "annotator3": 2},
        {"annotator1": 0},
        "all",
    ),
    (
        "pku-saferlhf",
        {"prompt": "Q?", "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 1},
        {"better_response_id": 1},
        None,
        "all",
    ),
    (
        "shp",
        {"post_id": "p", "domain": "askscience_train", "history": "Q?", "human_ref_A": GOOD, "human_ref_B": BAD}
        | {"labels": 1, "score_A": 9, "score_B": 2},
        {"labels": 0},
        None,
        "askscience_train",
    ),
    (
        "rewardmath-pairwise",
        {"problem": "Q?", "eval_solution_A": [GOOD], "eval_solution_B": [BAD], "chosen_position": "A", "id": 3},
        {"chosen_position": "B"},
        None,
        "all",
    ),
    (
        "hhh",
        {"input": "Q?", "targets": {"choices": [GOOD, BAD], "labels": [1, 0]}},
        {"targets": {"choices": [GOOD, BAD], "labels": [0, 1]}},
        {"targets": {"choices": [GOOD, BAD], "labels": [1, 1]}},
        "all",
    ),
    (
        "labelled",
        {"prompt": "Q?", "response_a": GOOD, "response_b": BAD, "label": "A"},
        {"label": "response_b"},
        {"label": "Tie"},
        "all",
    ),
]


@pytest.mark.parametrize(("format", "row", "reverse", "tie", "subset"), TWO, ids=[entry[0] for entry in TWO])
def test_two_responses_and_a_label(
    format: str, row: Row, reverse: Row, tie: Row | None, subset: str, tmp_path: Path
) -> None:
    other = {**row, **reverse, "pair_id": "other", "id": "other"}
    data = load(tmp_path, row, other, *([] if tie is None else [{**row, **tie, "pair_id": "tie", "id": "tie"}]))
    assert data.format == format
    first, second = data.items
    assert (texts(first.chosen), texts(first.rejected), first.subset) == ([GOOD], [BAD], subset)
    assert (texts(second.chosen), texts(second.rejected)) == ([BAD], [GOOD])
    assert asked(first) == ["user: Q?"]
    assert first.domain is None  # no data set's own parts are taken for our domains
    assert data.undecided == ({} if tie is None else {"a tie": 1})
    assert load_items(tmp_path / "data.jsonl", format=format).items == data.items


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input": "Q?", "output_1": "a", "output_2": "b", "label": 3}, "`label` must be 1 or 2, not 3"),
        (
            {"prompt": "Q?", "response_a": "a", "response_b": "b", "label": 1},
            "say which value means what with --map label.a=VALUE (the first response is better, or the only one good)",
        ),
        (
            {"prompt": "Q?", "response_1": "a", "response_2": "b", "preference_strength": "much"},
            "`preference_strength` must be a number, not 'much'",
        ),
        (
            {"prompt": "Q?", "response_1": "a", "response_2": "b", "preference_strength": "nan"},
            "`preference_strength` must be a number, not 'nan'",
        ),
        (
            {"prompt": '["Q?"]', "response_a": '["a"]', "response_b": '["b"]'}
            | {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0},
            "`winner_model_a` and `winner_model_b` are both set",
        ),
        (
            {"prompt": '["Q?", "R?"]', "response_a": '["a", null]', "response_b": '["b", "c"]'}
            | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
            "must have a text for each turn",
        ),
        ({"prompt": "Q?", "response_0": "a", "response_1": "b"}, "there is no column 'better_response_id'"),
        ({"question": "Q?", "chosen": "a", "rejected": "b"}, ": name it with --map prompt=question"),
        (
            {"prompt": "Q?", "response_0": False, "response_1": "b", "better_response_id": 0},
            "`response_0` must be a text or messages, not true or false",
        ),
        ({"prompt": "Q?", "responses": ["a", "b"], "scores": [1]}, "there are 2 responses and 1 scores"),
    ],
)
def test_labels_and_lists_that_say_nothing_are_bad_rows(row: Row, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl line 1: ") as found:
        load(tmp_path, row)
    assert problem in str(found.value)


def test_a_missing_label_and_votes_without_a_majority_are_counted_apart(tmp_path: Path) -> None:
    votes = {"instruction": "Q?", "input": "", "response1": GOOD, "response2": BAD}
    data = load(
        tmp_path,
        {**votes, "annotator1": 1, "annotator2": 1, "annotator3": 2},
        {**votes, "annotator1": 0, "annotator2": 1, "annotator3": 2},
        {**votes, "annotator1": None, "annotator2": None, "annotator3": None},
    )
    assert len(data.items) == 1
    assert data.undecided == {"as many votes for one as for another": 1, "no label": 1}
    assert data.facts["left out: no label"] == "1 rows"
    with pytest.raises(DataError, match=r"no row prefers a response \(no label: 1\)"):
        load(tmp_path, {**votes, "annotator1": None, "annotator2": None, "annotator3": None})


def test_undecided_rows_are_no_bad_rows(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "response_a": GOOD, "response_b": BAD, "label": "tie"}
    (found,) = read_items(write(tmp_path / "data.jsonl", row))
    assert isinstance(found, Undecided)
    assert (found.number, found.reason.rpartition(": ")[2]) == (1, "a tie")


def test_a_label_that_names_the_model(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "response_a": GOOD, "response_b": BAD, "model_a": "m", "model_b": "n"}
    data = load(tmp_path, {**row, "label": "m"}, {**row, "label": "n"})
    assert [texts(item.chosen) for item in data.items] == [[GOOD], [BAD]]


def test_alpacas_input_belongs_to_the_question(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "Ja.", "output_1": GOOD, "output_2": BAD, "preference": 2}
    (item,) = load(tmp_path, row).items
    assert asked(item) == ["user: Translate.\n\nJa."]
    (item,) = load(tmp_path, {"instruction": "Translate.", "input": "Ja.", "chosen": GOOD, "rejected": BAD}).items
    assert asked(item) == ["user: Translate.\n\nJa."]


def test_a_prompt_with_marks_of_turns(tmp_path: Path) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nA joke."
    row = {"prompt": prompt, "response_1": GOOD, "response_2": BAD, "preference_strength": 1}
    (item,) = load(tmp_path, row).items
    assert asked(item) == ["user: Hi", "assistant: Hello!", "user: A joke."]


def test_summaries_answer_the_post(tmp_path: Path) -> None:
    info = {"id": "t", "post": "I lost my cat.", "title": "Cat", "subreddit": "pets", "site": None, "article": None}
    row = {"info": info, "summaries": [{"text": GOOD, "policy": "m"}, {"text": BAD}], "choice": 1, "worker": "w"}
    (item,) = load(tmp_path, row).items
    assert asked(item) == ["user: SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: I lost my cat.\n\nTL;DR:"]
    assert (texts(item.chosen), item.fields) == ([BAD], {"worker": "w"})
    article = {**dict.fromkeys(info), "article": "News."}
    (item,) = load(tmp_path, {**row, "info": article}).items
    assert asked(item) == ["user: Article:\nNews.\n\nTL;DR:"]


def test_votes_on_later_turns_are_judged_in_each_models_own_conversation(tmp_path: Path) -> None:
    row = {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "j"}
    row |= {"conversation_a": talk("Q?", "a1", "More?", "a2"), "conversation_b": talk("Q?", "b1", "More?", "b2")}
    data = load(tmp_path, {**row, "turn": 1}, {**row, "turn": 2})
    first, second = data.items
    assert (texts(first.chosen), texts(first.rejected), first.contexts) == (["b1"], ["a1"], ())
    assert (texts(second.chosen), texts(second.rejected), asked(second)) == (["b2"], ["a2"], ["user: Q?"])
    assert [[turn.content for turn in sample.prompt] for sample in samples(second)] == [
        ["Q?", "b1", "More?"],
        ["Q?", "a1", "More?"],
    ]
    assert data.facts["own conversations"].startswith("1 items")
    with pytest.raises(DataError, match="begin with different prompts"):
        load(tmp_path, {**row, "conversation_b": talk("R?", "b1", "More?", "b2"), "turn": 2})


def test_lists_of_json_hold_one_text_a_turn(tmp_path: Path) -> None:
    row = {"prompt": '["Q?", "More?"]', "response_a": '["a1", "a2"]', "response_b": '["a1", "b2"]'}
    (item,) = load(tmp_path, row | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}).items
    assert asked(item) == ["user: Q?", "assistant: a1", "user: More?"]
    assert (texts(item.chosen), texts(item.rejected)) == (["b2"], ["a2"])


LISTS: list[tuple[str, Row, list[str], list[str]]] = [
    (
        "nectar",
        {"prompt": "\n\nHuman: Q?\n\nAssistant: ", "num_responses": 3}
        | {"answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}, {"answer": "c", "rank": 3.0}]},
        ["a"],
        ["b", "c"],
    ),
    (
        "ultrafeedback",
        {"source": "evol", "instruction": "Q?", "models": ["m", "n", "o"]}
        | {"completions": [{"response": t, "overall_score": s} for t, s in (("a", 8.5), ("b", 7), ("c", 8.5))]},
        ["a", "c"],
        ["b"],
    ),
    (
        "rmb-pairs",
        {"pair_uid": "1", "conversation_input": talk("Q?"), "category_path": "Pairwise_set/Helpfulness/Chat"}
        | {"chosen": {"answer": "a", "llm_name": "m"}, "reject": {"answer": "b", "llm_name": "n"}},
        ["a"],
        ["b"],
    ),
    (
        "rmb-best-of-n",
        {"bon_uid": 1, "conversation_input": talk("Q?"), "category_path": "BoN_set/Harmlessness/S1"}
        | {"bon_best": {"answer": "a"}, "loser_list": [{"answer": "b"}, {"answer": "c"}]},
        ["a"],
        ["b", "c"],
    ),
    ("ranked", {"prompt": "Q?", "responses": ["a", "b", "c"], "ranks": [3, 1, 2]}, ["b"], ["a", "c"]),
    ("ranked", {"prompt": "Q?", "responses": ["a", "b", "c"], "scores": [0.5, 0.5, -1]}, ["a", "b"], ["c"]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q?"}]}
     | {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, ["a"], ["b"]),
    ("plain", {"prompt": "Q?", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"}, ["a"], ["b"]),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "chosen", "rejected"), LISTS, ids=[entry[0] for entry in LISTS])
def test_lists_and_messages(format: str, row: Row, chosen: list[str], rejected: list[str], tmp_path: Path) -> None:
    data = load(tmp_path, row)
    (item,) = data.items
    assert (data.format, asked(item)) == (format, ["user: Q?"])
    assert (texts(item.chosen), texts(item.rejected)) == (chosen, rejected)


def test_equal_scores_prefer_nothing(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "responses": ["a", "b"]}
    data = load(tmp_path, {**row, "scores": [1, 2]}, {**row, "scores": [2, 2.0]}, {**row, "scores": [None, 2]})
    assert (len(data.items), data.undecided) == (1, {"a tie": 1, "a response without a score": 1})


def test_kto_rows_of_one_prompt_are_an_item_together(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": "Q?", "completion": "a", "label": True},
        {"prompt": "R?", "completion": "x", "label": True},
        {"prompt": "Q?", "completion": "b", "label": False},
        {"prompt": "Q?", "completion": "c", "label": False},
    ]
    data = load(tmp_path, *rows)
    (item,) = data.items
    assert (data.format, item.id, texts(item.chosen), texts(item.rejected)) == ("kto", "row-000001", ["a"], ["b", "c"])
    assert data.undecided == {"all responses to the prompt are good": 1}
    stated = [{**row, "label": int(row["label"])} for row in rows]
    assert load(tmp_path, *stated, columns={"label.a": "1", "label.b": "0"}).items == data.items


def test_rows_without_a_group_belong_to_their_prompt(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": prompt, "completion": text, "label": good, "set": None}
        for prompt, text, good in [("Q?", "a", True), ("R?", "x", True), ("Q?", "b", False), ("R?", "y", False)]
    ]
    found = load(tmp_path, *rows, columns={"group": "set"}).items
    assert [(texts(item.chosen), texts(item.rejected)) for item in found] == [(["a"], ["b"]), (["x"], ["y"])]
    with pytest.raises(DataError, match="`group` must be a text or a number, not a list"):
        load(tmp_path, *({**row, "set": [1]} for row in rows), columns={"group": "set"})


def test_rewardmath_has_one_right_solution_among_wrong_ones(tmp_path: Path) -> None:
    rows = [
        {"problem": "Q?", "eval_solution": steps, "solution_type": kind, "problem_id": 0, "id": at, "level": 1}
        for at, (steps, kind) in enumerate([(STEPS, "chosen"), (WRONG, "rejected"), (["So 6."], "rejected")])
    ]
    (item,) = load(tmp_path, *rows).items
    assert (texts(item.chosen), texts(item.rejected)) == (["2 + 2 is 4.\nSo 4."], ["2 + 2 is 5.\nSo 5.", "So 6."])


def test_m_rewardbench_counts_ids_by_language_and_source(tmp_path: Path) -> None:
    row = {"id": 3, "language": "deu_Latn", "prompt": "Q?", "chosen": GOOD, "rejected": BAD, "chosen_model": "m"}
    row |= {"rejected_model": "n", "source": "hep-go", "category": "Reasoning"}
    data = load(tmp_path, row, {**row, "language": "fra_Latn"})
    assert data.format == "m-rewardbench"
    assert [item.id for item in data.items] == ["deu_Latn/hep-go/3", "fra_Latn/hep-go/3"]
    assert (data.items[0].subset, data.items[0].fields[LABEL]) == ("Reasoning", "code")


def test_hh_rlhf_where_the_assistant_speaks_twice(tmp_path: Path) -> None:
    asks = "\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": f"{asks} Hello.\n\nAssistant: And bye.", "rejected": f"{asks} No."}
    (item,) = load(tmp_path, row).items
    assert (asked(item), texts(item.chosen), texts(item.rejected)) == (
        ["user: Hi"],
        ["Hello.\n\nAnd bye."],
        ["No."],
    )


STYLES: Row = {"id": 8, "subset": "alpacaeval", "prompt": "Q?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}


def test_a_file_of_rm_bench_says_its_domain_by_its_name(tmp_path: Path) -> None:
    names = ("chat", "code", "math", "safety-refuse", "safety-response")
    for name in names:
        write(tmp_path / "rm" / f"{name}_filtered.jsonl", STYLES)
    data = load_items(tmp_path / "rm")
    assert data.format == "rm-bench"
    assert [item.id for item in data.items] == [f"{name}/8" for name in names]  # ids repeat across its files
    assert [item.subset for item in data.items] == list(names)
    assert [item.fields[LABEL] for item in data.items] == ["chat", "code", "math", "safety", "safety"]
    (item,) = load_items(tmp_path / "rm" / "math_filtered.jsonl").items
    assert (item.subset, item.fields["subset"]) == ("math", "alpacaeval")
    total = write(tmp_path / "total_dataset.jsonl", *({**STYLES, "domain": name} for name in names))
    assert [item.id for item in load_items(total).items] == [item.id for item in data.items]


def test_three_styles_of_an_unknown_file_are_plain_and_rm_bench_asks_for_the_domain(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", STYLES)
    assert load_items(path).format == "plain"
    with pytest.raises(DataError, match=r"no `domain`, and its file is not named chat_filtered.*--map domain=COLUMN"):
        load_items(path, format="rm-bench")
    path = write(tmp_path / "mine.jsonl", {**STYLES, "part": "chat"})
    data = load_items(path, columns={"domain": "part"})
    assert (data.format, data.items[0].id) == ("rm-bench", "chat/8")


def test_llmbars_own_folders_are_its_subsets(tmp_path: Path) -> None:
    row = {"input": "Q?", "output_1": GOOD, "output_2": BAD, "label": 1}
    for name in ("Natural", "Adversarial/Neighbor", "Adversarial/Manual"):
        folder = tmp_path / "LLMBar" / name
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps([row]))
        (folder / "evaluators").mkdir()  # beside data lies what was made of them
        (folder / "evaluators" / "result.json").write_text("[{}]")
    data = load_items(tmp_path / "LLMBar")
    assert [item.subset for item in data.items] == ["Adversarial/Manual", "Adversarial/Neighbor", "Natural"]
    assert data.format == "llmbar"
    (item,) = load_items(tmp_path / "LLMBar" / "Natural").items
    assert item.subset == "all"


def test_folders_in_folders_are_parts_and_shards_are_not(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": GOOD, "rejected": BAD}
    for name in ("deu/test-00000-of-00002", "deu/test-00001-of-00002", "fra/test-00000-of-00001", "hard"):
        write(tmp_path / "in" / "x" / f"{name}.jsonl" if "/" in name else tmp_path / "in" / "y" / f"{name}.jsonl", row)
    (tmp_path / "in" / "info.json").write_text('{"about": "the data"}')
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / ".cache" / "x.csv").write_text("a\n1\n")
    assert [item.subset for item in load_items(tmp_path / "in").items] == ["x/deu", "x/deu", "x/fra", "y/hard"]


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    for name in ("data.jsonl", "data.parquet", "data.json"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer, not the data: run git lfs pull"):
            load_items(tmp_path / name)


MAPS: list[tuple[Row, str]] = [
    ({"question": "Q?", "win": GOOD, "lose": BAD}, "--map prompt=question --map chosen=win --map rejected=lose"),
    (
        {"query": "Q?", "answer_a": GOOD, "answer_b": BAD, "verdict": "a", "id": 1},
        "--map prompt=query --map response_a=answer_a --map response_b=answer_b --map label=verdict",
    ),
    (
        {"Instruction": "Q?", "Answer 1": GOOD, "Answer 2": BAD, "preference": 2},
        "--map prompt=Instruction --map response_a='Answer 1' --map response_b='Answer 2' --map label=preference "
        "--map label.a=VALUE --map label.b=VALUE, with the values of `preference` that mean that the first and that "
        "the second response is the better one (this row has 2)",
    ),
    (
        {"question": "Q?", "candidates": ["a", "b"], "ratings": [1, 2]},
        "--map prompt=question --map responses=candidates --map scores=ratings",
    ),
    (
        {"question": "Q?", "answer": "a", "label": 2},
        "--map prompt=question --map response=answer --map label.a=VALUE --map label.b=VALUE, with the values of "
        "`label` that mean that the first and that the second response is the better one (this row has 2)",
    ),
    (
        {"question": "Q?", "answer": "a", "label": True},
        "--map prompt=question --map response=answer",
    ),
]


@pytest.mark.parametrize(("row", "options"), MAPS)
def test_a_refusal_names_a_map_that_works(row: Row, options: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", row)
    with pytest.raises(DataError) as refused:
        load_items(path)
    said = str(refused.value)
    assert "match no known format: name them with --map" in said
    assert said.endswith(options)
    stated = options.partition(", with")[0].replace("label.a=VALUE", "label.a=1").replace("label.b=VALUE", "label.b=2")
    names = [option.replace("'", "") for option in stated.split("--map ")[1:]]
    columns = dict(name.strip().split("=", 1) for name in names)
    (found,) = read_items(path, columns=columns)
    assert isinstance(found, Item | Undecided)


def test_a_refusal_without_a_guess_says_what_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        load(tmp_path, {"text": "a", "n": 1})
    said = str(refused.value)
    for part in ("--map chosen=", "--map response_a=", "--map label=", "--map responses="):
        assert part in said


def test_a_map_reaches_into_columns_and_names_labels_of_its_own(tmp_path: Path) -> None:
    row = {"meta": {"q": ["x", "Q?"]}, "out": [{"t": GOOD}, {"t": BAD}], "vote": "-"}
    columns = {"prompt": "meta.q.1", "response_a": "out.0.t", "response_b": "out.1.t", "label": "vote"}
    data = load(tmp_path, row, {**row, "vote": "+"}, columns={**columns, "label.a": "+", "label.b": "-"})
    assert [texts(item.chosen) for item in data.items] == [[BAD], [GOOD]]
    assert asked(data.items[0]) == ["user: Q?"]
    columns = {"prompt": "meta.q.1", "responses": "out.*.t", "scores": "s"}
    (item,) = load(tmp_path, {**row, "s": [1, 2]}, columns=columns).items
    assert texts(item.chosen) == [BAD]
    with pytest.raises(DataError, match=r"unknown column 'meta.q.7'"):
        load(tmp_path, row, columns={**columns, "prompt": "meta.q.7"})


def test_the_safer_response_instead_of_the_better_one(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 1}
    data = load(tmp_path, row, columns={"label": "safer_response_id"})
    assert (data.format, texts(data.items[0].chosen)) == ("pku-saferlhf", [BAD])


def test_the_page_lists_the_formats_as_they_are() -> None:
    spec = importlib.util.spec_from_file_location("docs_formats", ROOT / "docs/tools/formats.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "out of date: python docs/tools/formats.py"


def test_every_format_of_the_table_is_tested_here_or_beside() -> None:
    beside = {"rewardbench", "rewardbench2", "rm-bench", "hh-rlhf", "m-rewardbench", "alpaca-pairs", "kto"}
    beside |= {"rewardmath"}
    here = {entry[0] for entry in (*TWO, *LISTS)} | {"summarize-from-feedback"}
    assert here | beside == set(FORMATS)

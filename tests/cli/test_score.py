from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.api.types import Message, Sample
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.scoring.rows import PIPE_WINDOW

CONFIG = """
strong: "fake:a"
weak: "fake:b"
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field], default_domain: chat}
"""
KEYS = [
    *("id", "reward", "strong_logprob", "weak_logprob", "strong_tokens", "weak_tokens"),
    *("domain", "router", "guidance", "exemplars", "truncated", "reason"),
]

Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(gdr: Gdr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gdr:
    """Run `gdr` in a folder with a gdr.yaml: arguments to (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    Path("gdr.yaml").write_text(CONFIG)
    return gdr


def rows(count: int) -> list[dict[str, Any]]:
    """Two responses to each prompt; every third row names a domain, every fifth was cut."""
    return [
        {
            "id": f"r{n}",
            "prompt": [{"role": "user", "content": f"Frage {n // 2}: wie geht's?"}],
            "response": f"Antwort {n} — gut. 好",
            **({"domain": "safety"} if n % 3 == 0 else {}),
            **({"finished": False} if n % 5 == 0 else {}),
        }
        for n in range(count)
    ]


def lines(some: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in some)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def expected(some: list[dict[str, Any]]) -> list[float | None]:
    """The library's rewards."""
    samples = [
        Sample(
            prompt=tuple(Message(**turn) for turn in row["prompt"]),
            response=row["response"],
            finished=row.get("finished", True),
            fields={"domain": row["domain"]} if "domain" in row else {},
        )
        for row in some
    ]
    return [score.reward for score in GuidedDensityRatio.from_config("gdr.yaml").score(samples)]


def test_input_columns_are_kept_on_request(gdr: Gdr, tmp_path: Path) -> None:
    given = [
        {"id": "a", "prompt": "Hi", "response": "Yo", "domain": "safety", "n": 1.5, "tags": ["x", {"y": None}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "response": "No", "n": None},
    ]
    Path("in.jsonl").write_text(lines(given))
    code, out, _ = gdr("score", "in.jsonl", "--keep")
    assert code == 0
    plain = parsed(gdr("score", "in.jsonl")[1])
    assert parsed(out) == [{**row, **scored} for row, scored in zip(given, plain, strict=True)]
    assert [row["domain"] for row in parsed(out)] == ["safety", "chat"]
    table = {"prompt": ["Hi"], "response": ["Yo"], "day": [datetime.date(2026, 1, 2)], "n": [math.nan]}
    pq.write_table(pa.table(table), "in.parquet")
    (row,) = parsed(gdr("score", "in.parquet", "--keep")[1])
    assert (row["day"], row["n"]) == ("2026-01-02", None)
    code, _, err = gdr("score", "-", "--keep", stdin=lines([{**given[0], "reward": 3}]))
    assert code == 2
    assert "the column 'reward' would be written over: rename it with --map old_reward=reward" in err


def test_a_file_to_standard_output(gdr: Gdr) -> None:
    Path("in.jsonl").write_text(lines(rows(600)))
    code, out, err = gdr("score", "in.jsonl")
    got = parsed(out)
    assert code == 0
    assert [list(row) for row in got] == [KEYS] * 600
    assert [row["id"] for row in got] == [f"r{n}" for n in range(600)]
    assert [row["reward"] for row in got] == expected(rows(600))
    for n, row in enumerate(got):
        assert row["reward"] == pytest.approx(row["strong_logprob"] - row["weak_logprob"], abs=1e-9)
        assert (row["domain"], row["router"]) == (("safety", "field") if n % 3 == 0 else ("chat", "default"))
        assert (row["guidance"] == "none") == (n % 3 != 0)
        assert (row["truncated"], row["reason"]) == (False, None)
        assert row["strong_tokens"] == row["weak_tokens"] == len(rows(600)[n]["response"].encode()) + (n % 5 != 0)
    assert err.startswith("gdr: 600 rows, 600 scored; domains by default 400, field 200; ")
    assert err.count("\n") == 1


def test_every_way_in_gives_the_same_numbers(gdr: Gdr) -> None:
    some = rows(150)
    Path("in.jsonl").write_text(lines(some))
    _, from_file, _ = gdr("score", "in.jsonl")
    assert gdr("score", "-", stdin=lines(some))[1] == from_file
    assert gdr("score", stdin=lines(some))[1] == from_file
    renamed = lines([{("q" if key == "prompt" else key): value for key, value in row.items()} for row in some])
    assert gdr("score", "--map", "prompt=q", stdin=renamed)[1] == from_file
    code, out, _ = gdr("score", "in.jsonl", "-o", "out.jsonl")
    assert (code, out) == (0, "")
    assert Path("out.jsonl").read_text() == from_file
    for store in ("", "store: {path: store.sqlite}\n"):
        Path("gdr.yaml").write_text(CONFIG + "load: sequential\n" + store)
        assert gdr("score", "in.jsonl")[1] == from_file
        assert gdr("score", "-", stdin=lines(some))[1] == from_file
    assert sorted(path.name for path in Path().iterdir() if "store" not in path.name) == [
        "gdr.yaml",
        "in.jsonl",
        "out.jsonl",
    ]


def test_a_second_run_comes_from_the_store(gdr: Gdr) -> None:
    Path("gdr.yaml").write_text(CONFIG + "store: {path: kept/store.sqlite}\n")
    Path("in.jsonl").write_text(lines(rows(100)))
    _, first, err = gdr("score", "in.jsonl")
    assert err.endswith("store: 0 hits, 200 misses\n")
    _, second, err = gdr("score", "in.jsonl")
    assert err.endswith("store: 200 hits, 0 misses\n")
    assert first == second
    Path("gdr.yaml").write_text(CONFIG.replace("fake:b", "fake:c") + "store: {path: kept/store.sqlite}\n")
    assert gdr("score", "in.jsonl")[2].endswith("store: 100 hits, 100 misses\n")


def test_real_models(gdr: Gdr, tiny_model: Callable[..., Path]) -> None:
    models = CONFIG.replace("fake:a", str(tiny_model(seed=1))).replace("fake:b", str(tiny_model(seed=2)))
    Path("in.jsonl").write_text(lines(rows(12)))
    written = {}
    for load in ("together", "sequential"):
        Path("gdr.yaml").write_text(models + f"load: {load}\n")
        code, out, err = gdr("score", "in.jsonl")
        assert code == 0, err
        written[load] = [row["reward"] for row in parsed(out)]
        assert written[load] == pytest.approx(expected(rows(12)), abs=1e-3)
        assert len({round(reward, 3) for reward in written[load]}) > 6
    assert written["together"] == pytest.approx(written["sequential"], abs=1e-3)


def test_tokens(gdr: Gdr) -> None:
    _, out, _ = gdr("score", "--tokens", stdin=lines(rows(3)))
    for row in parsed(out):
        assert len(row["strong_token_logprobs"]) == row["strong_tokens"]
        assert sum(row["strong_token_logprobs"]) == pytest.approx(row["strong_logprob"])
        assert sum(row["token_ratios"]) == pytest.approx(row["reward"])
        assert row["token_rewards"] == row["token_ratios"]  # reduced as a sum
        assert len(row["weak_token_offsets"]) == row["weak_tokens"]


def test_steps(gdr: Gdr) -> None:
    Path("gdr.yaml").write_text(CONFIG + "reward: {reduction: mean}\n")
    text = "First this.\n\nThen that.\nDone."
    for by, count in (("line", 3), (r"\n\n", 2), (".", 3)):
        code, out, err = gdr("score", "--steps", by, stdin=lines([{"prompt": "p", "response": text}]))
        assert code == 0, err
        (row,) = parsed(out)
        assert list(row) == [*KEYS, "steps"]
        assert list(row["steps"][0]) == ["text", "start", "stop", "reward"]
        assert "".join(step["text"] for step in row["steps"]) == text
        assert len(row["steps"]) == count
        assert sum(step["reward"] for step in row["steps"]) == pytest.approx(row["reward"], abs=1e-6)
    bad = lines([{"prompt": "p"}, {"prompt": "p", "response": text}])
    _, out, _ = gdr("score", "--steps", "line", "--skip-bad", stdin=bad)
    assert [row["steps"] is None for row in parsed(out)] == [True, False]
    assert gdr("score", "--steps", "", stdin=bad)[0] == 2


def test_what_does_not_fit_has_a_reason(gdr: Gdr) -> None:
    Path("gdr.yaml").write_text(CONFIG + "limits: {max_length: 200}\n")
    some = [{"prompt": "p", "response": "r" * n} for n in (10, 300, 20, 400)]
    code, out, err = gdr("score", stdin=lines(some))
    got = parsed(out)
    assert code == 0
    assert [row["reward"] is None for row in got] == [False, True, False, True]
    assert [row["id"] for row in got] == [f"row-00000{n}" for n in (1, 2, 3, 4)]
    assert "exceed 200 tokens" in got[1]["reason"]
    assert "4 rows, 2 scored, 2 not (2 x strong model: the prompt (N tokens)" in err
    code, out, err = gdr("score", "--strict", "-o", "out.jsonl", stdin=lines(some))
    assert code == 2
    assert err.startswith("gdr: standard input line 2: not scored: strong model: ")
    assert not list(Path().glob("out.jsonl*"))


BAD = {
    "malformed": ('{"prompt": \n', "line 3: malformed JSON"),
    "no response": ('{"prompt": "p"}\n', "line 3: there is no column 'response' among prompt"),
    "empty prompt": ('{"prompt": "", "response": "r"}\n', "line 3: `prompt` is empty"),
    "duplicate": ('{"prompt": "p", "response": "r", "id": "r1"}\n', "line 3: duplicate id 'r1', first used in line 2"),
    "domain": (
        '{"prompt": "p", "response": "r", "domain": "saftey"}\n',
        "line 3: column 'domain': unknown domain 'saftey'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_before_anything_is_written(gdr: Gdr, kind: str) -> None:
    bad, message = BAD[kind]
    Path("in.jsonl").write_text(lines(rows(2)) + bad + lines(rows(4)[2:]))
    # A folder that holds no model: the rows are looked at first.
    Path("hollow").mkdir()
    Path("gdr.yaml").write_text(CONFIG.replace("fake:a", "hf:./hollow"))
    for out in ([], ["-o", "out.jsonl"]):
        code, text, err = gdr("score", "in.jsonl", *out)
        assert (code, text) == (2, "")
        assert err.startswith(f"gdr: in.jsonl {message}")
        assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["gdr.yaml", "hollow", "in.jsonl"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_may_be_skipped(gdr: Gdr, kind: str) -> None:
    bad, message = BAD[kind]
    text = lines(rows(2)) + bad + lines(rows(4)[2:])
    Path("in.jsonl").write_text(text)
    for got in (gdr("score", "in.jsonl", "--skip-bad"), gdr("score", "--skip-bad", stdin=text)):
        code, out, err = got
        assert code == 0
        written = parsed(out)
        assert [row["reward"] for row in written if row["id"] in ("r0", "r1", "r2", "r3")][:2] == expected(rows(2))
        assert list(written[2]) == KEYS
        assert written[2]["reward"] is None
        assert message in written[2]["reason"]
        assert "5 rows, 4 scored, 1 not (1 x bad row)" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "absent.jsonl does not exist"),
        (["in.jsonl", "-c", "absent.yaml"], "absent.yaml"),
        (["in.jsonl", "-o", "no/such/folder.jsonl"], "there is no folder no/such: make it first"),
        (["in.jsonl", "-o", "in.jsonl"], "-o in.jsonl is an input: name another file"),
        (["in.jsonl", "-o", "gdr.yaml"], "-o gdr.yaml is an input: name another file"),
        (["in.jsonl", "-o", "."], "-o .: is a folder: name a file"),
        (["in.jsonl", "--map", "prompt=qestion"], "unknown column 'qestion': known are id, prompt, response"),
        (["in.jsonl", "--map", "prompt"], "--map 'prompt': write NEW=OLD"),
        (["empty.jsonl"], "empty.jsonl has no rows"),
    ],
)
def test_what_is_refused(gdr: Gdr, arguments: list[str], message: str) -> None:
    Path("in.jsonl").write_text(lines(rows(2)[1:]))
    Path("empty.jsonl").touch()
    before = sorted(Path().iterdir()), Path("in.jsonl").read_text()
    code, out, err = gdr("score", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert (sorted(Path().iterdir()), Path("in.jsonl").read_text()) == before


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gdr_plugin", *arguments],
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_lines_leave_while_others_still_come(tmp_path: Path) -> None:
    (tmp_path / "gdr.yaml").write_text(CONFIG)
    some = rows(PIPE_WINDOW + 3)
    with start("score", folder=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(lines(some[:PIPE_WINDOW]))
        process.stdin.flush()
        first = [json.loads(process.stdout.readline())["id"] for _ in range(PIPE_WINDOW)]
        assert first == [row["id"] for row in some[:PIPE_WINDOW]]
        process.stdin.write(lines(some[PIPE_WINDOW:]))
        process.stdin.close()
        assert len(process.stdout.readlines()) == 3
        assert process.stderr.read().startswith(f"gdr: {PIPE_WINDOW + 3} rows")
    assert process.returncode == 0


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "gdr.yaml").write_text(CONFIG)
    (tmp_path / "in.jsonl").write_text(lines(rows(5000)))
    with start("score", "in.jsonl", folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "r0"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "gdr.yaml").write_text(CONFIG)
    (tmp_path / "in.jsonl").write_text(lines(rows(3)))
    os.mkfifo(tmp_path / "pipe")
    with start("score", "in.jsonl", "-o", "pipe", folder=tmp_path) as process:
        assert len((tmp_path / "pipe").read_text().splitlines()) == 3
        _, err = process.communicate()
    assert (process.returncode, err[:11]) == (0, "gdr: 3 rows")
    assert (tmp_path / "pipe").is_fifo()


def test_steps_of_responses_with_more_than_text(gdr: Gdr) -> None:
    """A thought counts to the first step; where a template writes calls, nobody knows the steps."""
    call = {"function": {"name": "timer", "arguments": {"minutes": 5}}}
    turns = [
        {"role": "assistant", "content": "a\nb", **more} for more in ({"reasoning": "Hm."}, {"tool_calls": [call]})
    ]
    rows = [{"prompt": "p", "response": [turn]} for turn in turns]
    code, out, err = gdr("score", "--steps", "line", stdin=lines(rows))
    assert code == 0, err
    thought, called = map(json.loads, out.splitlines())
    assert [step["text"] for step in thought["steps"]] == ["a\n", "b"]
    assert sum(step["reward"] for step in thought["steps"]) == pytest.approx(thought["reward"], abs=1e-6)
    assert called["steps"] is None
    assert called["reward"] is not None


def test_template_marks_in_the_rows_are_counted_in_the_last_line(
    gdr: Gdr, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    Path("gdr.yaml").write_text(f"strong: {tiny_model(seed=1)}\nweak: {tiny_model(seed=2)}\n")
    given = [
        {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "response": "Hello."},
        {"prompt": "Hi", "response": "Hello.<|im_end|>"},
        {"prompt": "Hi", "response": "Hello."},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    with pytest.warns(EngineWarning, match=r"spells out '<\|im_start\|>'"):
        code, out, err = gdr("score", "rows.jsonl")
    assert code == 0
    assert all(json.loads(line)["reward"] is not None for line in out.splitlines())
    assert "3 rows, 3 scored; 2 hold marks of a chat template (scored as text);" in err

"""ms-swift's own teacher client (released code, a process of its own) against our server: `swift_teacher.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gdr_plugin.config.load import parse_config
from gdr_plugin.reward.reward import GuidedDensityRatio
from gdr_plugin.reward.teacher import RawIds, Teacher
from gdr_plugin.serve import ServeSettings

pytestmark = [pytest.mark.torch, pytest.mark.thorough]
CLIENT = Path(os.environ.get("GDR_TEST_CLIENTS") or Path(sys.prefix) / "clients") / "ms-swift"
PROMPTS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about the river."}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How can I help you today?"},
    ],
]
ANSWERS = ["The river is the people who live there.<|im_end|>", "With a story."]
PREFIX = "<think>\n\n</think>\n\n"


def test_its_client_reads_the_virtual_logprobs_of_the_answers_ids(
    tiny_model: Callable[..., Path], serving: Callable[..., AbstractContextManager[str]]
) -> None:
    if not CLIENT.is_dir():
        pytest.skip("ms-swift is not installed: make .venv/.clients")
    from transformers import AutoTokenizer

    policy = str(tiny_model(seed=3))
    config = {
        "strong": str(tiny_model(seed=1)),
        "weak": policy,
        "guidance": {"domains": {"chat": "none", "math": "math"}},
    }
    config["routing"] = {"default_domain": "chat"}
    teacher = Teacher.from_ratio(GuidedDensityRatio.from_config(parse_config(config)), policy, scale=1.7)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    rows = [
        {"messages": prompt, "response": tokenizer.encode(answer, add_special_tokens=False)}
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]

    def expected(prefix: str, domain: str) -> list[list[float]]:
        found = []
        for row in rows:
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
            asked = tokenizer.encode(text, add_special_tokens=False) + tokenizer.encode(prefix)
            question = RawIds((*asked, *row["response"]), len(asked) - 1, domain)
            found += teacher.score([question])
        return [values.values.tolist() for values in found]  # type: ignore[union-attr]

    with serving(teacher.ratio, ServeSettings(policy_tokenizer=policy), teacher) as url:
        job = {"url": url, "tokenizer": policy, "prefix": None, "topk": 0, "rows": rows}
        jobs = [
            job,
            {**job, "url": f"{url}/teacher/math", "prefix": PREFIX},
            {**job, "topk": 8},
            {**job, "url": f"{url}/teacher/maths"},
        ]
        run = subprocess.run(
            [sys.executable, Path(__file__).with_name("swift_teacher.py")],
            input=json.dumps(jobs),
            env={**os.environ, "PYTHONPATH": str(CLIENT)},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    own, of_math, topk, lost = json.loads(run.stdout.splitlines()[-1])["answers"]
    for found, wanted in ((own, expected("", "chat")), (of_math, expected(PREFIX, "math"))):
        assert isinstance(found, list), found
        for values, right in zip(found, wanted, strict=True):
            assert values == pytest.approx(right, abs=1e-4)
    assert own[0] != pytest.approx(of_math[0], abs=1e-2)
    assert "422" in topk  # it stops with the server's own words
    assert "prompt_logprobs must be 0, not 8" in topk
    assert lost.startswith("ConnectionError: Servers not reachable")  # it asks for the health of what it is given

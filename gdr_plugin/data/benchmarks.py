"""What benchmarks call their parts, what each counts, and which domain it belongs to. Data only."""

from __future__ import annotations

REWARDBENCH: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **{f"hep-{name}": 164 for name in ("cpp", "go", "java", "js", "python", "rust")}},
}
"""Sections of RewardBench, and what each subset counts: its size, but for math-prm (447 pairs), which counts as much
as all code. (One release of the benchmark's code has the two XSTest sizes swapped; these are the data's.)"""


REWARDBENCH_DOMAINS = {
    subset: {"Chat": "chat", "Chat Hard": "chat", "Safety": "safety"}.get(
        section, "math" if subset == "math-prm" else "code"
    )
    for section, subsets in REWARDBENCH.items()
    for subset in subsets
}


REWARDBENCH2_DOMAINS = {"math": "math", "safety": "safety"}


RM_BENCH_DOMAINS = {
    name: name.partition("-")[0] for name in ("chat", "code", "math", "safety-refuse", "safety-response")
}


JUDGEBENCH_DOMAINS = {"Knowledge": "chat", "Reasoning": "chat", "Math": "math", "Coding": "code"}


def judgebench_category(source: str) -> str | None:
    """JudgeBench's category of a source data set; None for a source that it does not have."""
    starts = {"mmlu-pro": "Knowledge", "livebench-reasoning": "Reasoning", "livebench-math": "Math"}
    starts["livecodebench"] = "Coding"
    return next((category for start, category in starts.items() if source.startswith(start)), None)

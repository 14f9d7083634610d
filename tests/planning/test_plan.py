"""Devices, memory and hours: what fits, what is recommended, and that assumptions are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.planning.assumed import LAUNCH_S, MFU
from gdr_plugin.planning.gpus import gpus, parse_gpus
from gdr_plugin.planning.plan import Plan, duration
from gdr_plugin.planning.run import PlanOptions, plan_run

from .conftest import LLAMA_70B, QWEN_7B, Described


def plan(tmp_path: Path, strong: object, weak: object, gpus: str = "8xH100", **options: Any) -> Plan:
    given = {"prompts": 100_000, "samples": 32, **options}
    config = {
        "strong": strong if isinstance(strong, dict) else str(strong),
        "weak": weak if isinstance(weak, dict) else str(weak),
    }
    path = tmp_path / "gdr.yaml"
    path.write_text(json.dumps(config))
    return plan_run(path, PlanOptions(gpus=gpus, **given))


def by_name(made: Plan) -> dict[str, Any]:
    return {one.name: one for one in made.arrangements}


def test_the_table_of_gpus_is_complete_and_sourced() -> None:
    assert {"A100-40GB", "A100-80GB", "H100", "H200", "B200", "L40S", "L4", "A10G", "MI300X", "CPU-core"} <= {
        gpu.name for gpu in gpus()
    }
    names = [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    for gpu in gpus():
        assert gpu.source
        assert gpu.float32 is not None
        assert gpu.flops("float32") > 1e11
        if not gpu.on_cpu:
            assert gpu.float16 is not None
            assert gpu.float16 > gpu.float32


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH100", 8, "H100"),
        ("2 x l40s", 2, "L40S"),
        ("A100", 1, "A100-80GB"),
        ("NVIDIA H200", 1, "H200"),
        ("4*rtx 4090", 4, "RTX-4090"),
        ("16xcpu", 16, "CPU-core"),
    ],
)
def test_gpus_are_written_as_people_do(text: str, count: int, name: str) -> None:
    cluster = parse_gpus(text)
    assert (cluster.count, cluster.gpu.name) == (count, name)


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU 'H10'.*did you mean 'H100'"):
        parse_gpus("8xH10")
    with pytest.raises(ConfigError, match="at least one"):
        parse_gpus("0xH100")


def test_two_models_of_7b_fit_side_by_side_and_take_their_operations(described: Described, tmp_path: Path) -> None:
    strong, weak = described("a", **QWEN_7B), described("b", **QWEN_7B)
    made = plan(tmp_path, strong, weak)
    side = made.sides["strong"]
    # Domains without tokenizer: four, of which one is unguided; tokens a side: P + G (L - 1) for each prompt.
    assert side.work.tokens == pytest.approx(100_000 * (150 + 32 * 299) + side.work.shared)
    seconds = made.flops.ideal / (0.4 * 989e12 * 8)
    assert made.scoring_seconds == pytest.approx(seconds)
    together = by_name(made)["together"]
    assert together.fits
    assert together.seconds == pytest.approx(seconds + 2 * 15.23, rel=0.01)  # two times 15 GB at 1 GB/s
    assert together.gpu_hours == pytest.approx(together.seconds / 3600 * 8)
    assert 30.5 < together.memory_gb < 45
    assert made.recommendation.startswith("Run it with both models together")
    doubled = plan(tmp_path, strong, weak, prompts=200_000)
    assert doubled.scoring_seconds == pytest.approx(2 * seconds, rel=1e-3)
    assert plan(tmp_path, strong, weak, mfu=0.2).scoring_seconds == pytest.approx(2 * seconds)


def test_one_after_the_other_where_only_one_fits(described: Described, tmp_path: Path) -> None:
    made = plan(tmp_path, described("a", **QWEN_7B), described("b", **QWEN_7B), "1xRTX-4090")
    found = by_name(made)
    assert found["together"].fits is False
    assert found["together"].seconds is None
    assert found["sequential"].fits
    assert "GB a device" in found["together"].why
    assert "needs 2 RTX-4090" in found["ray"].why
    assert "one model after the other" in made.recommendation


def test_a_70b_is_spread_over_gpus_or_served_in_parallel(described: Described, tmp_path: Path) -> None:
    made = plan(tmp_path, described("a", "llama", **LLAMA_70B), described("b", **QWEN_7B))
    found = by_name(made)
    assert "of 3 H100 (device_map: auto" in found["together"].how
    assert "strong 1 x TP 4, weak 4 x TP 1" in found["servers, cached"].how
    assert found["servers, cached"].seconds < found["sequential"].seconds
    assert found["servers, uncached"].seconds > 2 * found["servers, cached"].seconds
    assert "servers" in made.recommendation
    small = plan(tmp_path, tmp_path / "a", tmp_path / "b", "2xL4")
    assert all(one.fits is False for one in small.arrangements)
    assert small.recommendation.startswith("Nothing fits on 2 x L4: --gpus ")


def test_small_models_are_bound_by_the_host(tiny_model: Any, tmp_path: Path) -> None:
    made = plan(tmp_path, tiny_model("llama", 0), tiny_model("llama", 1), "1xH100", prompt_tokens=50)
    tokens = sum(side.work.tokens for side in made.sides.values())
    together = by_name(made)["together"]
    assert together.seconds == pytest.approx(tokens / 16_384 * 2 * LAUNCH_S, rel=0.01)


def test_models_on_one_base_share_weights(described: Described, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"r": 8, "target_modules": ["q_proj", "v_proj"]}')
    base = described("a", **QWEN_7B)
    shared = by_name(plan(tmp_path, {"model": str(base), "adapter": str(tmp_path / "lora")}, base))
    apart = by_name(plan(tmp_path, base, described("b", **QWEN_7B)))
    assert apart["together"].memory_gb - shared["together"].memory_gb == pytest.approx(15.2, abs=0.1)
    assert "the adapter by its name" in shared["servers, cached"].how


def test_drawing_responses_is_planned_too(described: Described, tmp_path: Path) -> None:
    strong, weak = described("a", **QWEN_7B), described("b", **QWEN_7B)
    without, drawn = plan(tmp_path, strong, weak), plan(tmp_path, strong, weak, policy="weak")
    assert without.sampling_seconds is None
    # Transformers starts 28 layers a step: 0.8 ms each; 3.2 million responses of 300 tokens, 64 at once, 8 GPUs.
    assert drawn.sampling_seconds == pytest.approx(3_200_000 / 64 * 300 * 28 * 0.8e-3 / 8, rel=0.05)
    for before, after in zip(without.arrangements, drawn.arrangements, strict=True):
        assert after.seconds > before.seconds
    local, served = (by_name(drawn)[name].seconds for name in ("together", "servers, cached"))
    assert served < local


def test_cpu_cores_have_no_servers_and_no_memory_of_their_own(tiny_model: Any, tmp_path: Path) -> None:
    made = plan(tmp_path, tiny_model("llama", 0), tiny_model("llama", 1), "2xCPU-core", prompts=1000, samples=4)
    assert [one.name for one in made.arrangements] == ["together", "sequential", "ray"]
    assert {one.fits for one in made.arrangements} == {None}
    assert made.scoring_seconds == pytest.approx(made.flops.ideal / (MFU["cpu"] * 0.22e12 * 2))
    assert made.sides["strong"].model.dtype == "float32"


def test_a_gpu_that_lacks_the_dtype_is_refused(described: Described, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="V100 computes no bfloat16: set `dtype: float16`"):
        plan(tmp_path, described("a", **QWEN_7B), described("b", **QWEN_7B), "4xV100")


def test_an_input_is_counted_and_measured(tiny_model: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "How are you?", "responses": ["Fine.", "Well, thank you."]}] * 700
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = plan(
        tmp_path,
        tiny_model("llama", 0),
        tiny_model("llama", 1),
        prompts=None,
        samples=None,
        input=str(tmp_path / "in.jsonl"),
    )
    work = made.sides["strong"].work
    assert (work.prompts, work.samples) == (700, 2)
    chat = made.sides["strong"].model.chat
    from gdr_plugin.api.types import Message

    spans = [chat.span((Message("user", "How are you?"),), text, end=True) for text in rows[0]["responses"]]
    assert work.lengths.prompt == len(spans[0].context)
    assert work.lengths.response == sum(len(span.response) for span in spans) / 2
    assert any("first 500 rows of in.jsonl" in note for note in made.assumptions)


def test_guidance_is_counted_with_the_models_own_tokenizer(tiny_model: Any, tmp_path: Path) -> None:
    """The same figures as `gdr check` prints."""
    from gdr_plugin.api.types import Message
    from gdr_plugin.guidance import apply
    from gdr_plugin.reward.reward import GuidedDensityRatio

    made = plan(tmp_path, tiny_model("llama", 0), tiny_model("llama", 1))
    ratio = GuidedDensityRatio.from_config(tmp_path / "gdr.yaml")
    asked = (Message("user", "Why?"),)
    plain = len(ratio.strong.chat.span(asked, "", end=False).context)
    expected = [
        len(ratio.strong.chat.span(apply(text, asked), "", end=False).context) - plain
        for text in ratio.rendered.values()
    ]
    assert list(made.sides["strong"].work.guidance) == expected
    assert expected[0] == 0  # chat has no guidance by default
    assert min(expected[1:]) > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": None}, "say how many prompts"),
        ({"samples": None}, "say how many responses"),
        ({"prompts": 0}, "--prompts must be 1 or more"),
        ({"mfu": 1.5}, "--mfu is a share"),
        ({"response_tokens": 40_000}, "was built for 32,768"),
    ],
)
def test_wrong_options_are_one_line(
    described: Described, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, described("a", **QWEN_7B), described("b", **QWEN_7B), **options)


def test_an_empty_input_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    with pytest.raises(DataError):
        plan(tmp_path, tiny_model("llama", 0), tiny_model("llama", 1), input=str(tmp_path / "in.jsonl"))


def test_times_are_written_for_people() -> None:
    assert [duration(seconds) for seconds in (2.24, 42, 720, 12_240, 450_000)] == [
        "2.2 s",
        "42 s",
        "12 min",
        "3.4 h",
        "5.2 days",
    ]


def test_the_command_prints_the_plan_and_json(gdr: Any, described: Described, tmp_path: Path) -> None:
    config = tmp_path / "gdr.yaml"
    config.write_text(f"strong: {described('a', **QWEN_7B)}\nweak: {described('b', **QWEN_7B)}\n")
    common = ("plan", config, "--gpus", "8xH100", "--prompts", "100000", "--samples", "32", "--price", "2.5")
    code, out, err = gdr(*common)
    assert (code, err) == (0, "")
    for part in ("7.62 G", "57 KB", "together", "servers, cached", "assumed", "Run it with both models together"):
        assert part in out
    code, out, _ = gdr(*common, "--json")
    found = json.loads(out)
    together = next(one for one in found["arrangements"] if one["name"] == "together")
    assert together["cost"] == pytest.approx(2.5 * together["gpu_hours"])
    assert found["strong"]["model"]["parameters"] == 7_615_616_512
    assert found["gpus"]["name"] == "H100"
    assert gdr("plan", config, "--gpus", "8xH10", "--prompts", "1", "--samples", "1")[0] == 2

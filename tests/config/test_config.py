"""gdr.yaml: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.settings import ModelSpec
from gdr_plugin.config.load import fingerprint, load_config, parse_config
from gdr_plugin.config.schema import Config

PAIR: dict[str, Any] = {"strong": "fake:a", "weak": "fake:b"}


def write(folder: Path, text: str) -> Path:
    path = folder / "gdr.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def refused(data: dict[str, Any], base: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, base=base, origin="gdr.yaml")
    message = str(caught.value)
    assert message.startswith("gdr.yaml: ")
    assert "\n" not in message
    return message.removeprefix("gdr.yaml: ")


def test_two_names_are_a_configuration_with_the_published_defaults() -> None:
    config = parse_config(PAIR)
    assert (config.strong.model, config.weak.model) == ("fake:a", "fake:b")
    assert (config.guidance.placement, config.reward.reduction) == ("both", "sum")
    assert config.store is None


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        strong: {model: "fake:a", dtype: float32}
        weak: fake:b
        guidance: {placement: strong, exemplars: 0, domains: {law: none, chat: chat}}
        routing:
          routers: [field, {name: fixed, domain: law}]
          default_domain: law
        reward: {reduction: per_byte, end_of_turn: never}
        store: {path: cache/logprobs.sqlite}
        limits: {max_length: 512, long_input: keep_end}
        load: sequential
        """,
    )
    config = load_config(path)
    assert config.routing.routers[1].name == "fixed"
    assert config.routing.routers[1].model_extra == {"domain": "law"}
    assert config.store is not None
    assert config.store.path == str(tmp_path / "cache/logprobs.sqlite")
    assert config.limits.max_length == 512
    assert config.load == "sequential"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stor": {"path": "x"}},
            "stor: unknown key 'stor': known are guidance, limits, load, ray, reward, routing, store, strong, "
            "teacher, weak (did you mean 'store'?)",
        ),
        (
            {"reward": {"reduction": "summ"}},
            "reward.reduction: unknown value 'summ': known are mean, per_byte, sum (did you mean 'sum'?)",
        ),
        (
            {"routing": {"default_domain": "caht"}},
            "routing.default_domain: unknown domain 'caht': known are chat, code, math, safety (did you mean 'chat'?); "
            "guidance.domains lists them",
        ),
        ({"guidance": {"exemplars": -1}}, "guidance.exemplars: must be 0 or more, not -1"),
        ({"limits": {"max_length": "long"}}, "limits.max_length: must be a whole number, not 'long'"),
        ({"guidance": {"instruction": "perhaps"}}, "guidance.instruction: must be true or false, not 'perhaps'"),
        ({"guidance": None}, "guidance: has no value: give it one or remove the key"),
        ({"guidance": {"domains": {}}}, "guidance.domains: must not be empty"),
        ({"guidance": {"domains": {True: "x"}}}, "guidance.domains: the key True must be text: put it in quotes"),
        ({"strong": {"model": "fake:a", "revision": 12}}, "strong.revision: must be text, not 12: put it in quotes"),
        ({"strong": {"model": "fake:a", "device_map": 5}}, "strong.device_map: must be text or a mapping, not 5"),
        (
            {"strong": {"model": "fake:a", "server": {"concurrency": 4}}},
            "strong: server: fake:a is computed in this process: remove the key, or name a server",
        ),
        ({"strong": 5}, "strong: must be a model's name or a mapping with `model`, not 5"),
        (
            {"routing": {"routers": ["field", {"keyword": {}}]}},
            "routing.routers[1]: must be a router's name, or a mapping with `name` and its options, "
            "not {'keyword': {}}",
        ),
    ],
)
def test_a_wrong_key_is_named_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    assert refused({**PAIR, **changes}) == message


def test_a_missing_model_is_named() -> None:
    assert refused({"strong": "fake:a"}) == "weak: is missing"


def test_a_misspelt_key_of_a_model_lists_the_keys_of_a_model() -> None:
    message = refused({**PAIR, "strong": {"model": "fake:a", "adaptr": "x"}})
    assert message.startswith("strong.adaptr: unknown key 'adaptr': known are adapter, chat_template, ")
    assert message.endswith("(did you mean 'adapter'?)")


def test_all_wrong_keys_are_in_one_line() -> None:
    message = refused({"strong": {"model": "fake:a", "dtype": "f"}, "reward": {"redction": "sum"}, "load": "later"})
    keys = [part.split(": ")[0] for part in message.split("; ")]
    assert keys == ["strong.dtype", "weak", "reward.redction", "load"]


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"gui\ndance\x1b[31m": {}}, 200),
        ({"limits": {"max_length": ["x" * 40] * 300}}, 400),
        ({"reward": {"reduction": "mean\r\ngdr: all is well"}}, 200),
        ({"guidance": {"domains": {f"d{number}": number for number in range(300)}}}, 700),
    ],
)
def test_what_is_repeated_of_a_file_is_short_and_cannot_forge_a_line(changes: dict[str, Any], length: int) -> None:
    message = refused({**PAIR, **changes})
    assert message.isprintable()
    assert 20 < len(message) < length


def test_of_many_wrong_keys_the_first_ten_are_named() -> None:
    parts = refused({**PAIR, **{f"key{number}": 1 for number in range(25)}}).split("; ")
    assert [part.split(": ")[0] for part in parts[:-1]] == [f"key{number}" for number in range(10)]
    assert parts[-1] == "and 15 more"


@pytest.mark.parametrize("key", ["model", "adapter", "tokenizer", "chat_template"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, key: str) -> None:
    message = refused({**PAIR, "strong": {"model": "org/name", key: "./" + "x" * 5_000}}, base=tmp_path)
    assert message.startswith(f"strong.{key}: no such file or folder: /")
    assert len(message) < 500


def test_a_router_twice_is_refused() -> None:
    assert refused({**PAIR, "routing": {"routers": ["field", "keyword", {"name": "field"}]}}).startswith(
        "routing.routers: field is listed twice"
    )


def test_one_model_on_both_sides_needs_guidance_on_one() -> None:
    same = {"strong": "fake:a", "weak": "fake:a"}
    assert "every reward would be 0" in refused(same)
    assert "every reward would be 0" in refused({**same, "guidance": {"placement": "none"}})
    assert parse_config({**same, "guidance": {"placement": "strong"}}).weak.model == "fake:a"
    with_adapter = {"strong": {"model": "fake:a", "adapter": "org/x"}, "weak": "fake:a"}
    assert parse_config(with_adapter).strong.adapter == "org/x"


def test_direct_construction_checks_the_same_rules() -> None:
    with pytest.raises(ValidationError, match="default_domain"):
        Config.model_validate({**PAIR, "routing": {"default_domain": "nowhere"}})


# Files


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "gdr.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: no such file: `gdr init {path}` writes one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strong: fake:a\nweak: [fake:b\n", "line 3: "),
        ("strong: fake:a\nweak: fake:b\nstrong: fake:c\n", "line 3: the key 'strong' is there twice, first in line 1"),
        ("strong: {model: a, model: b}\nweak: fake:b\n", "line 1: the key 'model' is there twice, first in line 1"),
        ("strong:\n\tmodel: fake:a\n", "line 2: "),
        ("", "is empty"),
        ("- strong\n", "must be a mapping"),
        ("strong: !!python/object:os.system x\n", "line 1: "),
        ("strong: *nowhere\n", "line 1: found undefined alias"),
        ("[" * 2000, "is nested too deeply"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gdr.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    binary = tmp_path / "gdr.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(binary)


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        strong: &model {model: "fake:a", dtype: float16}
        weak:
          <<: *model
          model: fake:b
        """,
    )
    assert load_config(path).weak == ModelSpec(model="fake:b", dtype="float16")


# Paths


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project/models/strong").mkdir(parents=True)
    (tmp_path / "project/rules.yaml").write_text("{}")
    (tmp_path / "project/law.yaml").write_text("{}")
    path = write(
        tmp_path / "project",
        """
        strong: {model: "hf:models/strong", adapter: ./models/strong, tokenizer: models/strong, chat_template: law.yaml}
        weak: {model: ./models/../models/strong, chat_template: plain}
        guidance: {files: [law.yaml]}
        routing: {routers: [{name: keyword, rules: rules.yaml, more: [rules.yaml, other.yaml], note: text}]}
        store: {path: .gdr/store.sqlite}
        """,
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(path.relative_to(tmp_path))
    home = tmp_path / "project"
    strong = str(home / "models/strong")
    assert config.strong.model == f"hf:{strong}"
    assert config.strong.target == strong
    assert (config.strong.adapter, config.strong.tokenizer) == (strong, strong)
    assert config.strong.chat_template == str(home / "law.yaml")
    assert (config.weak.model, config.weak.chat_template) == (strong, "plain")
    assert config.guidance.files == (str(home / "law.yaml"),)
    assert config.routing.routers[0].model_extra == {
        "rules": str(home / "rules.yaml"),
        "more": [str(home / "rules.yaml"), "other.yaml"],
        "note": "text",
    }
    assert config.store is not None
    assert config.store.path == str(home / ".gdr/store.sqlite")


def test_what_may_be_a_hub_id_stays_one(tmp_path: Path) -> None:
    config = parse_config({"strong": {"model": "hf:org/name-7B", "adapter": "org/lora"}, "weak": "gpt2"}, base=tmp_path)
    assert (config.strong.model, config.strong.adapter, config.weak.model) == ("hf:org/name-7B", "org/lora", "gpt2")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model", "./modle"),
        ("model", "hf:../nowhere"),
        ("model", "/no/such/model"),
        ("model", "a/b/c"),
        ("model", "x.gguf"),
        ("adapter", "./modle"),
        ("tokenizer", "~/no-such-folder"),
        ("chat_template", "plan"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path, key: str, text: str) -> None:
    message = refused({**PAIR, "strong": {"model": "org/name", key: text}}, base=tmp_path)
    assert message.startswith(f"strong.{key}: no such file or folder: /")


def test_the_nearest_file_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "strong-model").mkdir()
    message = refused({**PAIR, "strong": "./strong_model"}, base=tmp_path)
    assert message == f"strong.model: no such file or folder: {tmp_path}/strong_model (did you mean 'strong-model'?)"


def test_all_missing_paths_are_in_one_line(tmp_path: Path) -> None:
    data = {"strong": "./a", "weak": "./b", "guidance": {"files": ["c.yaml"]}, "store": {"path": "."}}
    keys = [part.split(": ")[0] for part in refused(data, base=tmp_path).split("; ")]
    assert keys == ["strong.model", "weak.model", "guidance.files[0]", "store.path"]


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("org/name", "hf", "org/name"),
        ("hf:org/name", "hf", "org/name"),
        ("fake:a", "fake", "a"),
        ("vllm:http://host:80/m", "vllm", "http://host:80/m"),
        ("/folder/with:colon", "hf", "/folder/with:colon"),
        ("C:/models/x", "hf", "C:/models/x"),
    ],
)
def test_scheme_and_target(text: str, scheme: str, target: str) -> None:
    spec = ModelSpec(model=text)
    assert (spec.scheme, spec.target) == (scheme, target)


# Round trip and fingerprint


def test_yaml_of_a_configuration_reads_back_equal(tmp_path: Path) -> None:
    data = {
        "strong": {"model": "fake:a", "device_map": {"": "cpu"}},
        "weak": "fake:b",
        "routing": {"routers": [{"name": "fixed", "domain": "math"}, "field"]},
        "store": {"path": "s.sqlite"},
    }
    config = parse_config(data, base=tmp_path)
    text = config.to_yaml()
    assert yaml.safe_load(text)["guidance"]["domains"]["chat"] == "none"
    assert parse_config(yaml.safe_load(text)) == config


def test_the_fingerprint_is_stable_and_ignores_what_only_costs(tmp_path: Path) -> None:
    config = parse_config(PAIR)
    assert fingerprint(config) == fingerprint(parse_config({"weak": "fake:b", "strong": {"model": "fake:a"}}))
    assert len(fingerprint(config)) == 32
    teacher = {"reference": "fake:c"}
    cheaper = {
        "teacher": teacher,
        "store": {"path": "x"},
        "load": "sequential",
        "limits": {"token_budget": 9, "kv_cache_mb": 0},
    }
    assert fingerprint(parse_config({**PAIR, **cheaper}, base=tmp_path)) == fingerprint(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"weak": "fake:c"},
        {"guidance": {"seed": 1}},
        {"guidance": {"exemplars": 0}},
        {"reward": {"reduction": "mean"}},
        {"routing": {"routers": ["keyword", "field"]}},
        {"routing": {"routers": ["field", {"name": "keyword", "option": 1}]}},
        {"limits": {"max_length": 100}},
    ],
)
def test_the_fingerprint_changes_with_what_changes_rewards(changes: dict[str, Any]) -> None:
    assert fingerprint(parse_config({**PAIR, **changes})) != fingerprint(parse_config(PAIR))


def test_the_fingerprint_follows_the_content_of_files_not_their_place(tmp_path: Path) -> None:
    def of(folder: str, content: str) -> str:
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        (home / "law.yaml").write_text(content)
        return fingerprint(parse_config({**PAIR, "guidance": {"files": ["law.yaml"]}}, base=home))

    assert of("here", "one") == of("there", "one")
    assert of("here", "one") != of("here", "two")

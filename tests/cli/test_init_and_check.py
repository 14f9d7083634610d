"""`gdr init`, `gdr check` and `gdr plugins` on real configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gdr_plugin.cli.init import template
from gdr_plugin.config.load import fingerprint, load_config, parse_config
from gdr_plugin.config.messages import model_in
from gdr_plugin.config.schema import Config


@pytest.fixture
def fake(tmp_path: Path, gdr) -> Path:
    """A gdr.yaml as `gdr init` writes it, with fake models."""
    path = tmp_path / "gdr.yaml"
    assert gdr("init", path, "--strong", "fake:a", "--weak", "fake:b")[0] == 0
    return path


def schema_keys(schema: type = Config) -> Iterator[str]:
    for name, info in schema.model_fields.items():  # type: ignore[attr-defined]
        yield name
        if (section := model_in(info.annotation)) is not None and section.__name__ != "RouterEntry":
            yield from schema_keys(section)


# init


def test_the_template_reads_back_as_the_defaults(tmp_path: Path) -> None:
    assert parse_config(yaml.safe_load(template("fake:a", "fake:b")), base=tmp_path) == parse_config(
        {"strong": "fake:a", "weak": "fake:b"}
    )


def test_the_template_has_every_key_of_the_schema_with_an_explanation() -> None:
    lines = template().splitlines()
    for key in schema_keys():
        places = [number for number, line in enumerate(lines) if re.match(rf"#? *{key}:", line)]
        assert places, f"{key} is not there"
        assert lines[places[0] - 1].lstrip().startswith("# "), f"{key} has no comment"
    assert max(map(len, lines)) <= 120


def test_the_optional_keys_are_valid_when_switched_on() -> None:
    """Taking away the # of every optional key gives a configuration that the schema takes."""
    data = yaml.safe_load(re.sub(r"(?m)^#(?= *\w+:( |$))(?! [A-Z`])", "", template()))
    assert data["strong"]["adapter"] == "./adapter"
    # It is there for models on servers alone, where the adapter is no folder here.
    on_server = {"model": "vllm:http://host:8000", "server": data["strong"].pop("server")}
    assert Config.model_validate({**data, "strong": on_server}).strong.server.concurrency == 16
    assert data["store"] == {"path": ".gdr/store.sqlite"}
    config = Config.model_validate(data)
    assert config.limits.max_length == 4096
    assert [name for name in type(config.strong).model_fields if getattr(config.strong, name) is None] == ["server"]


def test_init_does_not_overwrite_without_force(tmp_path: Path, gdr) -> None:
    path = tmp_path / "gdr.yaml"
    assert gdr("init", path) == (0, f"wrote {path}; next: gdr check {path}\n", "")
    path.write_text("mine")
    code, _, err = gdr("init", path)
    assert (code, err) == (2, f"gdr: {path} is there already: name another file, or overwrite it with --force\n")
    assert path.read_text() == "mine"
    assert gdr("init", "--force", path)[0] == 0
    assert load_config(path).strong.scheme == "hf"


def test_init_in_a_folder_and_without_one(tmp_path: Path, gdr, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gdr("init", tmp_path)[0] == 0
    assert (tmp_path / "gdr.yaml").exists()
    code, _, err = gdr("init", tmp_path / "no/such/folder.yaml")
    assert code == 2
    assert "cannot be written (No such file or directory); name another place" in err
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert gdr("init")[0] == 0
    assert (other / "gdr.yaml").exists()


@pytest.mark.parametrize("name", ["./models/a: b", "fake:x # y", "no", "1e3", "[x]", 'quo"te', "fake:a, b", "  "])
def test_init_quotes_what_yaml_would_read_as_something_else(name: str) -> None:
    assert yaml.safe_load(template(name, "fake:b"))["strong"]["model"] == name


# check


def test_check_says_what_would_be_loaded(fake: Path, gdr) -> None:
    code, out, err = gdr("check", fake)
    assert (code, err) == (0, "")
    for text in ("fake:a", "fake:b", "field -> keyword -> default chat", "safety[instruction,exemplars=1,seed=0]@"):
        assert text in out
    assert out.splitlines()[-1] == f"{fake} is fine"


def test_check_as_json(fake: Path, gdr) -> None:
    code, out, _ = gdr("check", "--json", fake)
    assert code == 0
    facts = json.loads(out)
    assert facts["fingerprint"] == fingerprint(load_config(fake))
    assert facts["strong"]["identity"] != facts["weak"]["identity"]
    assert facts["shared_weights"] is False
    assert facts["routing"] == {"routers": ["field", "keyword"], "default_domain": "chat"}
    assert facts["store"] is None
    domains = facts["guidance"]["domains"]
    assert domains["chat"] == {"guidance": "none", "id": "none", "exemplars": [], "tokens": {"strong": 0, "weak": 0}}
    # The fake model's tokens are bytes: the guidance's text and the markers of a system turn.
    assert domains["safety"]["tokens"]["strong"] == domains["safety"]["tokens"]["weak"] > 500
    assert len(domains["safety"]["exemplars"]) == 1
    assert "probe" not in facts


def test_check_says_which_end_counts_and_which_variables_are_set(tmp_path: Path, gdr, tiny_model) -> None:
    model, path = tiny_model(), tmp_path / "gdr.yaml"
    path.write_text(
        f"strong: {{model: {model}, end_of_turn_token: <|endoftext|>, "
        "chat_template_kwargs: {enable_thinking: false}}\n"
        f"weak: {model}\n"
    )
    facts = json.loads(gdr("check", "--json", path)[1])
    assert facts["strong"]["end of turn"] == "'<|endoftext|>' (end_of_turn_token in gdr.yaml)"
    assert facts["weak"]["end of turn"] == "'<|im_end|>' (the template writes it behind an answer)"
    assert facts["strong"]["template variables"] == "enable_thinking=False"
    assert "template variables" not in facts["weak"]
    assert facts["strong"]["identity"] != facts["weak"]["identity"]
    assert facts["shared_weights"] is True
    assert "end_of_turn_token in gdr.yaml" in gdr("check", path)[1]
    path.write_text(path.read_text().replace("<|endoftext|>", "<|eot|>"))
    code, out, err = gdr("check", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "end_of_turn_token '<|eot|>' is not a token of this model: name one of its added tokens" in err


@pytest.mark.parametrize(("placement", "weak_tokens"), [("strong", 0), ("none", 0)])
def test_check_counts_guidance_where_it_is_placed(fake: Path, gdr, placement: str, weak_tokens: int) -> None:
    fake.write_text(fake.read_text().replace("placement: both", f"placement: {placement}"))
    tokens = json.loads(gdr("check", "--json", fake)[1])["guidance"]["domains"]["math"]["tokens"]
    assert tokens["weak"] == weak_tokens
    assert (tokens["strong"] > 0) == (placement == "strong")


def test_check_names_a_shared_set_of_weights_and_a_store(tmp_path: Path, gdr) -> None:
    path = tmp_path / "gdr.yaml"
    path.write_text(
        "strong: {model: 'fake:a', adapter: org/x}\nweak: fake:a\nstore: {path: s.sqlite}\nlimits: {max_length: 9000}\n"
    )
    facts = json.loads(gdr("check", "--json", path)[1])
    assert facts["shared_weights"] is True
    assert facts["store"] == {"path": str(tmp_path / "s.sqlite"), "bytes": None}
    assert not (tmp_path / "s.sqlite").exists()
    (tmp_path / "s.sqlite").write_bytes(b"x" * 3_145_728)
    assert "3.0 MiB" in gdr("check", path)[1]
    assert json.loads(gdr("check", "--json", path)[1])["limits"]["max_length"] == 9000


def test_check_load_scores_a_probe_and_leaves_the_store_alone(fake: Path, gdr) -> None:
    fake.write_text(fake.read_text() + "\nstore: {path: s.sqlite}\n")
    code, out, _ = gdr("check", "--json", "--load", fake)
    assert code == 0
    answers = json.loads(out)["probe"]["answers"]
    assert len(answers) == 2
    for answer in answers:
        assert answer["reward"] == pytest.approx(answer["strong_logprob"] - answer["weak_logprob"])
    assert not (fake.parent / "s.sqlite").exists()
    assert "probe (" in gdr("check", "--load", fake)[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "routers: [field, keyword]",
            "routers: [field, keywrd]",
            "routing.routers[1]: unknown router 'keywrd': known are field, fixed, keyword, likelihood (did you mean "
            "'keyword'?)",
        ),
        ("safety: safety", "safety: safty", "guidance.domains.safety: unknown guidance 'safty': known are "),
        (
            "model: fake:a",
            "model: fke:a",
            "'fke:a': unknown scheme 'fke': known are fake, hf, openai, sglang, vllm (did you mean 'fake'?)",
        ),
        ("model: fake:a", "model: ./nowhere", "strong.model: no such file or folder: "),
        ("placement: both", "placement: weak", "guidance.placement: unknown value 'weak': known are both, none, "),
        ("files: []", "files: [none.yaml]", "guidance.files[0]: no such file or folder: "),
        ("routers: [field, keyword]", "routers: [{name: field, colour: red}]", "colour"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(fake: Path, gdr, old: str, new: str, message: str) -> None:
    text = fake.read_text()
    assert old in text
    fake.write_text(text.replace(old, new))
    code, out, err = gdr("check", fake)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_wrong_names_are_all_named(fake: Path, gdr) -> None:
    text = fake.read_text().replace("safety: safety", "safety: sfety").replace("[field,", "[feild,")
    fake.write_text(text)
    err = gdr("check", fake)[2]
    assert "did you mean 'safety'?" in err
    assert "did you mean 'field'?" in err
    assert err.startswith(f"gdr: {fake}: guidance.domains.safety: ")


def test_a_guidance_file_of_ones_own_wins(fake: Path, gdr) -> None:
    own = fake.parent / "own.yaml"
    own.write_text("name: safety\ninstruction: Be safe.\n")
    before = json.loads(gdr("check", "--json", fake)[1])
    fake.write_text(fake.read_text().replace("files: []", "files: [own.yaml]"))
    after = json.loads(gdr("check", "--json", fake)[1])
    key = ("guidance", "domains", "safety")
    assert after[key[0]][key[1]][key[2]]["tokens"]["strong"] < before[key[0]][key[1]][key[2]]["tokens"]["strong"]
    assert after["fingerprint"] != before["fingerprint"]


def test_a_guidance_in_two_files_names_both(fake: Path, gdr) -> None:
    for name in ("one.yaml", "two.yaml"):
        (fake.parent / name).write_text("name: mine\ninstruction: Be brief.\n")
    fake.write_text(fake.read_text().replace("files: []", "files: [one.yaml, two.yaml]"))
    code, _, err = gdr("check", fake)
    assert code == 2
    assert "the guidance 'mine' is in " in err
    assert "one.yaml and " in err


# plugins


def test_plugins_lists_who_registered_what(gdr) -> None:
    code, out, _ = gdr("plugins")
    assert code == 0
    for text in ("built-in", "gdr_open_model", "guidance", "safety", "router", "likelihood", "selector", "max-min"):
        assert text in out
    listed = json.loads(gdr("plugins", "--json")[1])
    assert {"kind": "router", "name": "keyword", "plugin": "built-in"} in listed["registered"]
    assert listed["plugins"][0]["package"] == "gdr-plugin"


def test_check_opens_a_teachers_reference(gdr, tmp_path: Path, tiny_model) -> None:
    file = tmp_path / "gdr.yaml"
    start = "strong: fake:strong\nweak: fake:weak\nteacher: {reference: "
    file.write_text(start + "fake:policy}\n")
    code, out, _ = gdr("check", file, "--load", "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["reference"]["model"] == "fake:policy"
    assert shown["reference"]["identity"] != shown["strong"]["identity"]
    assert "teacher.reference" in gdr("check", file)[1]
    for model, said in (
        (str(tiny_model()), "the reference model's vocabulary is not the policy's"),
        (str(tmp_path / "nothing"), "nothing"),
        ("fake:policy}\nload: sequential\nlimits: {", "load to together"),
    ):
        file.write_text(start + model + "}\n")
        code, _, error = gdr("check", file)
        assert code != 0
        assert said in error

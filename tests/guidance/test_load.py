"""Guidance files: what is right is read as written, what is wrong gives one line that names file, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import Exemplar, Guidance
from gdr_plugin.guidance import load_guidance_file

ONE = """\
name: contracts
description: Questions about contracts.
instruction: |
  Name the clause.

  Quote it.
exemplars:
  - id: notice
    prompt: "When can I leave?"
    good: |
        indented
      Clause 7.
    bad: "Any time."
    why: It rests on the clause.
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_one_guidance(tmp_path: Path) -> None:
    text = ONE.replace("    good: |\n", "    good: |2\n")
    assert load_guidance_file(str(write(tmp_path, text))) == [
        Guidance(
            name="contracts",
            instruction="Name the clause.\n\nQuote it.",
            exemplars=(
                Exemplar(
                    "notice", "When can I leave?", "  indented\nClause 7.", "Any time.", "It rests on the clause."
                ),
            ),
            description="Questions about contracts.",
        )
    ]


def test_several_guidances_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, "guidances:\n- {name: b, instruction: B}\n- {name: Ärger-1.0, instruction: A}\n")
    assert [guidance.name for guidance in load_guidance_file(path)] == ["b", "Ärger-1.0"]


def test_exemplars_alone_are_enough(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nexemplars: [{id: a, prompt: p, good: g, bad: b, why: w, principle: q}]")
    assert load_guidance_file(path)[0].exemplars == (Exemplar("a", "p", "g", "b", "w", "q"),)


def test_optional_keys_may_have_no_value(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ndescription:\ninstruction: i\nexemplars:\n")
    assert load_guidance_file(path) == [Guidance("x", "i")]


EXEMPLAR = "{id: a, prompt: p, good: g, bad: b, why: w}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a mapping with name, description, instruction, exemplars, or a list under 'guidances'"),
        ("- a", "must hold a mapping"),
        ("guidances: []", "guidances: must not be empty"),
        ("guidances: {name: a}", "guidances: must be a list, not {'name': 'a'}"),
        ("guidances: [x]", r"guidances[0]: must be a mapping with name, description"),
        ("guidances: [{name: a, instruction: i}, {name: a, instruction: j}]", "guidances: the name 'a' is used twice"),
        ("guidances: []\nname: a", "unknown key 'name'"),
        ("name: a\ninstructions: i", "unknown key 'instructions': known are"),
        ("name: a\ninstructions: i", "(did you mean 'instruction'?)"),
        ("instruction: i", "name: is missing"),
        ("name: none\ninstruction: i", "name: 'none' cannot be used"),
        ("name: two words\ninstruction: i", "name: 'two words' cannot be used"),
        ("name: 7\ninstruction: i", "name: must be text, not 7: put it in quotes"),
        ("name: a\ninstruction: yes", "instruction: must be text, not True: put it in quotes"),
        ("name: a\ninstruction: ' '", "needs an instruction or exemplars"),
        ("name: a", "needs an instruction or exemplars"),
        ('name: a\ninstruction: i\ndescription: "x\\ny"', "description: must be one line"),
        ("name: a\nexemplars: {id: a}", "exemplars: must be a list, not {'id': 'a'}"),
        ("name: a\nexemplars: [hello]", "exemplars[0]: must be a mapping with id, principle, prompt"),
        ("name: a\nexemplars: [{id: a, prompt: p, good: g, bad: b}]", "exemplars[0].why: is missing"),
        (
            "name: a\nexemplars: [{id: a, prompt: p, good: '', bad: b, why: w}]",
            "exemplars[0].good: is empty",
        ),
        (f"name: a\nexemplars: [{EXEMPLAR}, {EXEMPLAR}]", "exemplars: the id 'a' is used twice"),
        ("name: a\nexemplars: ''", "exemplars: must be a list, not ''"),
        ("name: a\nexemplars: 0", "exemplars: must be a list, not 0"),
        ("name: a\nexemplars: false", "exemplars: must be a list, not False"),
        ("name: a\n7: x\ninstruction: i", "the key 7 must be text: put it in quotes"),
        ("name: a\ninstruction: 3\ndescription: 4", "instruction: must be text, not 3: put it in quotes"),
        ("name: a\ninstruction: 3\ndescription: 4", "description: must be text, not 4: put it in quotes"),
        ("name: a\nname: b\ninstruction: i", "'name'"),
        ("name: [", "line"),
        (b"name: \xff\xfe", "UTF-8"),
    ],
)
def test_errors_are_one_line_that_name_file_and_key(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_guidance_file(path)
    line = str(raised.value)
    assert message in line
    assert str(path) in line
    assert "\n" not in line


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_guidance_file(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError):
        load_guidance_file(tmp_path)

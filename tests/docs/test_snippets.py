"""What the pages tell readers to type works, and prints what they show; `tests/docs/snippets.py` has the rules."""

from __future__ import annotations

import ast
import doctest
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.docs.snippets import PAGES, ROOT, Folder, agrees, gdr_lines, inside, refreshed, runnable, snippets, steps


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


RUNNABLE = [page for page in PAGES if runnable(read(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_the_snippets_of_a_page_do_what_it_shows(page: Path, tmp_path: Path, smol_gguf: Path) -> None:
    folder = Folder.made(tmp_path, smol_gguf)
    with inside(tmp_path):
        try:
            for snippet in runnable(read(page)):
                differences = folder.run(snippet)
                assert not differences, "\n".join(map(str, differences))
        finally:
            folder.close()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_snippet_is_readable(page: Path) -> None:
    """Python compiles, YAML loads, commands of gdr and their options exist; those that are not run say why."""
    from gdr_plugin.cli.main import COMMANDS, app

    for command in COMMANDS:
        __import__(f"gdr_plugin.cli.{command}")
    root = typer.main.get_command(app)
    for snippet in snippets(read(page)):
        where = f"{name(page)}:{snippet.line}"
        if snippet.language == "python":
            ast.parse(snippet.text, where)
        elif snippet.language == "pycon":
            assert doctest.DocTestParser().get_examples(snippet.text), where
        elif snippet.language == "yaml":
            yaml.safe_load(snippet.text)
        elif snippet.language == "console":
            assert steps(snippet), f"{where}: no line begins with `$ `"
        else:
            assert not snippet.text.startswith("$ "), f"{where}: a command in a block that is not `console`"
        for words in gdr_lines(snippet):
            assert unknown_words(root, words) == [], f"{where}: gdr {' '.join(words)}"


def unknown_words(command: Any, words: list[str]) -> list[str]:
    """The subcommand or options of a `gdr` line that do not exist."""
    at, options, value = command, {"-h": True, "--help": True}, False
    for word in words:
        options |= {name: parameter.is_flag for parameter in at.params for name in parameter.opts if name[0] == "-"}
        if value or word == "-" or not (word.startswith("-") or hasattr(at, "commands")):
            value = False
        elif word.startswith("-"):
            option, equals, _ = word.partition("=")
            if option not in options:
                return [word]
            value = not options[option] and not equals
        elif word in at.commands:
            at = at.commands[word]
        else:
            return [word]
    return []


def test_words_that_gdr_does_not_know_are_found() -> None:
    from gdr_plugin.cli import score  # noqa: F401
    from gdr_plugin.cli.main import app

    root = typer.main.get_command(app)
    assert unknown_words(root, ["--plugin", "own.py", "score", "a.jsonl", "-c", "gdr.yaml", "--steps=line"]) == []
    assert unknown_words(root, ["scores", "a.jsonl"]) == ["scores"]
    assert unknown_words(root, ["score", "a.jsonl", "--colour"]) == ["--colour"]


def test_what_a_page_may_leave_open() -> None:
    assert agrees("accuracy 0.62 of 350", "accuracy   0.6204 of 350")
    assert not agrees("accuracy 0.62 of 350", "accuracy 0.64 of 350")
    assert not agrees("accuracy 0.62 of 350", "accuracy 0.62 of 351")
    assert agrees("first\n...\nlast", "first\nsecond\nthird\nlast\n")
    assert not agrees("first\n...\nlast", "first\nsecond\n")
    assert agrees('{"reward": 0.138, ...}', '{"reward": 0.13808345794677734, "domain": "safety"}')
    assert not agrees('{"reward": 0.138}', '{"reward": 0.138, "domain": "safety"}')
    assert agrees("a ━━━━━╇━━━ b", "a ━━╇━━ b")
    assert not agrees("text", "other text")
    assert not agrees("", "text")


def test_new_numbers_go_into_an_old_frame() -> None:
    got = '{"reward": 0.23808345794677734, "domain": "safety"}'
    assert refreshed('{"reward": 0.138, ...}\n', got) == '{"reward": 0.238, ...}\n'
    assert refreshed("first\n...\n0.5 of 20\n", "first\nsecond\n0.75 of 24\n") == "first\n...\n0.8 of 24\n"
    assert refreshed("one\n", "another\n") == "another\n"
    assert refreshed("one\n...\nlast\n", "a\nb\nc\nd\n") == "a\n...\nd\n"


def test_commands_are_found_with_their_output() -> None:
    (snippet,) = snippets("text\n```console\n$ gdr score a.jsonl |\n    head -1\n{}\n\n$ ls\n```\n")
    assert steps(snippet) == [("gdr score a.jsonl |\n    head -1", "{}\n\n"), ("ls", "")]
    assert list(gdr_lines(snippet)) == [["score", "a.jsonl"]]
    (slow,) = snippets("<!-- by hand: a minute -->\n```bash\nls\n```\n")
    assert (slow.reason, slow.by_hand) == ("a minute", True)
    (other,) = snippets("<!-- not run: needs a cluster -->\n```bash\ngdr serve \\\n  --port 5000 &\n```\n")
    assert (other.reason, other.by_hand) == ("needs a cluster", False)
    assert list(gdr_lines(other)) == [["serve", "--port", "5000"]]

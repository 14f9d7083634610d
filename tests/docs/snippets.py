"""Finds the snippets of the Markdown pages, runs them, and compares what they print with what the pages show.

The rules, which CONTRIBUTING.md explains to writers:

- `console`: each line that begins with `$ ` is a command (it goes on while it ends with `\\` or `|`); below it stands
  its standard output. `bash`: run, output not shown. `python`: run. `pycon`: run, with output.
- All snippets of a page run in order in one folder with the repository's `examples/`; Python ones share their names.
- `<!-- not run: REASON -->` on the line before a snippet: it is not run. Its Python is still compiled, and the commands
  and options of its `gdr` lines still have to exist. `<!-- by hand: REASON -->`: only `python -m tests.docs --by-hand`
  runs it, because it takes longer than a test should.
- In output, numbers with decimals may differ by 0.2 % or 0.002, whichever is more; a shown number may be rounded. `...`
  stands for the rest of a line, or alone on a line for any number of lines. White space and rules of tables do not
  count.
- A command that ends with `&` runs until the page's end; its shown lines are waited for. Port 5000 becomes a free one.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "examples" / "plugin-finance" / "README.md"])
RUN = {"console", "bash", "python", "pycon"}
WIDTH = "120"
"""Columns of the terminal that commands print to."""

_FENCE = re.compile(
    r"(?:^ *<!-- (?P<kind>not run|by hand): (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_PLAIN = re.compile(r"[^|&;<>$`*?~\n]+")
"""A command without anything that a shell would have to do."""


@dataclass
class Snippet:
    """A fenced block of a page."""

    language: str
    text: str
    """Without the fence and without its indentation."""
    line: int
    """The first line of the text within the page, counted from 1."""
    reason: str | None
    """Why tests do not run it; None where they do."""
    by_hand: bool = False
    """Whether it is run by hand."""
    span: tuple[int, int] = (0, 0)
    """Where `text` stands in the page, indentation included."""
    indent: str = ""


@dataclass
class Difference:
    """A snippet that fails, or prints something else than its page shows."""

    line: int
    command: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.command}\n--- the page shows\n{self.expected}\n--- it printed\n{self.got}\n"


def snippets(text: str) -> list[Snippet]:
    """The fenced blocks of a page's text, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent, body = match["indent"], match["text"]
        plain = re.sub(f"^{indent}", "", body, flags=re.M)
        line = text.count("\n", 0, match.start("text")) + 1
        by_hand = match["kind"] == "by hand"
        found.append(Snippet(match["language"], plain, line, match["reason"], by_hand, match.span("text"), indent))
    return found


def runnable(text: str, *, by_hand: bool = False) -> list[Snippet]:
    """The snippets of a page's text that are run; with `by_hand` those too that are run by hand."""
    found = [snippet for snippet in snippets(text) if snippet.language in RUN]
    return [snippet for snippet in found if snippet.reason is None or (by_hand and snippet.by_hand)]


def steps(snippet: Snippet) -> list[tuple[str, str]]:
    """The commands of a `console` snippet, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    goes_on = False
    for line in snippet.text.splitlines():
        if goes_on or line.startswith("$ "):
            command = f"{found.pop()[0]}\n{line}" if goes_on else line[2:]
            found.append((command, ""))
            goes_on = line.rstrip().endswith(("\\", "|"))
        elif found:
            found[-1] = found[-1][0], f"{found[-1][1]}{line}\n"
    return found


def agrees(expected: str, got: str) -> bool:
    """Whether a page's output is what a command printed, by the rules above."""
    match = _pattern(expected).fullmatch(_normal(got))
    if match is None:
        return False
    numbers = _NUMBER.findall(_normal(expected))
    return all(_close(shown, value) for shown, value in zip(numbers, match.groups(), strict=True))


def refreshed(expected: str, got: str) -> str:
    """The output to show instead of `expected`: only its numbers change where the rest agrees.

    Elsewhere it is all of the output; with one line of `...`, as many lines before and behind it as there were.
    """
    match = _pattern(expected).fullmatch(_normal(got))
    if match is None:
        lines = [line.rstrip() for line in got.strip("\n").splitlines()]
        shown = expected.strip("\n").split("\n")
        if shown.count("...") == 1 and len(shown) <= len(lines):
            place = shown.index("...")
            lines[place : len(lines) - (len(shown) - place - 1)] = ["..."]
        return "".join(f"{line}\n" for line in lines)
    values = iter(match.groups())

    def number(shown: re.Match[str]) -> str:
        value = next(values)
        decimals = len(shown[0].partition(".")[2])
        short = "." in shown[0] and "e" not in shown[0] + value and decimals < len(value.partition(".")[2])
        return f"{float(value.replace(',', '')):{'+' if value[0] == '+' else ''}.{decimals}f}" if short else value

    return _NUMBER.sub(number, expected)


def _pattern(expected: str) -> re.Pattern[str]:
    """Matches output that is the expected one but for its numbers, which are the groups."""
    pieces = []
    for line in _normal(expected).split("\n"):
        if line == "...":
            pieces.append(r"(?:[^\n]*(?:\n|\Z))*?")
            continue
        parts = [r"[^\n]*?".join(re.escape(text) for text in part.split("...")) for part in _NUMBER.split(line)]
        pieces.append(rf"({_NUMBER.pattern})".join(parts) + r"(?:\n|\Z)")
    return re.compile("".join(pieces))


def _normal(text: str) -> str:
    lines = [re.sub(r"[━─]{2,}", "─", re.sub(r"[ \t]+", " ", line)).rstrip() for line in text.split("\n")]
    return "\n".join(lines).strip("\n")


def _close(shown: str, value: str) -> bool:
    if "." not in shown:
        return shown == value
    a, b = float(shown.replace(",", "")), float(value.replace(",", ""))
    rounding = 0.0 if "e" in shown else 0.51 * 10.0 ** -len(shown.partition(".")[2])
    return abs(a - b) <= max(0.002, 0.002 * abs(a), rounding)


def gdr_lines(snippet: Snippet) -> Iterator[list[str]]:
    """The words after `gdr` of every command of a snippet that calls it."""
    if snippet.language == "console":
        commands = [command for command, _ in steps(snippet)]
    else:
        commands = re.sub(r"\\\n", " ", snippet.text).splitlines() if snippet.language == "bash" else []
    for command in commands:
        if not re.search(r"(?<![\w./-])gdr\s", command):
            continue
        lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                words.append(word)
                continue
            if words and Path(words[0]).name == "gdr":
                yield words[1:]
            words = []


@dataclass
class Folder:
    """Where the snippets of one page run: a copy of `examples/`, names of Python, servers in the background."""

    path: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__page__"})
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    port: int = 0

    @classmethod
    def made(cls, path: Path, base: Path) -> Folder:
        """Fill an empty folder; `base` is the GGUF file of the demo pair."""
        shutil.copytree(ROOT / "examples", path / "examples", ignore=shutil.ignore_patterns("__pycache__", "base.gguf"))
        (path / "examples" / "demo-pair" / "base.gguf").symlink_to(base)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            return cls(path, port=bound.getsockname()[1])

    def close(self) -> None:
        """Stop what still runs."""
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)

    def run(self, snippet: Snippet) -> list[Difference]:
        """Run a snippet; what fails or prints something else than shown."""
        if snippet.language == "console":
            results = [(command, shown, *self.command(command, shown)) for command, shown in steps(snippet)]
        elif snippet.language == "bash":
            code, output = self.shell(snippet.text)
            results = [(snippet.text, output if code == 0 else "", code, output)]
        elif snippet.language == "pycon":
            results = [
                (example.source, example.want, 0, self.python(example.source, "single"))
                for example in doctest.DocTestParser().get_examples(snippet.text)
            ]
        else:
            self.python(snippet.text, "exec")
            results = []
        return [
            Difference(snippet.line, command, shown, got if code == 0 else f"{got}\n(exit code {code})")
            for command, shown, code, got in results
            if code != 0 or not agrees(shown, got)
        ]

    def command(self, command: str, shown: str) -> tuple[int, str]:
        """Exit code and standard output of a command line."""
        if command.rstrip().endswith("&"):
            return self.background(command.rstrip()[:-1], shown)
        plain = command.replace("\\\n", " ")
        if plain.startswith("gdr ") and _PLAIN.fullmatch(plain):
            return self.gdr(shlex.split(plain)[1:])
        return self.shell(command)

    def gdr(self, arguments: list[str]) -> tuple[int, str]:
        """`gdr` within this process, which has torch already."""
        from gdr_plugin.cli.main import main

        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        code: object = 0
        with contextlib.redirect_stdout(output), warnings.catch_warnings():
            warnings.simplefilter("default")
            try:
                main(arguments)
            except SystemExit as done:
                code = done.code
        buffer = output.buffer
        assert isinstance(buffer, io.BytesIO)
        return int(str(code or 0)), buffer.getvalue().decode("utf-8")

    def shell(self, command: str) -> tuple[int, str]:
        """A command by bash: exit code and standard output, with standard error where it failed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._with_port(command)],
            cwd=self.path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        output = done.stdout if done.returncode == 0 else done.stdout + done.stderr
        return done.returncode, output.replace(str(self.port), "5000")

    def background(self, command: str, shown: str) -> tuple[int, str]:
        """Start a server, and wait until it has printed the lines that are shown."""
        log = self.path / f"server-{len(self.servers)}.log"
        with log.open("wb") as file:
            self.servers.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {self._with_port(command)}"],
                    cwd=self.path,
                    env=environment(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + 120
        while True:
            output = log.read_text(encoding="utf-8").replace(str(self.port), "5000")
            lines = "\n".join(output.split("\n")[: len(shown.strip("\n").split("\n"))])
            if agrees(shown, lines):
                return 0, lines
            if self.servers[-1].poll() is not None or time.monotonic() > deadline:
                return self.servers[-1].returncode or 1, output
            time.sleep(0.1)

    def python(self, source: str, mode: str) -> str:
        """What Python code prints, in this process."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output), warnings.catch_warnings():
            warnings.simplefilter("default")
            exec(compile(source, "<snippet>", mode), self.names)
        return output.getvalue()

    def _with_port(self, command: str) -> str:
        """The command with a free port, where it names the default one or lets `gdr serve` choose it."""
        command = re.sub(r"\b5000\b", str(self.port), command)
        serves = "gdr serve" in command and "--port" not in command
        return f"{command} --port {self.port}" if serves else command


def environment() -> dict[str, str]:
    """The environment of commands: ours, a terminal of a known width, and the `gdr` of this Python."""
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "COLUMNS": WIDTH,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


@contextlib.contextmanager
def inside(path: Path) -> Iterator[None]:
    """Work in a folder, with a terminal of a known width."""
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(path)
    os.environ["COLUMNS"] = WIDTH
    try:
        yield
    finally:
        os.chdir(before)
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns

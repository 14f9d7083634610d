"""The `gdr` application: global options, and errors turned into one line and an exit code.

Exit codes: 0 done, 1 a defect of ours, 2 wrong input or usage, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gdr_plugin.api.errors import GDRError
from gdr_plugin.cli.threads import settle_threads
from gdr_plugin.files import advice, not_written
from gdr_plugin.logs import LineFormatter
from gdr_plugin.text import line_of, one_line, typed_line
from gdr_plugin.version import __version__

if TYPE_CHECKING:
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.progress import Progress
    from gdr_plugin.scoring.ranks import Ranks

COMMANDS = (
    *("init", "check", "plan", "score", "explain", "annotate", "evaluate", "compare", "controllability", "pairs"),
    *("tune", "serve", "store", "guidance", "plugins", "integrations", "path"),
)
"""The modules of this package that hold one command each, in the order of `gdr --help`."""
_SHARED = ("annotate", "score")
"""The commands whose work several processes can share."""
_SWITCHES = ("-q", "--quiet", "-v", "--verbose", "--debug")


class _ReaderGoneError(Exception):
    """Whoever reads our output went away, as `head` does."""


class _Commands(TyperGroup):
    """Typer's group, but commands are listed in our order, and a broken pipe stays apart from errors."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: (*COMMANDS, name).index(name))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error


app = typer.Typer(
    name="gdr",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Settings:
    """The global options; every command gets them as `ctx.obj`."""

    plugin_files: list[Path] = field(default_factory=list)
    debug: bool = False
    quiet: bool = False
    ranks: Ranks | None = None
    """The processes that share the command's work, where a launcher has started several."""

    def progress(self, unit: str) -> AbstractContextManager[Progress | None]:
        """Show the progress of a long job, unless `--quiet`; see `progress_bars`."""
        from gdr_plugin.cli.progress import progress_bars

        others = self.ranks is not None and not self.ranks.first
        return progress_bars(unit, quiet=self.quiet or others)

    def note(self, line: str) -> None:
        """Say something on standard error that is no result, unless `--quiet`."""
        if not self.quiet:
            _say(line)

    def plugins(self) -> Plugins:
        """Load the plugins: built-in, installed, and those given with `--plugin`."""
        from gdr_plugin.plugins.registry import Plugins

        return Plugins(*self.plugin_files)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gdr-plugin {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    ctx: typer.Context,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Load a Python file with gdr hooks; may be repeated.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no notes; errors and warnings stay.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say when models load, and how they compute.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="GDR_DEBUG", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Rewards for language models from the guided density ratio of two models."""
    ctx.obj = Settings(plugin or [], debug, quiet, _ranks(ctx.invoked_subcommand))
    if ctx.invoked_subcommand != "serve":  # which keeps a log with times of its own
        _say_what_happens(ctx, quiet=quiet, verbose=verbose)


def _ranks(command: str | None) -> Ranks | None:
    """The processes that a launcher has started; None where this is the only one."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return None
    from gdr_plugin.api.errors import ConfigError
    from gdr_plugin.scoring.ranks import Ranks

    ranks = Ranks.from_environment()
    if ranks is not None and command not in _SHARED:
        raise ConfigError(
            f"gdr {command} runs once, not in {ranks.world} processes (WORLD_SIZE): start it without accelerate launch "
            "or torchrun, or unset WORLD_SIZE"
        )
    return ranks


def _say_what_happens(ctx: typer.Context, *, quiet: bool, verbose: bool) -> None:
    """Show the package's log as lines of ours while the command runs; of the hub's retries, only how they ended."""
    if not verbose and "huggingface_hub" not in sys.modules:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("gdr: %(message)s"))
    levels = {"gdr_plugin": logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING}
    if not quiet:
        levels["gdr_plugin.models.local.gguf"] = logging.INFO  # a conversion takes long, and is done once
    package = logging.getLogger("gdr_plugin")
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    package.addHandler(handler)

    def restore() -> None:
        package.removeHandler(handler)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

    ctx.call_on_close(restore)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    A `GDRError` becomes one line on standard error and exit code 2, a defect one line and exit code 1; `--debug` or
    `GDR_DEBUG=1` adds the traceback.

    Args:
        arguments: What follows `gdr`; default: the process's arguments.
    """
    arguments = _global_first(sys.argv[1:] if arguments is None else arguments)
    settle_threads()
    # A stream that the shell closed is None in Python, and print() would write errors to the other one.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    # Commands register themselves on import; each imports what is heavy only when it runs.
    for command in COMMANDS:
        import_module(f"gdr_plugin.cli.{command}")
    sys.exit(_run(arguments))


def _global_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global switches in front, where typer looks for them: people write `gdr score FILE -q`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    switches = [argument for argument in arguments[:end] if argument in _SWITCHES]
    return [*switches, *(argument for argument in arguments[:end] if argument not in _SWITCHES), *arguments[end:]]


def _run(arguments: Sequence[str]) -> int:
    try:
        app(args=arguments, prog_name="gdr")
    except SystemExit as done:  # how typer returns; it has reported wrong usage itself
        return _exit_code(done.code)
    except KeyboardInterrupt:
        return _exit_code(130)
    except _ReaderGoneError:
        return _quiet()
    except OSError as error:  # a full disk or a missing permission, not a defect of ours
        where = f": {error.filename}" if error.filename else ""
        _report(f"{error.strerror or error}{where}{advice(error)}", error, arguments)
        return _after_failure(2)
    except GDRError as error:
        _report(one_line(error), error, arguments)
        return _after_failure(2)
    except Exception as error:
        _report(f"internal error: {typed_line(error)} (--debug shows where; please report it)", error, arguments)
        return _after_failure(1)
    return 0


def _exit_code(code: str | int | None) -> int:
    """The code to exit with, after what was printed has reached its reader."""
    if code == 130:
        _say("interrupted")
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _quiet()
    except OSError as error:
        _say(f"{not_written('standard output', error)}")
        _quiet()
        return 2
    return code if isinstance(code, int) else int(code is not None)


def _after_failure(code: int) -> int:
    """The code, when what was printed has reached its reader or is known to be lost: Python itself would say 120."""
    try:
        sys.stdout.flush()
    except OSError:
        _quiet()
    return code


def _quiet() -> int:
    """Nobody reads our output any more: say nothing, not even at the interpreter's exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _report(line: str, error: Exception, arguments: Sequence[str]) -> None:
    # The error may come from before the options were read, so they are looked up here once more.
    if "--debug" in arguments or os.environ.get("GDR_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") not in ("", "1") else ""
    _say(f"{rank}{line}")


def _say(line: str) -> None:
    """Write a line of ours on standard error."""
    with suppress(OSError):  # it is full or gone: there is nowhere left to say so
        print(f"gdr: {line_of(line)}", file=sys.stderr)

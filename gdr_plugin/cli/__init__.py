"""The command line `gdr`: one module a command. Heavy imports happen inside the commands."""

from gdr_plugin.cli.main import main

__all__ = ["main"]

"""Loggers and formats whose lines nobody can forge, whatever ids, domains and names of files or models stand in them.

Knows logging; nothing of what is logged. A value may hold line breaks, carriage returns or a terminal's commands; in a
log each of them is escaped, and a traceback is indented, so that a line at the margin is always one that was logged.
"""

from __future__ import annotations

import logging
import traceback

from gdr_plugin.text import printable

__all__ = ["LineFormatter", "logger"]

_INDENT = "    "


def logger(name: str) -> logging.Logger:
    """The logger of this name; what is logged with it is safe wherever the program that runs us sends it.

    Args:
        name: As for `logging.getLogger`.
    """
    found = logging.getLogger(name)
    if not any(isinstance(known, _Safe) for known in found.filters):
        found.addFilter(_Safe())
    return found


class LineFormatter(logging.Formatter):
    """Formats for a log of our own: also what other packages log, such as a server's framework, is safe."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        _make_safe(record)
        return super().format(record)


class _Safe(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        _make_safe(record)
        return True


def _make_safe(record: logging.LogRecord) -> None:
    """Escape a record's text and indent its traceback; once more changes nothing."""
    text = record.getMessage()
    safe = printable(text.rstrip("\n"))
    if safe != text:
        record.msg, record.args = safe, None
    if record.exc_info and not record.exc_text:
        lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
        record.exc_text = "\n".join(_INDENT + printable(line) for line in lines)

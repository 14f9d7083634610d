"""The prompts of an annotation, read and checked.

Adds to `data` what only annotation asks of a row: that it brings responses where no policy draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gdr_plugin.api.errors import DataError
from gdr_plugin.data.checked import CheckedRows
from gdr_plugin.data.read import CheckColumns, bad_rows_error
from gdr_plugin.data.rows import PromptRow, parse_prompt_row
from gdr_plugin.data.sources import STDIN, Row


def read_prompts(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    sampled: bool = False,
    check: CheckColumns | None = None,
    skip_bad: bool = False,
) -> CheckedRows[PromptRow]:
    """Read all prompts of an input, before any model loads.

    Args:
        source: As for `read_rows`; not standard input, which a run that is taken up again could not read.
        columns: New name -> the input's name of columns.
        limit: Only the first rows.
        sampled: Whether a policy draws the responses; else each row must bring its own.
        check: Raises `DataError` when a row's columns are wrong.
        skip_bad: Whether bad rows are left for the rejects.

    Returns:
        The checked rows; to be closed by the caller.

    Raises:
        DataError: There is no such input, or a row is bad and `skip_bad` is not set, or every row is.
        OutputError: The temporary file for the rows cannot be written.
    """
    if str(source) == STDIN:
        raise DataError("gdr annotate reads its input more than once: write standard input to a file first")
    if limit is not None and limit < 1:
        raise DataError(f"--limit must be 1 or more, not {limit}")

    def parse(row: Row) -> PromptRow:
        parsed = parse_prompt_row(row)
        if not sampled and parsed.responses is None:
            raise DataError(
                f"{row.where}: has no `responses`: give at least two in each row, or --policy MODEL to draw them"
            )
        return parsed

    rows = CheckedRows(source, parse, columns=columns, check=check, limit=limit)
    if rows.first_bad is not None and (not skip_bad or rows.bad == len(rows)):
        rows.close()
        hint = "" if skip_bad else "; --skip-bad puts bad rows into the rejects and goes on"
        raise bad_rows_error(rows.first_bad, rows.bad, hint)
    return rows

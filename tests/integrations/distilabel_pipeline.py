"""Runs the pipeline of docs/other-trainers.md: `python distilabel_pipeline.py URL`, more rows on standard input.

Prints its rows, and what the step says when it is loaded with an address at which there is no server.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    url = sys.argv[1]
    page = (Path(__file__).parents[2] / "docs" / "other-trainers.md").read_text(encoding="utf-8")
    code = page.split("## distilabel")[1].split("```python\n")[1].split("```")[0]
    code = code.replace("http://127.0.0.1:5000", url).replace("data=rows", f"data=[*rows, *{json.load(sys.stdin)!r}]")
    shown: dict[str, Any] = {"__name__": "__main__"}
    exec(code, shown)
    try:
        shown["GDRScore"](name="lost", remote=f"{url}/nothing").load()
        lost = ""
    except Exception as error:
        lost = f"{type(error).__name__}: {error}"
    print(json.dumps({"rows": shown["scored"].to_list(), "lost": lost}))


if __name__ == "__main__":
    main()

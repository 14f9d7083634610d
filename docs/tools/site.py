"""The hook of mkdocs that lets one set of links serve both readers of the repository and readers of the site.

Pages in docs/ link to files outside of it by relative paths (`../examples/trl_grpo.py`), which work where the
repository is read. On the site some of these files are pages of their own (`PAGES`), the others are copied beside them.
A link to something that does not exist is left as it is, so that `mkdocs build --strict` reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/demo-pair/README.md": "demo-pair.md",
    "examples/plugin-finance/README.md": "plugin-finance.md",
}
"""Markdown outside of docs/, and the page of the site that shows it."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that lie outside of docs/ and every other file that a page links to; mkdocs calls it."""
    texts = {file.src_path: (file.content_string, "docs") for file in files.documentation_pages()}
    for source, page in PAGES.items():
        folder = posixpath.dirname(source)
        texts[page] = (ROOT / source).read_text(encoding="utf-8"), folder
        files.append(File.generated(config, page, content=rewritten(*texts[page])))
    for text, folder in texts.values():
        for link in _LINK.findall(text):
            path = _in_repository(link, folder)
            copy = None if path is None else _copy(path)
            if path is not None and copy is not None and files.get_file_from_path(copy) is None:
                files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page in docs/ to the site; mkdocs calls it."""
    return markdown if page.file.generated_by else rewritten(markdown, "docs")


def rewritten(text: str, folder: str) -> str:
    """A page's text with its links as the site has them.

    Args:
        text: Markdown.
        folder: The folder of the repository that its links are relative to.

    Returns:
        The text with links relative to docs/, in which all pages lie.
    """

    def link(match: re.Match[str]) -> str:
        path = _in_repository(match[1], folder)
        if path is None:
            return match[1]
        return PAGES.get(path) or _copy(path) or posixpath.relpath(path, "docs")

    return _LINK.sub(link, text)


def _in_repository(link: str, folder: str) -> str | None:
    """The file of the repository that a link leads to (a folder's is its README.md); None where there is none."""
    path = posixpath.normpath(posixpath.join(folder, link))
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    return path if (ROOT / path).is_file() else None


def _copy(path: str) -> str | None:
    """Where the site has a copy of a file; None for what it shows as a page or has already."""
    return None if path in PAGES or path.startswith("docs/") else f"files/{path}"

"""Pages of the site that are the READMEs of other folders: copied before the build, with their links made to fit.

On GitHub each of them is read where it lies, so nothing is written twice.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
PAGES = {
    "bench/README.md": "reports/benchmarks.md",
    "bench/paper/README.md": "reports/experiment.md",
    "kernels/README.md": "reports/kernels.md",
    "csrc/README.md": "reports/extension.md",
    "CONTRIBUTING.md": "reports/contributing.md",
    "CHANGELOG.md": "reports/changelog.md",
}
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]*)(#[^)\s]*)?\)")


def copy_reports(app: Sphinx) -> None:
    for source, page in PAGES.items():
        target = Path(app.srcdir) / page
        target.parent.mkdir(exist_ok=True)
        text = _linked((ROOT / source).read_text(), source, f"docs/{page}")
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def link_to_reports(app: Sphinx, page: str, source: list[str]) -> None:
    if not page.startswith("reports/"):
        path = f"docs/{page}.md"
        source[0] = _linked(source[0], path, path)


def _linked(text: str, was: str, now: str) -> str:
    """The Markdown of file `was` with its links as they are seen from file `now` (both below the root)."""

    def link(found: re.Match[str]) -> str:
        words, path, place = found[1], found[2], found[3] or ""
        target = os.path.normpath(PurePosixPath(was).parent / path)
        page = PAGES.get(target) or PAGES.get(f"{target}/README.md")
        if target == "README.md":
            page = "index.md"
        elif page is None and (ROOT / target).is_dir():
            return words
        return f"[{words}]({os.path.relpath(f'docs/{page}' if page else target, PurePosixPath(now).parent)}{place})"

    return LINK.sub(link, text)

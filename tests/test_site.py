"""What the site's sources have to be before anything is built: `sphinx-build -W` in .ci/run does the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import rsattn

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("notebook", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(notebook: Path):
    """The build runs them; outputs of somebody's machine would grow old in the repository."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(path.read_text() for path in DOCS.glob("api/*.md"))
    assert not [name for name in rsattn.__all__ if not re.search(rf":: {name}(\(\))?\n", reference)]


def test_every_page_is_reached():
    """A page that no toctree lists is one that nobody finds; Sphinx says so only when it builds."""
    listed = {
        (page.parent / re.sub(r"^.*<(.*)>$", r"\1", line)).resolve().relative_to(DOCS)
        for page in DOCS.glob("**/*.md")
        for block in page.read_text().split("```{toctree}")[1:]
        for line in block.split("```")[0].splitlines()
        if line and not line.startswith(":")
    }
    pages = {path.relative_to(DOCS).with_suffix("") for kind in ("md", "ipynb") for path in DOCS.glob(f"**/*.{kind}")}
    assert {page for page in pages if page.parts[0] not in ("_build", "reports")} - listed == {Path("index")}

"""README's commands are what they say, it stays short, and every link in the documents leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"))
    if not {"_build", "reports"} & set(path.relative_to(ROOT).parts)
]


def test_the_three_commands_and_no_others():
    assert re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) == [
        "pip install -e '.[demo]' -c constraints.txt && rsattn demo\n",
        "pip install -e '.[finetune]' -c constraints.txt && rsattn finetune\n",
        "pip install -e '.[test]' -c constraints.txt && pytest\n",
    ]


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_it_links_to_exists(document: Path):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), link
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link

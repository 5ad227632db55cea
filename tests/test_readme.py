"""The README's commands and code are what they say."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_and_no_others():
    assert blocks("sh") == [
        "pip install -e '.[demo]' -c constraints.txt && rsattn demo\n",
        "pip install -e '.[test]' -c constraints.txt && pytest\n",
    ]


def test_the_python_runs_as_written(capsys):
    (code,) = blocks("python")
    # A tenth of the picture's pixels keeps the test short; nothing else changes.
    small = code.replace("image_size=224", "image_size=64").replace("224, 224", "64, 64")
    assert small != code
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["record"].best_head.shape == (12, 2)
    assert str(names["record"].best_head) in capsys.readouterr().out
    assert type(names["model"].transformer.blocks[0]).__module__ == "pytorch_pretrained_vit.transformer"


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    assert all((Path(__file__).parents[1] / link).exists() for link in links)

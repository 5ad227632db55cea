"""The README's commands and code are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def snippet(words: str) -> str:
    """The one snippet that has these words in it."""
    (found,) = [block for block in blocks("python") if words in block]
    return found


def test_the_three_commands_and_no_others():
    assert blocks("sh") == [
        "pip install -e '.[demo]' -c constraints.txt && rsattn demo\n",
        "pip install -e '.[test]' -c constraints.txt && pytest\n",
        "pip install -e '.[finetune]' -c constraints.txt && rsattn finetune\n",
    ]


# Words only this snippet has -> the name of what it computes, and its shape.
LIBRARIES = {
    "attn_layer=ResidualAttention": ("logits", (2, 4)),
    "vit_b_16": ("logits", (2, 4)),
    "TransformerEncoderLayer": ("tokens", (2, 50, 256)),
    "ViTForImageClassification": ("logits", (2, 4)),
    "UNETR": ("segmentation", (1, 3, 64, 64, 64)),
    "from vit_pytorch": ("logits", (2, 4)),
    "from dinov2": ("features", (2, 384)),
    "head_dim=768": ("logits", (2, 4)),
}
USE, LEARN, SEE = "patch.undo()", "AdamW(groups", "rsattn.plot.norm_map"


def test_every_snippet_is_one_of_these():
    assert len(blocks("python")) == len(LIBRARIES) + 3
    assert len({snippet(words) for words in (*LIBRARIES, USE, LEARN, SEE)}) == len(LIBRARIES) + 3


@pytest.mark.parametrize("words", LIBRARIES)
def test_the_librarys_snippet_runs_as_written(words: str):
    if words == "from dinov2":
        pytest.importorskip("dinov2.models", reason="pip install --no-deps dinov2==0.0.1.dev2")
    names: dict = {}
    exec(compile(snippet(words), "README.md", "exec"), names)
    result, shape = LIBRARIES[words]
    assert tuple(names[result].shape) == shape
    assert torch.isfinite(names[result]).all()


def test_use_it(capsys: pytest.CaptureFixture[str]):
    names: dict = {}
    exec(compile(snippet(USE), "README.md", "exec"), names)
    assert names["record"].best_head.shape == (12, 2)
    assert str(names["record"].best_head) in capsys.readouterr().out
    assert type(names["model"].blocks[0].attn).__module__ == "timm.layers.attention"


def test_the_gates_learn_faster():
    names: dict = {}
    exec(compile(snippet(LEARN), "README.md", "exec"), names)
    others, gates = names["optimizer"].param_groups
    assert [(group["lr"], group["weight_decay"]) for group in (others, gates)] == [(1e-4, 0.05), (5e-3, 0.0)]
    own = [parameter for name, parameter in names["model"].named_parameters() if name.endswith("attn.gamma")]
    assert len(own) == 12
    assert {id(p) for p in gates["params"]} == {id(p) for p in own}
    assert len(others["params"]) == len(list(names["model"].parameters())) - 12
    names["model"](torch.randn(1, 3, 224, 224)).square().sum().backward()
    names["optimizer"].step()
    # Adam's first step is as long as the learning rate where the gradient is well above its eps, 1e-8.
    assert all(1e-3 < gate.abs().max() < 5.1e-3 for gate in own)


def test_see_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(snippet(SEE), "README.md", "exec"), names)
    assert names["picture"].shape == (3, 224, 224)
    assert names["record"].received.shape == (12, 1, 6, 197)
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("norms", "choices", "look"))


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        path = Path(__file__).parents[1] / name
        assert path.exists(), link
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link

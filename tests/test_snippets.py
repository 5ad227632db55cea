"""Every Python snippet of README and of the site's pages runs as written.

Cells of pages that the site executes itself ({code-cell}) are left to its build.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "libraries").glob("*.md"))]
SNIPPETS = [
    pytest.param(page, code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]

# A page's snippets leave one of these results, of this shape.
SHAPES = {
    "README.md": {"logits": (2, 4)},
    "docs/fine-tuning-guide.md": {"probabilities": (1, 10)},
    "docs/attention-received.md": {"patches": (14, 14), "keep": (1, 98), "logits": (2, 4), "alone": (2, 6, 197)},
    "docs/start.md": {"logits": (2, 4), "result": (2, 197, 384)},
    "docs/libraries/index.md": {"maps": (2, 56, 56)},
    "docs/libraries/dinov2.md": {"features": (2, 384)},
    "docs/libraries/monai.md": {"segmentation": (1, 3, 64, 64, 64)},
    "docs/libraries/pytorch.md": {"tokens": (2, 50, 256)},
}
A_LIBRARYS = {"logits": (2, 4)}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_it_runs_as_written(page: Path, code: str, request: pytest.FixtureRequest):
    if "from dinov2" in code:
        pytest.importorskip("dinov2.models", reason="pip install --no-deps dinov2==0.0.1.dev2")
    if "rsattn.finetune" in code:
        request.getfixturevalue("in_a_folder_with_a_run")
    names: dict = {}
    exec(compile(code, str(page), "exec"), names)
    name = str(page.relative_to(ROOT))
    expected = SHAPES.get(name, A_LIBRARYS if page.parent.name == "libraries" else {})
    found = {key: tuple(names[key].shape) for key in expected if key in names}
    assert not expected or found
    assert found == {key: expected[key] for key in found}
    assert all(torch.isfinite(names[key]).all() for key in found if names[key].is_floating_point())
    if check := CHECKS.get(name):
        check(names)


def undone(names: dict) -> None:
    assert names["record"].best_head.shape == (12, 2)
    assert type(names["model"].blocks[0].attn).__module__ == "timm.layers.attention"


def windows_lie_where_they_were(names: dict) -> None:
    of_second_image = names["received"][64:].mean(dim=1)
    assert torch.equal(names["maps"][1, 7:14, 14:21].flatten(), of_second_image[8 + 2])


def gates_learn_faster(names: dict) -> None:
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


def figures_are_drawn(names: dict) -> None:
    assert names["image"].shape == (3, 224, 224)
    assert names["record"].received.shape == (12, 1, 6, 197)
    assert all(Path(f"{name}.png").stat().st_size > 10_000 for name in ("norms", "choices", "look"))


def one_in_two_remains(names: dict) -> None:
    if "keep" in names:
        assert Path("kept.png").stat().st_size > 10_000
        assert names["received"][0, names["keep"][0]].min() > names["received"][0, 1:].median()
    if "hook" in names:
        assert names["logits"].shape == (2, 4)
        seen: list[int] = []
        names["model"].blocks[5].register_forward_hook(names["prune"])
        names["model"].blocks[11].register_forward_hook(lambda block, inputs, tokens: seen.append(tokens.shape[1]))
        with names["rsattn"].record(names["model"].blocks[5], received=True) as names["record"]:
            names["model"](torch.rand(1, 3, 224, 224))
        assert seen == [99]
    if "alone" in names:
        torch.testing.assert_close(names["attention"].received, names["alone"])


CHECKS: dict[str, Callable[[dict], None]] = {
    "README.md": undone,
    "docs/attention-received.md": one_in_two_remains,
    "docs/gate.md": gates_learn_faster,
    "docs/libraries/index.md": windows_lie_where_they_were,
    "docs/looking-inside.md": figures_are_drawn,
}


def test_every_library_that_patch_knows_has_a_page_with_a_snippet():
    from rsattn.integrations import LOOKS_FOR

    shown = {page.values[0].name for page in SNIPPETS if page.values[0].parent.name == "libraries"}
    pages = {name.replace("_", "-") + ".md" for name in LOOKS_FOR} - {"torch.md"} | {"pytorch.md", "torchvision.md"}
    assert shown - {"index.md"} == pages

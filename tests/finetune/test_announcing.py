"""The line on what a run will need."""

from __future__ import annotations

import pytest
import torch
from runs import MakeOptions, memory_of

from rsattn.finetune.announcing import announce, hint
from rsattn.finetune.memory import Needed

GB = 10**9
pytestmark = pytest.mark.usefixtures("on_a_cpu", "counted_anew")

SOME = Needed(weights=GB, gradients=GB, moments=2 * GB, activations=3 * GB, images=GB // 2)


@pytest.mark.parametrize(
    ("changes", "steps", "validation", "seconds", "needed", "words"),
    [
        (
            dict(epochs=12),
            11,
            2,
            1.4,
            SOME,
            "12 epochs of 11 steps, about 3.3 min on this CPU (1 thread); at least 7.5 GB of memory and 7 GB of disk",
        ),
        (
            dict(epochs=12, lr_auto=True, keep="last"),
            11,
            2,
            1.4,
            SOME,
            "3 learning rates, each with 12 epochs of 11 steps, about 9.8 min on this CPU (1 thread); at least 7.5 GB "
            "of memory and 8 GB of disk",
        ),
        (
            dict(epochs=40, patience=3),
            1,
            0,
            1.0,
            None,
            "at most 40 epochs of 1 step, about 40 s on this CPU (1 thread)",
        ),
        (dict(epochs=1, head_first=True), 3, 3, 3600.0, None, "1 epoch of 3 steps, about 6.0 h on this CPU (1 thread)"),
        (
            dict(epochs=30, freeze=True),
            10,
            2,
            60.0,
            None,
            "one pass of 10 steps over all images, then 30 epochs of only the classifier, about 12 min on this CPU",
        ),
    ],
)
def test_a_run_is_announced_in_a_line(
    changes: dict[str, object],
    steps: int,
    validation: int,
    seconds: float,
    needed: Needed | None,
    words: str,
    make_options: MakeOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    line = announce(make_options(**changes), steps, validation, seconds, needed)
    assert line.startswith(words)
    assert "\n" not in line


def test_a_patch_embedding_that_outweighs_the_model_is_told(make_options: MakeOptions) -> None:
    large, usual = make_options(image_size=1000), make_options(image_size=64)
    assert hint(large, memory_of(large)).startswith("98% of the weights are the patch embedding")
    assert hint(usual, memory_of(usual)) == hint(large, None) == ""

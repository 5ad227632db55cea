"""Runs that do not fit in memory or on the disk are refused before they start."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import MakeOptions, memory_of

from rsattn.cli.command import CommandError
from rsattn.cli.terminal import in_bytes
from rsattn.finetune import fitting
from rsattn.finetune.fitting import refuse_what_cannot_fit

GB = 10**9
pytestmark = pytest.mark.usefixtures("on_a_cpu", "counted_anew")


REFUSED = {
    "5000 pixels": (
        dict(image_size=5000),
        r"a tiny resvit with --image-size 5000 and --batch-size 8 does not fit in memory: it needs about 9\.61 GB "
        r"\(1\.8 GB of weights, 1\.8 GB of gradients, 3\.6 GB of optimizer, 2\.4 GB of activations of a batch\), "
        r"and this machine has 4 GB free; use a smaller --image-size, a smaller --batch-size or --freeze",
    ),
    "a batch": (dict(batch_size=10**9), r"about 3\.07 TB for one batch of images"),
    "beyond all numbers": (dict(image_size=10**12), "for one batch of images"),
    "one image": (
        dict(size="base", model="vit", image_size=2048, batch_size=1, freeze=True, augment="mirror"),
        r"use a smaller --image-size or a smaller --size$",
    ),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_fit_is_refused(
    changes: dict[str, object], words: str, make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(**changes)
    monkeypatch.setattr(fitting, "available_memory", lambda: 4 * GB)
    with pytest.raises(CommandError, match=words) as raised:
        refuse_what_cannot_fit(options)
    assert "\n" not in str(raised.value)
    assert not Path(options.out).exists()
    refuse_what_cannot_fit(replace(options, strategy="fsdp"))  # of which a device has a part only


def test_images_that_are_too_small_are_refused_before_anything_is_written(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handle", printed.append)
    options = make_options(model="cnn", image_size=4)
    with pytest.raises(CommandError, match="cnn cannot take images of --image-size 4"):
        refuse_what_cannot_fit(options)
    assert not printed
    assert not Path(options.out).exists()


def test_what_may_fit_is_not_refused(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    options = make_options(image_size=5000)
    monkeypatch.setattr(fitting, "available_memory", lambda: 10 * GB)
    refuse_what_cannot_fit(options)


@pytest.mark.parametrize(
    # Copies of the weights. AdamW's moments are two, and the last checkpoint is written beside the earlier one; the
    # two trainings that --lr auto has finished before the third one have no moments.
    ("changes", "copies"),
    [(dict(keep="last"), 6), (dict(keep="best"), 7), (dict(keep="best", lr_auto=True), 2 * 2 + 7)],
)
def test_a_run_that_does_not_fit_on_the_disk_is_refused(
    changes: dict[str, object], copies: int, make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(**changes)
    size = copies * memory_of(options).weights
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    refuse_what_cannot_fit(options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(CommandError) as raised:
        refuse_what_cannot_fit(options)
    assert str(raised.value) == (
        f"the run needs about {in_bytes(size)} of disk for checkpoints, and the disk of {options.out} has "
        f"{in_bytes(size)} free: free some space, or choose an --out on another disk"
    )
    assert not Path(options.out).exists()

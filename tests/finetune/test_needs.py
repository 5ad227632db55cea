"""The memory and time of a run: counted without allocation, and measured without side effects."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import MakeOptions
from torch import Tensor, nn
from torch.utils.data import Dataset

from rsattn.cli.command import CommandError
from rsattn.cli.terminal import in_bytes
from rsattn.finetune import needs
from rsattn.finetune.dataset import Sample
from rsattn.finetune.models import Built, build
from rsattn.finetune.needs import (
    Needed,
    announce,
    available_memory,
    hint,
    memory_needed,
    seconds_per_batch,
    seconds_per_step,
)
from rsattn.finetune.options import Options

GB = 10**9
COUNTED = needs._counted  # conftest.py replaces it
TIMM = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is counted; some tests replace the models."""
    monkeypatch.setattr(needs, "_counted", COUNTED.__wrapped__)


def count(options: Options, classes: int = 2, images: int = 0) -> Needed:
    needed = memory_needed(options, classes, images)
    assert needed is not None
    return needed


def bytes_of(model: nn.Module) -> int:
    return sum(4 * parameter.numel() for parameter in model.parameters())


def test_a_linear_layer_needs_what_can_be_counted_by_hand(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 images of 16 pixels: the batch, and only logits, losses and their gradients in addition."""
    layer = 4 * (3 * 16 * 16 * 2 + 2)
    monkeypatch.setattr(
        needs,
        "build",
        lambda *args, **kwargs: Built(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), "1", (0.0,), (1.0,)),
    )
    needed = count(make_options())
    assert (needed.weights, needed.gradients, needed.moments) == (layer, layer, 2 * layer)
    batch = 4 * 8 * 3 * 16 * 16
    assert batch < needed.activations < batch + 500
    assert needed.step == needed.total == 4 * layer + needed.activations


@pytest.mark.parametrize("changes", [{}, {"model": "vit"}, {"init_values": 0.0}, {"full_width": True}])
def test_a_vit_needs_its_parameters_four_times(changes: dict[str, object], make_options: MakeOptions) -> None:
    options = make_options(**changes)
    needed, size = count(options, 3), bytes_of(build(options, 3).model)
    assert (needed.weights, needed.gradients, needed.moments) == (size, size, 2 * size)
    assert needed.embedding == 4 * 96 * (3 * 4 * 4 + 1)


@pytest.mark.parametrize("changes", [{"model": "alexnet"}, {"model": "cnn"}, {"model": TIMM, "patch": True}])
def test_every_model_can_be_counted(changes: dict[str, object], make_options: MakeOptions) -> None:
    options = make_options(image_size=64, drop_path=0.1, **changes)
    assert count(options).gradients == bytes_of(build(options, 2).model)


@pytest.mark.parametrize("model", ["vit", "resvit", "resnet18", TIMM])
def test_larger_images_and_batches_need_more(model: str, make_options: MakeOptions) -> None:
    options = make_options(model=model, size="small", image_size=64)
    small = count(options)
    assert count(replace(options, image_size=128)).activations > 2 * small.activations
    assert count(replace(options, batch_size=64)).activations > 4 * small.activations


def test_only_what_stores_all_probabilities_grows_with_their_number(make_options: MakeOptions) -> None:
    """Four times the pixels give four times the tokens: the library's attention stores N x N values, rsattn's N."""
    growth = {
        model: count(make_options(model=model, size="base", image_size=1024)).activations
        / count(make_options(model=model, size="base", image_size=512)).activations
        for model in ("vit", "resvit")
    }
    assert growth["resvit"] < 5 < 10 < growth["vit"]


def test_half_precision_holds_less(make_options: MakeOptions) -> None:
    options = make_options(batch_size=512)
    single, double = count(options), count(replace(options, precision="64-true"))
    assert count(replace(options, precision="bf16-mixed")).activations < single.activations
    assert double.weights == 2 * single.weights
    assert double.activations > 1.9 * single.activations


def test_what_is_frozen_has_no_gradient_and_keeps_nothing(make_options: MakeOptions) -> None:
    trained = count(make_options(batch_size=64, augment="mirror"))
    frozen = count(make_options(batch_size=64, augment="mirror", freeze=True))
    assert frozen.gradients == 4 * (96 * 2 + 2)
    assert frozen.activations < trained.activations / 3
    kept = count(make_options(batch_size=8, freeze=True))  # features are computed 32 at a time
    assert kept.activations > count(make_options(batch_size=8, freeze=True, augment="mirror")).activations


def test_images_are_kept_up_to_a_limit(make_options: MakeOptions) -> None:
    assert count(make_options(), images=100).images == 100 * 3 * 16 * 16
    assert count(make_options(), images=10**9).images == 0


def test_absurd_sizes_are_counted_too(make_options: MakeOptions) -> None:
    needed = count(make_options(image_size=100_000))
    assert needed.weights > 700 * GB
    assert needed.embedding > 0.99 * needed.weights
    assert count(make_options(model="vit", size="base", image_size=4096)).step > 10_000 * GB


def test_what_cannot_be_built_is_refused_in_the_words_of_the_model(make_options: MakeOptions) -> None:
    with pytest.raises(CommandError, match="not a multiple of the 16-pixel patches"):
        memory_needed(make_options(size="base", image_size=100), 2)


def test_a_model_that_needs_data_is_not_counted(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(nn.Linear):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels.flatten(1) if float(pixels.sum()) else pixels)

    monkeypatch.setattr(needs, "build", lambda *args, **kwargs: Built(Reads(768, 2), "", (0.0,), (1.0,)))
    assert memory_needed(make_options(), 2) is None
    needs.refuse_what_cannot_fit(make_options())


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
    monkeypatch.setattr(needs, "available_memory", lambda: 4 * GB)
    with pytest.raises(CommandError, match=words) as raised:
        needs.refuse_what_cannot_fit(options)
    assert "\n" not in str(raised.value)
    assert not Path(options.out).exists()
    needs.refuse_what_cannot_fit(replace(options, strategy="fsdp"))  # of which a device has a part only


def test_images_that_are_too_small_are_refused_before_anything_is_written(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handle", printed.append)
    options = make_options(model="cnn", image_size=4)
    with pytest.raises(CommandError, match="cnn cannot take images of --image-size 4"):
        needs.refuse_what_cannot_fit(options)
    assert not printed
    assert not Path(options.out).exists()


def test_what_may_fit_is_not_refused(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    options = make_options(image_size=5000)
    monkeypatch.setattr(needs, "available_memory", lambda: 10 * GB)
    needs.refuse_what_cannot_fit(options)


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
    size = copies * count(options).weights
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    needs.refuse_what_cannot_fit(options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(CommandError) as raised:
        needs.refuse_what_cannot_fit(options)
    assert str(raised.value) == (
        f"the run needs about {in_bytes(size)} of disk for checkpoints, and the disk of {options.out} has "
        f"{in_bytes(size)} free: free some space, or choose an --out on another disk"
    )
    assert not Path(options.out).exists()


MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 5000 kB\nSwapFree: 1000 kB\n"
GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "none": ("", {}, 6000 * 1024),
    "version 2, without a limit": (
        "0::/job",
        {"job/memory.max": "max", "job/memory.current": "7", "memory.current": "7"},
        6000 * 1024,
    ),
    "version 2, with files in memory": (
        "0::/job/step",
        {"job/memory.max": "3000000", "job/memory.current": "2500000", "job/memory.stat": "anon 5\nfile 400000\n"},
        900_000,
    ),
    "version 1, from outside": (
        "9:cpu:/\n8:memory:/host/job",
        {"memory/memory.limit_in_bytes": "2000000", "memory/memory.usage_in_bytes": "1500000"},
        500_000,
    ),
    "over its limit": ("0::/", {"memory.max": "10", "memory.current": "20"}, 0),
}


@pytest.mark.parametrize(("groups", "files", "left"), GROUPS.values(), ids=GROUPS)
def test_a_containers_limit_counts(
    groups: str, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "PROC", tmp_path / "proc")
    monkeypatch.setattr(needs, "CGROUPS", tmp_path / "cgroup")
    written = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **{f"cgroup/{n}": t for n, t in files.items()}}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n" if text else "")
    assert available_memory() == left


def test_there_is_some_memory_here() -> None:
    assert 2**20 < available_memory() < 2**62


UNTOUCHED = {
    "batch norm": {"model": "cnn"},
    "dropout": {"model": "vit"},
    "gates": {"init_values": 0.0},
    "frozen": {"freeze": True, "augment": "mirror"},
    "features": {"freeze": True},
    "half": {"model": "cnn", "precision": "bf16-mixed"},
    "double": {"model": "cnn", "precision": "64-true"},
}


@pytest.mark.parametrize("changes", UNTOUCHED.values(), ids=UNTOUCHED)
def test_a_timed_step_leaves_no_trace(changes: dict[str, object], make_options: MakeOptions) -> None:
    options = make_options(**changes)
    built = build(options, 3)
    model = built.model
    model.eval()
    model.get_submodule(built.classifier).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def marks() -> list[object]:
        modules = [(set(m.__dict__), m.training, getattr(m, "scores", None)) for m in model.modules()]
        return [*modules, *((id(p), p.data_ptr(), p.dtype, p.requires_grad, p.grad) for p in model.parameters())]

    earlier = marks()
    assert seconds_per_step(built, options) > 0.0
    assert marks() == earlier
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def shapes_timed(built: Built, options: Options, batch: tuple[Tensor, Tensor] | None = None) -> list[int]:
    """The number of images in each call of the model."""
    seen: list[int] = []
    hook = built.model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    seconds_per_step(built, options, batch)
    hook.remove()
    return seen


def test_two_images_warm_up_and_the_batch_is_timed(make_options: MakeOptions) -> None:
    options = make_options(model="cnn")
    built = build(options, 2)
    assert shapes_timed(built, options) == [2, 8, 8]
    assert shapes_timed(built, options, (torch.rand(5, 3, 16, 16), torch.zeros(5, dtype=torch.long))) == [2, 5, 5]


def test_a_step_that_takes_long_is_not_made_for_its_time(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(model="cnn", batch_size=64)
    built = build(options, 2)
    monkeypatch.setattr(needs, "LONG", 0.0)
    assert shapes_timed(built, options) == [2]
    clock = iter(range(100))
    monkeypatch.setattr(needs.time, "perf_counter", lambda: float(next(clock)))
    assert seconds_per_step(built, options) == 32.0 + 1.0  # a second for two images, and one for the update
    monkeypatch.setattr(needs, "LONG", 3.0)
    assert shapes_timed(built, options) == [2, 64]


class Slow(Dataset[Sample]):
    """Images that take 10 seconds of `clock` to decode, and 1 second once they are in memory."""

    def __init__(self) -> None:
        self.clock, self.kept = 0.0, set[int]()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> Sample:
        self.clock += 1.0 if position in self.kept else 10.0
        self.kept.add(position)
        torch.rand(1)
        return torch.zeros(3, 16, 16), 0, position


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        (dict(), 5.0 + 8 * 1.0),
        (dict(freeze=True), 5.0 + 8 * 10.0),
        (dict(workers=2), 5.0),
        (dict(workers=2, freeze=True), 40.0),
    ],
)
def test_loading_counts_where_the_model_waits_for_it(
    changes: dict[str, object], seconds: float, make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, images = make_options(**changes), Slow()
    monkeypatch.setattr(needs, "seconds_per_step", lambda *args: 5.0)
    monkeypatch.setattr(needs.time, "perf_counter", lambda: images.clock)
    state = torch.get_rng_state()
    assert seconds_per_batch(build(options, 2), options, images) == seconds
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_a_step_without_the_memory_for_it_is_a_sentence(
    error: Exception, make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(needs, "_step", refuse)
    options = make_options()
    built = build(options, 2)
    with pytest.raises(CommandError, match=r"does not fit.*use a smaller --image-size"):
        seconds_per_step(built, options)
    monkeypatch.setattr(needs, "_step", lambda *args: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # a fault of another kind stays what it is
        seconds_per_step(built, options)


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
        (dict(epochs=40, patience=3), 1, 0, 1.0, None, "at most 40 epochs of 1 step, about 40 s on this CPU (1 thre"),
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
    assert hint(large, count(large)).startswith("98% of the weights are the patch embedding")
    assert hint(usual, count(usual)) == hint(large, None) == ""

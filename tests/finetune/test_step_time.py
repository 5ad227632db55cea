"""The time of a step, measured without side effects."""

from __future__ import annotations

import pytest
import torch
from runs import MakeOptions
from torch import Tensor
from torch.utils.data import Dataset

from rsattn.cli.command import CommandError
from rsattn.finetune import step_time
from rsattn.finetune.dataset import Sample
from rsattn.finetune.models import Built, build
from rsattn.finetune.options import Options
from rsattn.finetune.step_time import seconds_per_batch, seconds_per_step

pytestmark = pytest.mark.usefixtures("on_a_cpu")

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
    monkeypatch.setattr(step_time, "LONG", 0.0)
    assert shapes_timed(built, options) == [2]
    clock = iter(range(100))
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: float(next(clock)))
    assert seconds_per_step(built, options) == 32.0 + 1.0  # a second for two images, and one for the update
    monkeypatch.setattr(step_time, "LONG", 3.0)
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
    monkeypatch.setattr(step_time, "seconds_per_step", lambda *args: 5.0)
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: images.clock)
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

    monkeypatch.setattr(step_time, "_step", refuse)
    options = make_options()
    built = build(options, 2)
    with pytest.raises(CommandError, match=r"does not fit.*use a smaller --image-size"):
        seconds_per_step(built, options)
    monkeypatch.setattr(step_time, "_step", lambda *args: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # a fault of another kind stays what it is
        seconds_per_step(built, options)

"""The demo's own model: a small ViT with residual attention that learns to read a digit on a photograph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contract import Merge, Norm, Scope
from ...patching import patch
from ...recording import record
from .scenes import DIGITS, PATCH, SIZE, TEST_FONTS, TRAINING_FONTS, SceneMaker

BLOCKS, HEADS, DIM = 4, 8, 64
STEPS, BATCH = 500, 64
RATE, GATE_RATE = 2e-3, 2e-2
TESTED = 1000


@dataclass(frozen=True)
class Trained:
    """What training leaves.

    Attributes:
        state: the patched model's state_dict, on the CPU.
        accuracy: on test images, whose fonts training does not use.
        best_on_digit: for each block, the share of the best head's attention on the digit: the mean over test images.
        all_on_digit: the same for the mean of all heads.
    """

    state: dict[str, Tensor]
    accuracy: float
    best_on_digit: list[float]
    all_on_digit: list[float]


@dataclass(frozen=True)
class Reading:
    """What the trained model makes of one image.

    Attributes:
        digit: what is in the image; `answer` is what the model says, with `probability`.
        on_digit: (N - 1,) bool, the patches that the digit covers.
    """

    trained: Trained
    digit: int
    answer: int
    probability: float
    on_digit: Tensor

    @property
    def area(self) -> float:
        """The digit's share of the image."""
        return float(self.on_digit.double().mean())


def share_on_digit(received: Tensor, on_digit: Tensor) -> Tensor:
    """The share of attention (..., N) that the patches `on_digit` (..., N - 1) receive; token 0 is the class token."""
    return (received[..., 1:] * on_digit).sum(-1) / received.sum(-1)


def test_scenes(seed: int) -> SceneMaker:
    """Fonts and parts of the photograph that the training with `seed` does not use."""
    return SceneMaker(TEST_FONTS, seed + 1)


def build_reader(seed: int) -> nn.Module:
    """The small ViT, not patched, with random weights that depend on `seed` alone."""
    from pytorch_pretrained_vit import ViT
    from pytorch_pretrained_vit.configs import PRETRAINED_MODELS, get_base_config

    shape = {"patches": (PATCH, PATCH), "dim": DIM, "ff_dim": 2 * DIM, "num_heads": HEADS, "num_layers": BLOCKS}
    # The library takes a shape only by a name in its table.
    PRETRAINED_MODELS["rsattn_demo"] = {"config": get_base_config() | shape | {"dropout_rate": 0.0}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = ViT("rsattn_demo", pretrained=False, image_size=SIZE, num_classes=DIGITS)
    return model


def train_reader(
    seed: int, norm: Norm, scope: Scope, merge: Merge, device: torch.device, steps: Iterable[int]
) -> Trained:
    """Train a patched model from random weights, one optimizer step for each of the STEPS `steps`, and test it."""
    model = build_reader(seed).to(device)
    gates = list(patch(model, norm=norm, scope=scope, merge=merge).parameters())
    others = [parameter for parameter in model.parameters() if all(parameter is not gate for gate in gates)]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": gates, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [RATE, GATE_RATE], total_steps=STEPS, pct_start=0.2)
    scenes = SceneMaker(TRAINING_FONTS, seed)
    with _one_thread():
        for _ in steps:
            batch = scenes.make(BATCH)
            loss = F.cross_entropy(model(batch.pixels.to(device)), batch.digits.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return _tested(model, seed, device)


@torch.inference_mode()
def _tested(model: Any, seed: int, device: torch.device) -> Trained:
    scenes = test_scenes(seed).make(TESTED)
    with record(model.eval(), received=True) as recorded:
        answers = model(scenes.pixels.to(device)).argmax(1).cpu()
    on_digit = share_on_digit(recorded.received.cpu(), scenes.on_digit.flatten(1)[:, None])  # (blocks, B, H)
    best = on_digit.gather(2, recorded.best_head.cpu()[..., None]).squeeze(2)
    return Trained(
        state={name: value.cpu() for name, value in model.state_dict().items()},
        accuracy=float((answers == scenes.digits).double().mean()),
        best_on_digit=best.double().mean(1).tolist(),
        all_on_digit=on_digit.double().mean((1, 2)).tolist(),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """More gain little with steps this small, and wait for each other where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Measure the time of a training step, and leave the model as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from ..cli.command import CommandError
from .available_memory import available_memory
from .classifier import freeze
from .dataset import Sample
from .devices import autocast, this_device
from .features import can_be_kept
from .fitting import too_large
from .models import Built
from .optimizer import as_one_operation
from .options import Options

LONG = 5.0  # seconds; a step that took longer is not repeated
SOME_IMAGES = 4  # images to load for timing


def seconds_per_batch(built: Built, options: Options, images: Dataset[Sample]) -> float:
    """The time of a batch in training: that of `seconds_per_step`, and that to load the images.

    Loader processes work at the same time as the model; without any (`options.workers` is 0), the model waits.

    Args:
        images: the train split, with augmentation.

    Raises:
        CommandError: there is not enough memory for a step.
    """
    step = seconds_per_step(built, options)
    some = range(min(SOME_IMAGES, len(images)))  # type: ignore[arg-type]
    # Features are computed once, from images that have to be decoded; in later epochs images are decoded already.
    with torch.random.fork_rng(devices=[]):
        seconds = [_seconds(lambda: [images[position] for position in some]) for _ in range(2)]
    loading = seconds[0 if can_be_kept(options) else 1] / max(len(some), 1) * options.batch_size
    return max(step, loading / options.workers) if options.workers else step + loading


def seconds_per_step(built: Built, options: Options, batch: tuple[Tensor, Tensor] | None = None) -> float:
    """The time of one training step on the device of the run, measured after a warm-up with two images.

    A step is the forward and the backward pass of a batch and AdamW's update. For a run that computes the features of
    frozen layers once (`features.can_be_kept`), it is a forward pass. If two images take long, the time of a batch is
    estimated from them. The model and all random number generators stay unchanged, bit for bit.

    Args:
        batch: images (B, 3, S, S) and labels (B,). Default: random ones with the shape of the run's batches.

    Raises:
        CommandError: there is not enough memory for it.
    """
    device = this_device()
    with _untouched(built.model), torch.random.fork_rng([0] if device.type == "cuda" else []):
        if options.freeze:
            freeze(built.model, built.classifier)
        built.model.train(not options.freeze).to(device)
        if options.precision == "64-true":
            built.model.double()
        images, labels = _random_batch(built, options) if batch is None else batch
        dtype = torch.float64 if options.precision == "64-true" else torch.float32
        images, labels = images.to(device, dtype), labels.to(device)
        work = _look if can_be_kept(options) else _step
        try:
            first = _seconds(lambda: work(built.model, options, images[:2], labels[:2]))
            seconds = first * len(images) / min(len(images), 2)
            if first <= LONG:
                for _ in range(1 if seconds > LONG else 2):
                    seconds = _seconds(lambda: work(built.model, options, images, labels))
            return seconds + _update_seconds(built.model)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error):
                needed, what = 4 * images.numel(), "and more for one batch"
                raise CommandError(too_large(options, needed, what, available_memory())) from None
            raise


def _random_batch(built: Built, options: Options) -> tuple[Tensor, Tensor]:
    classifier: Any = built.model.get_submodule(built.classifier)
    shape = options.batch_size, 3, options.image_size, options.image_size
    return torch.randn(shape), torch.randint(classifier.out_features, (options.batch_size,))


def _step(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    with autocast(options, images.device.type):
        logits = model(images)
    functional.cross_entropy(logits.float(), labels).backward()


@torch.no_grad()
def _look(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> None:
    model.eval()
    with autocast(options, images.device.type):
        model(images)


def _update_seconds(model: nn.Module) -> float:
    """The time of AdamW's update, 0 after no backward pass.

    The update is applied to the gradients instead of the weights, which must not change.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients:
        return 0.0
    weights = [nn.Parameter(gradient) for gradient in gradients]
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient
    optimizer = torch.optim.AdamW(weights, fused=as_one_operation(weights))
    optimizer.step()  # creates the moments
    return _seconds(optimizer.step)


def _seconds(work: Callable[[], object]) -> float:
    """The time of a call; on a GPU, until its work is done."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore a model afterwards: devices, buffers, `requires_grad`, modes, and other attributes of its modules."""
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.data, buffer.clone()) for buffer in model.buffers()]
    modules = [
        (module, dict(module.__dict__), dict(module._parameters), dict(module._buffers)) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, own, kept in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._parameters.update(own)
            module._buffers.update(kept)
        for parameter, data, trained in parameters:
            parameter.grad = None
            parameter.data = data
            parameter.requires_grad_(trained)
        with torch.no_grad():
            for buffer, data, before in buffers:
                buffer.data = data
                buffer.copy_(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

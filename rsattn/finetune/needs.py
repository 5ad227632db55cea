"""Estimate the memory and time of a run before it starts, and refuse runs that do not fit in memory or on the disk.

The memory is counted without allocating it: the model is built on PyTorch's meta device, and a training step runs with
tensors without data (FakeTensorMode) while the bytes of a real step are counted. The time is measured on one step.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from ..cli.command import CommandError
from ..cli.terminal import duration, in_bytes
from .classifier import freeze
from .cpu_attention import use_matrix_products
from .dataset import KEPT_BYTES, Sample
from .disk import largest_bytes, refuse_full_disk
from .features import can_be_kept
from .folders import counted, in_words
from .models import Built, build, refuse_images_of_another_size
from .optimizer import as_one_operation
from .options import RATE_FACTORS, SHARDED, Options

LONG = 5.0  # seconds; a step that took longer is not repeated
SOME_IMAGES = 4  # images to load for timing
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Needed:
    """A lower bound of the memory of a run on one device, in bytes.

    It does not include temporary memory of kernels, PyTorch itself, or unused memory of the allocator.

    Attributes:
        weights: parameters and buffers.
        gradients: gradients of the trained parameters.
        moments: AdamW's two moments of each trained parameter.
        activations: the largest rest of a step, with its batch of images.
        images: decoded images that the run keeps, in host memory even with a GPU.
        embedding: parameters of a ViT's patch embedding, which `weights` includes.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    images: int = 0
    embedding: int = 0

    @property
    def step(self) -> int:
        """The memory on the device: everything except the images."""
        return self.weights + self.gradients + self.moments + self.activations

    @property
    def total(self) -> int:
        return self.step + self.images


def memory_needed(options: Options, classes: int, images: int = 0) -> Needed | None:
    """Count the memory that a run needs; this takes at most two seconds, for runs of any size.

    Args:
        classes: the number of classes.
        images: the number of images; 0 where it is not yet known.

    Returns:
        The memory, or None where the forward pass of the model needs real data.

    Raises:
        CommandError: the model cannot be built.
    """
    size = 3 * options.image_size**2
    kept = images * size if images * size <= KEPT_BYTES else 0
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # prints the traceback of each error that it raises
    before, logger.disabled = logger.disabled, True
    try:
        # The memory does not depend on these, and runs that differ in them are counted once.
        alike = replace(options, out="", data=None, seed=0, split_seed=None, fold=None)
        return replace(_counted(alike, classes), images=kept)
    except CommandError:
        raise
    except Exception:  # the forward pass of a timm model can raise anything
        return None
    finally:
        logger.disabled = before


@functools.lru_cache(maxsize=16)  # a run asks before it reads its images, and again before it trains
def _counted(options: Options, classes: int) -> Needed:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        built = build(options, classes, with_weights=False)
    model = built.model
    use_matrix_products(model, options)
    if options.precision == "64-true":
        model.double()
    if options.freeze:
        freeze(model, built.classifier)
    parameters = list(model.parameters())
    trained = sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad)
    weights = sum(_bytes(tensor) for tensor in {*parameters, *model.buffers()})
    embedding = getattr(model, "patch_embedding", None)
    # In the order of a run: the features of frozen layers, if used, then training steps. Lightning frees the gradients
    # of a step after the forward pass of the next one.
    with FakeTensorMode():
        _fill(model, _device())
        needed = 0
        if options.head_first or can_be_kept(options):
            needed = _most_held(built, options, max(options.batch_size, 32), training=False)
        if not can_be_kept(options):
            step = _most_held(built, options, options.batch_size, training=True)
            needed = max(needed, 3 * trained + step)
    return Needed(
        weights=weights,
        gradients=trained,
        moments=2 * trained,
        activations=max(needed - 3 * trained, 0),
        embedding=0 if embedding is None else sum(map(_bytes, embedding.parameters())),
    )


def _most_held(built: Built, options: Options, batch: int, training: bool) -> int:
    """The largest number of bytes that a step holds in addition to weights, moments and gradients."""
    model, side = built.model, options.image_size
    dtype = torch.float64 if options.precision == "64-true" else torch.float32
    model.train(training and not options.freeze)
    pixels = torch.empty((batch, 3, side, side), dtype=dtype, device=_device())
    labels = torch.empty(batch, dtype=torch.long, device=_device())
    gradients = sum(_bytes(p) for p in model.parameters() if p.requires_grad) if training else 0
    with _Held([*model.parameters(), *model.buffers()]) as held, _autocast(options, _device().type):
        held.add(pixels)
        if not training:
            with torch.no_grad():
                model(pixels)
            return held.most
        loss = functional.cross_entropy(model(pixels).float(), labels)
        forward, held.most = held.most, held.now
        with torch.autocast(_device().type, enabled=False):
            loss.backward()
    return max(forward, held.most - gradients)


class _Held(TorchDispatchMode):
    """Counts the bytes of all live tensors that operators return.

    Args:
        free: tensors that are not counted.

    Attributes:
        now, most: the current and the largest number of bytes.
    """

    def __init__(self, free: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}
        self._free = [tensor.untyped_storage() for tensor in free]
        for storage in self._free:
            self._known[storage._cdata] = None

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known[storage._cdata] = weakref.finalize(storage, self._gone, storage._cdata, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def _fill(model: nn.Module, device: torch.device) -> None:
    """Replace the model's tensors by ones of the same shape on `device`, created in the current mode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                made = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module._parameters[name] = nn.Parameter(made, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def available_memory() -> int:
    """Free memory of the first GPU, if there is one, else of this machine, in bytes.

    The memory of the machine includes swap, and the memory limit of a container applies.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return min([_memory_of_machine(), *_left_in_cgroups()])


def _memory_of_machine() -> int:
    table = _numbers(PROC / "meminfo")
    if "MemAvailable" in table:
        return 1024 * (table["MemAvailable"] + table.get("SwapFree", 0))
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # the size is unknown, so refuse nothing
        return 2**63 - 1


def _left_in_cgroups() -> list[int]:
    """The free memory below the limit of each control group of this process, version 1 or 2."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        # In a container, the path may be that of the host: skip groups that are not visible.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                left += _left_in(folder, *names)
    return left


def _left_in(folder: Path, limit: str, used: str, cache: str) -> list[int]:
    """The free memory of one group; it includes file pages, which the kernel frees when memory is short."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
    except (OSError, ValueError):
        return []
    if not most.isdecimal():  # "max"
        return []
    return [max(int(most) - now + _numbers(folder / "memory.stat").get(cache, 0), 0)]


def _numbers(path: Path) -> dict[str, int]:
    """The lines with a name and a number, such as `MemAvailable: 1234 kB`; empty where the file cannot be read."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def refuse_what_cannot_fit(options: Options, classes: int = 2) -> None:
    """Refuse a run that needs more memory or disk than is free, before anything is read or written.

    Raises:
        CommandError: the run does not fit, the model cannot be built, or it cannot take images of this size.
    """
    if options.strategy.startswith(SHARDED):  # the memory of one device is unknown here
        return
    there = available_memory()
    batch = 4 * 3 * options.image_size**2 * options.batch_size
    if batch > there:  # so that no model is built with sizes that overflow in PyTorch
        raise CommandError(_too_large(options, batch, "for one batch of images", there))
    needed = memory_needed(options, classes)
    if needed is None:
        refuse_images_of_another_size(options, classes)
        return
    if needed.step <= there:
        refuse_full_disk(Path(options.out), largest_bytes(options, needed.weights, needed.moments), "the run needs")
        return
    parts = {
        "weights": needed.weights,
        "gradients": needed.gradients,
        "optimizer": needed.moments,
        "activations of a batch": needed.activations,
    }
    listed = ", ".join(f"{in_bytes(size)} of {name}" for name, size in parts.items() if size >= 0.01 * needed.step)
    raise CommandError(_too_large(options, needed.step, f"({listed})", there))


def _too_large(options: Options, needed: int, what: str, there: int) -> str:
    where = "the GPU" if torch.cuda.is_available() else "this machine"
    own = options.model in ("vit", "resvit")
    ways = ["a smaller --image-size"]
    ways += ["a smaller --batch-size"] if options.batch_size > 1 else []
    ways += ["a smaller --size"] if own and options.size != "tiny" else []
    ways += ["--freeze"] if not options.freeze else []
    model = f"a {options.size} {options.model}" if own else options.model
    return (
        f"{model} with --image-size {options.image_size} and --batch-size {options.batch_size} does not fit in memory: "
        f"it needs about {in_bytes(needed)} {what}, and {where} has {in_bytes(there)} free; use {in_words(ways, 'or')}"
    )


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
    device = _device()
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
                raise CommandError(_too_large(options, needed, what, available_memory())) from None
            raise


def _random_batch(built: Built, options: Options) -> tuple[Tensor, Tensor]:
    classifier: Any = built.model.get_submodule(built.classifier)
    shape = options.batch_size, 3, options.image_size, options.image_size
    return torch.randn(shape), torch.randint(classifier.out_features, (options.batch_size,))


def _step(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    with _autocast(options, images.device.type):
        logits = model(images)
    functional.cross_entropy(logits.float(), labels).backward()


@torch.no_grad()
def _look(model: nn.Module, options: Options, images: Tensor, labels: Tensor) -> None:
    model.eval()
    with _autocast(options, images.device.type):
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


def announce(options: Options, steps: int, validation: int, step_seconds: float, needed: Needed | None) -> str:
    """One line on the length, time, memory and disk space of a run.

    Args:
        steps: the number of steps of an epoch on one device.
        validation: the number of batches of the validation images on one device.
        step_seconds: as `seconds_per_batch` measures it.
        needed: as `memory_needed` counts it.
    """
    count, epochs = counted(steps, "step"), counted(options.epochs, "epoch")
    if can_be_kept(options):
        run = f"one pass of {count} over all images, then {epochs} of only the classifier"
    else:
        run = f"{'at most ' if options.patience else ''}{epochs} of {count}"
    if options.lr_auto:
        run = f"{len(RATE_FACTORS)} learning rates, each with {run}"
    line = f"{run}, about {duration(seconds_of_run(options, steps, validation, step_seconds))} on {this_device()}"
    if needed is None:
        return line
    memory = needed.step if torch.cuda.is_available() else needed.total
    disk = largest_bytes(options, needed.weights, needed.moments)
    return f"{line}; at least {in_bytes(memory)} of memory and {in_bytes(disk)} of disk"


def seconds_of_run(options: Options, steps: int, validation: int, step_seconds: float) -> float:
    """The time of all training of a run, with its validation; `announce` explains the arguments."""
    if can_be_kept(options):  # then a step is a forward pass
        seconds = (steps + validation) * step_seconds
    else:
        forward = step_seconds / 3
        seconds = options.epochs * (steps * step_seconds + validation * forward)
        seconds += (steps + validation) * forward if options.head_first else 0
    return (len(RATE_FACTORS) if options.lr_auto else 1) * seconds


def this_device() -> str:
    if torch.cuda.is_available():
        return f"this GPU ({torch.cuda.get_device_name()})"
    return f"this CPU ({counted(torch.get_num_threads(), 'thread')})"


def hint(options: Options, needed: Needed | None) -> str:
    """A line on a size that is probably a mistake; empty where there is none.

    A tiny ViT always has 4 x 4 patches, so with large images, most of its weights are the patch embedding.
    """
    if needed is None or 2 * needed.embedding <= needed.weights:
        return ""
    return (
        f"{needed.embedding / needed.weights:.0%} of the weights are the patch embedding: a tiny {options.model} "
        f"always has 4 x 4 patches, here of {options.image_size // 4} pixels; use a smaller --image-size, or --size "
        "small, which has patches of 16 pixels"
    )


def _autocast(options: Options, device: str) -> torch.autocast:
    mixed = MIXED.get(options.precision)
    return torch.autocast(device, mixed or torch.bfloat16, enabled=mixed is not None)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

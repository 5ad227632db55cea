"""Count the memory of a run without allocating it.

The model is built on PyTorch's meta device, and a training step runs with tensors without data (FakeTensorMode) while
the bytes of a real step are counted.
"""

from __future__ import annotations

import functools
import logging
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..cli.command import CommandError
from .classifier import freeze
from .cpu_attention import use_matrix_products
from .dataset import KEPT_BYTES
from .devices import autocast, this_device
from .features import can_be_kept
from .models import Built, build
from .options import Options


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
        _fill(model, this_device())
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
    pixels = torch.empty((batch, 3, side, side), dtype=dtype, device=this_device())
    labels = torch.empty(batch, dtype=torch.long, device=this_device())
    gradients = sum(_bytes(p) for p in model.parameters() if p.requires_grad) if training else 0
    with _Held([*model.parameters(), *model.buffers()]) as held, autocast(options, this_device().type):
        held.add(pixels)
        if not training:
            with torch.no_grad():
                model(pixels)
            return held.most
        loss = functional.cross_entropy(model(pixels).float(), labels)
        forward, held.most = held.most, held.now
        with torch.autocast(this_device().type, enabled=False):
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


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""`rsattn demo`: residual self-attention in a trained ViT on an image, each block checked, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...backends.dispatch import backends, choose
from ...call import Call
from ...recording import record
from ..command import CommandError, finished_file, require, writing
from ..outputs import output_folder
from .blocks import BlockReport, report
from .figure import draw
from .options import DemoOptions
from .subjects import Subject, digit_reader, vit_b16
from .words import Setting, tell_results, tell_setting

if TYPE_CHECKING:
    from rich.console import Console

FIGURE = "residual-attention.png"


def run(options: DemoOptions) -> int:
    """Do the demo; 0 when every block is within its budget, 1 when one is not.

    Raises:
        CommandError: something was asked that cannot be done; nothing is left behind.
    """
    require("demo", "demo", "matplotlib", "PIL", "pytorch_pretrained_vit", "rich", "scipy")
    if options.image is None:
        require("demo", "demo", "skimage")
    from ..terminal import Terminal

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check_backend(options.backend, device)
    target = options.out / FIGURE
    console = Terminal()
    with output_folder(options.out), finished_file(target) as partial:
        subject = vit_b16(options) if options.asks_for_vit_b16 else digit_reader(options, device, console)
        with torch.inference_mode():
            model = subject.model.to(device)
            embedded = _embedded(model, subject.pixels.to(device))
            setting = _setting(options, subject, embedded)
            tell_setting(console, setting)
            reports = _checked(model, embedded, console)
        with writing(target):
            draw(partial, subject.image, reports, setting)
    tell_results(console, setting, reports, target)
    return 0 if all(block.passed for block in reports) else 1


def _check_backend(name: str | None, device: torch.device) -> None:
    if name is not None and (reasons := backends(device)[name].reasons):
        raise CommandError(f"backend {name} cannot run on this machine's {device.type}: {'; '.join(reasons)}")


def _embedded(model: Any, pixels: Tensor) -> Tensor:
    """(1, 3, S, S) -> the first block's input (1, N, D), as the library's `forward` makes it."""
    patches = model.patch_embedding(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat((model.class_token.expand(len(pixels), -1, -1), patches), dim=1)
    embedded: Tensor = model.positional_embedding(tokens)
    return embedded


def _setting(options: DemoOptions, subject: Subject, embedded: Tensor) -> Setting:
    heads = subject.model.transformer.blocks[0].attn.n_heads
    batch, length, dim = embedded.shape
    query = embedded.new_empty(batch, heads, length, dim // heads)
    image_size = len(subject.image)
    return Setting(
        source=subject.source,
        image_size=image_size,
        grid=image_size // subject.model.patch_embedding.stride[0],
        model=subject.name,
        weights=subject.weights,
        norm=options.norm,
        scope=options.scope,
        merge=options.merge,
        backend=choose(Call((query,) * 3), options.backend).name,
        device=str(embedded.device),
        reading=subject.reading,
    )


def _checked(model: Any, embedded: Tensor, console: Console) -> list[BlockReport]:
    """Run the blocks once under `record`, then hold each of them against float64."""
    blocks: Sequence[Any] = model.transformer.blocks
    flow = [embedded]
    with record(model, received=True) as recorded:
        for block in blocks:
            flow.append(block(flow[-1], None))
    if not flow[-1].isfinite().all():
        raise CommandError("the model's numbers overflow float32 with these weights: nothing to compare")
    from ..terminal import tracked

    steps = list(zip(blocks, flow, flow[1:], recorded.norms, recorded.best_head, recorded.received))
    return [report(*step) for step in tracked(steps, "checking the blocks", console)]

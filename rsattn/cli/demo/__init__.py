"""`rsattn demo`: residual self-attention in a ViT-B/16 on a picture, each block checked, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...backends.dispatch import backends, choose
from ...call import Call
from ...contract import Merge, Norm, Scope
from ...patching import patch
from ...recording import record
from ..command import CommandError, finished_file, require, writing
from ..images import display_name, load_image
from ..weights import download_weights, fit_weights, read_weights
from .blocks import BlockReport, report
from .inputs import PATCH, as_input, build_model, centre_square
from .picture import draw
from .words import Setting, tell_results, tell_setting

if TYPE_CHECKING:
    from rich.console import Console

FIGURE = "residual-attention.png"


@dataclass(frozen=True)
class DemoOptions:
    """The command line of `rsattn demo`, argument by argument."""

    image: Path | None
    weights: Path | None
    pretrained: bool
    image_size: int
    out: Path
    norm: Norm
    scope: Scope
    merge: Merge
    backend: str | None
    seed: int


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
    picture, source = load_image(options.image)
    square = centre_square(picture, options.image_size)
    target = options.out / FIGURE
    console = Terminal()
    with finished_file(target) as partial, torch.inference_mode():
        model = _model(options).to(device)
        patch(
            model,
            norm=options.norm,
            scope=options.scope,
            merge=options.merge,
            init_values=None,  # the paper's residual, which has no gate
            backend=options.backend,
        )
        embedded = _embedded(model, as_input(square).to(device))
        setting = _setting(options, source, model, embedded)
        tell_setting(console, setting)
        reports = _checked(model, embedded, console)
        with writing(target):
            draw(partial, np.asarray(square), reports, setting)
    tell_results(console, setting, reports, target)
    return 0 if all(block.passed for block in reports) else 1


def _check_backend(name: str | None, device: torch.device) -> None:
    if name is not None and (reasons := backends(device)[name].reasons):
        raise CommandError(f"backend {name} cannot run on this machine's {device.type}: {'; '.join(reasons)}")


def _model(options: DemoOptions) -> nn.Module:
    weights: object = None
    if options.weights is not None:
        weights, source = read_weights(options.weights), str(options.weights)
    elif options.pretrained:
        weights, source = download_weights(), "the downloaded file"
    model = build_model(options.image_size, options.seed)
    if weights is not None:
        fit_weights(model, weights, source)
    return model


def _embedded(model: Any, pixels: Tensor) -> Tensor:
    """(1, 3, S, S) -> the first block's input (1, N, D), as the library's `forward` makes it."""
    patches = model.patch_embedding(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat((model.class_token.expand(len(pixels), -1, -1), patches), dim=1)
    embedded: Tensor = model.positional_embedding(tokens)
    return embedded


def _setting(options: DemoOptions, source: str, model: Any, embedded: Tensor) -> Setting:
    heads = model.transformer.blocks[0].attn.n_heads
    batch, length, dim = embedded.shape
    query = embedded.new_empty(batch, heads, length, dim // heads)
    weights = f"random weights (seed {options.seed})"
    if options.weights is not None:
        weights = f"weights of {display_name(options.weights)}"
    elif options.pretrained:
        weights = "ImageNet weights"
    return Setting(
        source=source,
        image_size=options.image_size,
        grid=options.image_size // PATCH,
        weights=weights,
        random=options.weights is None and not options.pretrained,
        norm=options.norm,
        scope=options.scope,
        merge=options.merge,
        backend=choose(Call((query,) * 3), options.backend).name,
        device=str(embedded.device),
    )


def _checked(model: Any, embedded: Tensor, console: Console) -> list[BlockReport]:
    """Run the blocks once under `record`, then hold each of them against float64."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    blocks: Sequence[Any] = model.transformer.blocks
    flow = [embedded]
    with record(model) as recorded:
        for block in blocks:
            flow.append(block(flow[-1], None))
    if not flow[-1].isfinite().all():
        raise CommandError("the model's numbers overflow float32 with these weights: nothing to compare")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        steps = list(zip(blocks, flow, flow[1:], recorded.norms, recorded.best_head))
        return [
            report(block, x, y, norms, best_head)
            for block, x, y, norms, best_head in progress.track(steps, description="checking the blocks")
        ]

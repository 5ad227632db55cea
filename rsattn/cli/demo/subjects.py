"""What the demo runs: its own trained model on a digit, or ViT-B/16 on an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...patching import patch
from ..command import CommandError, finished_file, writing
from ..images import display_name, load_image
from ..weights import download_weights, fit_weights, read_weights
from . import cache, reader
from .inputs import as_input, build_model, center_square
from .options import DemoOptions
from .reader import Reading, Trained

if TYPE_CHECKING:
    from rich.console import Console

VIT_B16_SIZE = 224


@dataclass(frozen=True)
class Subject:
    """A patched model, an image, and what to call them.

    Attributes:
        pixels: (1, 3, S, S), the model's input.
        image: (S, S, 3), the same to look at.
        reading: what the demo's own model makes of the image; None for ViT-B/16.
    """

    model: Any
    pixels: Tensor
    image: NDArray[np.uint8]
    source: str
    name: str
    weights: str
    reading: Reading | None


def vit_b16(options: DemoOptions) -> Subject:
    """ViT-B/16 with weights from a file or the network, on an image of the user's or a fundus photograph."""
    size = options.image_size or VIT_B16_SIZE
    loaded, source = load_image(options.image)
    square = center_square(loaded, size)
    if options.weights is not None:
        given, origin, words = read_weights(options.weights), str(options.weights), display_name(options.weights)
    elif options.pretrained:
        given, origin, words = download_weights(), "the downloaded file", "ImageNet"
    else:
        raise CommandError("--image and --image-size are for ViT-B/16, which needs --pretrained or --weights PATH")
    model = build_model(size, options.seed)
    fit_weights(model, given, origin)
    _patch(model, options, init_values=None)  # the paper's residual, which has no gate
    return Subject(model, as_input(square), np.asarray(square), source, "ViT-B/16", f"weights of {words}", None)


def digit_reader(options: DemoOptions, device: torch.device, console: Console) -> Subject:
    """The small model, trained by this run or an earlier one, on a digit that it was not trained on."""
    trained = _trained(options, device, console)
    model = reader.build_reader(options.seed).eval()
    _patch(model, options, init_values=0.0)
    model.load_state_dict(trained.state)
    model.to(device)
    scene = reader.test_scenes(options.seed).example()
    with torch.inference_mode():
        probabilities = model(scene.pixels.to(device))[0].softmax(0).cpu()
    reading = Reading(
        trained=trained,
        digit=int(scene.digits),
        answer=int(probabilities.argmax()),
        probability=float(probabilities.max()),
        on_digit=scene.on_digit.flatten(),
    )
    image = ((scene.pixels[0].permute(1, 2, 0) + 1.0) * 127.5).round().to(torch.uint8).numpy()
    source = f"the digit {reading.digit} on a fundus photograph"
    name = f"small ViT ({reader.BLOCKS} blocks of {reader.HEADS} heads)"
    return Subject(model, scene.pixels, image, source, name, f"trained by this command, seed {options.seed}", reading)


def _patch(model: nn.Module, options: DemoOptions, init_values: float | None) -> None:
    patch(
        model,
        norm=options.norm,
        scope=options.scope,
        merge=options.merge,
        init_values=init_values,
        backend=options.backend,
    )


def _trained(options: DemoOptions, device: torch.device, console: Console) -> Trained:
    from ..terminal import tracked

    settings = (options.norm, options.scope, options.merge, options.seed)
    path = cache.cache_file(*settings)
    try:
        if (trained := cache.read(path)) is not None:
            _say(console, f"The small model was trained by an earlier run. To train it again, delete {path}")
            return trained
    except cache.DamagedError:
        _say(console, f"The trained model in {path} is damaged.")
    _say(console, f"Training a small ViT to read a digit on a photograph: once, {reader.STEPS} steps, about a minute.")
    steps = tracked(range(reader.STEPS), "training", console)
    trained = reader.train_reader(options.seed, options.norm, options.scope, options.merge, device, steps)
    try:
        with finished_file(path) as partial, writing(path):
            cache.write(partial, trained)
    except CommandError as error:
        _say(console, f"note: {error}; the next run trains the model again")
    else:
        _say(console, f"The trained model is in {path} for the next runs.")
    return trained


def _say(console: Console, words: str) -> None:
    console.print(words, markup=False)

"""Load weights from a file or the network into a model; errors name what does not fit."""

from __future__ import annotations

import errno
import http.client
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from .command import CommandError, why

MODEL = "B_16_imagenet1k"
BYTES = 346_000_000  # the approximate size of its file
POSITIONS = "positional_embedding.pos_embedding"
CLASSIFIER = ("fc.", "pre_logits.")
MOST_NAMED = 3  # of the weights that differ in the same way


STATE_DICT = "expected one saved with torch.save(model.state_dict(), path)"


def read_weights(path: Path, mmap: bool = False, expected: str = STATE_DICT) -> object:
    """The content of a file that `torch.save` or safetensors wrote.

    Args:
        mmap: read the values of tensors only when needed; works for files in the zip format of `torch.save` only.
        expected: which file was expected, and what to do, for the message about another one.

    Raises:
        CommandError: the file cannot be read, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CommandError:
        raise
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        # A short file that was cut off makes PyTorch seek before its start: EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise CommandError(f"cannot read the weights {path}: {why(error)}") from None
        raise CommandError(f"{path} is damaged, or not a file of weights: {expected}") from None


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CommandError(f"{path} needs safetensors: pip install safetensors") from None
    return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of safetensors that `read_weights` could read; empty where it has none."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def url_of_weights() -> str:
    """The address of the ViT-B/16 weights of pytorch_pretrained_vit."""
    from pytorch_pretrained_vit.configs import PRETRAINED_MODELS

    return str(PRETRAINED_MODELS[MODEL]["url"])


def downloaded_file(url: str) -> Path:
    """The path at which `torch.hub` caches the file of an address, whether the file is there or not."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def download_weights() -> object:
    """The ViT-B/16 weights of pytorch_pretrained_vit, downloaded or from the cache of torch."""
    url = url_of_weights()
    try:
        with redirect_stderr(sys.stdout):
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(
            f"cannot download {url} ({why(error)}); download that file on a machine with a network, then use "
            f"--weights {Path(url).name}"
        ) from None
    except Exception:  # as in `read_weights`; the cached file is damaged
        raise CommandError(f"{downloaded_file(url)} is damaged; delete it and run the command again") from None


def fit_weights(model: nn.Module, weights: object, source: str, kind: str = "ViT-B/16") -> None:
    """Load `weights` into a ViT of pytorch_pretrained_vit; the position embeddings are resized to the model's grid."""
    wanted = model.state_dict()[POSITIONS]
    given = weights.get(POSITIONS) if isinstance(weights, Mapping) else None
    if isinstance(weights, Mapping) and isinstance(given, Tensor) and _resizable(given, wanted):
        weights = {**weights, POSITIONS: _resized(given, wanted)}
    load_fitting(model, weights, source, kind, CLASSIFIER)


def is_state_dict(weights: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether `weights` maps names to dense tensors that can be copied into a model."""
    return isinstance(weights, Mapping) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and not value.is_quantized
        for name, value in weights.items()
    )


def load_fitting(model: nn.Module, weights: object, source: str, kind: str, classifier: tuple[str, ...]) -> None:
    """Load `weights` except the classifier, whose names begin with one of `classifier`.

    Raises:
        CommandError: weights do not fit; the message names the first ones.
    """
    if not is_state_dict(weights):
        raise CommandError(f"{source} holds no state_dict: expected names and tensors, as from model.state_dict()")
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(classifier)}
    given = {name: value for name, value in weights.items() if not name.startswith(classifier)}
    faults = mismatches(wanted, given)
    if infinite := _folded(name for name in given if not given[name].isfinite().all()):
        faults.append(f"NaN or infinity in {', '.join(_first(infinite))}")
    if faults:
        raise CommandError(f"{source} does not fit {kind}: {'; '.join(faults)}")
    model.load_state_dict(given, strict=False)


def _resizable(positions: Tensor, wanted: Tensor) -> bool:
    if positions.dim() != 3 or positions.shape[0] != 1 or positions.shape[2] != wanted.shape[2]:
        return False
    patches = positions.shape[1] - 1
    return patches > 0 and int(patches**0.5) ** 2 == patches


def _resized(positions: Tensor, wanted: Tensor) -> Tensor:
    from pytorch_pretrained_vit.utils import resize_positional_embedding_

    if positions.shape == wanted.shape:
        return positions
    resized: Tensor = resize_positional_embedding_(positions.float(), wanted)
    return resized


def mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """The differences between the weights of a model and given ones: other shapes, missing names, unknown names.

    Of each kind, the first few are named.
    """
    missing = _folded(name for name in wanted if name not in given)
    unknown = _folded(name for name in given if name not in wanted)
    shapes: dict[str, list[str]] = {}
    for name in wanted:
        if name in given and given[name].shape != wanted[name].shape:
            key = f"{tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
            shapes.setdefault(key, []).append(name)
    faults = _first([f"{', '.join(_first(_folded(names)))} {key}" for key, names in shapes.items()])
    return (
        faults
        + ([f"missing {', '.join(_first(missing))}"] if missing else [])
        + ([f"unknown {', '.join(_first(unknown))}"] if unknown else [])
    )


def _first(words: list[str]) -> list[str]:
    """The first words, and the number of the others."""
    return words if len(words) <= MOST_NAMED + 1 else [*words[:MOST_NAMED], f"{len(words) - MOST_NAMED} more"]


def _folded(names: Any) -> list[str]:
    """Join names that differ in one number: `blocks.0.w` and `blocks.1.w` become `blocks.{0,1}.w`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        groups.setdefault(pattern, []).append("" if number is None else number.group())
    return [
        pattern.replace("\0", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        for pattern, numbers in groups.items()
    ]

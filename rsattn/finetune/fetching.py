"""Make sure that pretrained weights are on this machine, or say in one line how to get them."""

from __future__ import annotations

import importlib
import os
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..cli.command import CommandError, why
from ..cli.weights import BYTES, download_weights, downloaded_file, url_of_weights
from .options import TORCHVISION_MODELS, Options
from .run_folder import RunFolder

PATIENCE = 10.0  # seconds to wait for a host to answer

# The names of weight files on the hub, in the order in which timm looks for them.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """The source of the pretrained weights of a model.

    Attributes:
        url: of the file.
        size: bytes of the file; None where it is unknown before the download.
        cached: the file in the local cache, or None.
        download: downloads the file to the cache, with the code and progress bar of its library.
    """

    url: str
    size: int | None
    cached: Path | None
    download: Callable[[], object]


def fetch(options: Options) -> None:
    """Download the pretrained weights that a run starts from, unless they are in the cache of their library.

    Does nothing for a run that resumes from a checkpoint, and for a model that cannot be built; `models.build` raises
    the error for it.

    Raises:
        CommandError: the weights do not exist or cannot be downloaded; the message says what to do.
    """
    if options.weights != "pretrained" or RunFolder(Path(options.out)).last.exists():
        return
    refuse_untrained(options)
    source = _source(options)
    if source is None or source.cached is not None:
        return
    try:
        _reach(source.url)
        source.download()
    except Exception as error:  # several libraries download, and each raises its own errors
        raise CommandError(_no_download(options, source, error)) from None


def refuse_untrained(options: Options) -> None:
    """Refuse "pretrained" for models without pretrained weights.

    Raises:
        CommandError: the model is the cnn, or a vit or resvit of another size than base.
    """
    if options.model in ("vit", "resvit") and options.size != "base":
        raise CommandError(
            f"there are no pretrained weights for a {options.size} {options.model}: use --size base, --weights none, "
            "or a timm model such as vit_small_patch16_224 with --patch"
        )
    if options.model == "cnn":
        raise CommandError("there are no pretrained weights for the cnn: use --weights none")


def cached_of_timm(name: str) -> Path | None:
    """The cached file with the pretrained weights of a timm model, or None; uses no network.

    timm itself asks the hub for a newer file, and without a network waits and tries again.

    Args:
        name: the name of a timm model, such as "vit_small_patch16_224.dino".
    """
    source = _of_timm(name)
    return None if source is None else source.cached


def _source(options: Options) -> Source | None:
    if options.model in ("vit", "resvit"):
        return _of_vit()
    if options.model in TORCHVISION_MODELS:
        return _of_torchvision(options.model)
    return _of_timm(options.model)


def _of_vit() -> Source | None:
    if _imported("pytorch_pretrained_vit") is None:
        return None
    return Source(url_of_weights(), BYTES, _existing(downloaded_file(url_of_weights())), download_weights)


def _of_torchvision(name: str) -> Source | None:
    models = _imported("torchvision.models")
    if models is None:
        return None
    weights = models.get_model_weights(name).DEFAULT
    mebibytes = weights.meta.get("_file_size")
    return Source(
        weights.url,
        int(mebibytes * 2**20) if mebibytes else None,
        _existing(downloaded_file(weights.url)),
        lambda: weights.get_state_dict(progress=True, check_hash=True),
    )


def _of_timm(name: str) -> Source | None:
    """The source of timm, which prefers the hub where a model is on the hub and also has an address.

    Raises:
        CommandError: timm has a model of this name, but no weights for it.
    """
    timm = _imported("timm")
    if timm is None or not timm.is_model(name):
        return None
    config = timm.models.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id:
        return _of_hub(timm, name, config)
    if config is not None and config.url:
        cached = _existing(downloaded_file(config.url))
        return Source(
            config.url,
            None if cached else _size_of_timm(timm, name),
            cached,
            lambda: torch.hub.load_state_dict_from_url(config.url, map_location="cpu", weights_only=True),
        )
    raise CommandError(
        f"timm has no pretrained weights for {name}: use --weights none to start from random ones, or --weights PATH "
        "with a file"
    )


def _of_hub(timm: Any, name: str, config: Any) -> Source:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    found = [try_to_load_from_cache(repository, file, revision=revision or None) for file in names]
    cached = next((Path(path) for path in found if isinstance(path, str)), None)
    arguments = (config.hf_hub_id, *([config.hf_hub_filename] if config.hf_hub_filename else []))
    return Source(
        hf_hub_url(repository, names[0], revision=revision or None),
        None if cached else _size_of_timm(timm, name),
        cached,
        lambda: timm.models.load_state_dict_from_hf(*arguments),
    )


def _size_of_timm(timm: Any, name: str) -> int | None:
    """The bytes of a model's weights in float32, counted without allocating them."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # the size is only for a message, so no error
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _reach(url: str) -> None:
    """Check that a host answers, because libraries retry for long and do not report the reason.

    Raises:
        OSError: the host cannot be reached. Not checked where a proxy is set, or where the hub is set to offline.
    """
    address = urlsplit(url)
    if address.hostname and not urllib.request.getproxies() and os.environ.get("HF_HUB_OFFLINE", "0") == "0":
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname, port), timeout=PATIENCE).close()


def _no_download(options: Options, source: Source, error: Exception) -> str:
    size = "" if source.size is None else f", {source.size / 1e6:.0f} MB"
    smaller = options.model in ("vit", "resvit")
    without = "--size tiny --weights none to train a small model" if smaller else "--weights none to train"
    return (
        f"{options.model} starts from pretrained weights that are not on this machine ({source.url}{size}), and the "
        f"download from {urlsplit(source.url).hostname} failed ({_reason(error)}): download that file on a machine "
        f"with a network and use --weights PATH, or use {without} from random weights"
    )


def _reason(error: BaseException) -> str:
    """The root cause of an error in one line, such as an unknown host name."""
    below = getattr(error, "reason", None) or error.__cause__ or error.__context__
    if isinstance(below, BaseException) and below is not error:
        return _reason(below)
    return " ".join(why(error).split()).rstrip(".")


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _imported(name: str) -> Any:
    """A package, or None where it cannot be imported; `models.build` raises the error for it."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None

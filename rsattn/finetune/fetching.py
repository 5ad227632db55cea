"""Pretrained weights, before anything else: in the local cache, or downloaded now, or one line on what to do."""

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
from .arguments import TORCHVISION_MODELS
from .options import Options
from .run_folder import RunFolder

PATIENCE = 10.0  # seconds until a host that does not answer counts as one that cannot be reached

# What timm calls weights on the hub, in the order in which it looks for them.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """Where the pretrained weights of a model come from.

    Attributes:
        url: of the file.
        size: bytes of the file, or None where nobody knows before it is downloaded.
        cached: the file on this machine, or None.
        download: puts the file there, with the library's own code and progress bar.
    """

    url: str
    size: int | None
    cached: Path | None
    download: Callable[[], object]


def fetch(options: Options) -> None:
    """See that the pretrained weights that a run starts from are on this machine; download them if they are not.

    Nothing is written but the library's cache. Nothing is done for a run that goes on from a checkpoint, and for a
    model that cannot be built anyway, which `models.build` explains.

    Raises:
        CommandError: there are no such weights, or they cannot be downloaded; the message says what to do instead.
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
    except Exception as error:  # libraries of three authors, and what they are built on
        raise CommandError(_no_download(options, source, error)) from None


def refuse_untrained(options: Options) -> None:
    """Raise where "pretrained" is asked of a model of ours that nobody has trained.

    Raises:
        CommandError: a vit or resvit other than base, or the cnn.
    """
    if options.model in ("vit", "resvit") and options.size != "base":
        raise CommandError(
            f"there are no pretrained weights of a {options.size} {options.model}: use --size base, --weights none, "
            "or a model of timm's such as vit_small_patch16_224 with --patch"
        )
    if options.model == "cnn":
        raise CommandError("there are no pretrained weights of the cnn: use --weights none")


def cached_of_timm(name: str) -> Path | None:
    """The file in the cache with timm's pretrained weights of a model; no network is asked.

    timm itself asks the hub whether its file is still the newest, and without a network waits and tries again.

    Args:
        name: a name of timm's, such as "vit_small_patch16_224.dino".
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
    """timm takes the hub's weights where a model has both a place on the hub and an address.

    Raises:
        CommandError: timm has a model of this name, and no weights of it.
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
        f"timm has no pretrained weights of {name}: use --weights none to start from random ones, or --weights PATH "
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
    """Bytes of a model's weights in float32, counted without making them."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # a model that cannot be built so has a size that is not told
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _reach(url: str) -> None:
    """Try the host of an address first: libraries try again and again, and do not say what is wrong.

    Raises:
        OSError: it cannot be reached. Not tried where a proxy is set, or where the hub is told to stay offline and
            says so itself.
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
        f"download from {urlsplit(source.url).hostname} failed ({_reason(error)}): fetch that file where there is a "
        f"network and use --weights PATH, or use {without} from random weights"
    )


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line: a host's name that is not known, and not "see above"."""
    below = getattr(error, "reason", None) or error.__cause__ or error.__context__
    if isinstance(below, BaseException) and below is not error:
        return _reason(below)
    return " ".join(why(error).split()).rstrip(".")


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _imported(name: str) -> Any:
    """A package, or None where it cannot be imported; `models.build` says so in words."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None

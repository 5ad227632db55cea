"""What the demo reads and writes, checked before any work: every fault is one sentence, a `DemoError`."""

from __future__ import annotations

import http.client
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL = "B_16_imagenet1k"
PATCH = 16
POSITIONS = "positional_embedding.pos_embedding"
# The demo stops at the last block, so what comes after it may have any shape, or be absent.
CLASSIFIER = ("fc.", "pre_logits.")


class DemoError(Exception):
    """Something the person at the keyboard can put right; the message is one line."""


def require(*packages: str) -> None:
    """Raise a `DemoError` that names every package the demo needs and cannot import."""
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise DemoError(f"the demo needs {', '.join(missing)}: pip install 'rsattn[demo]'")


def load_picture(path: Path | None) -> tuple[Image, str]:
    """The picture in RGB and a few words on where it is from; scikit-image's retina when `path` is None."""
    from PIL import Image, UnidentifiedImageError

    if path is None:
        from skimage import data

        return Image.fromarray(data.retina()), "retina, from scikit-image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _as_rgb(picture), display_name(path)
    except UnidentifiedImageError:
        raise DemoError(f"{path} is not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise DemoError(f"{path} is too large a picture: {_why(error)}") from None
    except OSError as error:
        raise DemoError(f"cannot read the picture {path}: {_why(error)}") from None
    except (SyntaxError, ValueError, EOFError) as error:  # how Pillow's decoders report damaged data
        raise DemoError(f"{path} is a damaged picture: {_why(error)}") from None


def _as_rgb(picture: Image) -> Image:
    """Upright, transparency on white, and grey levels deeper than 8 bits stretched to the whole range."""
    import numpy as np
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        levels = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        span = float(np.ptp(levels)) or 1.0
        picture = Image.fromarray(((levels - levels.min()) * (255.0 / span)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def centre_square(picture: Image, size: int) -> Image:
    """The shorter side resized to `size`, the longer one cropped about its centre."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (size, size), method=Image.Resampling.BICUBIC)


def as_input(square: Image) -> Tensor:
    """(1, 3, S, S) float32 with mean 0.5 and deviation 0.5 taken out, as the model was trained."""
    import numpy as np

    pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255.0)
    return ((pixels - 0.5) / 0.5).permute(2, 0, 1)[None].contiguous()


def build_model(image_size: int, seed: int) -> nn.Module:
    """ViT-B/16 with random weights that depend on `seed` alone."""
    from pytorch_pretrained_vit import ViT

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = ViT(MODEL, pretrained=False, image_size=image_size)
    return model.eval()


def read_weights(path: Path) -> object:
    """What is in a file that `torch.save` wrote."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DemoError(f"cannot read the weights {path}: {_why(error)}") from None
    except Exception:  # an unpickler raises whatever the bytes it was given lead it to
        raise DemoError(
            f"{path} is not a file of weights; save one with torch.save(model.state_dict(), path)"
        ) from None


def download_weights() -> object:
    """The library's own weights, from its release page or from torch's cache of it."""
    from pytorch_pretrained_vit.configs import PRETRAINED_MODELS

    url = PRETRAINED_MODELS[MODEL]["url"]
    try:
        with redirect_stderr(sys.stdout):
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (OSError, http.client.HTTPException) as error:
        raise DemoError(
            f"cannot download {url} ({_why(error)}); fetch that file where there is a network, then use "
            f"--weights {Path(url).name}"
        ) from None
    except Exception:  # as in `read_weights`: the cached file is damaged
        cached = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        raise DemoError(f"{cached} is damaged; delete it and run the command again") from None


def fit_weights(model: nn.Module, weights: object, source: str) -> None:
    """Load `weights`, position embeddings resized to the model's grid; name everything that does not fit."""
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DemoError(f"{source} holds no state_dict: expected names and tensors, as from model.state_dict()")
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(CLASSIFIER)}
    given = {str(name): value for name, value in weights.items() if not str(name).startswith(CLASSIFIER)}
    if POSITIONS in given and _resizable(given[POSITIONS], wanted[POSITIONS]):
        given[POSITIONS] = _resized(given[POSITIONS], wanted[POSITIONS])
    faults = _mismatches(wanted, given)
    if infinite := _folded(name for name in given if not given[name].isfinite().all()):
        faults.append(f"NaN or infinity in {', '.join(infinite)}")
    if faults:
        raise DemoError(f"{source} does not fit ViT-B/16: {'; '.join(faults)}")
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


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = _folded(name for name in wanted if name not in given)
    unknown = _folded(name for name in given if name not in wanted)
    shapes: dict[str, list[str]] = {}
    for name in wanted:
        if name in given and given[name].shape != wanted[name].shape:
            key = f"{tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
            shapes.setdefault(key, []).append(name)
    faults = [f"{', '.join(_folded(names))} {key}" for key, names in shapes.items()]
    return (
        faults
        + ([f"missing {', '.join(missing)}"] if missing else [])
        + ([f"unknown {', '.join(unknown)}"] if unknown else [])
    )


def _folded(names: Any) -> list[str]:
    """Names that differ in one number written once: `blocks.0.w`, `blocks.1.w` become `blocks.{0,1}.w`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        groups.setdefault(pattern, []).append("" if number is None else number.group())
    return [
        pattern.replace("\0", numbers[0] if len(numbers) == 1 else "{" + ",".join(numbers) + "}")
        for pattern, numbers in groups.items()
    ]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals inside it into a `DemoError` about `path`."""
    try:
        yield
    except OSError as error:
        raise DemoError(f"cannot write {path}: {_why(error)}") from None


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its name when all went well.

    The file is made at once, so that a folder nobody can write to is found before the work, not after it.
    If anything is raised, that file and the folders made for it go, and an older `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    created = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        if path.parent.exists() and not path.parent.is_dir():
            raise DemoError(f"cannot write to {path.parent}: it is not a folder")
        if path.is_dir():
            raise DemoError(f"cannot write {path}: it is a folder")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        yield partial
        with writing(path):
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        raise


def display_name(path: Path) -> str:
    """The file's name, its middle left out when it is long."""
    name = path.name.encode(errors="replace").decode()
    return name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}"


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

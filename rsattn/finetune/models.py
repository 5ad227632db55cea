"""Build the models for fine-tuning, with their weights and residual attention."""

from __future__ import annotations

import importlib
import sys
import urllib.error
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cli.command import CommandError, require, why
from ..cli.packages import cause_of, sentence, with_torchvision
from ..cli.weights import download_weights, fit_weights, load_fitting
from ..patching import patch
from ..recording import residual_modules
from .checkpoint import as_checkpoint, is_checkpoint, read_content
from .cnn import small_cnn
from .fetching import cached_of_timm, refuse_untrained
from .gates import gates_of
from .options import Options, is_residual
from .run_folder import RunFolder

# dim, ff_dim, heads and layers of `vit`. "tiny" divides each image into 4 x 4 patches; the others use 16-pixel patches.
SIZES = {"tiny": (96, 192, 4, 4), "small": (384, 1536, 6, 12), "base": (768, 3072, 12, 12)}
TORCHVISION = {"alexnet": "classifier.6", "resnet18": "fc"}
OURS = ("vit", "resvit", "cnn", *TORCHVISION)
AUTHORS_HEADS = 4

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Triple = tuple[float, ...]


@dataclass(frozen=True)
class Built:
    """A model to train.

    Attributes:
        model: (B, 3, S, S) -> logits (B, classes).
        classifier: the name in `model` of its last linear layer, which is newly initialized.
        mean, std: the normalization of channels from 0 to 1 that its weights were trained with.
        skipped: `rsattn.Patch.skipped`: name of attention without residual, in a model that has it elsewhere -> reason.
    """

    model: nn.Module
    classifier: str
    mean: Triple
    std: Triple
    skipped: Mapping[str, str] = field(default_factory=dict)


def build(options: Options, classes: int, with_weights: bool = True) -> Built:
    """Build the model that `options` describe; its random numbers depend only on `options.seed`.

    Args:
        with_weights: load `options.weights`; False where the weights of a checkpoint follow.

    Raises:
        CommandError: the name is unknown, the weights are missing or do not fit, or the model cannot be patched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        wanted = options.weights if with_weights else "none"
        if wanted == "pretrained":
            refuse_untrained(options)
        if options.model in ("vit", "resvit"):
            built = _vit(options, classes, wanted)
        elif options.model == "cnn":
            built = _cnn(classes)
        elif options.model in TORCHVISION:
            built = _torchvision(options, classes, wanted)
        else:
            built = _timm(options, classes, wanted)
        skipped: Mapping[str, str] = {}
        if is_residual(options) and not options.full_width:
            skipped = _patch(built.model, options)  # before reading a file, which may have gates
        if wanted not in ("none", "pretrained"):
            _load(built, options)
        if is_residual(options) and options.full_width:
            skipped = _patch(built.model, options)  # after reading the file, whose attention is replaced
    return replace(built, skipped=skipped)


def refuse_images_of_another_size(options: Options, classes: int) -> None:
    """Refuse an image size that the model cannot take, such as one below the size of its patches.

    Raises:
        CommandError: the model's forward pass raises an error.
    """
    model = build(options, classes, with_weights=False).model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, options.image_size, options.image_size))
    except Exception as error:  # models raise errors of any type
        reason = " ".join(why(error).split())
        raise CommandError(
            f"{options.model} cannot take images of --image-size {options.image_size} ({reason}): give a larger one"
        ) from None


def rows_left_out(model: nn.Module, options: Options) -> tuple[int, int]:
    """The size of the patches of a timm model, and how many rows at the end of an image are in no patch."""
    embedding: Any = getattr(model, "patch_embed", None)
    if getattr(embedding, "dynamic_img_pad", True):
        return 1, 0
    size = int(embedding.patch_size[0])
    return size, options.image_size % size


def _patch(model: Any, options: Options) -> Mapping[str, str]:
    """Put residual attention into the model. Returns what it left alone, as `Patch.skipped` does."""
    num_heads, head_dim = (AUTHORS_HEADS, _width(model)) if options.full_width else (None, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # skipped.py says it
            return patch(
                model,
                norm=options.norm,
                scope=options.scope,
                merge=options.merge,
                init_values=options.init_values,
                num_heads=num_heads,
                head_dim=head_dim,
            ).skipped
    except ValueError as error:
        raise CommandError(f"{options.model} cannot have residual attention: {error}") from None


def _width(model: Any) -> int:
    """The number of channels of a token."""
    for name in ("embed_dim", "num_features"):  # of timm's models
        if hasattr(model, name):
            return int(getattr(model, name))
    return int(model.fc.in_features)


def side_of_patches(options: Options) -> int:
    """The side of the patches of "vit" and "resvit", in pixels."""
    return 16 if options.size != "tiny" else max(options.image_size // 4, 1)


def _vit(options: Options, classes: int, weights: str) -> Built:
    require("model vit", "finetune", "pytorch_pretrained_vit")
    from pytorch_pretrained_vit import ViT
    from pytorch_pretrained_vit.configs import PRETRAINED_MODELS, get_base_config

    side = side_of_patches(options)
    if options.image_size < side or options.image_size % side:
        raise CommandError(
            f"--image-size {options.image_size} is not a multiple of the {side}-pixel patches of a "
            f"{options.size} {options.model}"
        )
    dim, ff_dim, heads, layers = SIZES[options.size]
    shape = {"patches": (side, side), "dim": dim, "ff_dim": ff_dim, "num_heads": heads}
    # The library takes a shape only through a name in its table.
    name = f"rsattn_{options.size}_{side}"
    rest = {"num_layers": layers, "dropout_rate": options.dropout}
    PRETRAINED_MODELS[name] = {"config": get_base_config() | shape | rest}
    model: nn.Module = ViT(name, pretrained=False, image_size=options.image_size, num_classes=classes)
    if weights == "pretrained":
        fit_weights(model, download_weights(), "the downloaded file")
    return Built(model, "fc", *HALF)


def _cnn(classes: int) -> Built:
    return Built(small_cnn(classes), "classifier", *IMAGENET)


def _torchvision(options: Options, classes: int, weights: str) -> Built:
    models = _imported("torchvision.models", f"--model {options.model}", "torchvision")
    classifier = TORCHVISION[options.model]
    try:
        model = models.get_model(options.model, weights="DEFAULT" if weights == "pretrained" else None)
    except (OSError, urllib.error.URLError) as error:
        raise _no_download(options.model, error) from None
    old = model.get_submodule(classifier)
    model.set_submodule(classifier, nn.Linear(old.in_features, classes))
    return Built(model, classifier, *IMAGENET)


def _timm(options: Options, classes: int, weights: str) -> Built:
    timm = _imported("timm", f"--model {options.model}", "timm")
    if not timm.is_model(options.model):
        known = [*OURS, *timm.list_models()]
        close = [name for name in known if name.startswith(options.model)] or get_close_matches(options.model, known)
        hint = f", such as {', '.join(list(dict.fromkeys(close))[:3])}" if close else ""
        raise CommandError(f"unknown model {options.model!r}: expected {', '.join(OURS)} or a timm model{hint}")
    settings: dict[str, Any] = {"pretrained": weights == "pretrained", "num_classes": classes}
    if weights == "pretrained" and (file := cached_of_timm(options.model)) is not None:
        settings["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
    try:
        model = _sized(timm, options, settings)
    except (OSError, urllib.error.URLError, RuntimeError, AssertionError, ValueError) as error:
        if weights == "pretrained" and not isinstance(error, AssertionError | ValueError):
            raise _no_download(options.model, error) from None
        reason = " ".join(why(error).split())
        raise CommandError(f"{options.model} cannot be built for --image-size {options.image_size}: {reason}") from None
    config = model.pretrained_cfg
    classifier = config["classifier"]
    if not isinstance(classifier, str) or not isinstance(model.get_submodule(classifier), nn.Linear):
        raise CommandError(f"{options.model} does not end in one linear layer, as rsattn finetune needs")
    return Built(model, classifier, tuple(config["mean"]), tuple(config["std"]))


def _sized(timm: Any, options: Options, settings: dict[str, Any]) -> Any:
    """Build the model; convolutional networks take no image size, and some models no drop path."""
    sized, drop_path = {"img_size": options.image_size}, {"drop_path_rate": options.drop_path}
    for more in ({**sized, **drop_path}, drop_path, sized):
        try:
            return timm.create_model(options.model, **more, **settings)
        except TypeError:
            continue
    return timm.create_model(options.model, **settings)


def _imported(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a torchvision that does not fit PyTorch raises a RuntimeError
        if isinstance(error, ModuleNotFoundError) and error.name in (package, "torchvision"):
            raise CommandError(f"{what} needs {error.name}: {with_torchvision(package)}") from None
        raise CommandError(f"{what} needs {package}: {sentence({package: cause_of(package, error)})}") from None


def _load(built: Built, options: Options) -> None:
    """Load the file `options.weights`; gates that it lacks keep their initial value."""
    model, source = built.model, options.weights
    given, trained = _read(source)
    _refuse_another_size(options, trained)
    _refuse_another_residual(model, options, given, trained)
    if options.model in ("vit", "resvit"):
        fit_weights(model, _with_gates(given, model), source, f"a {options.size} {options.model}")
        return
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm models have it
    if adapt is not None and isinstance(given, Mapping):
        given = adapt(dict(given), model)
    kind = "the cnn" if options.model == "cnn" else options.model
    load_fitting(model, _with_gates(given, model), source, kind, (f"{built.classifier}.",))


def _read(path: str) -> tuple[Any, Mapping[str, Any]]:
    """The weights in a file (a state_dict or a checkpoint) or in a run's folder, and the options of the run, if any."""
    if not Path(path).exists():
        raise CommandError(
            f"cannot read the weights {path}: there is no such file or folder; --weights pretrained and --weights none "
            "need none"
        )
    file = RunFolder(Path(path)).tested if Path(path).is_dir() else Path(path)
    weights = read_content(file)
    if is_checkpoint(weights):
        checkpoint = as_checkpoint(weights, file)
        return checkpoint.weights, asdict(checkpoint.options)
    return weights, {}


def _with_gates(given: Any, model: nn.Module) -> Any:
    """Add the model's gates to weights that have none; with only some of them, loading names the missing ones."""
    gates = {f"{name}.gamma": gate.detach() for name, gate in gates_of(model).items()}
    if not isinstance(given, Mapping) or any(name in given for name in gates):
        return given
    return {**given, **gates}


def _refuse_another_size(options: Options, trained: Mapping[str, Any]) -> None:
    """Refuse weights of a ViT of another size, where their run tells which options fit.

    Args:
        trained: the options of the run of the weights, else nothing.
    """
    if not {options.model, trained.get("model")} <= {"vit", "resvit"}:
        return
    names = ["size", "image_size"] if trained["size"] == "tiny" else ["size"]  # its patches depend on the image size
    if any(trained[name] != getattr(options, name) for name in names):
        fitting = " ".join(f"--{name.replace('_', '-')} {trained[name]}" for name in names)
        raise CommandError(
            f"the weights of {options.weights} are those of another size of {options.model}: use {fitting}"
        )


def _refuse_another_residual(model: nn.Module, options: Options, given: Any, trained: Mapping[str, Any]) -> None:
    """Refuse weights that were trained with another kind of residual, which would change what they learned.

    Args:
        given: the weights.
        trained: the options of their run, else nothing.
    """
    start, source = options.init_values, options.weights
    gammas = [f"{name}.gamma" for name in residual_modules(model)]
    gated = trained.get("init_values") is not None or (
        isinstance(given, Mapping) and any(gamma in given for gamma in gammas)
    )
    if gated and not gates_of(model):
        raise CommandError(
            f"{source} has gates of residual attention, which would be lost: use a model with residual attention, "
            "--init-values 0 and no --full-width"
        )
    residual = trained.get("model") == "resvit" or bool(trained.get("patch"))
    if residual and not residual_modules(model):
        raise CommandError(
            f"the model of {source} has residual attention, which would be lost: use a model with residual attention"
        )
    if residual and not gated and gates_of(model) and start != 1.0:  # a gate of 1 changes nothing
        raise CommandError(
            f"the model of {source} has a residual without a gate, and a gate that starts at {start:g} would change "
            "what it learned: use --init-values none, or 1"
        )
    names = ("norm", "scope", "merge")
    kept = residual and not options.full_width and not trained["full_width"]
    if kept and any(trained[name] != getattr(options, name) for name in names):
        fitting = " ".join(f"--{name} {trained[name]}" for name in names)
        raise CommandError(
            f"the model of {source} was trained with another residual, and this one would change what it learned: use "
            f"{fitting}"
        )


def _no_download(model: str, error: Exception) -> CommandError:
    return CommandError(
        f"cannot download the pretrained weights of {model} ({why(error)}); use --weights none for random weights, or "
        "--weights PATH with a file downloaded elsewhere"
    )


__all__ = ["OURS", "SIZES", "Built", "build", "is_residual"]

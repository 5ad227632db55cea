"""The parameter groups of AdamW, with the learning rate of each layer and the weight decay."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .gates import gates_of
from .options import SHARDED, Options, rate_of_gates

# For the ViT of pytorch_pretrained_vit; timm models define the same.
STEM = re.compile(r"(patch_embedding|class_token|positional_embedding)\b")
BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.")
EMBEDDINGS = ("class_token", "positional_embedding.pos_embedding")


def adamw(model: nn.Module, options: Options, fresh: Collection[nn.Module]) -> torch.optim.AdamW:
    """The optimizer of a model's trainable parameters.

    Matrices and convolutions decay; biases, normalization weights, position embeddings, class tokens and gates do not.
    Gates have their own learning rate, because they start at zero and change more than trained weights.

    Args:
        fresh: newly initialized modules, which use the full learning rate in any layer.
    """
    gates = {id(gate) for gate in gates_of(model).values()}
    at_full_rate = {id(parameter) for module in fresh for parameter in module.parameters()}
    embeddings = _embeddings(model) if options.recipe is not None else ()
    shares = _shares(model, options.layer_decay)
    bodies: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in gates:
            decays = parameter.dim() > 1 and name not in embeddings
            share = 1.0 if id(parameter) in at_full_rate else shares.get(name, 1.0)
            bodies.setdefault((not decays, share), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": bodies[plain, share],
            "lr": options.learning_rate * share,
            "weight_decay": 0.0 if plain else options.weight_decay,
        }
        for plain, share in sorted(bodies)
    ]
    if learning := [gate for gate in gates_of(model).values() if gate.requires_grad]:
        groups.append({"params": learning, "lr": rate_of_gates(options), "weight_decay": 0.0})
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = None if options.strategy.startswith(SHARDED) else as_one_operation(parameters)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)
    # Lightning does not clip the gradients of a fused optimizer, which could undo the scaling of float16 itself.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def as_one_operation(parameters: Iterable[Tensor]) -> bool | None:
    """AdamW's `fused`: True on a CPU, where PyTorch's default is slower (`python -m bench.cpu_training`)."""
    return True if all(parameter.device.type == "cpu" for parameter in parameters) else None


def has_layers(model: nn.Module) -> bool:
    """Whether the layer of each parameter of `model` is known."""
    return _is_vit(model) or hasattr(model, "group_matcher")


def ignored(model: nn.Module, options: Options) -> list[str]:
    """The options of `options` that have no effect on this model: "layer_decay", "drop_path"."""
    names = []
    if options.layer_decay != 1.0 and not has_layers(model):
        names.append("layer_decay")
    if options.drop_path and not any(type(module).__name__ == "DropPath" for module in model.modules()):
        names.append("drop_path")
    return names


def _shares(model: nn.Module, decay: float) -> dict[str, float]:
    """Name of a parameter -> its factor on the learning rate: 1 in the classifier, times `decay` for each layer below.

    The classifier counts as a layer above the last block (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).
    """
    if decay == 1.0 or not has_layers(model):
        return {}
    layers = _layers(model)
    return {name: decay ** (max(layers.values()) - layer) for name, layer in layers.items()}


def _layers(model: Any) -> dict[str, int]:
    """Name of a parameter -> the index of its layer; the stem is layer 0."""
    if not _is_vit(model):
        from timm.models import group_parameters

        layers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        return layers
    names = [name for name, _ in model.named_parameters()]
    found = {name: BLOCK.match(name) for name in names}
    top = len(model.transformer.blocks) + 1
    return {name: int(block[1]) + 1 if (block := found[name]) else 0 if STEM.match(name) else top for name in names}


def _is_vit(model: Any) -> bool:
    return hasattr(model, "transformer") and hasattr(model, "positional_embedding")


def _embeddings(model: Any) -> Collection[str]:
    """Position embeddings, class and register tokens."""
    return {*EMBEDDINGS, *(model.no_weight_decay() if hasattr(model, "no_weight_decay") else ())}

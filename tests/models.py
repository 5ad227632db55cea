"""What tests of whole models share: what a model is made of, and the ways it can be copied."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch import Tensor, nn

COPIES = ("deepcopy", "pickle", "torch_save")


def anatomy(model: nn.Module) -> list[tuple[str, type, int, list[str]]]:
    """Every module's name, class, identity and attributes: what `undo` must bring back."""
    return [(name, type(m), id(m), sorted(vars(m))) for name, m in model.named_modules()]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def copied(model: nn.Module, how: str) -> nn.Module:
    """A copy of the model, one of `COPIES`."""
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)

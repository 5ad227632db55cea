"""backend="reference": eager PyTorch. It takes every call the contract allows, so it is never missing."""

from __future__ import annotations

import torch

from .backend import Backend, Limits


class ReferenceBackend(Backend):
    name = "reference"
    limits = Limits(
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        mask_gradient=True,
        transforms=True,
        onnx=True,
    )

    def missing(self, device_type: str) -> list[str]:
        return []

"""The learnable gates of a model with residual attention: their parameters and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..recording import residual_modules
from .options import Options, gates_learn, rate_of_gates

FROZEN_AT_0 = "its gates are frozen at 0, so it equals the plain model; --init-values none adds the residual"


def gates_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name of a block's attention -> its gate. The name `gamma` is not enough, because timm's LayerScale has it too."""
    gates = {name: getattr(module, "gamma", None) for name, module in residual_modules(model).items()}
    return {name: gate for name, gate in gates.items() if gate is not None}


def sizes_of_gates(model: nn.Module) -> dict[str, float]:
    """Name of a block's attention -> the root mean square of its gate."""
    return {name: _rms(gate) for name, gate in gates_of(model).items()}


def described_gates(model: nn.Module, options: Options, at_start: Mapping[str, float]) -> dict[str, Any] | None:
    """The entry `gates` of metrics.json for a trained model; None where it has no gates."""
    gates = gates_of(model)
    if not gates:
        return None
    return {
        "init_values": options.init_values,
        "rate": rate_of_gates(options) if gates_learn(options) else None,
        "blocks": [
            {
                "name": name,
                "start": at_start[name],
                "rms": _rms(gate),
                "mean": float(gate.detach().double().mean()),
                "largest": float(gate.detach().abs().max()),
            }
            for name, gate in gates.items()
        ],
    }


def frozen_at_0(described: Mapping[str, Any] | None) -> bool:
    """Whether the gates in `described_gates` are 0 and not trained, so that the model equals the plain one."""
    if described is None or described["rate"]:
        return False
    return not any(block["largest"] for block in described["blocks"])


def _rms(gate: Tensor) -> float:
    return float(gate.detach().double().square().mean().sqrt())

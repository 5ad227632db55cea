"""One of two processes of test_parallel.py: half a batch each, gradients against those of the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from case import DIM, HEADS  # noqa: E402
from oracle import normal  # noqa: E402

import rsattn  # noqa: E402

# Scope, and what the gates start at.
SETTINGS = (("sample", None), ("batch", None), ("sample", 0.5), ("batch", 0.0))
PICTURES = normal(4, 11, DIM)


def build(scope: str, init_values: float | None) -> nn.Module:
    """Two patched encoder layers, float64, so that another order of summation stays below 1e-12."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 40, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    with torch.no_grad():
        for module in model.layers:
            module.self_attn.in_proj_weight.mul_(3.0)
    rsattn.patch(model, scope=scope, init_values=init_values)
    return model


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().mean()


def gradients(model: nn.Module) -> list[Tensor]:
    grads = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


def alone(scope: str, init_values: float | None, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """One process; the mean over the parts of the batch, each ranked by itself."""
    model = build(scope, init_values)
    for part in parts:
        (loss_of(model, part) / len(parts)).backward()
    return gradients(model)


def together(scope: str, init_values: float | None, how: str) -> list[Tensor]:
    model = build(scope, init_values)
    if how == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    loss_of(wrapped, PICTURES.chunk(2)[dist.get_rank()]).backward()
    return gradients(model)


def main(how: str) -> None:
    dist.init_process_group("gloo")
    for scope, init_values in SETTINGS:
        got = together(scope, init_values, how)
        # With scope="batch" each process ranks the heads of its own part of the batch.
        want = alone(scope, init_values, PICTURES.chunk(2) if scope == "batch" else (PICTURES,))
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
        names = [name for name, _ in build(scope, init_values).named_parameters()]
        gates = [grad for name, grad in zip(names, got, strict=True) if name.endswith("gamma")]
        assert len(gates) == (0 if init_values is None else 2)
        assert all(grad.abs().max() > 1e-4 for grad in gates)
    dist.destroy_process_group()
    print("same gradients")


main(sys.argv[1])

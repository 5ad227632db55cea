"""`python -m bench.few_calls BACKEND`: a few small calls that launch every kernel, for the slow compute-sanitizer.

    compute-sanitizer --tool memcheck python -m bench.few_calls triton

Run it once without compute-sanitizer first, to compile the kernels.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

import rsattn
from rsattn.backends.dispatch import BACKENDS
from rsattn.contract import Norm


class Call(NamedTuple):
    """One call with its backward pass.

    Attributes:
        shape: (B, H, N, E).
        hides: whether a mask hides some keys.
        learned: the shape of a learned mask, or empty. Such a call also asks for the attention received.
    """

    shape: tuple[int, int, int, int]
    dropout: float = 0.0
    hides: bool = False
    learned: tuple[int, ...] = ()
    norm: Norm = "induced"


# The whole-row, square and streaming kernels, with partial blocks in every dimension.
CALLS = (
    Call((2, 3, 65, 64)),
    Call((2, 3, 65, 64), 0.1),
    Call((2, 3, 197, 64)),
    Call((2, 3, 197, 64), 0.1, hides=True),
    Call((1, 2, 300, 64)),
    Call((1, 2, 300, 64), 0.1, hides=True),
    Call((2, 3, 65, 64), 0.1, learned=(3, 65, 65)),
    Call((2, 3, 197, 64), learned=(3, 197, 197)),
    Call((1, 2, 300, 64), 0.1, learned=(2, 300, 300)),
    Call((2, 3, 197, 64), learned=(3, 1, 197), norm="entrywise"),
    Call((2, 3, 300, 64), learned=(300, 300), norm="confidence"),
    Call((4, 3, 49, 32), learned=(2, 3, 49, 49)),
    Call((1, 2, 111, 128), hides=True),
    Call((1, 2, 321, 128)),
    Call((1, 2, 65, 768)),
    Call((1, 2, 90, 24)),
)


def main(backend: str) -> None:
    torch.manual_seed(0)
    largest = BACKENDS[backend].limits.max_head_dim
    for call in CALLS:
        batch, heads, length, head_dim = call.shape
        if largest is not None and head_dim > largest:
            continue
        made = torch.randn(4, batch, heads, length, head_dim, dtype=torch.float16).cuda()
        leaves = [tensor.requires_grad_() for tensor in made[:3].unbind(0)]
        query, key, value = leaves
        mask = None
        if call.hides:
            mask = (torch.rand(batch, 1, 1, length) > 0.2).cuda()
        elif call.learned:
            mask = torch.randn(call.learned).cuda().requires_grad_()
            leaves.append(mask)
            rsattn.attention_received(query, key, mask, backend=backend)
        result = rsattn.residual_attention(
            query,
            key,
            value,
            mask,
            call.dropout,
            norm=call.norm,
            backend=backend,
            return_received=bool(call.learned),
        )
        projected = made[3].transpose(1, 2).flatten(2)
        gamma = torch.ones(heads * head_dim, dtype=torch.float16).cuda().requires_grad_()
        gated = rsattn.add_best_head(projected, result, gamma=gamma)
        joined = rsattn.add_best_head(gated, result)
        torch.autograd.grad(joined, [*leaves, gamma], torch.ones_like(joined))
        torch.cuda.synchronize()
        print(f"{backend} {call}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

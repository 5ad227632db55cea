"""`python -m bench.few_calls BACKEND`: a few small calls that launch every kernel, for the slow compute-sanitizer.

    compute-sanitizer --tool memcheck python -m bench.few_calls triton

Run it once without compute-sanitizer first, to compile the kernels.
"""

from __future__ import annotations

import sys

import torch

import rsattn
from rsattn.backends.dispatch import BACKENDS

HIDING, LEARNED = "hiding", "learned"
# (B, H, N, E), dropout, mask: the whole-row, square and streaming kernels, with partial blocks in every dimension.
# Calls with a learned mask also ask for the attention received.
CALLS = (
    ((2, 3, 65, 64), 0.0, None),
    ((2, 3, 65, 64), 0.1, None),
    ((2, 3, 197, 64), 0.0, None),
    ((2, 3, 197, 64), 0.1, HIDING),
    ((1, 2, 300, 64), 0.0, None),
    ((1, 2, 300, 64), 0.1, HIDING),
    ((2, 3, 65, 64), 0.1, LEARNED),
    ((2, 3, 197, 64), 0.0, LEARNED),
    ((1, 2, 300, 64), 0.1, LEARNED),
    ((1, 2, 111, 128), 0.0, HIDING),
    ((1, 2, 321, 128), 0.0, None),
    ((1, 2, 65, 768), 0.0, None),
    ((1, 2, 90, 24), 0.0, None),
)


def main(backend: str) -> None:
    torch.manual_seed(0)
    largest = BACKENDS[backend].limits.max_head_dim
    for (batch, heads, length, head_dim), dropout, kind in CALLS:
        if largest is not None and head_dim > largest:
            continue
        made = torch.randn(4, batch, heads, length, head_dim, dtype=torch.float16).cuda()
        leaves = [tensor.requires_grad_() for tensor in made[:3].unbind(0)]
        query, key, value = leaves
        mask = None
        if kind == HIDING:
            mask = (torch.rand(batch, 1, 1, length) > 0.2).cuda()
        elif kind == LEARNED:
            mask = torch.randn(heads, length, length).cuda().requires_grad_()
            leaves.append(mask)
            rsattn.attention_received(query, key, mask, backend=backend)
        result = rsattn.residual_attention(
            query, key, value, mask, dropout_p=dropout, backend=backend, return_received=kind == LEARNED
        )
        projected = made[3].transpose(1, 2).flatten(2)
        gamma = torch.ones(heads * head_dim, dtype=torch.float16).cuda().requires_grad_()
        gated = rsattn.add_best_head(projected, result, gamma=gamma)
        joined = rsattn.add_best_head(gated, result)
        torch.autograd.grad(joined, [*leaves, gamma], torch.ones_like(joined))
        torch.cuda.synchronize()
        print(f"{backend} {batch},{heads},{length},{head_dim} dropout {dropout} mask {kind}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

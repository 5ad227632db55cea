"""The packed form, (B, N, 3, H, E), of every kernel: the same bits as with three tensors."""

import pytest
import torch
from cases import Case, for_every_backend, packed, run

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16

CASES = [
    Case(queries=1, width=16),
    Case(queries=65, width=80, mask="padding", scope="batch"),
    Case(queries=63, width=64, dtype=HALF, mask="float", norm="entrywise", dropout=0.3),
    Case(queries=111, width=40, dtype=HALF, mask="bool", norm="confidence", dropout=0.1),
    Case(batch=1, queries=257, width=32, norm="induced", mask="bool"),
    Case(batch=1, queries=300, width=17, norm="confidence", scope="batch", dropout=0.2),
    Case(batch=1, queries=300, width=16, dtype=HALF, norm="entrywise", mask="float"),
    Case(batch=0, queries=20, width=16),
]
COMPILED = [
    Case(queries=197, width=64, dtype=BF16, mask="bool", dropout=0.1),
    Case(queries=300, width=96, dtype=BF16, norm="confidence"),
    Case(queries=577, width=24, mask="float", norm="entrywise", dropout=0.1),
]
ON_CHIP = {64: 256, 128: 128}  # as in test_backward.py


@pytest.mark.parametrize(
    ("kernels", "case"), for_every_backend(CASES, COMPILED, COMPILED, ON_CHIP), indirect=["kernels"]
)
def test_the_same_bits_in_one_gradient(kernels, case, device, poisoned_memory):
    call = case.call(device)
    (one, one_gradients), (three, three_gradients) = run(kernels, packed(call)), run(kernels, call)
    assert all(torch.equal(a, b) for a, b in zip(one[:4], three))
    (gradient,) = one_gradients.of_inputs()
    assert gradient.is_contiguous()
    assert torch.equal(gradient, torch.stack(three_gradients.of_inputs()).permute(1, 3, 0, 2, 4))
    assert gradient.numel() == 0 or gradient.abs().max() > 0

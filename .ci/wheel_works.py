"""Whether the rsattn installed here does what its wheel promises: `python wheel_works.py compiled|pure`.

Needs only rsattn and its dependencies. Run it outside the repository, whose own rsattn would be imported instead.
"""

import subprocess
import sys
from pathlib import Path

import torch

import rsattn


def main(kind: str) -> None:
    assert Path(rsattn.__file__).is_relative_to(sys.prefix), f"{rsattn.__file__} is not the rsattn of {sys.prefix}"
    command = Path(sys.executable).with_name("rsattn")
    info = subprocess.run([command, "info"], capture_output=True, text=True, check=True).stdout
    (cpu,) = (line for line in info.splitlines() if line.startswith("  cpu        "))
    if kind == "compiled":
        assert "runs; backend=None uses it first" in cpu, cpu
        agrees_with_the_reference()
        raises_its_own_message()
    else:
        assert "cannot run: the compiled extension rsattn/_C.so is not installed" in cpu, cpu
        assert "--no-binary rsattn" in cpu, cpu
    patches_and_undoes()
    print(f"torch {torch.__version__}: the {kind} wheel works")


def agrees_with_the_reference() -> None:
    """Output, norms, best head and gradients of the fastest instruction set that this processor has."""
    # float32 rounds in another order, here by at most 1.5e-6 (AVX-512): a thirtieth of the tolerance.
    for expected, found in zip(attention("reference"), attention("cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def attention(backend: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 65, 40, generator=generator).requires_grad_() for _ in range(3)]
    result = rsattn.residual_attention(*inputs, backend=backend)
    gradients = torch.autograd.grad(result.output.square().sum(), inputs)
    return [result.output, result.norms, result.best_head, *gradients]


def raises_its_own_message() -> None:
    """An error from C++ arrives with its words, whichever C++ library PyTorch and the extension were linked with."""
    grad, best_head = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    try:
        torch.ops.rsattn_C.cpu_best_head_gradient(grad, best_head, 1, True, 0)
    except RuntimeError as error:
        words = str(error)
    assert "grad must have 3 dimensions" in words, words
    assert "/" not in words.replace("csrc/cpu/operators.cpp", ""), f"a folder of the machine that built it: {words}"


def patches_and_undoes() -> None:
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    names, tokens = list(layer.state_dict()), torch.randn(2, 9, 32)
    before = layer(tokens)
    patch = rsattn.patch(layer)
    with rsattn.record(layer) as record:
        torch.testing.assert_close(layer(tokens), before)  # the gate starts at 0
    assert record.best_head.shape == (1, 2), record.best_head.shape
    patch.undo()
    assert list(layer.state_dict()) == names, list(layer.state_dict())
    assert torch.equal(layer(tokens), before), "undo() does not give the layer's own outputs back"


if __name__ == "__main__":
    main(sys.argv[1])

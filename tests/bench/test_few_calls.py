"""bench.few_calls makes its calls: here on the CPU, as if it were the GPU."""

import pytest
import torch

import rsattn
from bench import few_calls


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_every_call_is_made(backend, monkeypatch, capsys):
    real, asked = rsattn.residual_attention, []

    def on_the_cpu(*tensors, backend, **options):
        asked.append(backend)
        return real(*tensors, **options)

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(rsattn, "residual_attention", on_the_cpu)
    few_calls.main(backend)
    lines = capsys.readouterr().out.splitlines()
    assert asked == [backend] * len(lines)
    assert len(lines) == len(few_calls.CALLS) - (backend == "cuda")  # but for the widest head

"""The calls of bench.few_calls launch every kernel; here on the CPU in place of the GPU."""

import pytest
import torch

import rsattn
from bench import few_calls
from rsattn.backends.dispatch import BACKENDS
from rsattn.kernels import best_head, gate, launch

OTHERS = {best_head: ("add_best_head", "best_head_gradient"), gate: ("gate_gradients", "gamma_gradient")}
ATTENTION = (
    *("row_forward", "stream_forward", "column_sums", "row_backward", "square_backward"),
    *("query_gradient", "key_value_gradient", "mask_gradient"),
)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_every_call_is_made(backend, monkeypatch, capsys):
    real, received, asked, asked_alone, beside = rsattn.residual_attention, rsattn.attention_received, [], [], []

    def on_the_cpu(query, key, value, mask, *rest, backend, **options):
        asked.append(backend)
        if options["return_received"]:
            beside.append((options["norm"], mask.dim(), mask.shape[-2] > 1))
        return real(query, key, value, mask, *rest, **options)

    def alone_on_the_cpu(*tensors, backend):
        asked_alone.append(backend)
        return received(*tensors)

    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(rsattn, "residual_attention", on_the_cpu)
    monkeypatch.setattr(rsattn, "attention_received", alone_on_the_cpu)
    few_calls.main(backend)
    lines = capsys.readouterr().out.splitlines()
    assert asked == [backend] * len(lines)
    assert asked_alone == [backend] * len(beside)
    # Of every sample and head, of one row, of one head, and of a batch axis that repeats; for every norm.
    assert set(beside) == {("induced", 3, True), ("entrywise", 3, False), ("confidence", 2, True), ("induced", 4, True)}
    assert len(lines) == len(few_calls.CALLS) - (backend == "cuda")  # except the largest head_dim


class Noted:
    """Stands in for a kernel: records the launch."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        self.launched.add(self.name)
        return lambda **arguments: None


@pytest.mark.parametrize("architecture", ["sm80", "sm90"])
def test_every_triton_kernel_is_launched(architecture, monkeypatch):
    if reasons := rsattn.backends("cpu")["triton"].reasons:
        pytest.skip("; ".join(reasons))
    launched = set()
    for module, names in {launch: ATTENTION, **OTHERS}.items():
        for name in names:
            monkeypatch.setattr(module, name, Noted(name, launched))
    monkeypatch.setattr(type(BACKENDS["triton"]), "automatic", lambda *_: True)  # as on a GPU, for the residual too
    monkeypatch.setattr(type(BACKENDS["cpu"]), "automatic", lambda *_: False)
    monkeypatch.setattr(launch, "architecture", lambda device: architecture)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    few_calls.main("triton")
    assert launched == {*ATTENTION, *OTHERS[best_head], *OTHERS[gate]}

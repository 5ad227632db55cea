"""What PyTorch does with modules, done to a whole patched timm ViT: compiled, exported, transformed, recomputed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from library_timm import CASES
from oracle import normal
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor_config

import rsattn

CASE = CASES[0]


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(batch, 3, 32, 32, dtype=dtype)


def patched(
    init_values: float | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    training: bool = False,
) -> nn.Module:
    model = CASE.model(dtype, training)
    rsattn.patch(model, backend=backend, init_values=init_values)
    return model


BOTH = pytest.mark.parametrize("init_values", [None, 0.5], ids=["no_gate", "gate"])


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@BOTH
def test_compiles_into_one_graph_as_often_as_the_plain_model(init_values: float | None) -> None:
    """Batch sizes 2, 3, 5, 8, 1: PyTorch compiles once, once more for any size, and once for 1. So do we."""
    compilations = []
    for model in (CASE.model(), patched(init_values)):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        with torch.no_grad():
            for batch in (2, 3, 5, 8, 1):
                compiled(images(batch))
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[1]


@pytest.mark.usefixtures("fresh_compiler")
@inductor_config.patch(fallback_random=True)  # or compiled code would have a random generator of its own
def test_compiled_numbers() -> None:
    """Through PyTorch's own code generator, forward and backward; dropout draws the seed eager PyTorch draws."""
    model, x = patched(init_values=0.5, training=True), images()
    model.blocks = model.blocks[:1]  # blocks are alike, and each is compiled anew
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for form in (model, compiled):
        torch.manual_seed(3)
        output = form(x)
        results.append([output, *torch.autograd.grad(output.square().mean(), list(model.parameters()))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # float32, other orders of summation


@BOTH
def test_exported_for_any_batch_saved_and_loaded(init_values: float | None) -> None:
    model = patched(init_values).requires_grad_(False)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    assert any("rsattn.attention" in str(node.target) for node in program.graph.nodes)  # the kernels, not eager
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        assert torch.equal(loaded(images(5)), model(images(5)))


@pytest.mark.filterwarnings("ignore")
@BOTH
def test_onnx_computes_the_same_in_onnxruntime(tmp_path: Path, init_values: float | None) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[test]' brings onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install -e '.[test]' brings onnxscript, which the exporter needs")
    model, path = patched(init_values), str(tmp_path / "vit.onnx")
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images(),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images(5)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(x), rtol=1e-4, atol=1e-4)  # float32, two blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@BOTH
def test_autocast_trains(dtype: torch.dtype, init_values: float | None) -> None:
    """Gradients reach float32 parameters in float32, near those of the whole in float32."""
    model = patched(init_values)
    parameters = list(model.parameters())
    exact = torch.autograd.grad(model(images()).square().mean(), parameters)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(images()).float().square().mean()
    grads = torch.autograd.grad(loss, parameters)
    assert {grad.dtype for grad in grads} == {torch.float32}
    flat, wanted = (torch.cat([grad.flatten() for grad in some]) for some in (grads, exact))
    assert torch.nn.functional.cosine_similarity(flat, wanted, dim=0) > 0.9  # another head may win here and there


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@BOTH
def test_activation_checkpointing_gives_the_same_gradients(training: bool, init_values: float | None) -> None:
    """The forward pass is run again in the backward pass, with the dropout mask it had."""
    grads = []
    for checkpointing in (False, True):
        model = patched(init_values, training=training)
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(7)
        loss = model(images().requires_grad_()).square().mean()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*grads))


@BOTH
def test_functional_call_takes_other_weights(init_values: float | None) -> None:
    model = patched(init_values)
    weights = {name: parameter.detach() * 1.01 for name, parameter in model.named_parameters()}
    got = torch.func.functional_call(model, weights, (images(),))
    model.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(got, model(images()))


@BOTH
def test_gradients_per_sample_by_vmap(init_values: float | None) -> None:
    """torch.func's transforms take the reference by themselves, in float32 too, which the kernels take elsewhere."""
    model = patched(init_values)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(given: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, given, (image[None],)).square().sum()

    x = images(3)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for i in range(3):
        alone = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(model.parameters()))
        largest = max(float(grad.abs().max()) for grad in alone)
        for name, grad in zip(weights, alone):
            # float32 through two blocks by other kernels, as in test_every_library.py
            torch.testing.assert_close(per_sample[name][i], grad, rtol=1e-3, atol=1e-5 * largest)


def test_a_named_kernel_inside_a_transform_says_what_to_do() -> None:
    model = patched(backend="cpu")
    with pytest.raises(rsattn.BackendError, match=r"torch\.func transforms.*backend=None"):
        torch.func.vmap(model)(images(4)[:, None])

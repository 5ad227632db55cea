"""The windows of the Swin family in every library: their masks, images of any size, and the cosines of version 2."""

from __future__ import annotations

from typing import Any

import library_monai
import library_timm
import library_torchvision
import library_transformers
import pytest
import torch
from case import DIM, HEADS, Case
from models import anatomy
from monai.networks.nets import SwinUNETR
from oracle import normal
from test_every_library import noted_calls
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from watch import calls_of

import rsattn

DOUBLE = torch.float64
LIBRARIES = (library_timm, library_torchvision, library_transformers, library_monai)
EVERY = [case for library in LIBRARIES for case in library.CASES if "swin" in case.name.lower()]
V2 = [case for case in EVERY if "v2" in case.name.lower()]
TORCHVISION, TORCHVISION_V2 = library_torchvision.CASES
CLASSES = {ShiftedWindowAttention: "one", ShiftedWindowAttentionV2: "two"}

every_swin = pytest.mark.parametrize("swin", EVERY, ids=lambda case: case.name)


def windows_of(swin: Case) -> int:
    """In an image."""
    return 8 if swin.name == "monai-swin-3d" else 4


def results(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter but the gate."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    output = module(x)
    output = output if isinstance(output, Tensor) else output[0]
    output.sin().sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None and "gamma" not in name}
    return {"output": output.detach(), "x": x.grad, **{name: grad.clone() for name, grad in grads.items()}}


def assert_a_closed_gate_changes_nothing(module: nn.Module, x: Tensor) -> None:
    plain = results(module, x)
    with rsattn.patch(module):
        got = results(module, x)
    assert set(got) == set(plain)
    for name, want in plain.items():
        # float64 sums. A bias of K has gradient 0 in exact arithmetic, so errors are absolute.
        torch.testing.assert_close(got[name], want, rtol=1e-9, atol=1e-10, msg=name)


# What reaches the kernels.


@every_swin
def test_the_mask_is_never_expanded_to_the_batch(swin: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry for each window of an image where they are shifted, and one alone where they are not."""
    model, windows = swin.model(), windows_of(swin)
    rsattn.patch(model)
    calls = noted_calls(monkeypatch)
    swin.run(model)
    assert [len(call.query) for call in calls] == [2 * windows] * 2  # of two images
    for call, entries in zip(calls, (1, windows), strict=True):
        mask, tokens = call.attn_mask, call.query.shape[2]
        assert mask is not None
        assert mask.shape == (entries, HEADS, tokens, tokens)
        assert mask.requires_grad
        assert mask.untyped_storage().nbytes() == mask.numel() * mask.element_size()


@every_swin
def test_a_shift_hides_tokens_in_the_last_windows_only(swin: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows of an image are counted row by row; the first holds no token that came around an edge."""
    model = swin.model()
    rsattn.patch(model)
    calls = noted_calls(monkeypatch)
    swin.run(model)
    plain, shifted = (call.attn_mask < -50.0 for call in calls)
    assert not plain.any()
    assert shifted.flatten(1).any(1).tolist() == [False] + [True] * (windows_of(swin) - 1)
    assert not shifted.diagonal(dim1=2, dim2=3).any()  # a token sees itself


@every_swin
def test_a_window_is_a_sample(swin: Case) -> None:
    """It has norms and a best head of its own, and neither depends on the other images."""
    model = swin.model(DOUBLE)
    windows, images = windows_of(swin), swin.inputs(DOUBLE)
    rsattn.patch(model)
    records = []
    for part in (images, images[:1], images[1:]):
        with torch.no_grad(), rsattn.record(model) as seen:
            swin.call(model, part)
        records.append(seen)
    both, *single = records
    assert both.best_head.shape == (2, 2 * windows)
    assert len(both.best_head[:, :windows].unique()) > 1
    assert torch.equal(torch.cat([one.best_head for one in single], 1), both.best_head)
    torch.testing.assert_close(torch.cat([one.norms for one in single], 1), both.norms)


@every_swin
def test_one_head_for_all_windows_of_a_batch(swin: Case) -> None:
    model = swin.model()
    rsattn.patch(model, scope="batch")
    with torch.no_grad(), rsattn.record(model) as seen:
        swin.run(model)
    for norms, best in zip(seen.norms, seen.best_head):
        assert best.unique().tolist() == [int(norms.sum(0).argmax())]


@every_swin
def test_the_output_projections_dropout_spares_the_residual(swin: Case) -> None:
    """With everything of the projection dropped, the best head is all that is left."""
    model = swin.model(DOUBLE)
    call = calls_of(model, swin.attentions, lambda plain: swin.run(plain, DOUBLE))[1]
    attention: Any = model.get_submodule(call.name)
    for layer in attention.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    if hasattr(attention, "attention_dropout"):
        attention.attention_dropout = 0.0
    if hasattr(attention, "proj_drop"):
        attention.proj_drop.p = 1.0
    elif hasattr(attention, "output"):
        attention.output.dropout.p = 1.0
    elif hasattr(attention, "dropout"):
        attention.dropout = 1.0
    else:  # transformers' Swin, where the layer around it drops
        nn.init.zeros_(attention.o_proj.weight)
        nn.init.zeros_(attention.o_proj.bias)
    rsattn.patch(attention, init_values=None)
    output = attention.train()(*call.args, **call.kwargs)
    got = swin.as_tokens(attention, output if isinstance(output, Tensor) else output[0])
    heads, best = call.seen.output, torch.tensor(call.seen.best("induced", "sample"))
    want = heads[torch.arange(len(best)), best].repeat(1, 1, HEADS)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


# Images of other sizes.


@pytest.mark.parametrize("kind", CLASSES, ids=CLASSES.values())
@pytest.mark.parametrize("size", [(4, 8), (5, 9), (2, 9), (9, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_torchvision_pads_and_shifts(kind: type[Any], size: tuple[int, int], bias: bool) -> None:
    """Windows that are not square; an axis no longer than the window is not shifted."""
    torch.manual_seed(0)
    attention = kind(DIM, [2, 4], [1, 2], HEADS, qkv_bias=bias, proj_bias=bias).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert_a_closed_gate_changes_nothing(attention, normal(2, *size, DIM))


@pytest.mark.parametrize("swin", [case for case in EVERY if "timm" not in case.name], ids=lambda case: case.name)
@pytest.mark.parametrize("side", [12, 28, 44])
def test_images_that_windows_do_not_divide(swin: Case, side: int) -> None:
    """3, 7 and 11 tokens wide, in windows of 4."""
    if swin.name == "transformers-SwinModel" and side == 12:
        side = 20  # the library's own code takes no image smaller than a window
    model = swin.model(DOUBLE)
    if "monai" in swin.name:
        axes = 3 if swin.name.endswith("3d") else 2
        x = normal(2, DIM, *([side // 4] * axes))
    else:
        x = normal(2, 3, side, side + 8)
    assert_a_closed_gate_changes_nothing(model, x)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_timm_resizes_its_windows() -> None:
    for swin in (case for case in EVERY if "timm" in case.name):
        model: Any = swin.model(DOUBLE)
        patched = rsattn.patch(model)
        model.set_input_size((48, 24), window_size=(6, 3))
        x = normal(2, 3, 48, 24)
        got = results(model, x)
        patched.undo()
        for name, want in results(model, x).items():
            torch.testing.assert_close(got[name], want, rtol=1e-9, atol=1e-10, msg=name)


def test_the_whole_of_swinunetr() -> None:
    torch.manual_seed(0)
    model = SwinUNETR(1, 2, feature_size=12, spatial_dims=2, depths=(2, 1, 1, 1), use_checkpoint=True).double()
    structure, keys, images = anatomy(model.eval()), list(model.state_dict()), normal(1, 1, 64, 32)
    with torch.no_grad():
        plain = model(images)
    patched = rsattn.patch(model)
    assert list(patched.modules) == [
        f"swinViT.layers{stage + 1}.0.blocks.{block}.attn"
        for stage, depth in enumerate((2, 1, 1, 1))
        for block in range(depth)
    ]
    with rsattn.record(model) as seen:
        got = model(images)
    torch.testing.assert_close(got, plain, rtol=1e-9, atol=1e-9)  # float64, through many convolutions
    with pytest.raises(RuntimeError, match=r"differ in batch or number of heads .*read record\.blocks\[name\]\.norms"):
        _ = seen.norms
    got.square().sum().backward()
    for module in patched.modules.values():
        assert float(module.gamma.grad.abs().max()) > 0  # type: ignore[union-attr]
        assert float(module.relative_position_bias_table.grad.abs().max()) > 0  # type: ignore[union-attr]
    patched.undo()
    assert anatomy(model) == structure
    assert list(model.state_dict()) == keys


# What PyTorch does with models.


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("swin", [next(c for c in EVERY if c in lib.CASES) for lib in LIBRARIES], ids=lambda c: c.name)
def test_compiles_into_one_graph_as_often_as_the_plain_model(swin: Case) -> None:
    """For 2, 3 and 5 images: that the mask's length divides the batch is clear for any number of images."""
    compilations = []
    images = torch.cat([swin.inputs(torch.float32)] * 3)
    for patched in (False, True):
        torch._dynamo.reset()
        model, counter = swin.model(), CompileCounter()
        if patched:
            rsattn.patch(model)
        compiled: Any = torch.compile(model, fullgraph=True, backend=counter)
        with torch.no_grad():
            for batch in (2, 3, 5):
                swin.call(compiled, images[:batch])
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[1]


@pytest.mark.parametrize("swin", [TORCHVISION, TORCHVISION_V2], ids=lambda case: case.name)
def test_exported_for_any_batch(swin: Case) -> None:
    model, images = swin.model(), swin.inputs(torch.float32)
    rsattn.patch(model, init_values=0.5)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    more = torch.cat([images, images.flip(0), images[:1]])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more), rtol=1e-5, atol=1e-5)  # float32


# Version 2.


@pytest.mark.parametrize("swin", V2, ids=lambda case: case.name)
def test_cosines_times_a_learned_factor(swin: Case) -> None:
    """Factors up to 100 and, as logarithms beyond that count as 100, above; then hidden tokens are not quite hidden."""
    model = swin.model(DOUBLE)
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            parameter.data = torch.tensor([0.5, 4.6, 7.0], dtype=DOUBLE).view(HEADS, 1, 1)
    assert_a_closed_gate_changes_nothing(model, swin.inputs(DOUBLE))


def test_what_torchvision_leaves_out_of_its_bias_stays_out() -> None:
    """Version 2 reads the bias of K as zero, whatever it holds."""
    model = TORCHVISION_V2.model(DOUBLE)
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.bias"):
            assert parameter[DIM : 2 * DIM].abs().min() > 0
    assert_a_closed_gate_changes_nothing(model, TORCHVISION_V2.inputs(DOUBLE))


@every_swin
def test_new_heads_are_refused(swin: Case) -> None:
    model = swin.model()
    with pytest.raises(ValueError, match="newly initialized attention would lose this one's position bias"):
        rsattn.patch(model, num_heads=2)

"""What only transformers has: a class per model, masks of several kinds, outputs recorded by hooks, checkpoints."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from case import DIM, Case
from library_transformers import CASES, OTHERS, SIZES, build
from models import assert_same_state
from oracle import naive_merge, normal
from safetensors.torch import load_file
from test_every_library import noted_calls
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from watch import calls_of, watching

import rsattn
from rsattn.integrations import transformers as integration

VIT, DEIT, DINOV2, _, DINOV3, SIGLIP, _, SWIN_V2 = CASES
TOKENS = 17
PADDING = torch.arange(TOKENS) < torch.tensor([[17], [9]])  # True = take part
FRESH = pytest.mark.parametrize("shape", [{}, {"num_heads": 2, "head_dim": DIM}], ids=["swap", "fresh"])
EVERY = pytest.mark.parametrize("model_case", CASES + OTHERS, ids=lambda case: case.name)


def vit(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float64) -> nn.Module:
    """The weights of `VIT`."""
    return Case("", lambda: build("ViTForImageClassification", attn_implementation), []).model(dtype)


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return VIT.inputs(dtype)


@EVERY
def test_every_class_is_the_librarys_plus_its_best_head(model_case: Case) -> None:
    model = model_case.model(torch.float64)
    calls = calls_of(model, model_case.attentions, lambda plain: model_case.run(plain, torch.float64))
    rsattn.patch(model, init_values=None)
    for call in calls:
        best = call.seen.best("induced", "sample")
        expected = naive_merge(call.output, call.seen.output, best, "tile")
        got = model.get_submodule(call.name)(*call.args, **call.kwargs)
        assert type(got) is tuple
        assert set(got[1:]) <= {None}
        torch.testing.assert_close(got[0], expected, rtol=1e-11, atol=1e-11)  # float64 sums


def test_every_class_is_tested() -> None:
    models = [case.model() for case in CASES + OTHERS]
    tested = {type(model.get_submodule(case.attentions[0])).__name__ for model, case in zip(models, CASES + OTHERS)}
    assert tested == set(integration._FOLDERS)


# Masks.


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_and_the_scale(kind: str) -> None:
    attention, x = vit().vit.layers[0].attention, normal(2, TOKENS, DIM)
    attention.scaling *= 1.5  # of the module, and so not what follows from the width of its heads
    mask = PADDING[:, None, None, :] if kind == "bool" else normal(2, 1, TOKENS, TOKENS, seed=3)
    with torch.no_grad(), watching() as seen:
        plain, _ = attention(x, mask)
    expected = naive_merge(plain, seen[0].output, seen[0].best("induced", "sample"), "tile")
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention(x, mask)[0], expected, rtol=1e-11, atol=1e-11)  # float64 sums


@FRESH
def test_padding_whatever_the_attention_implementation(shape: dict[str, int]) -> None:
    """Eager, the library hands over a float mask of the lowest numbers, and a bool one otherwise."""
    results: dict[str, Tensor] = {}
    masks: list[Tensor | None] = []
    for name in ("eager", "sdpa"):
        model = vit(name)
        torch.manual_seed(1)
        for module in rsattn.patch(model, init_values=None, **shape).modules.values():
            module.register_forward_pre_hook(lambda module, args: masks.append(args[1]))
        results[name] = model(images(), attention_mask=PADDING.long()).logits
        unpadded = model(images(), attention_mask=torch.ones_like(PADDING)).logits
        assert torch.equal(results[name][0], unpadded[0])
        assert not torch.allclose(results[name][1], unpadded[1], atol=1e-3)
    types = [None if mask is None else mask.dtype for mask in masks]
    assert types == [torch.float64] * 2 + [None] * 2 + [torch.bool] * 2 + [None] * 2
    torch.testing.assert_close(results["eager"], results["sdpa"], rtol=1e-11, atol=1e-11)  # float64 sums


@FRESH
def test_the_mask_of_flash_attention(shape: dict[str, int]) -> None:
    attention, x = vit().vit.layers[0].attention, normal(2, TOKENS, DIM)
    rsattn.patch(attention, init_values=None, **shape)
    assert torch.equal(attention(x, PADDING)[0], attention(x, PADDING[:, None, None, :])[0])
    assert not torch.allclose(attention(x, PADDING)[0][1], attention(x)[0][1], atol=1e-3)


@FRESH
def test_the_mask_of_flex_attention_is_refused(shape: dict[str, int]) -> None:
    attention, x = vit().vit.layers[0].attention, normal(2, TOKENS, DIM)
    rsattn.patch(attention, init_values=None, **shape)
    block_mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, TOKENS, TOKENS, device="cpu")
    with pytest.raises(TypeError, match=r'no mask of type BlockMask; call model.set_attn_implementation\("sdpa"\)'):
        attention(x, block_mask)


def test_the_position_bias_of_beit_is_one_mask_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    (beit,) = (case for case in OTHERS if "Beit" in case.name)
    model = beit.model()
    rsattn.patch(model)
    calls = noted_calls(monkeypatch)
    beit.run(model)
    assert [call.attn_mask.shape for call in calls] == [(1, 3, TOKENS, TOKENS)] * 2
    assert all(call.attn_mask.requires_grad for call in calls)


@pytest.mark.parametrize("name", ["use_relative_position_bias", "use_shared_relative_position_bias"])
def test_the_position_bias_of_beit_is_of_its_own_heads(name: str) -> None:
    shape = dict(hidden_size=DIM, num_hidden_layers=2, num_attention_heads=3, intermediate_size=DIM)
    model = transformers.BeitModel(transformers.BeitConfig(**shape, image_size=16, patch_size=8, **{name: True}))
    with pytest.raises(ValueError, match=r"cannot patch\n  .*newly initialized attention"):
        rsattn.patch(model, num_heads=2, head_dim=DIM)
    rsattn.patch(
        transformers.BeitModel(transformers.BeitConfig(**shape, image_size=16, patch_size=8)), num_heads=2, head_dim=DIM
    )


# What the library records, and what it is asked for besides.


def everything(model_case: Case, model: nn.Module, **options: object) -> Any:
    """All that the model returns, called with these options besides."""
    results = []

    def call(*inputs: Any) -> Any:
        results.append(model(*inputs, **options))
        return results[0]

    model_case.call(call, model_case.inputs(torch.float32))
    return results[0]


@EVERY
@pytest.mark.parametrize("asked", ["call", "config"])
def test_attentions_are_refused_and_not_left_out(model_case: Case, asked: str) -> None:
    model = model_case.model()
    model.set_attn_implementation("eager")
    patched = rsattn.patch(model, blocks=[1], init_values=None)
    options = {"output_attentions": True} if asked == "call" else {}
    model.config.output_attentions = asked == "config"
    with pytest.raises(ValueError, match=r"never stores; use `with rsattn.record\(model, received=True\)`.*undo\(\)"):
        everything(model_case, model, **options)
    if model_case.name.endswith(("ClapAudioModel", "MaskFormerSwinModel")):
        return  # the call cannot switch CLAP's off, and with them MaskFormer's own code fails
    assert everything(model_case, model, output_attentions=False).attentions is None
    patched.undo()
    assert {probs.shape[1] for probs in everything(model_case, model, **options).attentions} == {3}


@FRESH
@pytest.mark.parametrize("called_first", [False, True], ids=["not-called", "called"])
@pytest.mark.parametrize("model_case", [VIT, DINOV2], ids=lambda case: case.name)
def test_hidden_states_and_the_hooks_that_record_them(
    model_case: Case, called_first: bool, shape: dict[str, int]
) -> None:
    """The library puts its hooks on the model at the first call that needs them, patched or not, and never again."""
    model, inputs = model_case.model(), model_case.inputs(torch.float32)
    model.set_attn_implementation("eager")
    if called_first:
        assert len(model(inputs, output_attentions=True).attentions) == 2
    patched = rsattn.patch(model, init_values=None, **shape)
    layers = [model.get_submodule(name.removesuffix(".attention")) for name in model_case.attentions]
    outputs: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, output: outputs.append(output))
    result = model(inputs, output_hidden_states=True)
    assert len(result.hidden_states) == 3
    assert all(torch.equal(kept, output) for kept, output in zip(result.hidden_states[1:], outputs, strict=True))
    assert torch.equal(result[0], model_case.run(model))
    with pytest.raises(ValueError, match="never stores"):
        model(inputs, output_attentions=True)
    patched.undo()
    result = model(inputs, output_attentions=True, output_hidden_states=True)
    assert [probs.shape[:2] for probs in result.attentions] == [(2, 3)] * 2
    assert len(result.hidden_states) == 3


@FRESH
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"head_mask": torch.ones(2, 3)}, "head_mask is ignored by transformers 5 and not supported here"),
        ({"is_causal": True}, "is_causal=True means something different for each attn_implementation"),
    ],
    ids=["head_mask", "is_causal"],
)
def test_what_the_librarys_functions_would_read_is_refused(
    shape: dict[str, int], asked: dict[str, Any], words: str
) -> None:
    model = VIT.model()
    rsattn.patch(model, init_values=None, **shape)
    with pytest.raises(ValueError, match=words):
        model(images(torch.float32), **asked)
    nothing = dict.fromkeys(asked)
    assert torch.equal(model(images(torch.float32), **nothing).logits, VIT.run(model))


def test_fresh_heads_have_the_biases_the_librarys_had() -> None:
    for model_case, qkv_bias in ((VIT, True), (DEIT, False)):
        for module in rsattn.patch(model_case.model(), head_dim=DIM).modules.values():
            assert (module.qkv.bias is not None, module.proj.bias is not None) == (qkv_bias, True)


# Training and checkpoints.


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # another name from 5.23 on
@FRESH
def test_gradient_checkpointing_changes_no_gradient(shape: dict[str, int]) -> None:
    """Dropout included: the recomputed attention drops the same probabilities."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = VIT.model()
        torch.manual_seed(1)
        for module in rsattn.patch(model, init_values=None, **shape).modules.values():
            module.register_forward_pre_hook(lambda module, args: calls.append(module))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        torch.manual_seed(2)
        VIT.run(model).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 2 + 4
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*gradients, strict=True))


def test_a_patched_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = VIT.model()
    model.save_pretrained(tmp_path / "plain")
    rsattn.patch(model, init_values=None)
    model.save_pretrained(tmp_path / "patched")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "patched" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    loaded = type(model).from_pretrained(tmp_path / "patched")
    assert list(loaded.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        assert not torch.allclose(VIT.run(loaded), VIT.run(model), atol=1e-3)
        rsattn.patch(loaded, init_values=None)
        assert torch.equal(VIT.run(loaded), VIT.run(model))


GATES = [f"vit.layers.{i}.attention.gamma" for i in range(2)]


def gated() -> nn.Module:
    """`VIT`, patched, its gates open."""
    model = VIT.model()
    rsattn.patch(model)
    model.load_state_dict({name: normal(DIM, seed=i) for i, name in enumerate(GATES)}, strict=False)
    return model


def test_a_gated_checkpoint(tmp_path: Path) -> None:
    """Older versions renamed keys with "gamma" in them. A plain model takes all but the gates, which can follow."""
    model = gated()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == set(GATES)
    assert not info["missing_keys"]
    assert_same_state(loaded, {name: tensor for name, tensor in model.state_dict().items() if name not in GATES})
    rsattn.patch(loaded)
    written = load_file(tmp_path / "model.safetensors")
    # The library writes other names, "vit.encoder.layer.0.attention.gamma" for instance.
    own = [next(key for key in written if key.endswith(name.removeprefix("vit.layers"))) for name in GATES]
    loaded.load_state_dict({name: written[key] for name, key in zip(GATES, own)}, strict=False)
    with torch.no_grad():
        assert torch.equal(VIT.run(loaded), VIT.run(model))


class GatedViT(transformers.ViTForImageClassification):
    """Patched as it is built, so that the library's loading sees the gates."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        rsattn.patch(self)


def test_from_pretrained_into_a_model_that_patches_itself(tmp_path: Path) -> None:
    model = gated()
    model.save_pretrained(tmp_path)
    loaded, info = GatedViT.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert_same_state(loaded, model.state_dict())
    with torch.no_grad():
        assert torch.equal(VIT.run(loaded), VIT.run(model))


FRESH_PROCESS = """
import conftest, sys, torch, transformers
def models():
    return {name.split(".")[2] for name in sys.modules if ".modeling_" in name and name.count(".") == 3} - {"auto"}
for model, images, expected in torch.load(sys.argv[1], weights_only=False):
    with torch.no_grad():
        assert torch.equal(model(images)[0], expected)
    print(type(model.vit.layers[1].attention).__name__)
assert models() == {"vit"}, models()
import rsattn
assert len(rsattn.patch(transformers.ViTModel(model.config)).modules) == 2
assert models() == {"vit"}, models()
"""


def test_unpickling_in_a_process_that_imported_nothing(tmp_path: Path) -> None:
    """Nor does patching import a model that the user did not."""
    kept = []
    for shape in ({}, {"num_heads": 2, "head_dim": DIM}):
        model = VIT.model()
        rsattn.patch(model, init_values=None, **shape)
        with torch.no_grad():
            kept.append((model, images(torch.float32), VIT.run(model)))
    torch.save(kept, tmp_path / "models.pt")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "models.pt")]
    tests = str(Path(__file__).parents[1])  # its conftest.py makes torchvision importable
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tests)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["ResidualViTAttention", "FreshViTAttention"]


# Other versions, and other attention.


def test_an_attention_built_as_before_is_refused() -> None:
    """In transformers 4, and for DINOv2 until 5.17, a class of this name has its projections in two parts."""
    model = DINOV2.model()
    del model.encoder.layer[1].attention.o_proj
    version = integration.transformers.__version__
    words = rf"encoder.layer.1.attention \(Dinov2Attention: transformers {version} builds it.*rsattn needs.* 5\.18"
    with pytest.raises(ValueError, match=words):
        rsattn.patch(model)


def test_a_copy_of_swin_built_like_swin_is_refused() -> None:
    """Its older form is the one that is known."""
    model = SWIN_V2.model()
    attention = model.encoder.layers[0].blocks[1].attention
    attention.o_proj = attention.output.dense
    del attention.self
    with pytest.raises(ValueError, match=r"blocks\.1\.attention \(Swinv2Attention: .* builds it differently"):
        rsattn.patch(model)


@pytest.mark.parametrize("version", ["4.57.6", "5.8.1"])
def test_a_version_that_keeps_arguments_from_its_attention_is_refused(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINOv3 looks the same there, but would leave out what it is asked to put out."""
    monkeypatch.setattr(integration.transformers, "__version__", version)
    with pytest.raises(ValueError, match=rf"DINOv3ViTAttention: transformers {version} builds it differently"):
        rsattn.patch(DINOV3.model())


def test_attention_of_another_kind_is_named() -> None:
    words = r"found nothing.*: rsattn does not know transformers\.models\.yolos\.modeling_yolos\.YolosSelfAttention \("
    with pytest.raises(ValueError, match=words):
        rsattn.patch(build("YolosModel", image_size=[32, 32], num_detection_tokens=2))


@pytest.mark.parametrize("name", ["SiglipVisionModel", "Siglip2VisionModel"])
def test_the_pooling_of_siglip_is_skipped(name: str) -> None:
    """A learned query attends to the tokens: no self-attention, although PyTorch's own class computes it."""
    model = build(name)
    patched = rsattn.patch(model)
    assert list(patched.modules) == [f"encoder.layers.{i}.self_attn" for i in range(2)]
    assert patched.skipped == {"head.attention": "pools the tokens with a learned query, which is not self-attention"}
    with pytest.raises(ValueError, match=r"found nothing.*PoolingHead: pools the tokens .* \(attention\)"):
        rsattn.patch(build(name).head)


def test_the_text_encoder_of_clip_is_skipped() -> None:
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    ids = dict(vocab_size=9, bos_token_id=7, eos_token_id=8)
    config = transformers.CLIPConfig(
        text_config={**sizes, **ids, "num_hidden_layers": 1}, vision_config={**SIZES, "num_hidden_layers": 3}
    )
    model = transformers.CLIPModel(config).eval()
    images, words = normal(2, 3, 32, 32, dtype=torch.float32), torch.tensor([[7, 1, 8], [7, 2, 8]])
    with torch.no_grad():
        plain = model(words, images).logits_per_image
        patched = rsattn.patch(model)
        torch.testing.assert_close(model(words, images).logits_per_image, plain, rtol=1e-4, atol=1e-4)  # float32
    assert list(patched.modules) == [f"vision_model.encoder.layers.{i}.self_attn" for i in range(3)]
    assert list(patched.skipped) == ["text_model.encoder.layers.0.self_attn"]
    assert "causal" in patched.skipped["text_model.encoder.layers.0.self_attn"]


def test_the_classes_are_found_by_name_only() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ResidualBertAttention'"):
        integration.ResidualBertAttention  # noqa: B018


def test_threads_that_need_a_class_at_once_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or pickle would not know one of them."""
    load, made = importlib.import_module, []

    def load_while_another_thread_makes_it(name: str) -> Any:
        if not made:
            made.append(None)
            made.append(integration._subclass("Residual", "ViTAttention"))
        return load(name)

    monkeypatch.setattr(integration, "_SUBCLASSES", {})
    monkeypatch.setattr(importlib, "import_module", load_while_another_thread_makes_it)
    assert integration._subclass("Residual", "ViTAttention") is made[1]

"""`patch` on the real pytorch_pretrained_vit: right numbers, the model's own weights, and an exact way back."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from models import COPIES, anatomy, assert_same_state, copied, state
from oracle import MERGES, NORMS, SCOPES, naive_attention, naive_merge, normal, philox_keep, seed_after
from torch import Tensor, nn

import rsattn
from rsattn import ResidualSelfAttention, patch, record

vit = pytest.importorskip("pytorch_pretrained_vit", reason="pip install -e '.[test]' brings pytorch-pretrained-vit")
from pytorch_pretrained_vit.transformer import Block, Transformer  # noqa: E402

DIM, HEADS, LENGTH = 24, 3, 11
BOTH = pytest.mark.parametrize("init_values", [None, 0.5], ids=["no_gate", "gate"])


def build(layers: int = 2, dropout: float = 0.1, dtype: torch.dtype = torch.float32, training: bool = False) -> Any:
    torch.manual_seed(0)
    model = Transformer(num_layers=layers, dim=DIM, num_heads=HEADS, ff_dim=40, dropout=dropout)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj_q.weight.mul_(6.0)  # scores of spread 1, as in a trained model
    return model.to(dtype).train(training)


def tokens(batch: int = 3, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return normal(batch, LENGTH, DIM, seed=seed, dtype=dtype)


def library_block(
    block: Any, x: Tensor, options: dict[str, str], mask: Tensor | None = None, gamma: Tensor | None = None
) -> Tensor:
    """What a patched block must give: the library's own attention and projection, plus its best head times the gate.

    P is the library's `attn.scores`; the heads and the norms come from loops in float64.
    """
    joined = block.attn(block.norm1(x), mask)
    normed = block.norm1(x)
    q, k, v = (
        p(normed).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for p in (block.attn.proj_q, block.attn.proj_k, block.attn.proj_v)
    )
    naive = naive_attention(q, k, v, None if mask is None else (mask != 0)[:, None, None, :])
    torch.testing.assert_close(naive.probs, block.attn.scores.double(), rtol=0, atol=1e-9)
    best = naive.best(options["norm"], options["scope"])
    heads = joined.unflatten(2, (HEADS, -1)).transpose(1, 2)
    projected = block.proj(joined)
    if gamma is None:
        x = x + naive_merge(projected, heads, best, options["merge"])
    else:
        x = x + projected + gamma * naive_merge(torch.zeros_like(projected), heads, best, options["merge"])
    return x + block.pwff(block.norm2(x))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "mask"])
def test_patched_blocks_add_their_best_head(masked: bool, norm: str, scope: str, merge: str) -> None:
    model, x = build(dtype=torch.float64), tokens(dtype=torch.float64)
    mask = (normal(3, LENGTH, seed=5) > -0.5).to(torch.int64) if masked else None
    options = {"norm": norm, "scope": scope, "merge": merge}
    with torch.no_grad():
        expected = x
        for block in model.blocks:
            expected = library_block(block, expected, options, mask)
    patch(model, init_values=None, **options)
    # The library adds -10000 where we leave out: exp(-10000) is 0 in float64 too, so only the order of sums differs.
    torch.testing.assert_close(model(x, mask), expected, rtol=1e-11, atol=1e-11)
    assert all(block.attn.scores is None for block in model.blocks)  # nothing pins P, the library's last one included


@pytest.mark.parametrize("merge", MERGES)
def test_a_gated_block_adds_gamma_times_its_best_head(merge: str) -> None:
    """The gate is the block's, `blocks.0.gamma`, since the block is what is patched; at zero the block is as it was."""
    model, x = build(dtype=torch.float64), tokens(dtype=torch.float64)
    options = {"norm": "induced", "scope": "sample", "merge": merge}
    gammas = [normal(DIM, seed=7), normal(DIM, seed=8)]
    with torch.no_grad():
        plain, expected = model(x), x
        for block, gamma in zip(model.blocks, gammas):
            expected = library_block(block, expected, options, gamma=gamma)
        for block in model.blocks:
            block.attn.scores = None
        structure, keys = anatomy(model), list(model.state_dict())
        patched = patch(model, **options)
        assert set(model.state_dict()) - set(keys) == {"blocks.0.gamma", "blocks.1.gamma"}
        assert [id(p) for p in patched.parameters()] == [id(block.gamma) for block in model.blocks]
        torch.testing.assert_close(model(x), plain, rtol=1e-11, atol=1e-11)  # float64 sums
        for block, gamma in zip(model.blocks, gammas):
            block.gamma.copy_(gamma)
        torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    patched.undo()
    assert anatomy(model) == structure
    assert list(model.state_dict()) == keys


def test_the_residual_is_what_changed() -> None:
    model, x = build(), tokens()
    plain = model(x)
    with patch(model, init_values=None):
        assert (model(x) - plain).abs().max() > 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_training_dropout(norm: str) -> None:
    """The block's dropout on P follows the published stream; the seed decides, evaluation has none."""
    model, x = build(1, 0.3, torch.float64, training=True), tokens(dtype=torch.float64)
    block = model.blocks[0]
    block.drop.p = 0.0  # of the projection and the feed-forward, which draw from PyTorch's own stream
    normed = block.norm1(x)
    q, k, v = (
        p(normed).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for p in (block.attn.proj_q, block.attn.proj_k, block.attn.proj_v)
    )
    keep = philox_keep(seed_after(4), 0.3, (3, HEADS, LENGTH, LENGTH))
    naive = naive_attention(q, k, v, None, keep, 0.3)
    projected = block.proj(naive.output.transpose(1, 2).flatten(2))
    middle = x + naive_merge(projected, naive.output, naive.best(norm, "sample"), "tile")
    expected = middle + block.pwff(block.norm2(middle))
    patch(model, norm=norm, init_values=None)
    torch.manual_seed(4)
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)  # float64 sums
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_weights_and_keys_stay_and_undo_is_exact() -> None:
    model, x = build(), tokens()
    plain = model(x)
    for block in model.blocks:
        block.attn.scores = None
    structure, before = anatomy(model), state(model)
    text = repr(model)
    patched = patch(model, init_values=None)
    assert_same_state(model, before)
    assert [id(m) for m in model.modules()] == [identity for _, _, identity, _ in structure]
    assert list(patched.modules) == ["blocks.0", "blocks.1"]
    assert all(isinstance(m, Block) for m in patched.modules.values())
    model(x)
    patched.undo()
    assert torch.equal(model(x), plain)
    for block in model.blocks:
        block.attn.scores = None
    assert anatomy(model) == structure
    assert_same_state(model, before)
    assert repr(model) == text
    patched.undo()  # harmless
    assert anatomy(model) == structure


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 4, "head_dim": DIM}], ids=["swap", "fresh"])
@BOTH
def test_as_a_context_manager(init_values: float | None, fresh: dict[str, int]) -> None:
    model, x = build(), tokens()
    plain, structure = model(x), anatomy(model)

    def fail_inside() -> None:
        with patch(model, init_values=init_values, **fresh):
            assert not torch.equal(model(x), plain)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert anatomy(model) == structure
    assert torch.equal(model(x), plain)


def test_undo_keeps_what_was_learned_meanwhile() -> None:
    model = build(training=True)
    before = state(model)
    patched = patch(model, init_values=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens()).square().mean().backward()
    optimizer.step()
    learned = state(model)
    patched.undo()
    assert_same_state(model, learned)
    assert all(not torch.equal(learned[n], before[n]) for n in before if n.endswith("proj.weight"))


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 4, "head_dim": DIM}], ids=["swap", "fresh"])
@BOTH
def test_gradients_reach_every_parameter(init_values: float | None, fresh: dict[str, int]) -> None:
    model = build(training=True)
    patch(model, init_values=init_values, **fresh)
    model(tokens()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "proj_k.bias" not in name:  # a constant added to every score of a row cancels in the softmax
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("scope", SCOPES)
def test_full_width_heads_are_fresh_modules(scope: str) -> None:
    """The authors' setting: every block gets a `ResidualSelfAttention` with heads as wide as the tokens."""
    model, x = build(dtype=torch.float64), tokens(dtype=torch.float64)
    structure, before, plain = anatomy(model), state(model), model(x)
    patched = patch(model, norm="entrywise", scope=scope, num_heads=4, head_dim=DIM)
    assert list(patched.modules) == ["blocks.0.attn", "blocks.1.attn"]
    expected = x
    for block in model.blocks:
        attn = block.attn
        assert isinstance(attn, ResidualSelfAttention)
        assert (attn.num_heads, attn.head_dim, attn.qkv.weight.shape) == (4, DIM, (3 * 4 * DIM, DIM))
        assert (attn.attn_drop, attn.proj_drop.p, attn.training) == (0.1, 0.1, False)
        assert attn.qkv.weight.dtype == torch.float64
        q, k, v = attn.qkv(block.norm1(expected)).unflatten(2, (3, 4, DIM)).permute(2, 0, 3, 1, 4)
        naive = naive_attention(q, k, v)
        # Plain add of head 0: without dropout the entrywise norms tie.
        expected = expected + attn.proj(naive.output.transpose(1, 2).flatten(2)) + naive.output[:, 0]
        expected = expected + block.pwff(block.norm2(expected))
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)  # float64 sums
    patched.undo()
    assert anatomy(model) == structure
    assert_same_state(model, before)
    assert torch.equal(model(x), plain)


def test_fresh_heads_of_one_number_follow_the_models_own() -> None:
    for given, expected in (({"num_heads": 6}, (6, 4)), ({"head_dim": 12}, (HEADS, 12))):
        with patch(build(), **given) as patched:
            assert {(m.num_heads, m.head_dim) for m in patched.modules.values()} == {expected}


def test_undo_of_fresh_modules_follows_the_model_meanwhile() -> None:
    """The old modules were not in the model when it was told to evaluate and to be float64."""
    model = build(dropout=0.5, training=True)
    patched = patch(model, num_heads=4, head_dim=DIM)
    model.eval().to(torch.float64)
    patched.undo()
    x = tokens(dtype=torch.float64)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(x), model(x))
    torch.testing.assert_close(model(x), build(dtype=torch.float64)(x), rtol=1e-12, atol=1e-12)  # same weights


FRESH = {"num_heads": 4, "head_dim": DIM}


def test_undo_of_fresh_modules_leaves_what_nobody_changed() -> None:
    """Modes, dtypes and frozen weights that were mixed come back mixed."""
    model = build(training=True)
    attn = model.blocks[0].attn
    attn.drop.eval()
    attn.proj_v.to(torch.float64)
    attn.proj_k.requires_grad_(False)
    parameters = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    patch(model, **FRESH).undo()
    assert {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()} == parameters
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("how", ["whole_model", "fresh_heads", "one_layer", "trained_fresh_heads"])
def test_undo_of_fresh_modules_that_were_frozen(how: str) -> None:
    """Frozen fresh heads come back as frozen weights; trainable ones say nothing about the weights they replaced."""
    model = build()
    if how == "trained_fresh_heads":
        model.requires_grad_(False)
    patched = patch(model, init_values=0.5, **FRESH)
    if how == "whole_model":
        model.requires_grad_(False)
    for module in patched.modules.values():
        if how == "fresh_heads":
            module.requires_grad_(False)
        if how == "one_layer":
            module.qkv.requires_grad_(False)
    patched.undo()
    trainable = how == "one_layer"
    for block in model.blocks:
        assert {p.requires_grad for p in (*block.attn.parameters(), *block.proj.parameters())} == {trainable}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("fresh", [{}, FRESH], ids=["swap", "fresh"])
def test_a_patch_kept_on_the_model_undoes_the_copy_of_a_copy(fresh: dict[str, int], how: str) -> None:
    model, x = build(), tokens()
    plain, structure = model(x), [(name, kind) for name, kind, *_ in anatomy(model)]
    model.patch = patch(model, init_values=0.5, **fresh)
    expected = model(x)
    twin = copied(model, how)
    own = set(map(id, twin.parameters()))
    added = list(twin.patch.parameters())
    assert len(added) == len(list(model.patch.parameters()))
    assert all(id(parameter) in own for parameter in added)
    twin.patch.undo()
    assert torch.equal(twin(x), plain)
    assert [(name, kind) for name, kind, *_ in anatomy(twin)] == structure
    assert torch.equal(model(x), expected)
    model.patch.undo()
    assert torch.equal(model(x), plain)


def test_a_thread_that_patches_meanwhile_has_to_wait() -> None:
    """It is told that the model is patched already."""
    model = build()
    structure, said = anatomy(model), []

    def patch_too() -> None:
        try:
            patch(model)
        except RuntimeError as error:
            said.append(str(error))

    other = threading.Thread(target=patch_too)

    def slowly(name: str, block: nn.Module) -> bool:
        if other.ident is None:
            other.start()
            other.join(0.3)
        return True

    patched = patch(model, blocks=slowly)
    other.join()
    assert len(patched.modules) == 2
    assert "2 modules already" in said[0]
    patched.undo()
    assert anatomy(model) == structure


def test_an_attention_whose_forward_was_replaced_inside_a_block_is_refused() -> None:
    """A patched block calls the projections of its attention, and would pass over that forward."""
    model = build()
    attn = model.blocks[1].attn
    attn.forward = partial(attn.forward)
    structure = anatomy(model)
    with pytest.raises(ValueError, match=r"blocks\.1 \(Block: its attention: `forward` is set on the instance"):
        patch(model)
    assert anatomy(model) == structure


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 4, "head_dim": DIM}], ids=["swap", "fresh"])
@BOTH
def test_patching_twice_says_so(init_values: float | None, fresh: dict[str, int]) -> None:
    model = build()
    patched = patch(model, init_values=init_values, **fresh)
    structure = anatomy(model)
    with pytest.raises(RuntimeError, match=r"Transformer has residual.* 2 modules already.*blocks\.0.*undo\(\)"):
        patch(model)
    assert anatomy(model) == structure
    patched.undo()
    patch(model).undo()  # after undo it may be patched again


class Custom(nn.MultiheadAttention):
    """Of a user's own, which may compute something else."""


class CrossAttention(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.to_kv = nn.Linear(dim, 2 * dim)


class AttentionLayer(nn.Sequential):
    """Only contains an attention."""


class LSA(nn.Module):
    """Known by its layer, not by its name."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.attend = CrossAttention()


MULTIHEAD = partial(nn.MultiheadAttention, 8, 2)
UNKNOWN = f"rsattn does not know {__name__}.CrossAttention"


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (nn.Linear(3, 3), "Linear: nothing in it looks like attention."),
        (nn.Sequential(nn.Linear(3, 3), CrossAttention()), f"Sequential: {UNKNOWN} (1)."),
        (CrossAttention(), f"CrossAttention: {UNKNOWN} (the model itself)."),
        (nn.Sequential(*[CrossAttention() for _ in range(5)]), f"Sequential: {UNKNOWN} (0, 1, ..., 4)."),
        (Custom(8, 2), f"Custom: {__name__}.Custom is a subclass of a class that rsattn knows, and may compute"),
    ],
    ids=["none", "unknown", "itself", "several", "subclass"],
)
def test_nothing_to_patch_begins_with_the_cause(model: nn.Module, cause: str) -> None:
    with pytest.raises(ValueError, match="found nothing to patch in ") as error:
        patch(model)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"found nothing to patch in {cause}")
    assert "timm, torch, torchvision, transformers, vit_pytorch (the classes: rsattn.integrations.LOOKS_FOR)" in second
    assert "put rsattn.ResidualSelfAttention in by hand" in second


def test_what_looks_like_attention_and_is_not_patched_is_named() -> None:
    """Once each: not a module that contains some, nor what is inside one, nor what the caller left out."""
    model = nn.ModuleDict({
        "left": MULTIHEAD(),
        "patched": AttentionLayer(MULTIHEAD()),
        "wrapped": AttentionLayer(nn.Linear(8, 8), CrossAttention()),
        "custom": Custom(8, 2),
        "lsa": LSA(),
        "block": build().blocks[0],
        "head": nn.ModuleDict({"query": nn.Embedding(8, 8)}),
    })  # fmt: skip
    patched = patch(model, blocks=lambda name, module: name != "left")
    assert list(patched.modules) == ["patched.0", "block"]
    assert patched.skipped == {
        "wrapped.1": UNKNOWN,
        "custom": f"{__name__}.Custom is a subclass of a class that rsattn knows, and may compute something else",
        "lsa": f"rsattn does not know {__name__}.LSA",
    }
    assert repr(patched) == "<Patch of 2 modules: patched.0, block; 3 skipped>"
    assert not patch(build()).skipped


@pytest.mark.parametrize("blocks", [None, [0]], ids=["all", "first"])
@pytest.mark.parametrize(("known", "unknown"), [(2, 2), (2, 3)], ids=["half", "most"])
def test_a_warning_where_most_attention_is_left_alone(known: int, unknown: int, blocks: list[int] | None) -> None:
    """Counted by module; what `blocks` leaves out is not left alone."""
    model = nn.Sequential(*[MULTIHEAD() for _ in range(known)], *[CrossAttention() for _ in range(unknown)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patched = patch(model, blocks=blocks)
    assert len(patched.skipped) == unknown
    if unknown <= known:
        assert not caught
        return
    (warning,) = caught
    count = "2 modules" if blocks is None else "1 module"
    assert str(warning.message) == (
        f"most attention of Sequential is not patched: {count} patched, 3 left alone ({UNKNOWN} (2, 3, 4)). "
        "Patch.skipped lists them; to change them too, put rsattn.ResidualSelfAttention in by hand"
    )
    assert warning.filename == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": "slot", "num_heads": 4, "head_dim": DIM}, "merge='slot'"),
        ({"head_dim": 7}, "not a multiple"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"backend": "fast"}, "backend='fast'"),
        ({"init_values": "zero"}, "a number, None .no gate. or 'auto'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_leave_the_model_untouched(options: dict[str, Any], words: str) -> None:
    model, x = build(), tokens()
    plain, structure, before = model(x), anatomy(model), state(model)
    with pytest.raises(ValueError, match=words):
        patch(model, **options)
    assert anatomy(model) == structure
    assert_same_state(model, before)
    assert torch.equal(model(x), plain)


def test_a_failure_half_way_is_rolled_back() -> None:
    """The first block takes heads of 24 channels, the second, of width 40, does not."""
    model = nn.ModuleList([Block(24, 3, 40, 0.1), Block(40, 4, 40, 0.1)])
    structure = anatomy(model)
    with pytest.raises(ValueError, match=r"cannot patch 1 \(Block\): .*24 channels along 40"):
        patch(model, head_dim=24)
    assert anatomy(model) == structure


def test_only_what_is_inside_the_model_is_patched() -> None:
    model = build()
    with patch(model.blocks[0]) as patched:
        assert list(patched.modules) == [""]
        assert type(model.blocks[1]) is Block
    assert type(model.blocks[0]) is Block


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [
        (range(1, 3), ["blocks.1", "blocks.2"]),
        ([2, 0, 2], ["blocks.0", "blocks.2"]),
        ([-1, 0, -3], ["blocks.0", "blocks.2"]),
        (lambda name, block: name.endswith("1") and isinstance(block, Block), ["blocks.1"]),
    ],
    ids=["range", "list", "from_the_end", "predicate"],
)
def test_some_blocks(blocks: Any, chosen: list[str]) -> None:
    """The rest stays the library's own, and computes what it did."""
    model, plain = build(layers=3, dtype=torch.float64), build(layers=3, dtype=torch.float64)
    patched = patch(model, blocks=blocks, init_values=None)
    assert list(patched.modules) == chosen
    x = tokens(dtype=torch.float64)
    for i, (block, own) in enumerate(zip(model.blocks, plain.blocks)):
        assert torch.equal(block(x, None), own(x, None)) == (f"blocks.{i}" not in chosen)
    patched.undo()
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([1, 2, 7], r"blocks=\[1, 2, 7\] has \[2, 7\], but the model has blocks 0 to 1 \('blocks.0' to 'blocks.1'\)"),
        ([-3], r"has \[-3\]"),
        ([], r"is empty; the model has blocks 0 to 1"),
        (lambda name, block: False, r"was false for every one of 'blocks.0', 'blocks.1'"),
    ],
    ids=["beyond", "negative", "empty", "none"],
)
def test_blocks_that_are_not_there(blocks: Any, words: str) -> None:
    model = build()
    structure = anatomy(model)
    with pytest.raises(ValueError, match=words):
        patch(model, blocks=blocks)
    assert anatomy(model) == structure


@pytest.mark.parametrize("blocks", [1, "last", [0.5], [None], [False, True]], ids=str)
def test_blocks_of_another_type_are_named(blocks: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"blocks={blocks!r} must be indices such as [-1]")):
        patch(build(), blocks=blocks)


@pytest.mark.parametrize("model", ["vit", None, Block])
def test_what_is_no_model_is_named(model: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"must be a torch.nn.Module; got {model!r}")):
        patch(model)


def test_its_repr_is_one_line() -> None:
    """The modules' own, line after line, would flood a notebook."""
    patched = patch(build(layers=5))
    assert repr(patched) == "<Patch of 5 modules: blocks.0, blocks.1, ..., blocks.4>"
    patched.undo()
    assert repr(patched) == "<Patch of 5 modules, undone>"
    patched = patch(nn.MultiheadAttention(8, 2))
    assert repr(patched) == "<Patch of 1 module: the model itself>"
    patched.undo()
    assert repr(patched) == "<Patch of 1 module, undone>"


def test_no_library_is_imported_on_the_users_behalf() -> None:
    program = """
        import sys, torch, rsattn
        rsattn.patch(torch.nn.MultiheadAttention(8, 2))
        print(*(library for library in rsattn.integrations.LOOKS_FOR if library in sys.modules))
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["torch"]


def test_a_library_of_an_unknown_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over with a warning; what else the model has is patched."""
    old = types.ModuleType("timm")
    old.__version__ = "0.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", old)
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "rsattn.integrations.timm", raising=False)
    with pytest.warns(UserWarning, match=r"cannot patch the timm imported here \(0\.1\): .*timm 1\.0\.20"):
        assert len(patch(build()).modules) == 2


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("fresh", [{}, {"num_heads": 4, "head_dim": DIM}], ids=["swap", "fresh"])
@BOTH
def test_a_patched_model_can_be_copied(init_values: float | None, fresh: dict[str, int], how: str) -> None:
    model, x = build(), tokens()
    patched = patch(model, merge="tile", norm="confidence", init_values=init_values, **fresh)
    expected = model(x)
    twin = copied(model, how)
    patched.undo()  # the copy stays patched
    assert torch.equal(twin(x), expected)
    with record(twin) as seen:
        twin(x)
    assert len(seen.blocks) == 2


def test_state_dicts_go_both_ways() -> None:
    """A checkpoint of a patched model loads into a plain one, and the other way round, by torch.save and load."""
    x = tokens()
    plain, patched = build(), build()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.01)
    patch(patched, init_values=None)
    for source, target in ((plain, patched), (patched, build())):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file))
        assert_same_state(target, source.state_dict())
        if not rsattn.recording.residual_modules(target):
            assert torch.equal(target(x), plain(x))


@BOTH
def test_a_patched_model_can_change_dtype(init_values: float | None) -> None:
    model, x = build(), tokens()
    patch(model, init_values=init_values)
    single = model(x)
    double = model.to(torch.float64)(x.double())
    assert double.dtype == torch.float64
    # Two blocks of float32 on values of size 1 to 10.
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@BOTH
def test_undo_while_recording_leaves_nothing_behind(init_values: float | None) -> None:
    model = build()
    structure = anatomy(model)
    patched = patch(model, init_values=init_values)
    with record(model) as seen:
        model(tokens())
        patched.undo()
    assert anatomy(model) == structure
    assert seen.best_head.shape == (2, 3)


def test_the_papers_model() -> None:
    """ViT-B/16 as the library builds it. Its classifier starts at zero, so the features are compared, not logits."""
    torch.manual_seed(0)
    model = vit.ViT("B_16_imagenet1k", pretrained=False, image_size=32, num_classes=3).eval()
    images = normal(2, 3, 32, 32, dtype=torch.float32)
    features: list[Tensor] = []
    hook = model.transformer.register_forward_hook(lambda module, inputs, output: features.append(output))
    keys = list(model.state_dict())
    with torch.inference_mode():
        model(images)
        with patch(model, init_values=None) as patched, record(model) as seen:
            assert list(model.state_dict()) == keys
            model(images)
            first = patched.modules["transformer.blocks.0"]
            assert first.attn.scores is None
        model(images)
    hook.remove()
    assert list(seen.blocks) == [f"transformer.blocks.{i}" for i in range(12)]
    assert seen.norms.shape == (12, 2, 12)
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])
    norms = seen.norms
    assert bool(
        ((norms >= 1) & (norms <= 5)).all()
    )  # five tokens: the largest column of P sums to 1 at least, 5 at most
    assert type(first) is Block


@pytest.mark.parametrize("masked", [False, True], ids=["no_mask", "mask"])
@BOTH
def test_a_patched_model_compiles_into_one_graph(init_values: float | None, masked: bool) -> None:
    model = build(dropout=0.0, training=True)
    patch(model, init_values=init_values)
    x = tokens()
    mask = torch.ones(3, LENGTH).index_fill(1, torch.tensor([2, 5]), 0.0) if masked else None
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(model(x, mask).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(compiled(x, mask).square().sum(), list(model.parameters()))
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # float32, the same operations

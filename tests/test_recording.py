"""`record`: the norms and choices of every block, for the forwards inside the `with`, and nothing else kept."""

from __future__ import annotations

import gc

import pytest
import torch
from oracle import normal
from torch import Tensor, nn

import rsattn
from rsattn import ResidualSelfAttention, record, residual_attention

OPTIONS = [("induced", "sample"), ("confidence", "batch"), ("entrywise", "sample")]


def model() -> nn.Sequential:
    """Three residual blocks, each with options of its own, and a layer that is none."""
    torch.manual_seed(0)
    blocks = [ResidualSelfAttention(24, 3, norm=norm, scope=scope) for norm, scope in OPTIONS]
    return nn.Sequential(blocks[0], nn.LayerNorm(24), *blocks[1:])


def tokens(seed: int = 0, batch: int = 4) -> Tensor:
    return normal(batch, 11, 24, seed=seed, dtype=torch.float32)


def by_hand(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, B, H) norms and (blocks, B) heads: `residual_attention` on Q, K and V split here."""
    norms, heads = [], []
    for layer in net:
        if isinstance(layer, ResidualSelfAttention):
            qkv = layer.qkv(x).reshape(*x.shape[:2], 3, 3, 8).permute(2, 0, 3, 1, 4)
            options = layer.options
            result = residual_attention(*qkv, norm=options.norm, scope=options.scope)
            norms.append(result.norms)
            heads.append(result.best_head)
        x = layer(x)
    return torch.stack(norms), torch.stack(heads)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_collects_what_residual_attention_returns_over_several_forwards(grad: bool) -> None:
    net = model()
    with torch.set_grad_enabled(grad), record(net) as seen:
        net(tokens(0))
        net(tokens(1, batch=2))
    norms, heads = zip(by_hand(net, tokens(0)), by_hand(net, tokens(1, batch=2)))
    assert torch.equal(seen.norms, torch.cat(norms, dim=1))
    assert torch.equal(seen.best_head, torch.cat(heads, dim=1))
    assert list(seen.blocks) == ["0", "2", "3"]
    assert [len(block.norms) for block in seen.blocks.values()] == [2, 2, 2]
    assert torch.equal(seen.blocks["2"].norms[1], norms[1][1])
    assert not seen.norms.requires_grad


def test_recording_changes_no_output() -> None:
    net = model()
    plain = net(tokens())
    with record(net):
        recorded = net(tokens())
    assert torch.equal(plain, recorded)


def test_what_comes_after_is_not_recorded() -> None:
    net = model()
    with record(net) as seen:
        net(tokens())
    net(tokens(1))
    assert seen.best_head.shape == (3, 4)
    assert all(block.sink is None for block in (net[0], net[2], net[3]))


def test_nested_records() -> None:
    """The inner one takes over; the outer one goes on when it ends."""
    net = model()
    with record(net) as outer:
        net(tokens(0))
        with record(net) as inner:
            net(tokens(1))
        net(tokens(2))
    expected = [by_hand(net, tokens(seed))[0] for seed in range(3)]
    assert torch.equal(inner.norms, expected[1])
    assert torch.equal(outer.norms, torch.cat([expected[0], expected[2]], dim=1))


def test_an_exception_inside_restores_the_model() -> None:
    net = model()
    kept: list[rsattn.Record] = []

    def fail_inside() -> None:
        with record(net) as seen:
            kept.append(seen)
            net(tokens())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    net(tokens())
    assert kept[0].best_head.shape == (3, 4)  # what was seen until then is kept, what came after is not
    assert all(block.sink is None for block in (net[0], net[2], net[3]))


def test_part_of_a_model_can_be_recorded() -> None:
    net = model()
    with record(net[2]) as seen:
        net(tokens())
    assert list(seen.blocks) == [""]
    assert torch.equal(seen.norms[0], by_hand(net, tokens())[0][1])


def test_a_model_without_residual_attention() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no residual self-attention.*rsattn\.patch\(model\)"):
        record(nn.Sequential(nn.Linear(3, 3))).__enter__()


@pytest.mark.parametrize("name", ["norms", "best_head"])
def test_nothing_recorded(name: str) -> None:
    with record(model()) as seen:
        pass
    with pytest.raises(RuntimeError, match=r"nothing was recorded.*inside `with rsattn\.record"):
        getattr(seen, name)


@pytest.mark.parametrize("missing", ["another_number_of_heads", "a_block_that_did_not_run"])
def test_blocks_that_do_not_stack(missing: str) -> None:
    net = nn.Sequential(ResidualSelfAttention(24, 3), ResidualSelfAttention(24, 4))
    with record(net) as seen:
        (net if missing == "another_number_of_heads" else net[0])(tokens())
    with pytest.raises(RuntimeError, match=r"differ in batch or number of heads.*record\.blocks\[name\]\.norms"):
        seen.norms.sum()
    assert seen.blocks["0"].norms[0].shape == (4, 3)  # each block can still be read


def test_keeps_no_tensor_of_n_by_n() -> None:
    """Walk everything alive that the record keeps alive: (B, H) and (B,) tensors, and no graph behind them."""
    net = model()
    with record(net) as seen:
        net(tokens())
    kept: list[Tensor] = []
    visited: set[int] = set()
    frontier: list[object] = list(seen.blocks.values())
    while frontier:
        thing = frontier.pop()
        if id(thing) in visited or isinstance(thing, type):
            continue
        visited.add(id(thing))
        if isinstance(thing, Tensor):
            kept.append(thing)
            assert thing.grad_fn is None
            # A view would pin the buffer it looks into.
            assert thing.untyped_storage().nbytes() <= thing.numel() * thing.element_size()
        else:
            frontier.extend(gc.get_referents(thing))
    assert sorted(tuple(t.shape) for t in kept) == [(4,)] * 3 + [(4, 3)] * 3


def test_public_record_holds_plain_data() -> None:
    """`Record` can be made and read without a model, for records loaded from a file."""
    block = rsattn.BlockRecord([torch.ones(2, 3)], [torch.tensor([0, 2])])
    assert rsattn.Record({"a": block, "b": block}).best_head.tolist() == [[0, 2], [0, 2]]

"""`record`: the norms and choices of every block, for the forwards inside the `with`, and nothing else kept."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import COPIES, copied
from oracle import naive_attention, normal
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from watching import LargestTensor

import rsattn
import rsattn.module
from rsattn import ResidualOptions, ResidualSelfAttention, record, residual_attention
from rsattn.attention import Attended
from rsattn.call import Call
from rsattn.module import Residual, attend_and_join
from rsattn.recording import recorders_here

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
    assert_nobody_records(net)


def assert_nobody_records(net: nn.Sequential) -> None:
    assert [recorders_here(block) for block in (net[0], net[2], net[3])] == [[], [], []]


def test_nested_records() -> None:
    """Each sees every pass that runs while it is open."""
    net = model()
    with record(net) as outer:
        net(tokens(0))
        with record(net, received=True) as inner:
            net(tokens(1))
        net(tokens(2))
    expected = [by_hand(net, tokens(seed))[0] for seed in range(3)]
    assert torch.equal(inner.norms, expected[1])
    assert torch.equal(outer.norms, torch.cat(expected, dim=1))
    assert inner.received.shape == (3, 4, 3, 11)
    assert [block.received for block in outer.blocks.values()] == [[], [], []]


def test_records_that_overlap() -> None:
    """The first one ends first: the second goes on, and nothing stays on the model."""
    net, x = model(), [tokens(seed) for seed in range(4)]
    first, second = record(net), record(net)
    of_first = first.__enter__()
    net(x[0])
    of_second = second.__enter__()
    net(x[1])
    first.__exit__(None, None, None)
    net(x[2])
    second.__exit__(None, None, None)
    net(x[3])
    expected = [by_hand(net, one)[0] for one in x]
    assert torch.equal(of_first.norms, torch.cat(expected[:2], dim=1))
    assert torch.equal(of_second.norms, torch.cat(expected[1:3], dim=1))
    assert_nobody_records(net)


def in_threads(number: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(which,)) for which in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_every_thread_records_its_own_passes() -> None:
    net, number, repeats = model(), 4, 20
    expected = [by_hand(net, tokens(which))[0] for which in range(number)]
    wrong: list[int] = []
    together = threading.Barrier(number)

    def work(which: int) -> None:
        together.wait()
        for _ in range(repeats):
            with torch.no_grad(), record(net) as seen:
                net(tokens(which))
            if not torch.equal(seen.norms, expected[which]):
                wrong.append(which)

    with record(net) as outside:
        in_threads(number, work)
    assert wrong == []
    with pytest.raises(RuntimeError, match=r"nothing was recorded.*in the same thread"):
        outside.norms.sum()


def test_a_record_that_ends_in_another_thread() -> None:
    """As one does that the garbage collector ends."""
    net = model()
    opened = record(net)
    opened.__enter__()
    in_threads(1, lambda _: opened.__exit__(None, None, None))
    assert_nobody_records(net)


def test_a_generator_left_unfinished_records_no_more() -> None:
    net = model()

    def passes() -> Iterator[rsattn.Record]:
        with record(net) as seen:
            while True:
                net(tokens())
                yield seen

    unfinished = passes()
    seen = next(unfinished)
    del unfinished
    gc.collect()
    assert_nobody_records(net)
    net(tokens())
    assert seen.norms.shape == (3, 4, 3)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_inside_is_not_recorded(how: str) -> None:
    net: Any = model()
    with record(net) as seen:
        twin: Any = copied(net, how)
        twin(tokens(1))
        net(tokens(0))
    assert torch.equal(seen.norms, by_hand(net, tokens(0))[0])
    assert_nobody_records(twin)
    with record(twin) as of_twin:
        twin(tokens(1))
    assert torch.equal(of_twin.norms, by_hand(net, tokens(1))[0])


def test_records_of_a_compiled_model() -> None:
    """In one graph; a record more, in this thread or another, compiles nothing again."""
    net = model().eval()
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    results: list[bool] = []

    def work(which: int) -> None:
        with torch.no_grad(), record(net) as seen:
            compiled(tokens(0))
            compiled(tokens(1))
        expected = torch.cat([by_hand(net, tokens(seed))[0] for seed in range(2)], dim=1)
        results.append(torch.equal(seen.norms, expected))

    with torch.no_grad():
        compiled(tokens(0))
    work(0)
    before = counter.frame_count
    work(1)
    in_threads(1, work)
    assert results == [True, True, True]
    assert counter.frame_count == before
    torch._dynamo.reset()


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
    assert_nobody_records(net)


def test_part_of_a_model_can_be_recorded() -> None:
    net = model()
    with record(net[2]) as seen:
        net(tokens())
    assert list(seen.blocks) == [""]
    assert torch.equal(seen.norms[0], by_hand(net, tokens())[0][1])


def test_a_model_without_residual_attention() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no residual self-attention.*rsattn\.patch\(model\)"):
        record(nn.Sequential(nn.Linear(3, 3))).__enter__()


@pytest.mark.parametrize("wrong", [None, rsattn.patch(nn.MultiheadAttention(8, 2))], ids=["None", "patch"])
def test_what_is_no_model_is_named(wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"model must be a torch.nn.Module; got {wrong!r}")):
        record(wrong).__enter__()


@pytest.mark.parametrize("name", ["norms", "best_head"])
def test_nothing_recorded(name: str) -> None:
    with record(model()) as seen:
        pass
    with pytest.raises(RuntimeError, match=r"nothing was recorded.*inside `with rsattn\.record"):
        getattr(seen, name)


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (
            True,
            r"differ in batch or number of heads \(\(4, 3\), \(4, 4\); a window counts as a sample\); "
            r"read record\.blocks\[name\]\.norms",
        ),
        (False, r"nothing was recorded of '1', which did not run; read record\.blocks\[name\]"),
    ],
    ids=["another_number_of_heads", "a_block_that_did_not_run"],
)
def test_blocks_that_do_not_stack(whole: bool, words: str) -> None:
    net = nn.Sequential(ResidualSelfAttention(24, 3), ResidualSelfAttention(24, 4))
    with record(net) as seen:
        (net if whole else net[0])(tokens())
    with pytest.raises(RuntimeError, match=words):
        seen.norms.sum()
    assert seen.blocks["0"].norms[0].shape == (4, 3)  # each block can still be read


@pytest.mark.parametrize("received", [False, True], ids=["norms", "received"])
def test_keeps_no_tensor_of_n_by_n(received: bool) -> None:
    """Walk everything alive that the record keeps alive: small tensors of its own, and no graph behind them."""
    net = model()
    with record(net, received=received) as seen:
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
    asked_for = [(4, 3, 11)] * 3 if received else []
    assert sorted(tuple(t.shape) for t in kept) == [(4,)] * 3 + [(4, 3)] * 3 + asked_for


def test_public_record_holds_plain_data() -> None:
    """`Record` can be made and read without a model, for records loaded from a file."""
    block = rsattn.BlockRecord([torch.ones(2, 3)], [torch.tensor([0, 2])])
    assert rsattn.Record({"a": block, "b": block}).best_head.tolist() == [[0, 2], [0, 2]]


def split(net: ResidualSelfAttention, x: Tensor) -> Tensor:
    """(3, B, H, N, E) Q, K and V of a module of 3 heads."""
    return net.qkv(x).reshape(*x.shape[:2], 3, 3, -1).permute(2, 0, 3, 1, 4)


def test_received_is_the_column_sums_of_every_block() -> None:
    net = model()
    with record(net, received=True) as seen:
        net(tokens(0))
        net(tokens(1, batch=2))
    assert seen.received.shape == (3, 6, 3, 11)
    assert seen.received.dtype == torch.float32
    assert not seen.received.requires_grad
    # Sums of 11 terms below 1, each off by at most the roundings of a score of 8 terms, of exp and of its row's sum.
    bound = 11 * (8 + 11 + 16) * torch.finfo(torch.float32).eps
    for forward, x in enumerate((tokens(0), tokens(1, batch=2))):
        blocks = iter(seen.received.split([4, 2], dim=1)[forward])
        for layer in net:
            if isinstance(layer, ResidualSelfAttention):
                sums = naive_attention(*split(layer, x)).probs.sum(dim=2)
                torch.testing.assert_close(next(blocks).double(), sums, rtol=0.0, atol=bound)
            x = layer(x)


# Both are sums of 11 float32 probabilities, in another order and from scores and exponentials rounded otherwise: each
# as many roundings off as the kernels' norms may be from float64's (`norm_error_bound` in tests/kernels/cases.py).
AGREE = 2 * (8 + 11 + 16) * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_received_is_the_induced_norm(dtype: torch.dtype) -> None:
    net = model()[0].to(dtype)
    with record(net, received=True) as seen:
        net(tokens().to(dtype))
    assert seen.received.dtype == torch.float32
    torch.testing.assert_close(seen.received.amax(dim=-1), seen.norms, rtol=AGREE, atol=0.0)


class Bare(Residual, nn.Module):
    """`attend_and_join` and nothing before or after it."""

    gamma = None

    def __init__(self, **given: float) -> None:
        super().__init__()
        self.options, self.given = ResidualOptions(), given

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        call = self.options.call(query, key, value, attn_mask=mask, **self.given)
        return attend_and_join(call, nn.Identity(), self)


def test_received_under_autocast_is_of_the_rounded_queries_and_keys() -> None:
    """The compiled kernels keep scores in float32; the reference would round them, and its norms with them."""
    if not rsattn.backends("cpu")["cpu"].available:
        pytest.skip("needs the compiled kernels; install with a C++ compiler")
    query, key, value = (4.0 * normal(2, 3, 11, 8, seed=seed, dtype=torch.float32) for seed in range(3))
    net = Bare()
    with torch.autocast("cpu", torch.bfloat16), record(net, received=True) as seen:
        net(query, key, value)
    torch.testing.assert_close(seen.received.amax(dim=-1), seen.norms, rtol=AGREE, atol=0.0)


def test_received_knows_the_mask_and_the_scale_and_comes_before_dropout() -> None:
    query, key, value = (normal(2, 3, 11, 8, seed=seed, dtype=torch.float32) for seed in range(3))
    mask = torch.ones(2, 1, 11, 11, dtype=torch.bool)
    mask[..., 7:] = False
    mask[0, 0, 4] = False
    net = Bare(scale=0.9, dropout_p=0.5)
    with record(net, received=True) as seen:
        net(query, key, value, mask)
    sums = naive_attention(query, key, value, mask, scale=0.9).probs.sum(dim=2)
    torch.testing.assert_close(seen.received[0].double(), sums, rtol=1e-4, atol=1e-6)
    assert (seen.received[..., 7:] == 0).all()


def test_received_is_computed_for_those_who_ask_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    attend = rsattn.module.attend

    def note(call: Call, backend: str | None, linked: bool) -> Attended:
        asked.append(call.return_received)
        return attend(call, backend, linked)

    monkeypatch.setattr("rsattn.module.attend", note)
    net = model()
    with record(net) as seen:
        net(tokens())
    assert [block.received for block in seen.blocks.values()] == [[], [], []]
    with record(net, received=True), record(net) as inner:
        net(tokens())
    assert [block.received for block in inner.blocks.values()] == [[], [], []]
    assert asked == [False] * 3 + [True] * 3


def test_a_record_shows_what_it_has_and_no_numbers() -> None:
    net = model()
    with record(net, received=True) as seen:
        assert repr(seen) == "<Record of 3 blocks, 0 forward passes>"
        net(tokens())
        net(tokens())
    assert repr(seen) == "<Record of 3 blocks, 2 forward passes, received>"


def test_received_that_was_not_asked_for() -> None:
    net = model()
    with record(net) as seen:
        net(tokens())
    with pytest.raises(RuntimeError, match=r"computed only inside `with rsattn\.record\(model, received=True\)"):
        seen.received.sum()
    with record(net, received=True) as seen:
        pass
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        seen.received.sum()


def test_received_of_another_number_of_tokens_does_not_stack() -> None:
    net = model()
    with record(net, received=True) as seen:
        net(tokens())
        net(tokens()[:, :7])
    with pytest.raises(RuntimeError, match=r"forward passes differ.* or tokens.*record\.blocks\[name\]\.received"):
        seen.received.sum()
    assert seen.norms.shape == (3, 8, 3)
    assert [noted.shape for noted in seen.blocks["0"].received] == [(4, 3, 11), (4, 3, 7)]


def test_received_needs_no_tensor_of_n_by_n() -> None:
    """The largest is the module's packed projections."""
    if not rsattn.backends("cpu")["cpu"].available:
        pytest.skip("the reference does store N x N; install with a C++ compiler")
    length = 4096
    net = ResidualSelfAttention(8, 1)
    with torch.no_grad(), LargestTensor() as largest, record(net, received=True) as seen:
        net(torch.ones(1, length, 8))
    assert seen.received.shape == (1, 1, 1, length)
    assert largest.nbytes == 3 * length * 8 * 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_computes_again_is_recorded_once(reentrant: bool) -> None:
    attention = ResidualSelfAttention(16, 4)
    x = normal(2, 5, 16, dtype=torch.float32).requires_grad_()
    with record(attention, received=True) as seen:
        checkpoint(attention, x, use_reentrant=reentrant).sum().backward()
        attention(x)
    assert seen.norms.shape == (1, 4, 4)
    assert seen.received.shape == (1, 4, 4, 5)
    assert x.grad is not None

"""The counter of arrived programs: zero between launches, and created once for a stream."""

import pytest
import torch
from cases import Case

from rsattn.contract import NORMS, SCOPES
from rsattn.kernels import counter, launch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if GPU else torch.device("cpu")
WHOLE_ROW, STREAM = 65, 300


@pytest.fixture(autouse=True)
def unused(monkeypatch):
    """The counters that no launch uses; none at first."""
    counters = {}
    monkeypatch.setattr(counter, "_unused", counters)
    return counters


@pytest.fixture
def made(monkeypatch):
    """The sizes of the counters that were created."""
    sizes = []
    make = counter._new

    def watched(device, entries):
        sizes.append(entries)
        return make(device, entries)

    monkeypatch.setattr(counter, "_new", watched)
    return sizes


@pytest.mark.parametrize("length", [WHOLE_ROW, STREAM], ids=["whole_row", "stream"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_launch_leaves_zeros(length, norm, scope, unused, made):
    for batch in (2, 3, 1):
        launch.forward(Case(batch, 2, length, width=16, norm=norm, scope=scope).call(DEVICE))
        (left,) = unused.values()
        assert (left == 0).all()
    assert made == [counter.LEAST_ENTRIES]


@pytest.mark.parametrize("scope", SCOPES)
def test_batches_of_any_size_follow_each_other(scope, monkeypatch, made):
    """A batch with more samples than the counter has entries gets a larger counter, and all heads are right."""
    monkeypatch.setattr(counter, "LEAST_ENTRIES", 4)
    for batch in (3, 9, 2, 9, 1):
        call = Case(batch, 4, 20, width=16, scope=scope).call(DEVICE, seed=batch)
        _, norms, best_head, _, _ = launch.forward(call)
        ranked = norms.sum(0, keepdim=True).expand_as(norms) if scope == "batch" else norms
        assert torch.equal(best_head, ranked.argmax(1))
    assert made == [4, 10]


def test_during_a_launch_no_other_gets_it():
    with counter.Zeros(DEVICE, 5):
        pass
    with counter.Zeros(DEVICE, 5) as first, counter.Zeros(DEVICE, 5) as second:
        assert first.data_ptr() != second.data_ptr()
    with counter.Zeros(DEVICE, 5) as again:
        assert again.data_ptr() in (first.data_ptr(), second.data_ptr())


def test_a_launch_that_failed_loses_its_counter(unused):
    def fail(arrived):
        arrived.fill_(1)
        raise RuntimeError("interrupted")

    with counter.Zeros(DEVICE, 5):
        pass
    assert unused
    with pytest.raises(RuntimeError, match="interrupted"), counter.Zeros(DEVICE, 5) as arrived:
        fail(arrived)
    assert not unused
    with counter.Zeros(DEVICE, 5) as fresh:
        assert (fresh == 0).all()


@pytest.mark.skipif(not GPU, reason="streams, CUDA graphs and their memory need a GPU; run this file on one")
class TestStreams:
    def test_each_has_its_own(self, unused):
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                launch.forward(Case(queries=20, width=16).call(DEVICE))
        torch.cuda.synchronize()
        assert len(unused) == 2
        assert all((left == 0).all() for left in unused.values())

    def test_a_graph_has_its_own(self, unused):
        call = Case(queries=20, width=16).call(DEVICE)
        eager = launch.forward(call)
        before = dict(unused)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = launch.forward(call)
        assert unused == before
        for _ in range(3):
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(eager, captured))

    def test_memory_of_a_pool_is_not_kept(self, unused):
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool):
            launch.forward(Case(queries=20, width=16).call(DEVICE))
        (left,) = unused.values()
        segments = pool.snapshot()
        assert segments
        assert not any(s["address"] <= left.data_ptr() < s["address"] + s["total_size"] for s in segments)

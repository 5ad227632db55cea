"""A case that fails restores the state of the process, so that the next case is timed alike."""

import pytest
import torch

from bench import kinds, measure
from bench.cases import Case, Setup
from bench.clock import Variant
from bench.shapes import Shape


def test_a_failing_case_gives_the_threads_back(monkeypatch):
    before = torch.get_num_threads()

    def wrong(index):
        torch.set_num_threads(before + 1)
        raise ValueError("of a class of its own")

    case = Case("attention", Shape(1, 1, 4, 8), "float32")
    monkeypatch.setattr(kinds, "setup", lambda *_: Setup({"rsattn": Variant(wrong)}))
    with pytest.raises(ValueError, match="class of its own"):
        measure.measure(case, torch.device("cpu"))
    assert torch.get_num_threads() == before

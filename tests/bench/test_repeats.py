"""bench.repeats: correct and repeatable results pass; a wrong result, or one different repeat, is named."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import rsattn
from bench import repeats
from bench.repeats import Call
from bench.shapes import Shape

CPU = torch.device("cpu")
CALL = Call(Shape(2, 3, 17, 16), "float32")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_good(backend, dropout):
    if reasons := rsattn.backends("cpu")[backend].reasons:
        pytest.skip("; ".join(reasons))
    found = repeats.run(Call(CALL.shape, "float32", dropout=dropout), backend, 3, CPU)
    assert found.good
    assert (found.backend, found.repeats, found.different) == (backend, 3, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("learned", ["hnm", "hm", "nm", "rhnm"])
def test_good_with_a_learned_mask(learned, dtype, dropout):
    assert repeats.run(Call(CALL.shape, dtype, dropout=dropout, learned=learned), "cpu", 2, CPU).good


def test_every_kind_of_learned_mask_is_repeated(monkeypatch):
    seen = set()
    monkeypatch.setattr(repeats, "step", lambda call, backend, inputs, upstream: seen.add(inputs[3].shape))
    for call, shape in {(call, Shape(4, 3, 5, 8)) for call in repeats.CALLS if call.learned}:
        repeats.run(replace(call, shape=shape), "reference", 0, CPU)
    assert seen == {(1, 3, 5, 5), (1, 3, 1, 5), (1, 1, 5, 5), (2, 3, 5, 5)}


@pytest.mark.parametrize("field", [0, 1, 3, 4, 5, 6, 7])
def test_wrong_with_a_learned_mask(field, monkeypatch):
    real = repeats.step

    def wrong(*arguments):
        results = real(*arguments)
        results[field] = results[field] * 1.01
        return results

    monkeypatch.setattr(repeats, "step", wrong)
    found = repeats.run(replace(CALL, learned="hnm"), "reference", 2, CPU)
    assert f"reference: {repeats.RESULTS[field]} is off by 1.0e-02" in found.error


@pytest.mark.parametrize(("field", "name"), [(0, "output"), (1, "norms"), (5, "dV")])
def test_wrong(field, name, monkeypatch):
    real = repeats.step

    def wrong(*arguments):
        results = real(*arguments)
        results[field] = results[field] * 1.01
        return results

    monkeypatch.setattr(repeats, "step", wrong)
    found = repeats.run(CALL, "reference", 3, CPU)
    assert not found.good
    assert f"reference: {name} is off by 1.0e-02" in found.error


def test_wrong_with_dropout_or_in_the_choice(monkeypatch):
    real = repeats.step
    monkeypatch.setattr(repeats, "step", lambda *a: [real(*a)[0] * 1.01, *real(*a)[1:]])
    found = repeats.run(Call(CALL.shape, "float32", dropout=0.2), "reference", 3, CPU)
    assert "reference: output is off by 1.0e-02" in found.error
    monkeypatch.setattr(repeats, "step", lambda *a: [*real(*a)[:2], (real(*a)[2] + 1) % 3, *real(*a)[3:]])
    assert "not the one with the largest norm" in repeats.run(CALL, "reference", 3, CPU).error


def test_nan_is_found_without_an_oracle_too(monkeypatch):
    real = repeats.step
    monkeypatch.setattr(repeats, "step", lambda *a: [result * torch.nan for result in real(*a)])
    assert "output is not finite" in repeats.run(Call(CALL.shape, dropout=0.1), "reference", 3, CPU).error


def test_one_other_bit_in_one_repeat(monkeypatch):
    real, calls = repeats.step, []

    def seldom(*arguments):
        results = real(*arguments)
        calls.append(None)
        if len(calls) == 3:
            results[4][0, 0, 0, 5] = torch.nextafter(results[4][0, 0, 0, 5], torch.tensor(9.0))
        return results

    monkeypatch.setattr(repeats, "step", seldom)
    found = repeats.run(CALL, "reference", 4, CPU)
    assert (found.good, found.error, found.different) == (False, "", 1)


def test_unsupported_calls_are_not_made():
    asked = list(repeats.cases(""))
    assert {backend for call, backend in asked if call.dtype == "float32" or call.shape.head_dim % 8} == {"triton"}
    plain = [(call, backend) for call, backend in asked if not call.learned]
    assert list(repeats.cases("dropout 0.1 cuda")) == [pair for pair in plain if pair[0].dropout and pair[1] == "cuda"]


def test_every_case_leaves_a_line_and_one_bad_one_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answers = iter([repeats.Found("a call", "triton", "", 2, 0, 0.1), repeats.Found("a call", "cuda", "", 2, 1, 0.1)])
    monkeypatch.setattr(repeats, "run", lambda *arguments: next(answers))
    monkeypatch.setattr(repeats, "cases", lambda only: [(CALL, "triton"), (CALL, "cuda")])
    monkeypatch.setattr(sys, "argv", ["repeats", "--out", str(tmp_path / "lines.jsonl")])
    with pytest.raises(SystemExit) as ended:
        repeats.main()
    assert ended.value.code == 1
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["different"] for line in lines] == [0, 1]
    assert "BAD" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["repeats"])
    with pytest.raises(SystemExit, match="finds none here"):
        repeats.main()

"""The fuzz campaign finds what is wrong: faults planted in a backend, a call that crashes, one that hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from fuzz import command, exact, judging, philox, workers
from fuzz.command import main
from fuzz.draw import Target, draw
from fuzz.judging import judge
from fuzz.plan import Plan
from fuzz.smaller import smaller
from oracle import NORMS, naive_attention, normal, philox_keep

import rsattn
from rsattn.backends.cpu import CpuBackend


def needs(backend: str) -> pytest.MarkDecorator:
    reasons = rsattn.backends(judging.device_of(backend))[backend].reasons
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))


needs_kernels, needs_triton = needs("cpu"), needs("triton")
PLAN = Plan(
    batch=2,
    heads=3,
    queries=17,
    keys=17,
    width=8,
    packed=True,
    mask="some",
    backward=True,
    merge="slot",
    gamma="float32",
    linked=True,
    layouts=("offset", "permuted", "stepped", "contiguous"),
)


def test_the_oracle_is_the_definitions() -> None:
    query, key, value = normal(2, 3, 5, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 4, seed=2)
    mask = normal(2, 3, 5, 7, seed=3) > -0.5
    mask[0, 1, 2] = False
    keep = philox_keep(5, 0.3, (2, 3, 5, 7))
    want = naive_attention(query, key, value, mask, keep, 0.3, scale=0.7)
    for norm in NORMS:
        problem = exact.Problem(query, key, value, mask, keep / 0.7, 0.7, norm, torch.float32, False)
        probs = exact.probabilities(problem)
        torch.testing.assert_close(exact.norms(problem, probs).value, want.norms[norm])
    torch.testing.assert_close(exact.output(problem, probs).value, want.output)


def test_the_oracles_gradients_are_autograds() -> None:
    leaves = [normal(2, 2, n, 4, seed=n).requires_grad_() for n in (5, 7, 7)]
    grad, keep = normal(2, 2, 5, 4, seed=9), philox_keep(5, 0.3, (2, 2, 5, 7)) / 0.7
    probs = (leaves[0] @ leaves[1].mT * 0.7).softmax(-1) * keep
    want = torch.autograd.grad(probs @ leaves[2], leaves, grad)
    problem = exact.Problem(*(leaf.detach() for leaf in leaves), None, keep, 0.7, "induced", torch.float32, False)
    p = exact.probabilities(problem)
    upstream = exact.Upstream(grad, torch.zeros_like(grad))
    got = exact.gradients(problem, p, exact.output(problem, p), upstream)
    for name, gradient in zip(("query", "key", "value"), want):
        torch.testing.assert_close(got[name].value, gradient)
        assert 0 < got[name].error.max() < 1e-3


@pytest.mark.parametrize("shape", [(4, 2, 5, 7), (2, 2, 5, 7), (1, 1, 5, 7), (2, 1, 1, 7), (1, 2, 5, 1)], ids=str)
def test_the_oracles_gradient_of_a_mask_is_autograds(shape: tuple[int, ...]) -> None:
    inputs = [normal(4, 2, n, 4, seed=n) for n in (5, 7, 7)]
    mask, grad, keep = (
        normal(*shape).requires_grad_(),
        normal(4, 2, 5, 4, seed=9),
        philox_keep(5, 0.3, (4, 2, 5, 7)) / 0.7,
    )
    repeated = mask.repeat(4 // shape[0], 1, 1, 1)
    scores = inputs[0] @ inputs[1].mT * 0.7 + repeated
    want = torch.autograd.grad((scores.softmax(-1) * keep) @ inputs[2], mask, grad)[0]
    given = repeated.detach().expand(4, 2, 5, 7)
    problem = exact.Problem(*inputs, given, keep, 0.7, "induced", torch.float32, False, shape, torch.float32)
    p = exact.probabilities(problem)
    got = exact.gradients(problem, p, exact.output(problem, p), exact.Upstream(grad, torch.zeros_like(grad)))["mask"]
    torch.testing.assert_close(got.value, want)
    assert got.error.max() < 1e-3
    torch.testing.assert_close(exact.received(problem, p).value, scores.detach().softmax(-1).sum(-2))


@pytest.mark.parametrize("dropout_p", [1e-12, 0.3, 1.0])
def test_the_generator_is_the_papers(dropout_p: float) -> None:
    seed = 0x1234_5678_9ABC_DEF
    assert torch.equal(
        philox.kept(seed, dropout_p, (2, 2, 3, 9)), philox_keep(seed, min(dropout_p, 1 - 2**-32), (2, 2, 3, 9))
    )


def test_a_plan_is_its_text() -> None:
    for number in range(100):
        plan = draw(3, number, Target("cpu", ("avx2", "portable")))
        assert Plan.parse(plan.text()) == plan == draw(3, number, Target("cpu", ("avx2", "portable")))
    with pytest.raises(ValueError, match="a plan has no depth"):
        Plan.parse('{"depth": 3}')


@needs_kernels
def test_a_right_call_is_right() -> None:
    assert judge(PLAN) == []


# Faults -> what is changed in the results of a forward pass.
FAULTS: dict[str, Callable[..., object]] = {
    "wrong output": lambda result: result.output[-1, -1, -1].mul_(1.0001),
    "wrong norms": lambda result: result.norms.add_(0.001),
    "wrong best_head": lambda result: result.best_head.add_(1).remainder_(3),
    "wrong value": lambda result: result.statistics[0, 0, 1].add_(0.001),
    "not the same bits": lambda result: result.norms.mul_(1 + 1e-6 * (time.perf_counter_ns() % 7)),
}


@needs_kernels
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CpuBackend.forward

    def faulty(self, call):
        result = forward(self, call)
        FAULTS[kind](result)
        return result

    monkeypatch.setattr(CpuBackend, "forward", faulty)
    for _ in range(20):  # the clock's last digit may be the same twice
        if kind in [finding.kind for finding in judge(PLAN)]:
            return
    pytest.fail(f"{kind}: not found")


@needs_kernels
def test_a_changed_input_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CpuBackend.forward

    def faulty(self, call):
        result = forward(self, call)
        call.query[0, 0, 0, 0] += 1
        return result

    monkeypatch.setattr(CpuBackend, "forward", faulty)
    assert "input changed" in [finding.kind for finding in judge(replace(PLAN, backward=False))]


@needs_kernels
def test_nan_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, values="nan", merge="", backward=False)
    assert judge(plan) == []
    forward = CpuBackend.forward

    def faulty(self, call):
        result = forward(self, call)
        result.output.nan_to_num_(0.0)
        return result

    monkeypatch.setattr(CpuBackend, "forward", faulty)
    assert [finding.kind for finding in judge(plan)] == ["wrong output"]


def _fragile(plan: Plan) -> list[judging.Finding]:
    if plan.heads == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if plan.heads == 3:
        time.sleep(60)
    return []


def test_crashes_and_hangs_are_findings() -> None:
    with workers.pool(2, _fragile, patience=2.0) as pool:
        outcomes = {o.number: o for o in pool.judge(enumerate(Plan(heads=h) for h in (1, 2, 3, 1, 1)))}
    kinds = {number: [finding.kind for finding in outcome.findings] for number, outcome in outcomes.items()}
    assert kinds == {0: [], 1: ["crash"], 2: ["hang"], 3: [], 4: []}
    assert "SIGSEGV" in outcomes[1].findings[0].text


def test_a_failing_plan_becomes_plain() -> None:
    plan = draw(0, 1, Target("cpu", ("avx2",)))
    plan = replace(plan, queries=65, keys=33, packed=False, hostile="")
    plainest = smaller(plan, lambda other: other.queries >= 5)
    assert plainest == Plan(queries=5, seed=plan.seed)


@needs_kernels
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", '{"queries": 3, "keys": 2, "backward": true}', "--workers", "1"]) == 0
    assert "the call is correct" in capsys.readouterr().out
    for wrong, words in (
        (["--only", "3"], "--seed"),
        (["--plan", '{"depth": 3}'], "a plan has no depth"),
        (["--instructions", "avx1024"], "this processor has no avx1024; it can run: "),
        (["--workers", "0"], "argument --workers: 0 is below 1"),
        (["--calls", "-1"], "argument --calls: -1 is below 1"),
        (["--patience", "0"], "argument --patience: 0 is below 1"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert words in capsys.readouterr().err
    assert main(["--calls", "3", "--seed", "0", "--workers", "1"]) == 0
    summary = capsys.readouterr().out
    assert "seed 0, backend cpu: 3 calls in" in summary
    assert summary.endswith(" s, 0 failed\n")


def _with_a_fault(plan: Plan) -> list[judging.Finding]:
    """Judged in a worker, whose kernels are not those of the test's process."""
    forward = CpuBackend.forward

    def faulty(self, call):
        result = forward(self, call)
        FAULTS["wrong norms"](result)
        return result

    with mock.patch.object(CpuBackend, "forward", faulty):
        return judge(plan)


@needs_kernels
def test_the_command_fails_over_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "pool", partial(workers.pool, judge=_with_a_fault))
    assert main(["--calls", "3", "--seed", "0", "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "3 failed" in said
    assert "  3  wrong norms: calls 0, 1, 2" in said
    assert main(["--seed", "0", "--only", "1", "--workers", "1"]) == 1
    assert "the simplest call that fails in the same way:" in capsys.readouterr().out


@needs_triton
def test_the_interpreter_computes_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).with_name("kernels"))
    plan = replace(PLAN, backend="triton", queries=5, keys=5, dtype="bfloat16", projected="bfloat16")
    assert judge(plan) == []


@needs_triton
def test_a_plan_names_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).with_name("kernels"))
    assert main(["--plan", '{"queries": 2, "backend": "triton"}', "--workers", "1"]) == 0

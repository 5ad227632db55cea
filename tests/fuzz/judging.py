"""Checks the results of a plan's call; each error is a finding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import rsattn

from . import exact, hostile, philox
from .bounded import Bounded
from .inputs import Inputs, inputs_of
from .plan import DTYPES, Plan
from .running import Ran, run


@dataclass(frozen=True)
class Finding:
    """An error of a call: its kind, in a word or two, and the details."""

    kind: str
    text: str


# Mask dtypes that a backend may reject with a message.
MAY_BE_REFUSED = ("float8_e4m3fn", "float8_e5m2")


def judge(plan: Plan) -> list[Finding]:
    """Run the plan twice and return the findings; none if all is correct."""
    if plan.hostile:
        return _refused(plan)
    inputs = inputs_of(plan, device_of(plan.backend))
    before = [_bytes(tensor) for tensor in inputs.all()]
    try:
        ran, again = run(plan, inputs), run(plan, inputs, plan.threads)
    except Exception as error:
        if plan.mask_dtype in MAY_BE_REFUSED and isinstance(error, (TypeError, ValueError, rsattn.BackendError)):
            return []
        return [Finding("error", f"{type(error).__name__}: {str(error).splitlines()[0]}")]
    changed = any(not torch.equal(a, _bytes(tensor)) for a, tensor in zip(before, inputs.all()))
    found = [Finding("input changed", "a call wrote to its inputs")] if changed else []
    others = again.all()
    for name, one in ran.all().items():
        if not torch.equal(_bytes(one), _bytes(others[name])):
            found.append(Finding("not the same bits", f"{name} differs when the call is repeated"))
    return found + _compared(plan, inputs, ran)


def device_of(backend: str) -> torch.device:
    """The device on which the backend runs: the GPU if there is one and the backend supports it, otherwise the CPU."""
    return torch.device("cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu")


def _refused(plan: Plan) -> list[Finding]:
    try:
        hostile.CALLS[plan.hostile](plan.seed)
    except hostile.REFUSALS as error:
        internal = "internal" in str(error).lower()
        return [Finding("refused badly", f"{plan.hostile}: {error}")] if internal else []
    except Exception as error:
        return [Finding("refused badly", f"{plan.hostile}: {type(error).__name__}: {error}")]
    return [Finding("not refused", f"{plan.hostile}: no error")]


def _bytes(tensor: Tensor) -> Tensor:
    """A copy of all memory of a tensor, including the gaps between its elements."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage()).clone()


def _compared(plan: Plan, inputs: Inputs, ran: Ran) -> list[Finding]:
    """The findings for results that differ from float64."""
    problem = _problem(plan, inputs)
    probs = exact.probabilities(problem)
    out = exact.output(problem, probs)
    wanted = {"output": out, "norms": exact.norms(problem, probs)}
    if plan.received:
        wanted["received"] = wanted["alone"] = exact.received(problem, probs)
    got = {name: tensor.cpu() for name, tensor in ran.all().items()}
    if "mask" in got:
        got["mask"] = got["mask"].reshape(_four(inputs.mask))
    found = _best_head(plan, got["norms"], got["best_head"])
    upstream = exact.Upstream(*(torch.zeros_like(problem.query) for _ in range(2)))
    if not plan.merge or plan.upstream != "joined":
        upstream = exact.Upstream(_double(inputs.grad_output), upstream.error)
    if plan.merge and not found:
        residual = _residual(plan, inputs, got)
        wanted["joined"] = residual.joined()
        if plan.backward and plan.upstream != "output":
            upstream = _added(upstream, residual.upstream(plan.heads, DTYPES[plan.dtype]), DTYPES[plan.dtype])
            if plan.gamma:
                wanted["gamma"] = residual.gamma_gradient(DTYPES[plan.gamma])
            grad = _double(inputs.grad_joined)
            wanted["projected"] = Bounded.of(grad, torch.zeros_like(grad))
    if plan.backward and not found:
        wanted |= exact.gradients(problem, probs, out, upstream)
    for name, bounded in wanted.items():
        text = difference(got[name], bounded) if name in got else "there is none"
        if text:
            found.append(Finding(f"wrong {name}", f"{name}{text}"))
    return found


def _double(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().double().cpu()


def _problem(plan: Plan, inputs: Inputs) -> exact.Problem:
    query, key, value = (_double(tensor) for tensor in inputs.three())
    shape = (*query.shape[:3], key.shape[2])
    mask = inputs.mask
    if mask is not None:
        mask = (mask if mask.dtype == torch.bool else mask.double()).cpu()
        if mask.dim() == 4 and mask.shape[0] not in (1, shape[0]):
            mask = mask.repeat(shape[0] // mask.shape[0], 1, 1, 1)
        mask = mask.broadcast_to(shape)
    keep = None
    if plan.dropout > 0.0:
        torch.manual_seed(plan.seed)
        seed = torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=inputs.tensors[0].device)
        kept = philox.kept(int(seed), plan.dropout, shape)
        keep = kept.double() * (0.0 if plan.dropout >= 1.0 else 1.0 / (1.0 - plan.dropout))
    return exact.Problem(
        query,
        key,
        value,
        mask,
        keep,
        1.0 / math.sqrt(plan.width) if plan.scale is None else plan.scale,
        plan.norm,
        DTYPES[plan.dtype],
        plan.backend != "cpu",
        _four(inputs.mask) if plan.mask_learned else None,
        DTYPES[plan.mask_dtype],
    )


def _four(mask: Tensor | None) -> tuple[int, ...]:
    """The shape of a mask with four axes."""
    assert mask is not None
    return (1,) * (4 - mask.dim()) + tuple(mask.shape)


def _residual(plan: Plan, inputs: Inputs, got: dict[str, Tensor]) -> exact.Residual:
    best = got["output"].double()[torch.arange(plan.batch), got["best_head"]]
    return exact.Residual(
        _double(inputs.projected),
        best,
        got["best_head"],
        None if inputs.gamma is None else _double(inputs.gamma),
        _double(inputs.grad_joined),
        plan.merge,
        DTYPES[plan.projected],
    )


def _added(one: exact.Upstream, other: exact.Upstream, dtype: torch.dtype) -> exact.Upstream:
    """The sum of both gradients of the output, which is rounded."""
    total = one.grad + other.grad
    off = one.error + other.error
    return exact.Upstream(total, off + (off > 0) * torch.finfo(dtype).eps * (one.grad.abs() + other.grad.abs()))


def _best_head(plan: Plan, norms: Tensor, best: Tensor) -> list[Finding]:
    """Check that the best head is the first with the largest returned norm; for a batch, up to rounding of the sum."""
    ranked, room = norms.double(), 0.0
    if plan.scope == "batch" and plan.batch:
        room = plan.batch * torch.finfo(torch.float32).eps
        ranked = ranked.sum(0, keepdim=True).expand(plan.batch, -1)
    found = []
    for b, row in enumerate(ranked.tolist()):
        chosen = int(best[b])
        if not 0 <= chosen < plan.heads:
            return [Finding("wrong best_head", f"best_head[{b}] is {chosen}, of {plan.heads} heads")]
        strange = [h for h, norm in enumerate(row) if math.isnan(norm)]
        largest = max((norm for norm in row if not math.isnan(norm)), default=0.0)
        right = [h for h, norm in enumerate(row) if norm >= largest * (1.0 - room)]
        right = strange or (right if room else right[:1])
        if chosen not in right[:1] and not (room and chosen in right and not strange):
            found.append(Finding("wrong best_head", f"best_head[{b}] is {chosen}, not {right[0]}; norms {row}"))
    return found[:1]


def difference(got: Tensor, want: Bounded) -> str:
    """Where and by how much `got` differs from the expected result; empty if it does not."""
    value, error = want.value, want.error
    if got.shape != value.shape:
        return f" has shape {tuple(got.shape)}, not {tuple(value.shape)}"
    there = got.double()
    number = value.isfinite()
    most = torch.finfo(got.dtype).max
    near = (there - value).abs() <= error
    # A value just below the largest may round to infinity.
    near |= (value.abs() + error >= most) & (there.isinf() & (there.sign() == value.sign()) | (error >= most))
    near |= want.may_be_strange & ~there.isfinite()
    alike = torch.where(value.isnan() | want.may_be_strange, ~there.isfinite(), there == value)
    wrong = want.judged & ~torch.where(number, near, alike)
    if not wrong.any():
        return ""
    badness = torch.nan_to_num((there - value).abs() / error, nan=math.inf, posinf=1e300)
    at = int(torch.where(wrong, badness, -1.0).flatten().argmax())
    index = [int(n) for n in torch.unravel_index(torch.tensor(at), value.shape)]
    a, b, e = (tensor.flatten()[at].item() for tensor in (there, value, error))
    return f"{index} is {a:.6g}, not {b:.6g} +- {e:.2g} ({int(wrong.sum())} of {value.numel()} are wrong)"

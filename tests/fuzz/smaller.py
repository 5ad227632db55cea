"""Simplifies a failing plan as long as it fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from .plan import Plan

SIZES = ("batch", "heads", "queries", "keys", "width", "repeats")
KEPT = ("seed", "backend", "hostile", *SIZES)


def smaller(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """The simplest plan that can be reached in steps for which `fails` holds."""
    went_on = True
    while went_on:
        went_on = False
        for candidate in _plainer(plan):
            if fails(candidate):
                plan, went_on = candidate, True
                break
    return plan


def _plainer(plan: Plan) -> Iterator[Plan]:
    """Plans with one simplification each, the largest first."""
    for field in fields(plan):
        if field.name not in KEPT and getattr(plan, field.name) != field.default:
            plainer: dict[str, Any] = {field.name: field.default}
            yield replace(plan, **plainer)
    for i, layout in enumerate(plan.layouts):
        if layout != "contiguous":
            yield replace(plan, layouts=(*plan.layouts[:i], "contiguous", *plan.layouts[i + 1 :]))
    for name in SIZES:
        size = getattr(plan, name)
        for less in sorted({1, size // 2, size - 1}):
            if 0 < less < size:
                lengths = ("queries", "keys")  # packed tensors have one length
                names = lengths if plan.packed and name in lengths else (name,)
                yield replace(plan, **dict.fromkeys(names, less))

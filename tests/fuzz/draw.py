"""Random plans, each from the campaign's seed and the call's number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from rsattn.contract import NORMS, SCOPES

from . import hostile, layouts, masks, values
from .plan import Plan

# Sizes at the boundaries of registers, tiles and blocks, and their neighbors.
LENGTHS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 63, 64, 65, 96, 97)
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 64)
LONG = (111, 128, 193, 197, 257, 385, 577, 700)
WIDE = (80, 96, 127, 128, 192, 257, 320, 768)
HALVES = ("float16", "bfloat16")
COMPUTED = (*HALVES, "float32")
PLAIN_VALUES = ("normal", "spread", "equal_heads", "certain", "negative")


@dataclass(frozen=True)
class Target:
    """The backend of a campaign, and the instruction sets to choose from.

    Attributes:
        dtypes: the dtypes that the backend supports; a plan with another dtype uses the first of them.
        longest: the most queries and keys, for an interpreter; None for any number.
        width_multiple, widest: the backend's limits of head_dim.
    """

    backend: str
    instructions: tuple[str, ...] = ("",)
    dtypes: tuple[str, ...] = COMPUTED
    longest: int | None = None
    width_multiple: int = 1
    widest: int | None = None

    def fitted(self, plan: Plan) -> Plan:
        """The plan, changed to fit the target's limits."""
        width = min(plan.width, self.widest or plan.width)
        most = self.longest or max(plan.queries, plan.keys)
        return replace(
            plan,
            backend=self.backend,
            dtype=plan.dtype if plan.dtype in self.dtypes else self.dtypes[0],
            width=-(-width // self.width_multiple) * self.width_multiple,
            queries=min(plan.queries, most),
            keys=min(plan.keys, most),
        )


def draw(seed: int, number: int, target: Target) -> Plan:
    """The plan of this number; always the same."""
    r = Random(f"{seed} {number}")
    if r.random() < 0.02:
        return Plan(hostile=r.choice(list(hostile.CALLS)), seed=r.randrange(2**31), backend=target.backend)
    plan = _numbers(r, _sizes(r))
    plan = _mask(r, plan)
    if r.random() < 0.7:
        learned = plan.mask != "" and plan.mask_dtype in (*COMPUTED, "float64") and r.random() < 0.6
        plan = replace(plan, backward=True, upstream=r.choice(("both", "output", "joined")), mask_learned=learned)
    if r.random() < 0.6:
        plan = _residual(r, plan)
    plan = replace(
        plan,
        received=r.random() < 0.5,
        norm=r.choice(NORMS),
        scope=r.choice(SCOPES),
        watched=r.random() < 0.1,
        threads=r.choice((2, 3)) if r.random() < 0.05 else 1,
        instructions=r.choice(target.instructions),
        seed=r.randrange(2**31),
    )
    return target.fitted(plan)


def _sizes(r: Random) -> Plan:
    """Mostly small sizes; one in twenty is long, one in thirty has a large head_dim, few are both."""
    queries, keys, width = r.choice(LENGTHS), r.choice(LENGTHS), r.choice(WIDTHS)
    packed = r.random() < 0.3
    if r.random() < 0.05:
        queries, keys = r.choice((*LONG, queries)), r.choice((*LONG, keys))
    if r.random() < 0.03:
        width = r.choice(WIDE)
    if packed or r.random() < 0.3:
        keys = queries
    batch = 0 if r.random() < 0.01 else r.choice((1, 1, 2, 3, 5))
    heads = r.choice((1, 2, 3, 4, 5, 8, 12))
    if queries * keys > 5000 or width > 64:
        batch, heads = min(batch, 2), min(heads, 3)
    if batch * heads > 16:
        batch = 1
    return Plan(batch=batch, heads=heads, queries=queries, keys=keys, width=width, packed=packed)


def _numbers(r: Random, plan: Plan) -> Plan:
    kind = r.choice(PLAIN_VALUES) if r.random() < 0.6 else r.choice(list(values.KINDS))
    scale = r.choice((0.0, -1.0, 1.0, -0.3, 1e-30, 30.0, 1e10)) if r.random() < 0.3 else None
    if kind == "extreme":
        scale = r.choice((0.0, 2.0**-126, 2.0**-140, -0.0))  # the smallest normal float32 and a smaller value
    return replace(
        plan,
        dtype=r.choice(COMPUTED),
        values=kind,
        scale=scale,
        dropout=r.choice((0.1, 0.5, 0.9, 0.999, 1.0, 1e-12)) if r.random() < 0.3 else 0.0,
        layouts=tuple(_layout(r) for _ in range(4)),
    )


def _mask(r: Random, plan: Plan) -> Plan:
    if r.random() < 0.4:
        return plan
    kind = r.choice(list(masks.KINDS))
    dtype = "bool" if kind in masks.BOOL_KINDS and r.random() < 0.5 else r.choice((*COMPUTED, "float64"))
    eight = r.random() < 0.01
    return replace(
        plan,
        mask=kind,
        mask_dtype=r.choice(("float8_e4m3fn", "float8_e5m2")) if eight else dtype,
        mask_full=tuple(r.random() < 0.6 for _ in range(4)),
        mask_layout="contiguous" if eight else _layout(r),
        mask_repeats=r.choice([n for n in range(1, plan.batch + 1) if plan.batch % n == 0] or [1]),
    )


def _residual(r: Random, plan: Plan) -> Plan:
    return replace(
        plan,
        merge=r.choice(("tile", "slot")),
        repeats=r.choice((1, 1, 2, 3, 5)),
        gamma=r.choice((plan.dtype, *COMPUTED, "float64")) if r.random() < 0.6 else "",
        projected=plan.dtype if r.random() < 0.7 else r.choice((*COMPUTED, "float64")),
        linked=r.random() < 0.5,
    )


def _layout(r: Random) -> str:
    return "contiguous" if r.random() < 0.3 else r.choice(list(layouts.LAYOUTS))

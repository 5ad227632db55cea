"""Arguments that do not fit, in every operator: each call is refused in words, and no process ends over it."""

from __future__ import annotations

import pytest
from fuzz import hostile
from fuzz.plan import Plan
from fuzz.workers import Pool, pool

import rsattn

if reasons := rsattn.backends("cpu")["cpu"].reasons:
    pytest.skip("; ".join(reasons), allow_module_level=True)


@pytest.fixture(scope="module")
def workers():
    with pool(1) as workers:
        yield workers


@pytest.mark.parametrize("merge", ["tile", "slot"])
@pytest.mark.parametrize("operator", hostile.OPERATORS)
def test_arguments_that_do_not_fit_are_refused(operator: str, merge: str, workers: Pool) -> None:
    hostile.call(operator, seed := int(merge == "slot"))  # what fits is taken
    names = [name for name in hostile.CALLS if name.startswith(f"{operator}: ")]
    plans = (Plan(hostile=name, seed=seed) for name in names)
    found = [f"{f.kind}: {f.text}" for outcome in workers.judge(enumerate(plans)) for f in outcome.findings]
    assert not found, "\n".join(found)
    assert len(names) > 10

"""A sentence on attention of a model that stays as it is, beside attention that has a residual."""

from __future__ import annotations

from collections.abc import Mapping

from .wording import counted, some


def residual_is_missing_in(skipped: Mapping[str, str]) -> str:
    """A sentence on attention of the model that has no residual; empty where all of it has."""
    if not skipped:
        return ""
    reasons = some(sorted(set(skipped.values())), 2)
    return f"no residual in {counted(len(skipped), 'attention module')} of the model: {reasons}"

"""Check the variants of one case, then time them."""

from __future__ import annotations

import gc

import torch

from . import clock, kinds, memory
from .baselines import RSATTN
from .cases import Case
from .results import Record

SECONDS = 0.6  # for the timed calls of a case, unless the fewest rounds take longer


def measure(case: Case, device: torch.device, seconds: float = SECONDS, without: tuple[str, ...] = ()) -> Record:
    """Time the variants of a case except `without`. A baseline that fails or is wrong is left out, with the reason.

    All variants are left out where the case needs a library that cannot be imported.

    Raises:
        AssertionError: rsattn is wrong.
    """
    threads = torch.get_num_threads()
    try:
        return _measure(case, device, seconds, without)
    finally:
        torch.set_num_threads(threads)  # the kind "threads" changes it
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(case: Case, device: torch.device, seconds: float, without: tuple[str, ...]) -> Record:
    try:
        setup = kinds.setup(case, device)
    except ImportError as error:
        return Record(case, {}, {}, dict.fromkeys(kinds.names(case, device), _reason(error)))
    timers, peaks, left_out = {}, {}, {}
    for name, variant in setup.variants.items():
        if name in without:
            continue
        try:
            setup.check(name, variant.call(0))
            if name in setup.peaks and (peak := memory.peak(variant.call, device)) is not None:
                peaks[name] = peak
            timers[name] = clock.timer(variant, device, setup.inputs)
        except Exception as error:  # errors of other libraries' Triton kernels have no common base class
            if name.startswith(RSATTN):
                raise
            left_out[name] = _reason(error)
    return Record(case, clock.interleave(timers, setup.inputs, seconds), peaks, left_out)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into the GPU's memory"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

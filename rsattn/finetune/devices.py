"""The device of a process, and the precision of a model's operators on it."""

from __future__ import annotations

import torch

from .options import Options
from .wording import counted

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def this_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_in_words() -> str:
    if torch.cuda.is_available():
        return f"this GPU ({torch.cuda.get_device_name()})"
    return f"this CPU ({counted(torch.get_num_threads(), 'thread')})"


def autocast(options: Options, device: str) -> torch.autocast:
    """The context in which the model of a run is called; `device` is a type such as "cpu"."""
    mixed = MIXED.get(options.precision)
    return torch.autocast(device, mixed or torch.bfloat16, enabled=mixed is not None)

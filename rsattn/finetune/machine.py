"""The devices and processes of a run, checked before anything is read or written."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..cli.command import CommandError, why
from ..cli.suggestions import similar
from .options import Options

# What torchrun sets for each process, and what Lightning sets for each process that it starts.
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OF_LIGHTNING = ("WORLD_SIZE", "LOCAL_RANK")


def refuse_incomplete_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse the environment variables of a launcher that are incomplete or contradict one another.

    Lightning reads them when it is imported.
    """
    there = [name for name in OF_TORCHRUN if name in environment]
    if not there or ("NODE_RANK" in environment and tuple(there) == OF_LIGHTNING):
        return
    to_do = f"start the command with torchrun, which sets them, or unset {', '.join(there)}"
    if lacking := [name for name in OF_TORCHRUN if name not in there]:
        raise CommandError(f"the environment has {_listed(there, environment)}, but no {', '.join(lacking)}: {to_do}")
    numbers = [int(text) if (text := environment[name]).isdecimal() else -1 for name in OF_TORCHRUN]
    rank, world, local_rank, local_world = numbers
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world and world % local_world == 0):
        raise CommandError(
            f"the environment has {_listed(there, environment)}, which are not valid process numbers: {to_do}"
        )


def _listed(names: list[str], environment: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={environment[name]}" for name in names)


def machine_of(options: Options) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that say where and how it trains."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # set by torchrun
    devices: Any = local or (int(options.devices) if options.devices.isdecimal() else options.devices)
    nodes = int(os.environ["WORLD_SIZE"]) // local if local else options.nodes
    if devices == "auto" and not torch.cuda.is_available():
        devices = 1
    return {
        "accelerator": "auto",
        "devices": devices,
        "num_nodes": nodes,
        "strategy": options.strategy,
        "precision": options.precision,
    }


def refuse_machine(options: Options) -> None:
    """Refuse devices, machines and strategies that are not there.

    Raises:
        CommandError: the message names the option.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if local:
        _refuse_other_numbers_than_torchrun(options, local)
    elif fault := _fault_of_devices(options.devices):
        raise CommandError(f"--devices {options.devices}: {fault}")
    elif options.nodes > 1 and not {"NODE_RANK", "MASTER_ADDR"} <= set(os.environ) and "SLURM_NTASKS" not in os.environ:
        raise CommandError(
            f"--nodes {options.nodes} waits for other machines, and no launcher started this process: run `torchrun "
            f"--nnodes {options.nodes} ... -m rsattn finetune ...` on each machine, without --nodes"
        )
    _refuse_unknown_strategy(options.strategy)
    _refuse_what_lightning_refuses(options)


def refuse_precision(options: Options) -> None:
    """Refuse a precision that Lightning replaces by another one."""
    if options.precision == "16-mixed" and not torch.cuda.is_available():
        raise CommandError("--precision 16-mixed needs a GPU, and PyTorch finds none here: use bf16-mixed or 32-true")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's advice for programmers; its errors are still raised."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*num_workers.*")
            yield
    finally:
        logger.setLevel(before)


def _refuse_other_numbers_than_torchrun(options: Options, local: int) -> None:
    if options.devices not in ("auto", str(local)):
        raise CommandError(
            f"--devices {options.devices}: torchrun started {local} processes on this machine, one for each device: "
            "leave out --devices"
        )
    nodes = int(os.environ["WORLD_SIZE"]) // local
    if options.nodes not in (1, nodes):
        raise CommandError(
            f"--nodes {options.nodes}: torchrun started processes on {nodes} machines: leave out --nodes"
        )


def _fault_of_devices(text: str) -> str | None:
    """What is wrong with the value of --devices; None where nothing is."""
    if text == "auto":
        return None
    if not torch.cuda.is_available():  # on CPUs a number of processes
        most = max(os.cpu_count() or 1, 8)
        fits = text.isdecimal() and 0 < int(text) <= most
        return None if fits else f"expected auto or a number of processes from 1 to {most}: PyTorch finds no GPU here"
    count = torch.cuda.device_count()
    fits = text == "-1" or (text.isdecimal() and 0 < int(text) <= count)
    if re.fullmatch(r"\d+(,\d+)*,?", text) and "," in text:
        fits = all(int(index) < count for index in text.split(",") if index)
    return (
        None if fits else f"expected auto, a number from 1 to {count}, or a list such as 0,1 of the {count} GPUs here"
    )


def _refuse_unknown_strategy(name: str) -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    known = ["auto", *StrategyRegistry.available_strategies()]
    if name not in known:
        raise CommandError(
            f"unknown --strategy {name!r}: expected auto, ddp, fsdp or another of Lightning's{similar(name, known)}"
        )


def _refuse_what_lightning_refuses(options: Options) -> None:
    """Build a Trainer, which checks its arguments, and trains nothing."""
    from lightning.pytorch import Trainer

    try:
        with quiet():
            Trainer(**machine_of(options), logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except Exception as error:  # Lightning and the packages of its strategies raise errors of any type
        asked = " ".join(f"--{name} {getattr(options, name)}" for name in ("devices", "strategy", "precision"))
        raise CommandError(f"Lightning cannot train with {asked}: {' '.join(why(error).split())}") from None

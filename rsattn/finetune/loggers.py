"""Where Lightning logs the training: files in the run's folder, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.command import CommandError, why
from .contents import read_json, write_json
from .options import Options
from .run_folder import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

PROJECT = "rsattn"  # of W&B, and the experiment of MLflow
# The loggers whose package is optional and has the same name, and what to do where one cannot begin.
TRACKERS = {
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server that runs, or unset it to log into the run's folder (mlflow-skinny "
    "lacks what this needs: pip install mlflow)",
}


def refuse_missing_loggers(options: Options) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        CommandError: the message says what to install.
    """
    if missing := [name for name in options.logger if name in TRACKERS and importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        raise CommandError(f"--logger {names}: the package is not installed: pip install {names}")


def loggers_of(folder: RunFolder, options: Options) -> list[Logger]:
    """Lightning's loggers for the training in `folder`, which --lr auto has several of for one run.

    Raises:
        CommandError: the address or the file of MLflow is not valid, or trackers.json is damaged.
    """
    return [_logger(name, folder, options) for name in options.logger]


def _logger(name: str, folder: RunFolder, options: Options) -> Logger:
    from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

    if name == "csv":
        return CSVLogger(folder.path, "", "logs")
    if name == "tensorboard":
        return TensorBoardLogger(folder.path, "", "logs/tensorboard")
    logs = RunFolder(Path(options.out).resolve()).logs
    logs.mkdir(parents=True, exist_ok=True)
    with _beginning(name):
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            return WandbLogger(_name(folder, options), logs, project=project, version=_known(folder).get(name))
        server = os.environ.get("MLFLOW_TRACKING_URI")
        return MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            _name(folder, options),
            server or f"sqlite:///{logs / 'mlflow.db'}",
            artifact_location=None if server else str(logs / "mlflow"),
            run_id=_known(folder).get(name),
        )


def _name(folder: RunFolder, options: Options) -> str:
    """The name of the run's folder; it has that of the comparison, and the learning rate that --lr auto tries."""
    out = Path(options.out).resolve()
    comparison, runs, label = ("", "", "", *out.parts)[-4:-1]
    name = f"{comparison}-{label}-{out.name}" if runs == "runs" else out.name  # as compare.runs_of names the folders
    return name if folder.path.resolve() == out else f"{name}-lr-{folder.path.name}"


def _known(folder: RunFolder) -> dict[str, str]:
    """The identifiers of the runs of W&B and MLflow that this training began; a resumed one continues them."""
    if not folder.trackers.exists():
        return {}
    return read_json(folder.trackers, {str: str}, "delete it to log into new runs")


@contextmanager
def tracking(trainer: Trainer, folder: RunFolder, options: Options) -> Iterator[None]:
    """Begin the runs of W&B and MLflow, with the options as hyperparameters, and finish that of W&B after the block.

    Without the end, the next training of the same process would log into the same run of W&B.

    Raises:
        CommandError: one cannot begin, such as without a login or a network.
    """
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    begun: list[Logger] = []
    failed = 1
    try:
        if trainer.is_global_zero:
            for name, logger in zip(options.logger, trainer.loggers):
                if isinstance(logger, WandbLogger | MLFlowLogger):
                    _begin(name, logger, folder, options)
                    begun.append(logger)
        yield
        failed = 0
    finally:
        for logger in begun:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=failed)


def _begin(name: str, logger: WandbLogger | MLFlowLogger, folder: RunFolder, options: Options) -> None:
    known = _known(folder)
    with _beginning(name):
        if not (name == "mlflow" and name in known):  # MLflow refuses other values, such as of --devices
            logger.log_hyperparams(asdict(options))
        identifier = logger.version  # W&B and MLflow have one from here on
        assert isinstance(identifier, str)
    folder.trackers.parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.trackers, {**known, name: identifier})


@contextmanager
def _beginning(name: str) -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise
    except Exception as error:  # of any type, from the package and from what it needs
        raise CommandError(f"--logger {name} cannot begin: {' '.join(why(error).split())}; {TRACKERS[name]}") from None

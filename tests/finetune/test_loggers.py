"""`--logger`: files of the chosen loggers, and the runs of W&B and MLflow."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from lightning.pytorch import loggers as of_lightning
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from rich.console import Console
from runs import MakeOptions

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import running, training
from rsattn.finetune.options import Options, as_options, differences, read_options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.running import run


class Tracker(Logger):
    """What the loggers of W&B and MLflow have in common here."""

    begun: ClassVar[list[Any]] = []
    fails = False

    def __init__(self, called: str, project: str, identifier: str | None) -> None:
        super().__init__()
        self.called, self.project, self.resumed = called, project, identifier
        self.identifier = identifier
        self.params: dict[str, Any] = {}
        self.metrics: list[str] = []
        self.ends: list[int] = []

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self.fails:
            raise RuntimeError("No API key\nconfigured")
        if self not in self.begun:
            self.begun.append(self)
            self.identifier = self.identifier or f"{type(self).__name__}-{len(self.begun)}"
        return SimpleNamespace(finish=lambda exit_code: self.ends.append(exit_code))

    @property
    def name(self) -> str:
        return self.called

    @property
    def version(self) -> str | None:
        return self.identifier

    def log_hyperparams(self, params: dict[str, Any], *args: object) -> None:
        assert self.experiment
        self.params = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics += metrics


class Wandb(Tracker):
    def __init__(self, name: str, save_dir: Path, project: str, version: str | None) -> None:
        super().__init__(name, project, version)


class MLflow(Tracker):
    def __init__(
        self, experiment: str, run_name: str, uri: str, artifact_location: str | None, run_id: str | None
    ) -> None:
        super().__init__(run_name, experiment, run_id)
        self.uri, self.artifacts = uri, artifact_location


@pytest.fixture
def only_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends after its training, which is faster."""
    monkeypatch.setattr(running, "evaluate", lambda *_: None)


@pytest.fixture
def begun(only_training: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs of W&B and MLflow in the order in which they begin, of loggers that only remember their calls."""
    monkeypatch.setattr(Tracker, "begun", [])
    monkeypatch.setattr(of_lightning, "WandbLogger", Wandb)
    monkeypatch.setattr(of_lightning, "MLFlowLogger", MLflow)
    for name in ("WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return Tracker.begun


@pytest.fixture
def tiny(make_options: MakeOptions) -> Options:
    return make_options(model="cnn", epochs=1)


def test_tensorboard_alone_is_enough_for_the_report_and_for_more_epochs(tiny: Options, console: Console) -> None:
    run(replace(tiny, logger=("tensorboard",)), console)
    folder = RunFolder(Path(tiny.out))
    assert [path.name for path in folder.logs.iterdir()] == ["tensorboard"]
    assert (folder.figures / "curves.png").exists()
    assert folder.report.exists()
    assert cli.main(["finetune", "--resume", tiny.out, "--epochs", "2"]) == 0
    assert read_options(folder).logger == ("tensorboard",)
    assert [path.name for path in folder.logs.iterdir()] == ["tensorboard"]
    assert len(folder.history.read_text().splitlines()) == 3


def test_a_resumed_run_may_log_elsewhere(
    only_training: None, tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert differences(tiny, replace(tiny, logger=("wandb",))) == ""
    run(replace(tiny, logger=("csv",)), console)
    assert [path.name for path in RunFolder(Path(tiny.out)).logs.iterdir()] == ["metrics.csv"]
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(running, "run", lambda options, *_: seen.append(options.logger))
    assert cli.main(["finetune", "--resume", tiny.out, "--logger", "tensorboard", "tensorboard"]) == 0
    assert cli.main(["finetune", "--resume", tiny.out]) == 0
    assert seen == [("tensorboard",), ("csv",)]


def test_the_loggers_in_a_config_json_are_checked(tiny: Options) -> None:
    content = json.loads(json.dumps(asdict(replace(tiny, logger=("mlflow", "csv")))))
    assert as_options(content).logger == ("mlflow", "csv")
    del content["logger"]
    assert as_options(content).logger == ("csv", "tensorboard")
    for wrong in ([], ["neptune"]):
        with pytest.raises(ValueError, match="expected one or more of csv, tensorboard, wandb, mlflow"):
            as_options({**content, "logger": wrong})


@pytest.mark.parametrize("command", ["finetune", "compare"])
def test_a_package_that_is_not_installed_is_refused_before_anything_is_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    out = tmp_path / "out"
    words = [command, str(tmp_path / "nothing"), "--out", str(out), "--logger", "wandb", "csv", "mlflow"]
    assert cli.main(words) == 2
    assert "--logger wandb mlflow: the package is not installed: pip install wandb mlflow" in capsys.readouterr().err
    assert not out.exists()


def test_a_run_has_its_name_options_and_losses_and_a_resumed_one_continues_it(
    begun: list[Any], tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(tiny, logger=("wandb", "mlflow"))
    run(options, console)
    wandb, mlflow = begun
    folder = RunFolder(Path(tiny.out))
    for tracker in begun:
        assert (tracker.called, tracker.project, tracker.resumed) == ("run", "rsattn", None)
        assert tracker.params == asdict(options)
        assert "val_loss" in tracker.metrics
    assert wandb.ends == [0]
    assert mlflow.uri == f"sqlite:///{folder.logs.resolve() / 'mlflow.db'}"
    assert mlflow.artifacts == str(folder.logs.resolve() / "mlflow")
    assert json.loads(folder.trackers.read_text()) == {"wandb": "Wandb-1", "mlflow": "MLflow-2"}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setattr("rsattn.finetune.commands.refuse_missing_loggers", lambda options: None)
    assert cli.main(["finetune", "--resume", tiny.out, "--epochs", "2"]) == 0
    wandb, mlflow = begun[2:]
    assert (wandb.resumed, mlflow.resumed) == ("Wandb-1", "MLflow-2")
    assert wandb.params["epochs"] == 2
    assert mlflow.params == {}  # a run of MLflow keeps the values it began with
    assert (mlflow.uri, mlflow.artifacts) == ("http://localhost:5000", None)  # a server has its own place for files


def test_each_rate_that_is_tried_is_a_run_of_its_own(begun: list[Any], tiny: Options, console: Console) -> None:
    run(replace(tiny, lr_auto=True, learning_rate=1e-3, logger=("wandb",)), console)
    assert [tracker.called for tracker in begun] == ["run-lr-0.00033", "run-lr-0.001", "run-lr-0.003"]
    assert [tracker.ends for tracker in begun] == [[0], [0], [0]]
    folder = RunFolder(Path(tiny.out))
    chosen = next(one for one in begun if one.params["learning_rate"] == json.loads(folder.rates.read_text())["chosen"])
    assert json.loads(folder.trackers.read_text()) == {"wandb": chosen.version}


def test_a_run_of_a_comparison_has_the_names_of_the_comparison_and_of_the_model(
    begun: list[Any], tiny: Options, tmp_path: Path, console: Console
) -> None:
    run(replace(tiny, out=str(tmp_path / "slides" / "runs" / "cnn" / "seed-0"), logger=("mlflow",)), console)
    assert begun[0].called == "slides-cnn-seed-0"


def test_the_next_training_of_a_process_does_not_log_into_a_run_that_failed(
    begun: list[Any], tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(training.Trainer, "fit", fail)
    with pytest.raises(ZeroDivisionError):
        run(replace(tiny, logger=("wandb",)), console)
    assert begun[0].ends == [1]


def test_a_tracker_that_cannot_begin_is_an_error_in_one_line_that_says_what_to_do(
    begun: list[Any], tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tracker, "fails", True)
    with pytest.raises(CommandError) as caught:
        run(replace(tiny, logger=("csv", "wandb")), console)
    assert str(caught.value) == (
        "--logger wandb cannot begin: No API key configured; log in with `wandb login`, or set WANDB_MODE=offline"
    )
    assert not (Path(tiny.out) / "config.json").exists()


def test_wandb_itself_logs_offline(
    only_training: None, tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs W&B: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(replace(tiny, logger=("wandb",)), console)
    folder = RunFolder(Path(tiny.out))
    identifier = json.loads(folder.trackers.read_text())["wandb"]
    assert len(list((folder.logs / "wandb").glob(f"offline-run-*-{identifier}"))) == 1


def test_mlflow_itself_logs_into_the_run_s_folder(
    only_training: None, tiny: Options, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "needs MLflow with its database: pip install mlflow"
    for package in ("mlflow", "alembic"):
        pytest.importorskip(package, reason=reason)
    from mlflow.tracking import MlflowClient  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(replace(tiny, logger=("mlflow",)), console)
    folder = RunFolder(Path(tiny.out))
    client = MlflowClient(f"sqlite:///{folder.logs.resolve() / 'mlflow.db'}")
    found = client.get_run(json.loads(folder.trackers.read_text())["mlflow"])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["model"] == "cnn"
    assert "val_loss" in found.data.metrics

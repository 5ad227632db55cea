"""`--lr auto`: three rates, and the choice by validation loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import MakeOptions, table

from rsattn.cli.command import CommandError
from rsattn.finetune import initial_features, rates
from rsattn.finetune.loading import load
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.running import run


def test_the_rate_with_the_least_validation_loss_is_kept_as_if_it_had_been_given(
    make_options: MakeOptions, console: Console
) -> None:
    options = make_options(lr_auto=True, keep="last", recipe="scratch", learning_rate=1e-3)
    run(options, console)
    folder = RunFolder(Path(options.out))
    found = json.loads(folder.rates.read_text())
    assert [one["rate"] for one in found["tried"]] == [3.3e-4, 1e-3, 3e-3]
    assert found["chosen"] == min(found["tried"], key=lambda one: one["val_loss"])["rate"]
    given = replace(options, lr_auto=False, learning_rate=found["chosen"], out=options.out + "-given")
    run(given, console)
    alone = RunFolder(Path(given.out))
    assert [row["val_loss"] for row in table(folder.history)] == [row["val_loss"] for row in table(alone.history)]
    for one, other in zip(load(folder.path).model.parameters(), load(alone.path).model.parameters()):
        assert torch.equal(one, other)
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["options"]["learning_rate"] == found["chosen"]
    assert not (folder.path / "rates").exists()
    assert "Learning rates: 0.00033 (validation loss" in folder.report.read_text()


def test_it_goes_on_where_it_stopped(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(lr_auto=True, keep="last", recipe="scratch", epochs=2)
    real, trained = rates.train, []

    def once(folder: RunFolder, *rest: object, **how: object) -> None:
        if len(trained) == 1:
            raise KeyboardInterrupt("of the inner run")
        trained.append(folder.path.name)
        real(folder, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(rates, "train", once)
    with pytest.raises(KeyboardInterrupt, match=rf"to continue: rsattn finetune --resume {options.out}"):
        run(options, console)
    again: list[str] = []
    monkeypatch.setattr(
        rates, "train", lambda folder, *rest, **how: (again.append(folder.path.name), real(folder, *rest, **how))
    )
    run(options, console)
    assert len(again) == 2
    assert trained[0] not in again
    run(options, console)  # a run that is done trains nothing
    assert len(again) == 2


def test_the_features_of_the_initial_model_are_computed_once(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = initial_features.features, []

    def counting(*given: object) -> object:
        computed.append(given[-1])
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(initial_features, "features", counting)
    options = make_options(lr_auto=True, keep="last", recipe="scratch", epochs=2, head_first=True)
    run(options, console)
    assert computed == ["features of the train split", "features of the val split"]
    found = RunFolder(Path(options.out))
    given = replace(options, lr_auto=False, out=options.out + "-given", learning_rate=rates.chosen_rate(found))
    run(given, console)
    assert len(computed) == 4
    alone = RunFolder(Path(given.out))
    assert [row["val_loss"] for row in table(found.history)] == [row["val_loss"] for row in table(alone.history)]


def test_several_devices_are_refused(make_options: MakeOptions, console: Console) -> None:
    with pytest.raises(CommandError, match="--lr auto trains on one device: give --devices 1, or a rate"):
        run(make_options(lr_auto=True, devices="2"), console)

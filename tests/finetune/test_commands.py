"""The command lines: their defaults, and what they refuse before anything is read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from runs import MakeOptions

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import arguments, commands, running
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    arguments.add_finetune(subparsers)
    arguments.add_compare(subparsers)
    return parser.parse_args(words)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options of runs that were to be done, and are not."""
    seen: list[Options] = []
    monkeypatch.setattr(running, "run", lambda options, console: seen.append(options))
    return seen


def test_without_data_it_is_digits_with_settings_that_take_a_minute(asked: list[Options]) -> None:
    assert cli.main(["finetune"]) == 0
    (options,) = asked
    assert options.data is None
    assert (options.model, options.size, options.weights, options.out) == (
        "resvit",
        "tiny",
        "none",
        "rsattn-runs/resvit-0",
    )


def test_data_of_ones_own_takes_pretrained_weights_and_the_papers_picture_size(asked: list[Options]) -> None:
    assert cli.main(["finetune", "slides", "--seed", "3"]) == 0
    (options,) = asked
    assert (options.data, options.size, options.weights) == ("slides", "base", "pretrained")
    assert (options.image_size, options.augment, options.out) == (128, "mirror", "rsattn-runs/resvit-3")


@pytest.mark.parametrize(
    ("model", "weights", "frozen", "rate"),
    [
        ("resvit", "none", False, 1e-3),
        ("resvit", "pretrained", False, 1e-4),
        ("resvit", "pretrained", True, 1e-3),
        ("alexnet", "none", False, 1e-4),
        ("resnet18", "pretrained", False, 1e-3),
        ("vit_tiny_patch16_224", "mine.pt", False, 1e-4),
    ],
)
def test_the_rate_fits_the_model_and_its_weights(model: str, weights: str, frozen: bool, rate: float) -> None:
    assert arguments.default_rate(model, weights, frozen) == rate


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "vit", "--patch"], "a vit with residual attention is --model resvit"),
        (["--model", "vit", "--full-width"], "--full-width needs residual attention"),
        (["--full-width", "--merge", "slot"], "with --full-width use tile"),
        (["--lr", "fast"], "'fast' is not a number"),
        (["--epochs", "0"], "'0' is not a whole number from 1 on"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    words: list[str], complaint: str, asked: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["finetune", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not asked


def begun(options: Options) -> None:
    running.write_options(RunFolder(Path(options.out)), options)


def test_resume_takes_everything_from_the_run(asked: list[Options], make_options: MakeOptions) -> None:
    options = make_options(norm="confidence", epochs=7)
    begun(options)
    assert cli.main(["finetune", "--resume", options.out, "--devices", "2", "--strategy", "ddp"]) == 0
    assert asked == [make_options(norm="confidence", epochs=7, devices="2", strategy="ddp")]


@pytest.mark.parametrize(
    ("words", "named"), [(["other"], "DATA"), (["--epochs", "9"], "--epochs"), (["--freeze"], "--freeze")]
)
def test_resume_changes_nothing_else(
    words: list[str], named: str, asked: list[Options], make_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_options()
    begun(options)
    assert cli.main(["finetune", *words, "--resume", options.out]) == 2
    assert f"{named} beside --resume" in capsys.readouterr().err
    assert not asked


def test_resume_of_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "--resume", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_model_of_a_comparison_may_carry_its_settings() -> None:
    given = parsed(
        "compare", "--models", "vit", "resvit:norm=confidence,merge=slot", "deit_tiny+patch", "resvit:full-width"
    )
    entrants = dict(arguments.entrants_of(given))
    assert list(entrants) == ["vit", "resvit:norm=confidence,merge=slot", "deit_tiny+patch", "resvit:full-width"]
    second = entrants["resvit:norm=confidence,merge=slot"]
    assert (second.model, second.norm, second.merge) == ("resvit", "confidence", "slot")
    assert entrants["deit_tiny+patch"].patch
    assert entrants["resvit:full-width"].full_width


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("resvit:norm=l1", "'norm=l1' is none of norm="),
        ("deit_tiny+patched", r"expected \+patch"),
        ("resvit:blue", "'blue'"),
    ],
)
def test_settings_nobody_knows_are_named(model: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        arguments.entrants_of(parsed("compare", "--models", model))


@pytest.mark.parametrize("words", [["--devices", "2"], ["--nodes", "2"]])
def test_a_comparison_is_one_process(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) == 2
    assert "compare trains on one device" in capsys.readouterr().err


def test_packages_that_are_missing_or_broken_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(commands, "PACKAGES", ("no_such_package", "rich"))
    assert cli.main(["finetune"]) == 2
    assert "needs no_such_package: pip install 'rsattn[finetune]'" in capsys.readouterr().err
    monkeypatch.setattr(commands, "PACKAGES", ("broken_package",))
    assert cli.main(["finetune"]) == 2
    assert "broken_package is installed but cannot be imported: operator torchvision::nms" in capsys.readouterr().err
    assert "broken_package" not in sys.modules

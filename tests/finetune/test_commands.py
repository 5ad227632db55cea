"""The command lines: their defaults, and errors before anything is read."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import MakeOptions

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import arguments, chosen_options, commands, prediction, running
from rsattn.finetune import compare as comparing
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
    """The options of the requested runs, which are not started."""
    seen: list[Options] = []
    monkeypatch.setattr(running, "run", lambda options, console, changed: seen.append(options))
    return seen


def test_without_data_it_is_digits_with_settings_that_take_a_minute(asked: list[Options]) -> None:
    assert cli.main(["finetune"]) == 0
    (options,) = asked
    assert options.data is None
    assert (options.model, options.size, options.weights, options.out) == (
        "resvit",
        "tiny",
        "none",
        "rsattn-runs/digits-resvit-0",
    )


def test_data_of_ones_own_takes_pretrained_weights_and_the_papers_image_size(asked: list[Options]) -> None:
    assert cli.main(["finetune", "slides", "--seed", "3"]) == 0
    (options,) = asked
    assert (options.data, options.size, options.weights) == ("slides", "base", "pretrained")
    assert (options.image_size, options.augment, options.out) == (128, "small", "rsattn-runs/slides-resvit-3")


def test_a_strategy_is_known_in_any_case(asked: list[Options]) -> None:
    assert cli.main(["finetune", "--strategy", "DDP"]) == 0
    assert asked[0].strategy == "ddp"


@pytest.mark.parametrize(
    ("data", "name"),
    [(".", "my_slides"), ("../my slides/", "my_slides"), ("/", "data"), (".kept/v1.5", "v1.5"), ("x" * 300, "x" * 60)],
)
def test_the_default_folders_have_the_name_of_the_data(
    data: str, name: str, asked: list[Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my slides" / ".kept" / "v1.5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my slides")
    assert cli.main(["finetune", data, "--model", "cnn"]) == 0
    assert asked[0].out == f"rsattn-runs/{name}-cnn-0"
    folders: list[Path] = []
    monkeypatch.setattr(comparing, "compare", lambda _, seeds, out, console: folders.append(out) or 0)
    monkeypatch.setattr(prediction, "predict", lambda _, images, out, *more, **options: folders.append(out))
    assert cli.main(["compare", data]) == cli.main(["predict", "runs/a", data, "other"]) == 0
    assert folders == [Path("rsattn-comparisons", name), Path("rsattn-predictions", f"a-{name}")]


@pytest.mark.parametrize(
    ("model", "weights", "frozen", "rate"),
    [
        ("resvit", "none", False, 1e-3),
        ("resvit", "pretrained", False, 1e-4),
        ("resvit", "pretrained", True, 1e-3),
        ("alexnet", "none", False, 1e-4),
        ("resnet18", "pretrained", False, 1e-3),
        ("vit_tiny_patch16_224", "mine.pt", False, 1e-4),
        ("vit_tiny_patch16_224", "none", False, 1e-3),
    ],
)
def test_the_rate_fits_the_model_and_its_weights(model: str, weights: str, frozen: bool, rate: float) -> None:
    assert chosen_options.default_rate(model, weights, frozen) == rate


GATES = {
    "digits": ([], None),
    "data": (["slides"], 0.0),
    "random weights": (["slides", "--weights", "none"], None),
    "small": (["slides", "--size", "small"], None),
    "a file": (["slides", "--size", "small", "--weights", "mine.pt"], 0.0),
    "fresh heads": (["slides", "--full-width"], None),
    "plain": (["slides", "--model", "vit"], None),
    "plain of timm's": (["slides", "--model", "vit_tiny_patch16_224"], None),
    "patched": (["slides", "--model", "vit_tiny_patch16_224", "--patch"], 0.0),
    "cnn": (["slides", "--model", "resnet18"], None),
    "none asked for": (["slides", "--init-values", "none"], None),
    "asked for": (["--init-values", "0.1"], 0.1),
    "negative": (["--init-values", "-1"], -1.0),
    "negative, small": (["--init-values", "-1e-3"], -1e-3),
    "negative, with =": (["--init-values=-1e-3"], -1e-3),
    "float32's largest": (["--init-values", "3.4028234663852886e38"], 3.4028234663852886e38),
    "of fresh heads": (["slides", "--full-width", "--init-values", "0"], 0.0),
}


@pytest.mark.parametrize(("words", "start"), GATES.values(), ids=GATES)
def test_gates_start_at_0_where_trained_weights_are_kept(
    words: list[str], start: float | None, asked: list[Options]
) -> None:
    assert cli.main(["finetune", *words]) == 0
    (options,) = asked
    assert options.init_values == start
    assert options.gate_rate == (None if start is None else chosen_options.GATE_RATE)


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        (["--gate-lr", "0.01"], 0.01),
        (["--gate-lr", "0"], 0.0),
        (["--freeze"], None),
        (["--freeze", "--full-width"], chosen_options.GATE_RATE),
    ],
)
def test_gates_that_learn_have_a_rate(words: list[str], rate: float | None, asked: list[Options]) -> None:
    assert cli.main(["finetune", "--init-values", "0", *words]) == 0
    assert asked[0].gate_rate == rate


def test_help_says_what_gates_do(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("finetune", "compare"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert (
            "--init-values NUMBER|none initial value of the gate, the learnable factor of the residual; none:" in said
        )
        assert "(default: 0 with pretrained weights, so that" in said
        assert f"weight decay (default: {chosen_options.GATE_RATE:g})" in said
        assert (
            "train only the classifier, and with --full-width also the new attention; gates keep their initial value, "
            "and at 0 the residual adds nothing" in said
        )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "vit", "--init-values", "0"], "--init-values needs residual attention"),
        (["--init-values", "zero"], "--init-values: 'zero' is not a number or none"),
        (["--init-values", "nan"], "'nan' is not a number or none"),
        (["--init-values", "1e999"], "'1e999' is not a number or none"),
        (["--init-values", "1e39"], "--init-values: '1e39' is too large for float32"),
        (["--init-values=-1e39"], "'-1e39' is too large for float32"),
        (["--gate-lr", "-1"], "--gate-lr: '-1' is not a number that is 0 or larger"),
        (["--gate-lr", "0.01"], "--gate-lr needs gates that are trained"),
        (["slides", "--freeze", "--gate-lr", "0.01"], "--gate-lr needs gates that are trained"),
        (["--model", "vit", "--patch"], "a ViT with residual attention is --model resvit"),
        (["--model", "vit", "--full-width"], "--full-width needs residual attention"),
        (["--full-width", "--merge", "slot"], "use --merge tile with --full-width"),
        (["--lr", "fast"], "'fast' is not auto or a number above 0"),
        (["--lr", "0"], "--lr: '0' trains nothing: expected auto, or a number above 0"),
        (["--lr", "1e-999"], "'1e-999' trains nothing"),
        (["--epochs", "0"], "'0' is not a positive whole number"),
        (["--epochs", str(2**32)], "'4294967296' is larger than 2**32 - 1"),
        (["--workers", "-1"], "--workers: '-1' is not a whole number"),
        (["--workers", "99999"], "--workers: '99999' is more than"),
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


def test_resume_takes_everything_from_the_run(
    asked: list[Options], make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # here with any number of GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = make_options(norm="confidence", epochs=7)
    begun(options)
    assert cli.main(["finetune", "--resume", options.out, "--devices", "2", "--strategy", "ddp"]) == 0
    assert asked == [make_options(norm="confidence", epochs=7, devices="2", strategy="ddp")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["other"], "DATA"),
        (["--patience", "9"], "--patience"),
        (["--freeze"], "--freeze"),
        (["--init-values", "none"], "--init-values"),
        (["--gate-lr", "0.01"], "--gate-lr"),
    ],
)
def test_resume_changes_nothing_else(
    words: list[str], named: str, asked: list[Options], make_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_options()
    begun(options)
    assert cli.main(["finetune", *words, "--resume", options.out]) == 2
    assert f"{named} cannot be given with --resume" in capsys.readouterr().err
    assert not asked


def test_resume_of_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "--resume", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_a_model_of_a_comparison_may_carry_its_settings() -> None:
    given = parsed(
        "compare", "--models", "vit", "resvit:norm=confidence,merge=slot", "deit_tiny+patch", "resvit:full-width"
    )
    entrants = dict(chosen_options.entrants_of(given))
    assert list(entrants) == ["vit", "resvit:norm=confidence,merge=slot", "deit_tiny+patch", "resvit:full-width"]
    second = entrants["resvit:norm=confidence,merge=slot"]
    assert (second.model, second.norm, second.merge) == ("resvit", "confidence", "slot")
    assert entrants["deit_tiny+patch"].patch
    assert entrants["resvit:full-width"].full_width


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        (["vit", "resvit"], [None, 0.0]),
        (["resvit:init-values=none", "resvit:init-values=0,merge=slot", "resvit:init-values=0.5"], [None, 0.0, 0.5]),
        (["resvit:full-width", "resvit:full-width,init-values=1e-2"], [None, 0.01]),
        (["deit_tiny+patch", "deit_tiny+patch:init-values=none", "deit_tiny"], [0.0, None, None]),
        (["vit", "resvit", "resvit:init-values=none", "--init-values", "0.25"], [None, 0.25, None]),
        (["vit", "resvit", "resvit:full-width", "--init-values", "none"], [None, None, None]),
        (["resvit", "resvit:init-values=0", "--weights", "none"], [None, 0.0]),
    ],
)
def test_a_model_of_a_comparison_may_carry_its_gate(words: list[str], starts: list[float | None]) -> None:
    entrants = chosen_options.entrants_of(parsed("compare", "slides", "--models", *words))
    assert [options.init_values for _, options in entrants] == starts
    rates = [None if start is None else chosen_options.GATE_RATE for start in starts]
    assert [options.gate_rate for _, options in entrants] == rates


def test_the_other_settings_beside_a_gate_are_kept() -> None:
    given = parsed("compare", "--models", "vit", "resvit:init-values=0,merge=slot", "--gate-lr", "0.01")
    (_, plain), (label, gated) = chosen_options.entrants_of(given)
    assert (label, gated.merge, gated.gate_rate) == ("resvit:init-values=0,merge=slot", "slot", 0.01)
    assert plain.gate_rate is None


def test_a_plain_model_of_a_comparison_has_no_gate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--models", "resvit", "vit:init-values=0"]) == 2
    assert "--models vit:init-values=0: init-values=0 needs residual attention: resvit, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["--models", "vit", "cnn"], True),
        (["--models", "vit", "resvit"], True),  # of digits, from random weights: no gate
        (["slides", "--models", "vit", "resvit", "--freeze"], True),
        (["slides", "--models", "vit", "resvit"], False),
        (["--models", "resvit", "resvit:init-values=0"], False),
    ],
)
def test_a_comparison_without_gates_that_learn_has_no_rate_of_theirs(
    words: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparing, "compare", lambda *given: 0)
    assert cli.main(["compare", *words, "--gate-lr", "0.01"]) == (2 if refused else 0)
    error = capsys.readouterr().err
    assert ("--gate-lr needs gates that are trained" in error) == refused
    assert error.count("\n") == refused


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            "resvit:init-values=zero",
            "--models resvit:init-values=zero: init-values='zero' is not a number or none",
        ),
        ("resvit:init-values=1e39", "resvit:init-values=1e39: init-values='1e39' is too large for float32"),
        ("resvit:init-values=", "init-values='' is not a number or none"),
        ("resvit:init-values", r"unknown setting 'init-values', expected .*, init-values=NUMBER\|none or full-width"),
        ("resvit:norm=l1", "unknown setting 'norm=l1', expected norm="),
        ("deit_tiny+patched", r"expected \+patch"),
        ("resvit:blue", "'blue'"),
    ],
)
def test_settings_nobody_knows_are_named(model: str, complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        chosen_options.entrants_of(parsed("compare", "--models", model))


@pytest.mark.parametrize("words", [["--devices", "2"], ["--nodes", "2"]])
def test_a_comparison_is_one_process(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) == 2
    assert "compare trains on one device" in capsys.readouterr().err


def test_packages_that_are_missing_or_broken_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('no such symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(commands, "PACKAGES", ("no_such_package", "rich"))
    assert cli.main(["finetune"]) == 2
    assert "needs no_such_package: pip install 'rsattn[finetune]'" in capsys.readouterr().err
    monkeypatch.setattr(commands, "PACKAGES", ("broken_package",))
    assert cli.main(["finetune"]) == 2
    assert "broken_package cannot be imported: broken_package is damaged, or does not" in capsys.readouterr().err
    assert "broken_package" not in sys.modules


def test_predict_and_export_do_not_import_lightning() -> None:
    """Nor in the check for missing packages, which both commands pass before they find that there is no such run."""
    both = (
        "import sys; from rsattn.cli.main import main; main(['predict', 'no-run', 'no-image']); "
        "main(['export', 'no-run', '--format', 'torch']); sys.exit('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", both], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("rsattn predict: there is no no-image")
    assert "rsattn export: no-run is not the folder of a finished run" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "drawn", "said"),
    [
        ([], True, ""),
        (["--no-overlays"], False, ""),
        (["--no-pictures"], False, "rsattn predict: --no-pictures is now --no-overlays\n"),
    ],
)
def test_predict_draws_unless_told_otherwise(
    words: list[str], drawn: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(prediction, "predict", lambda *_, overlays: asked.append(overlays))
    assert cli.main(["predict", "run", "slides", *words]) == 0
    assert asked == [drawn]
    assert capsys.readouterr().err == said

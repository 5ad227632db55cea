"""Options without an effect: refused on the command line, and no fault of a file with the options of another model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rsattn.cli.main import main, parsed
from rsattn.finetune import compare as comparing
from rsattn.finetune import running
from rsattn.finetune.chosen_options import entrants_of, options_of
from rsattn.finetune.options import Options

TIMM = "vit_tiny_patch16_224"

RESIDUAL: list[tuple[str, ...]] = [
    ("--norm", "confidence"),
    ("--norm", "induced"),
    ("--scope", "batch"),
    ("--merge", "tile"),
    ("--full-width",),
    ("--init-values", "0"),
    ("--gate-lr", "0"),
]
IDLE = {
    "vit": [*RESIDUAL, ("--patch",), ("--drop-path", "0.2")],
    "resvit": [("--patch",), ("--drop-path", "0.2"), ("--freeze", "--dropout", "0.2"), ("--freeze", "--gate-lr", "1")],
    "resvit --freeze": [("--layer-decay", "0.5"), ("--dropout", "0.1")],
    "cnn": [*RESIDUAL, ("--patch",), ("--size", "tiny"), ("--dropout", "0.1"), ("--drop-path", "0.2")],
    "resnet18": [*RESIDUAL, ("--patch",), ("--size", "base"), ("--dropout", "0"), ("--layer-decay", "0.5")],
    TIMM: [*RESIDUAL, ("--size", "small"), ("--dropout", "0.1"), ("--freeze", "--drop-path", "0.2")],
    f"{TIMM} --patch": [("--size", "small"), ("--dropout", "0.1"), ("--freeze", "--layer-decay", "0.2")],
}
USED = {
    "vit": [("--size", "tiny", "--weights", "none"), ("--dropout", "0.2"), ("--layer-decay", "0.5")],
    "resvit": [*RESIDUAL, ("--size", "small", "--weights", "none"), ("--dropout", "0"), ("--layer-decay", "0.5")],
    "resvit --freeze --full-width": [("--gate-lr", "1", "--init-values", "0"), ("--dropout", "0.2")],
    "cnn": [("--drop-path", "0"), ("--layer-decay", "1"), ("--init-values", "none"), ("--no-full-width",)],
    TIMM: [("--drop-path", "0.2"), ("--layer-decay", "0.5"), ("--no-patch",)],
    f"{TIMM} --patch": [*RESIDUAL, ("--drop-path", "0.2"), ("--layer-decay", "0.5")],
}


def pairs(table: dict[str, list[tuple[str, ...]]]) -> list[object]:
    return [
        pytest.param(model, words, id=f"{model} {' '.join(words)}") for model, many in table.items() for words in many
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options of the requested runs, which are not started."""
    seen: list[Options] = []
    monkeypatch.setattr(running, "run", lambda options, console, changed: seen.append(options))
    monkeypatch.setattr(comparing, "compare", lambda entrants, *_: seen.extend(one.options for one in entrants) or 0)
    return seen


@pytest.mark.parametrize(("model", "words"), pairs(IDLE))
def test_an_option_without_effect_is_refused_in_one_line(
    model: str, words: tuple[str, ...], asked: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", "slides", "--model", *model.split(), *words]) == 2
    error = capsys.readouterr().err
    named = next(word for word in words if word.startswith("--") and word != "--freeze")
    assert error.startswith(f"rsattn finetune: {named} ")
    assert error.count("\n") == 1
    assert not asked


@pytest.mark.parametrize(("model", "words"), pairs(USED))
def test_an_option_with_an_effect_or_that_asks_for_nothing_is_taken(
    model: str, words: tuple[str, ...], asked: list[Options]
) -> None:
    assert main(["finetune", "slides", "--model", *model.split(), *words]) == 0
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("models", "words", "complaint"),
    [
        ("vit cnn", ("--norm", "confidence"), "--norm needs residual attention"),
        ("cnn resnet18", ("--size", "tiny"), "--size is for vit and resvit"),
        ("vit resvit", ("--drop-path", "0.2"), "--drop-path is for timm models"),
        ("vit resvit", ("--freeze", "--dropout", "0.2"), "--dropout has no effect on frozen layers"),
        ("vit:norm=confidence resvit", (), "--models vit:norm=confidence: norm=confidence needs residual attention"),
        ("cnn:full-width", (), "--models cnn:full-width: full-width needs residual attention"),
        (f"{TIMM}:merge=slot", (), f"--models {TIMM}:merge=slot: merge=slot needs residual attention"),
        ("vit+patch", (), "--models vit+patch: +patch is for timm models, not vit"),
        ("resvit+patch", (), "--models resvit+patch: +patch is for timm models, not resvit"),
    ],
)
def test_a_comparison_without_a_model_that_an_option_is_for_is_refused(
    models: str, words: tuple[str, ...], complaint: str, asked: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "slides", "--models", *models.split(), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rsattn compare: {complaint}")
    assert error.count("\n") == 1
    assert not asked


@pytest.mark.parametrize(
    ("words", "name", "values"),
    [
        (("--norm", "confidence"), "norm", ["confidence"] * 4),  # which models without residual attention ignore
        (("--full-width",), "full_width", [False, False, True, True]),
        (("--init-values", "0.5"), "init_values", [None, None, 0.5, 0.5]),
        (("--dropout", "0.3"), "dropout", [0.3, 0.1, 0.3, 0.1]),
        (("--layer-decay", "0.5"), "layer_decay", [0.5, 1.0, 0.5, 0.5]),
        (("--drop-path", "0.3"), "drop_path", [0.0, 0.0, 0.0, 0.3]),
    ],
)
def test_an_option_goes_to_the_models_of_a_comparison_that_it_is_for(
    words: tuple[str, ...], name: str, values: list[object], asked: list[Options]
) -> None:
    assert main(["compare", "slides", "--models", "vit", "resnet18", "resvit", f"{TIMM}+patch", *words]) == 0
    assert [getattr(options, name) for options in asked] == values


@pytest.mark.parametrize("model", ["vit", "cnn", TIMM])
def test_the_config_of_a_run_serves_another_model(model: str, asked: list[Options], tmp_path: Path) -> None:
    words = ["slides", "--size", "base", "--norm", "confidence", "--merge", "slot", "--gate-lr", "0.01"]
    given = parsed(["finetune", *words])
    run = tmp_path / "config.json"
    run.write_text(json.dumps(asdict(options_of(given, given.model, 0, tmp_path))))
    assert main(["finetune", "--config", str(run), "--model", model]) == 0
    assert main(["compare", "--config", str(run), "--models", "cnn", model]) == 0
    again = tmp_path / "again.json"
    again.write_text(json.dumps(asdict(asked[0])))
    assert main(["finetune", "--config", str(again), "--out", "elsewhere"]) == 0
    assert [options.model for options in asked] == [model, "cnn", model, model]


def test_a_file_for_another_model_serves_and_one_that_contradicts_itself_does_not(
    asked: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("norm: confidence\nsize: base\n")
    assert main(["finetune", "slides", "--config", str(file), "--model", TIMM]) == 0
    assert main(["finetune", "slides", "--config", str(file), "--model", "vit", "--scope", "batch"]) == 2
    assert "--scope needs residual attention" in capsys.readouterr().err
    file.write_text("model: vit\nnorm: confidence\n")
    assert main(["finetune", "slides", "--config", str(file)]) == 2
    assert "--norm needs residual attention" in capsys.readouterr().err
    assert len(asked) == 1


def test_a_model_of_a_comparison_is_what_it_is_alone() -> None:
    given = parsed(["compare", "slides", "--models", "vit", "resnet18", "resvit", "--layer-decay", "0.6"])
    vit, resnet18, _ = (options for _, options in entrants_of(given))
    alone = parsed(["finetune", "slides", "--model", "resnet18"])
    assert resnet18 == options_of(alone, "resnet18", 0, Path())
    assert vit.layer_decay == 0.6

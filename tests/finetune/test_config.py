"""Options from a file, and a run repeated from its own."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rsattn.cli.main import main, parsed
from rsattn.finetune import commands
from rsattn.finetune.chosen_options import options_of
from rsattn.finetune.options import Options


def asked(*words: str) -> Options:
    given = parsed(["finetune", *words])
    return options_of(given, given.model, given.seed or 0, Path("out"))


COMMANDS = {
    "defaults": ("slides",),
    "digits": (),
    "a probe": ("slides", "--freeze", "--seed", "3"),
    "numbers": ("slides", "--gate-lr", "0", "--epochs", "5", "--clip", "0", "--weight-decay", "0", "--warm-up", "0.3"),
    "an ungated residual": ("slides", "--init-values", "none", "--norm", "confidence", "--merge", "slot"),
    "a gate": ("slides", "--init-values", "-1e-3", "--gate-lr", "1e-4", "--model", "vit_tiny_patch16_224", "--patch"),
    "the paper": ("slides", "--recipe", "paper", "--class-weights", "--groups", "phash"),
    "three rates": ("slides", "--lr", "auto", "--no-head-first", "--split-seed", "7"),
    "a window": ("slides", "--window", "-600,1500.5"),
    "a window with =": ("slides", "--window=-600,1500.5"),
    "one logger": ("slides", "--logger", "csv"),
    "a plain model": ("slides", "--model", "vit", "--weights", "none", "--augment", "rotate"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_run_s_own_config_asks_for_the_same_run(words: tuple[str, ...], tmp_path: Path) -> None:
    options = asked(*words)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(replace(options, out=str(tmp_path)))))
    again = asked("--config", str(file))
    assert again == options
    commands._check(again)


def test_what_is_on_the_command_line_comes_first_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\nlr: 1e-3\nmodel: vit\nlabel-smoothing: 0.2\nhead_first: false\ngroups:\n")
    options = asked("--seed", "0", "slides", "--config", str(file), "--lr", "1e-4", "--model", "resvit")
    assert (options.seed, options.learning_rate, options.model) == (0, 1e-4, "resvit")
    assert (options.label_smoothing, options.head_first, options.groups) == (0.2, False, None)


BESIDE_A_RUN_S_CONFIG = {
    "epochs": (("--epochs", "2"), {"epochs": 2, "least_steps": 0}),
    "patience": (("--patience", "3"), {"patience": 3, "keep": "best"}),
    "no gate": (("--init-values", "none"), {"init_values": None, "gate_rate": None}),
    "frozen": (("--freeze",), {"recipe": "probe", "freeze": True, "augment": "none", "gate_rate": None}),
    "another recipe": (("--recipe", "paper"), {"full_width": True, "epochs": 20, "clip": 0.0, "init_values": None}),
    "another model": (("--model", "resnet18"), {"init_values": None, "layer_decay": 1.0, "learning_rate": 1e-3}),
    "random weights": (("--recipe", "scratch"), {"weights": "none", "learning_rate": 1e-3, "head_first": False}),
    "the same recipe": (("--recipe", "finetune"), {"batch_size": 7, "init_values": 0.1}),
    "another seed": (("--seed", "4"), {"seed": 4, "batch_size": 7, "init_values": 0.1, "gate_rate": 1e-4}),
}


@pytest.mark.parametrize("case", BESIDE_A_RUN_S_CONFIG.values(), ids=BESIDE_A_RUN_S_CONFIG)
def test_what_followed_from_an_option_gives_way_with_it(
    case: tuple[tuple[str, ...], dict[str, object]], tmp_path: Path
) -> None:
    words, expected = case
    options = asked("slides", "--batch-size", "7", "--init-values", "0.1", "--gate-lr", "1e-4")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(options)))
    found = asdict(asked("--config", str(file), *words))
    assert {name: found[name] for name in expected} == expected


def test_flags_of_a_file_can_be_turned_off(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(asked("slides", "--freeze", "--class-weights"))))
    options = asked("--config", str(file), "--no-freeze", "--no-class-weights")
    assert (options.freeze, options.class_weights, options.recipe) == (False, False, "finetune")


def test_a_run_of_an_earlier_version_is_trained_as_it_was(tmp_path: Path) -> None:
    options = asdict(asked("slides"))
    fields = ("recipe", "head_first", "least_steps", "keep", "layer_decay", "warm_up", "clip", "label_smoothing")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({name: value for name, value in options.items() if name not in (*fields, "lr_auto")}))
    found = asked("--config", str(file))
    assert (found.head_first, found.least_steps, found.keep, found.layer_decay) == (False, 0, "best", 1.0)
    assert (found.warm_up, found.clip, found.label_smoothing) == (0.05, 0.0, 0.0)


def test_the_folder_of_the_run_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(asdict(asked("slides"))))
    assert main(["finetune", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path)]) == 2
    assert "give another folder with --out" in capsys.readouterr().err


def test_the_name_of_the_option_has_to_be_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--conf", "a.yaml"], ["--config"]):
        with pytest.raises(SystemExit):
            main(["finetune", "slides", *words])
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_folder_of_a_run_stands_for_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(asdict(asked("slides", "--seed", "3"))))
    assert asked("--config", str(tmp_path)) == asked("slides", "--seed", "3")
    assert main(["finetune", "--config", str(tmp_path), "--out", str(tmp_path)]) == 2


def test_compare_takes_the_config_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(asked("slides", "--epochs", "4", "--seed", "3"))))
    given = parsed(["compare", "--config", str(file), "--models", "vit", "cnn"])
    assert (given.data, given.models, given.seeds, given.epochs) == ("slides", ["vit", "cnn"], None, 4)


def test_compare_takes_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: [vit, cnn]\nseeds: 2\nepochs: 4\n")
    given = parsed(["compare", "slides", "--config", str(file)])
    assert (given.models, given.seeds, given.epochs) == (["vit", "cnn"], 2, 4)


def test_a_comparison_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: []\n")
    with pytest.raises(SystemExit):
        parsed(["compare", "slides", "--config", str(file)])
    assert "models is []; expected one or more names" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["40,400", "[40, 400]"])
def test_a_window_in_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"window: {text}\n")
    assert asked("slides", "--config", str(file)).window == (40.0, 400.0)


FAULTS = {
    "window: [40, 0]\n": "window: '40,0' is not CENTER,WIDTH, two numbers such as 40,400 with a width above 0",
    "window: 40\n": "window: '40' is not CENTER,WIDTH",
    "epoch: 3\n": "unknown option epoch (did you mean epochs?); expected names such as data, model, recipe",
    "blue: 3\n": "unknown option blue; expected names such as data, model, recipe",
    "epochs: many\n": "epochs: 'many' is not a positive whole number",
    "norm: l2\n": "norm is 'l2'; expected induced, entrywise, confidence",
    "freeze: 1\n": "freeze should be true or false, not 1",
    "- 1\n- 2\n": "should have a line `name: value` for each option",
    "weights: no\n": "weights is False; expected a number or text, in quotes",
    "data: [a, b]\n": "data is ['a', 'b']; expected a number or text",
    "a: [\n": "is not a YAML file",
}


@pytest.mark.parametrize(("text", "says"), FAULTS.items(), ids=FAULTS)
def test_a_file_that_cannot_be_meant_is_named(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", "slides", "--config", str(file)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert str(file) in said
    assert len(said.splitlines()) == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "slides", "--config", str(tmp_path / "none.yaml")])
    assert "none.yaml" in capsys.readouterr().err

"""The settings of a recipe, and the options that override them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from runs import MakeOptions

from rsattn.cli.main import main, parsed
from rsattn.finetune.chosen_options import entrants_of, options_of
from rsattn.finetune.commands import _check
from rsattn.finetune.options import Options, with_all_epochs
from rsattn.finetune.recipes import RECIPES


def asked(*words: str) -> Options:
    given = parsed(["finetune", *words])
    return options_of(given, given.model, given.seed or 0, Path("out"))


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        (("slides",), "finetune"),
        ((), "scratch"),
        (("slides", "--weights", "none"), "scratch"),
        (("slides", "--freeze"), "probe"),
        (("slides", "--model", "cnn"), "scratch"),
        (("slides", "--weights", "none", "--recipe", "finetune"), "finetune"),
    ],
)
def test_the_recipe_of_a_command_that_names_none_follows_its_weights(words: tuple[str, ...], recipe: str) -> None:
    assert asked(*words).recipe == recipe


def test_the_default_for_kept_weights_is_a_recipe_for_fine_tuning() -> None:
    options = asked("slides", "--model", "vit_small_patch16_224")
    assert (options.head_first, options.keep, options.patience) == (True, "last", 0)
    assert (options.layer_decay, options.drop_path) == (0.75, 0.1)
    assert (options.warm_up, options.clip, options.label_smoothing) == (0.1, 1.0, 0.1)


def test_models_without_layers_or_drop_path_are_not_given_any() -> None:
    assert (asked("slides", "--model", "resnet18").layer_decay, asked("slides").drop_path) == (1.0, 0.0)
    assert asked("slides").layer_decay == 0.75


NUMBERS = {
    "--dropout": ("0.3", "dropout", 0.3),
    "--epochs": ("5", "epochs", 5),
    "--least-steps": ("7", "least_steps", 7),
    "--batch-size": ("3", "batch_size", 3),
    "--lr": ("1e-9", "learning_rate", 1e-9),
    "--weight-decay": ("0", "weight_decay", 0.0),
    "--layer-decay": ("0.6", "layer_decay", 0.6),
    "--warm-up": ("0", "warm_up", 0.0),
    "--clip": ("0", "clip", 0.0),
    "--label-smoothing": ("0", "label_smoothing", 0.0),
    "--keep": ("best", "keep", "best"),
    "--augment": ("rotate", "augment", "rotate"),
    "--precision": ("64-true", "precision", "64-true"),
}


@pytest.mark.parametrize(("option", "case"), NUMBERS.items(), ids=NUMBERS)
def test_every_number_of_a_recipe_can_be_given(option: str, case: tuple[str, str, object]) -> None:
    text, name, value = case
    options, before = asked("slides", option, text), asked("slides")
    assert getattr(before, name) != value
    assert getattr(options, name) == value


def test_given_epochs_are_as_many_and_patience_keeps_the_best() -> None:
    assert asked("slides", "--epochs", "2").least_steps == 0
    assert asked("slides", "--patience", "3").keep == "best"
    assert asked("slides", "--patience", "3", "--keep", "last").keep == "last"
    assert asked("slides", "--no-head-first").head_first is False


def test_the_paper_s_recipe_is_its_residual_and_nothing_of_a_model_without_one() -> None:
    paper = asked("slides", "--recipe", "paper")
    assert (paper.full_width, paper.norm, paper.scope, paper.init_values) == (True, "entrywise", "batch", None)
    assert (paper.head_first, paper.epochs, paper.clip, paper.label_smoothing) == (False, 20, 0.0, 0.0)
    plain = asked("slides", "--recipe", "paper", "--model", "vit")
    assert (plain.full_width, plain.norm) == (False, "induced")
    assert asked("slides", "--recipe", "paper", "--norm", "confidence").norm == "confidence"


def test_scratch_starts_from_random_weights_unless_some_are_given() -> None:
    scratch = asked("slides", "--recipe", "scratch")
    assert (scratch.weights, scratch.learning_rate, scratch.dropout) == ("none", 1e-3, 0.0)
    assert asked("slides", "--recipe", "scratch", "--weights", "pretrained").weights == "pretrained"


def test_frozen_layers_get_no_settings_that_have_no_effect_on_them() -> None:
    frozen = asked("slides", "--freeze", "--recipe", "finetune", "--model", "vit_tiny_patch16_224")
    assert (frozen.layer_decay, frozen.drop_path) == (1.0, 0.0)


def test_the_norm_of_gradients_in_splits_is_not_limited() -> None:
    assert asked("slides", "--strategy", "fsdp").clip == 0.0


def test_full_width_in_a_comparison_is_what_it_is_in_a_run() -> None:
    """The command accepts these options, which set nothing that new heads lack."""
    given = parsed(["compare", "slides", "--models", "vit", "resvit:full-width,norm=confidence"])
    _, (_, options) = entrants_of(given)
    _check(options)
    assert replace(asked("slides", "--full-width", "--norm", "confidence"), out=options.out) == options


def test_compared_models_have_their_recipes() -> None:
    given = parsed(
        ["compare", "slides", "--models", "vit", "cnn", "vit_tiny_patch16_224+patch", "--recipe", "finetune"]
    )
    vit, cnn, patched = (options for _, options in entrants_of(given))
    assert (vit.layer_decay, cnn.layer_decay, patched.layer_decay) == (0.75, 1.0, 0.75)
    assert (vit.drop_path, cnn.drop_path, patched.drop_path) == (0.0, 0.0, 0.1)
    assert patched.patch


@pytest.mark.parametrize(
    ("images", "epochs"),
    [(64, 25), (65, 20), (1, 100), (8 * 200, 3)],
)
def test_small_sets_get_more_epochs(images: int, epochs: int, make_options: MakeOptions) -> None:
    """Enough epochs for 100 steps of 16 images, and at least 3."""
    options = make_options(epochs=3, least_steps=100, batch_size=16)
    assert with_all_epochs(options, images).epochs == epochs
    assert with_all_epochs(replace(options, least_steps=0), images).epochs == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "vit", "--drop-path", "0.2"), "--drop-path is for timm models; vit has no stochastic depth"),
        (("--model", "cnn", "--layer-decay", "0.5"), "--layer-decay is for vit, resvit and timm models"),
        (("--freeze", "--layer-decay", "0.5"), "--layer-decay has no effect on frozen layers"),
        (("--freeze", "--drop-path", "0.5", "--model", "vit_tiny_patch16_224"), "--drop-path has no effect on frozen"),
        (("--full-width", "--head-first"), "--head-first needs trained features"),
    ],
)
def test_what_a_model_has_not_is_refused(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "slides", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_flag_turned_off_holds_against_the_recipe() -> None:
    for words, name in (
        (("--recipe", "probe", "--no-freeze"), "freeze"),
        (("--recipe", "paper", "--no-full-width"), "full_width"),
    ):
        given = parsed(["finetune", "slides", *words])
        assert getattr(options_of(given, given.model, 0, Path("out")), name) is False


@pytest.mark.parametrize(
    "words",
    [("--dropout", "1"), ("--drop-path", "1"), ("--label-smoothing", "1"), ("--layer-decay", "0")],
    ids=" ".join,
)
def test_a_share_that_leaves_nothing_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "slides", *words])
    assert f"argument {words[0]}: '{words[1]}' is not a number" in capsys.readouterr().err


def test_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {recipe.text}" in said for name, recipe in RECIPES.items())


def test_a_config_from_before_there_were_recipes_is_the_run_it_was(make_options: MakeOptions) -> None:
    new = ("recipe", "head_first", "least_steps", "keep", "layer_decay", "drop_path", "warm_up", "clip")
    old = {
        name: value
        for name, value in asdict(make_options()).items()
        if name not in (*new, "label_smoothing", "lr_auto", "dropout")
    }
    options = Options(**old)
    assert options == make_options()
    assert (options.recipe, options.keep, options.warm_up, options.layer_decay) == (None, "best", 0.05, 1.0)

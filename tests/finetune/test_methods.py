"""The methods paragraph of a run, and its references."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricate
from rich.console import Console
from runs import MakeOptions

from rsattn.finetune.methods import Facts, paragraph
from rsattn.finetune.options import read_options
from rsattn.finetune.references import REFERENCES, cited, with_references
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.running import run

CITATION = re.compile(r"(?:[A-Z][\w-]+ (?:et al\.|and [A-Z]\w+)|[A-Z][\w-]+), (?:19|20)\d\d")


def facts_of(out: Path, **changes: Any) -> Facts:
    """What a run recorded, with other options."""
    folder = RunFolder(out)
    options = replace(read_options(folder), **changes)
    return Facts(options, json.loads(folder.data.read_text()), json.loads(folder.metrics.read_text()))


def text_of(facts: Facts) -> str:
    return paragraph(facts.options, facts.data, facts.metrics)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    out = tmp_path_factory.mktemp("methods") / "run"
    fabricate(out, per_group=3, gates=(0.1, 0.2), init_values=0.0, damaged={"bad.png": "cut off"})
    return facts_of(out)


def test_the_paragraph_has_the_facts_of_the_run(facts: Facts) -> None:
    text = text_of(facts)
    for fact in (
        "720 images of 4 classes (glioma: 180, meningioma: 180, no tumour: 180, pituitary: 180)",
        "1 further file that could not be read",
        "training (480 images of 160 groups), validation (120 images of 40 groups) and test (120 images of 40 groups)",
        "resized to 32 x 32 pixels",
        "4 layers, 96 channels, 4 attention heads and patches of 8 x 8 pixels",
        "5,500,000 parameters, of which 5,400,000 were trained",
        "a gate for each channel that started at 0",
        "AdamW (Loshchilov and Hutter, 2019), a batch size of 16",
        "Training stopped early once the validation loss had not improved for 8 epochs. Training ran for 5 epochs.",
        "rose linearly to 0.001 in the first 5% of the steps",
        "The weights of epoch 3, with the lowest validation loss, were tested.",
        "The test images were used neither for training nor for a choice.",
        "came from a bootstrap (1000 resamples of the groups) on the logit scale",
        "rsattn 0.9.0, PyTorch 2.9.0 and Python 3.12.1 (Paszke et al., 2019, for PyTorch), on CPU, 2 threads (x86_64)",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": None}, "without regard to the patient"),
        ({"groups": "phash"}, "perceptual hashes of 144 bits that differed in at most 12"),
        ({"groups": "patient"}, "grouped by the PatientID of their DICOM files"),
        ({"groups": "folder"}, "grouped by the subfolders of the class folders"),
        ({"window": (40.0, 400.0)}, "Values from -160 to 240 became gray levels from 0 to 255. Images were converted"),
        ({"folds": 5, "fold": 1, "split_seed": 3}, "fold 2 of 5 of a cross-validation"),
        ({"data": None}, "handwritten digits"),
        ({"resize": "pad"}, "padding with black"),
        ({"augment": "none"}, "were not augmented"),
        ({"augment": "rotate"}, "except rotation, which was always applied"),
        ({"model": "cnn"}, "3 stages (3 x 3 convolution"),
        ({"model": "resnet18"}, "ResNet-18 (He et al., 2016)"),
        ({"model": "deit_tiny_patch16_224"}, "deit_tiny_patch16_224, as implemented in timm (Wightman, 2019)"),
        ({"norm": "confidence"}, "mean over the queries"),
        ({"scope": "batch"}, "chosen for each batch"),
        ({"merge": "slot"}, "in the channels of this head only"),
        ({"full_width": True}, "4 newly initialized heads as wide as the tokens"),
        ({"freeze": True}, "Only the classifier was trained."),
        ({"freeze": True}, "and was not trained"),
        ({"weights": "pretrained"}, "were pretrained (B_16_imagenet1k of pytorch_pretrained_vit)"),
        ({"weights": "pretrained", "model": "alexnet"}, "the default weights of torchvision"),
        ({"head_first": True}, "logistic regression"),
        ({"class_weights": True}, "classes weighted by the inverse"),
        ({"label_smoothing": 0.1}, "with label smoothing of 0.1"),
        ({"precision": "bf16-mixed"}, "bfloat16 mixed precision"),
        ({"warm_up": 0.0}, "started at 0.001"),
        ({"restarts": (2, 4)}, "repeated after epoch 2 and 4"),
        ({"lr_auto": True}, "Of 3 peak rates, this one had the lowest validation loss."),
        ({"layer_decay": 0.75}, "0.75 times that of the layer above"),
        ({"gate_rate": 0.02}, "learning rate of the gates was 0.02"),
        ({"drop_path": 0.2}, "rose to 0.2 in the last one"),
        ({"dropout": 0.3}, "ropout was 0.3"),
        ({"clip": 1.0}, "clipped to a norm of 1"),
        ({"keep": "last"}, "The weights after the last epoch were tested."),
    ],
)
def test_an_option_changes_the_paragraph(facts: Facts, changes: dict[str, Any], said: str) -> None:
    assert said in text_of(replace(facts, options=replace(facts.options, **changes)))
    assert said not in text_of(facts)


def test_layers_that_are_not_trained_drop_nothing(facts: Facts) -> None:
    frozen = replace(facts, options=replace(facts.options, freeze=True, dropout=0.3))
    assert "ropout" not in text_of(frozen)


def test_an_option_without_effect_on_the_model_is_not_told(facts: Facts) -> None:
    asked = replace(facts.options, layer_decay=0.75, drop_path=0.2)
    ignored = {**facts.metrics, "model": {**facts.metrics["model"], "ignored": ["layer_decay", "drop_path"]}}
    text = text_of(replace(facts, options=asked, metrics=ignored))
    assert "0.75" not in text
    assert "skipped at random" not in text


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (["test", "val"], "The validation and test splits were drawn at random, stratified by class (seed 0)."),
        (["val"], "The test split was given with the data; the validation split was drawn at random"),
        ([], "The validation and test splits were given with the data."),
    ],
)
def test_the_paragraph_tells_drawn_splits_from_given_ones(facts: Facts, drawn: list[str], said: str) -> None:
    assert said in text_of(replace(facts, data={**facts.data, "drawn": drawn}))


def test_a_run_that_stopped_early_is_told_from_one_that_did_not(facts: Facts) -> None:
    stopped = {**facts.metrics, "stopped": "early stopping"}
    assert "Training ran for 5 epochs of at most 30." in text_of(replace(facts, metrics=stopped))
    patient = replace(facts, options=replace(facts.options, patience=0))
    assert "stopped early" not in text_of(patient)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("cnn", "rsattn 1, PyTorch 2, Lightning 3, TorchMetrics 7, scikit-learn 8, SciPy 9, NumPy 10 and Python 11"),
        ("resvit", "Lightning 3, pytorch_pretrained_vit 6, TorchMetrics 7"),
        ("alexnet", "Lightning 3, torchvision 5, TorchMetrics 7"),
        ("vit_tiny_patch16_224", "Lightning 3, timm 4, TorchMetrics 7"),
    ],
)
def test_the_software_is_that_of_the_model(facts: Facts, model: str, said: str) -> None:
    packages = ("rsattn", "torch", "lightning", "timm", "torchvision", "pytorch_pretrained_vit", "torchmetrics")
    every = dict(zip((*packages, "scikit-learn", "scipy", "numpy", "python"), map(str, range(1, 12))))
    options = replace(facts.options, model=model)
    assert said in text_of(replace(facts, options=options, metrics={**facts.metrics, "versions": every}))


def test_a_temperature_is_told_where_one_was_fitted(facts: Facts) -> None:
    fitted = {**facts.metrics, "calibration": {**facts.metrics["calibration"], "temperature": 1.7}}
    assert "(temperature 1.7)" in text_of(replace(facts, metrics=fitted))
    assert "temperature" not in text_of(facts)


def test_the_paragraph_names_no_folders(facts: Facts) -> None:
    asked = replace(facts.options, weights="/data/secret/weights.pt", groups="/data/secret/patients.csv")
    text = text_of(replace(facts, options=asked))
    assert "weights.pt" in text
    assert "secret" not in text


def test_every_citation_has_a_reference(facts: Facts) -> None:
    """And every reference can be cited."""
    every = [
        {"head_first": True, "label_smoothing": 0.1, "layer_decay": 0.75, "drop_path": 0.2},
        *({"model": model} for model in ("resnet18", "alexnet", "vit_tiny_patch16_224")),
    ]
    fitted = {**facts.metrics, "calibration": {**facts.metrics["calibration"], "temperature": 1.7}}
    used: set[str] = set()
    for changes in every:
        text = text_of(replace(facts, options=replace(facts.options, **changes), metrics=fitted))
        found = set(CITATION.findall(text))
        assert found <= set(REFERENCES)
        assert cited(text) == [REFERENCES[key] for key in sorted(found)]
        used |= found
    assert used == set(REFERENCES)


def test_references_follow_the_text() -> None:
    assert with_references("It was rotated.") == "It was rotated."
    text = with_references("Scaled (Guo et al., 2017).")
    assert text == f"Scaled (Guo et al., 2017).\n\nReferences\n{REFERENCES['Guo et al., 2017']}"


def test_a_run_writes_its_methods_groups_and_splits(make_options: MakeOptions, console: Console) -> None:
    options = make_options(layer_decay=0.5, drop_path=0.1, epochs=1)
    run(options, console)
    folder = RunFolder(Path(options.out))
    facts = facts_of(folder.path)
    metrics, data = facts.metrics, facts.data
    assert data["drawn"] == ["test", "val"]
    assert metrics["groups"] == data["groups"]
    assert {split: one["classes"] for split, one in metrics["splits"].items()} == data["counts"]
    assert metrics["model"]["normalize"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert metrics["model"]["ignored"] == ["drop_path"]  # the ViT of pytorch_pretrained_vit has none
    assert metrics["methods"] == with_references(text_of(facts))
    assert "0.5 times that of the layer above" in metrics["methods"]
    assert "across: 30, down: 30" in metrics["methods"]
    assert data["checksums"]["images"] in metrics["methods"]
    assert "What only you can answer" in folder.report.read_text()


def test_resamples_that_an_older_run_did_not_record_are_left_out(facts: Facts) -> None:
    intervals = {key: value for key, value in facts.metrics["intervals"].items() if key != "resamples"}
    older = replace(facts, metrics={**facts.metrics, "intervals": intervals})
    assert "came from a bootstrap (groups) on the logit scale" in text_of(older)

"""The parts of the Lightning module: freezing, and a validation that counts each image once."""

from __future__ import annotations

import pytest
import torch
from runs import MakeOptions
from torch.nn import functional

from rsattn.finetune.classifier import Classifier, _first_of_each, freeze
from rsattn.finetune.models import build


def test_a_frozen_model_trains_its_classifier_only(make_options: MakeOptions) -> None:
    built = build(make_options(), 3)
    freeze(built.model, built.classifier)
    assert {name for name, p in built.model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_a_frozen_model_with_fresh_heads_trains_them_too(make_options: MakeOptions) -> None:
    built = build(make_options(full_width=True), 3)
    freeze(built.model, built.classifier)
    trained = {name for name, p in built.model.named_parameters() if p.requires_grad}
    assert "transformer.blocks.0.attn.qkv.weight" in trained
    assert "transformer.blocks.0.pwff.fc1.weight" not in trained


def test_an_image_that_two_processes_have_is_counted_once(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options()
    classifier = Classifier(options, ("a", "b"), build(options, 2))
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(classifier, "log_dict", lambda values, **_: logged.update(values))
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    labels, indices = torch.tensor([0, 1, 1]), torch.tensor([4, 9, 6])
    padded = torch.tensor([0, 1, 2, 1])  # DistributedSampler fills up with images it has given already
    monkeypatch.setattr(classifier, "all_gather", lambda values: values.view(2, 2, *values.shape[1:]))
    classifier._seen = [(logits[padded], labels[padded], indices[padded])]
    classifier.on_validation_epoch_end()
    assert float(logged["val_loss"]) == pytest.approx(float(functional.cross_entropy(logits, labels)))
    assert float(logged["val_accuracy"]) == pytest.approx(2 / 3)
    assert float(logged["val_f1"]) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_first_of_each_finds_the_distinct_numbers() -> None:
    distinct, first = _first_of_each(torch.tensor([5, 3, 5, 1, 3]))
    assert distinct.tolist() == [1, 3, 5]
    assert first.tolist() == [3, 1, 0]

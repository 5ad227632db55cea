"""The learning rate of each layer, and weight decay."""

from __future__ import annotations

import pytest
import torch
from runs import MakeOptions
from torch import nn

from rsattn.finetune.classifier import freeze, fresh_attention
from rsattn.finetune.models import build
from rsattn.finetune.optimizer import adamw, has_layers

TIMM = "vit_tiny_patch16_224"


def of_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Name of a parameter -> its learning rate and its weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (
            "resvit",
            {
                "patch_embedding.weight": 0,
                "transformer.blocks.0.pwff.fc1.weight": 1,
                "transformer.blocks.3.proj.weight": 4,
                "norm.weight": 5,
                "fc.weight": 5,
            },
        ),
        (
            TIMM,
            {
                "patch_embed.proj.weight": 0,
                "blocks.0.attn.qkv.weight": 1,
                "blocks.11.mlp.fc1.bias": 12,
                "head.weight": 13,
            },
        ),
    ],
)
def test_every_layer_learns_at_a_share_of_the_rate_of_the_layer_above(
    name: str, layers: dict[str, int], make_options: MakeOptions
) -> None:
    options = make_options(model=name, image_size=32, layer_decay=0.5, learning_rate=1e-2, recipe="finetune")
    model = build(options, 2).model
    rates = of_parameters(model, adamw(model, options, ()))
    assert set(rates) == {name for name, _ in model.named_parameters()}
    top = max(layers.values())
    for parameter, layer in layers.items():
        assert rates[parameter][0] == pytest.approx(1e-2 * 0.5 ** (top - layer)), parameter


def test_without_a_decay_of_layers_all_learn_at_one_rate(make_options: MakeOptions) -> None:
    options = make_options(learning_rate=1e-2)
    model = build(options, 2).model
    assert {rate for rate, _ in of_parameters(model, adamw(model, options, ())).values()} == {1e-2}


@pytest.mark.parametrize("name", ["resvit", TIMM])
def test_only_matrices_decay_and_no_embedding_of_positions_or_classes(name: str, make_options: MakeOptions) -> None:
    options = make_options(model=name, image_size=32, recipe="finetune", init_values=0.0, patch=name == TIMM)
    model = build(options, 2).model
    decays = {name: decay for name, (_, decay) in of_parameters(model, adamw(model, options, ())).items()}
    spared = {"class_token", "positional_embedding.pos_embedding", "cls_token", "pos_embed"}
    for parameter, value in model.named_parameters():
        plain = value.dim() == 1 or parameter in spared
        assert decays[parameter] == (0.0 if plain else 0.05), parameter
    assert len(spared & set(decays)) == 2


def test_a_run_from_before_there_were_recipes_has_the_groups_that_its_checkpoint_has(make_options: MakeOptions) -> None:
    options = make_options()
    model = build(options, 2).model
    groups = adamw(model, options, ()).param_groups
    matrices = [id(parameter) for parameter in model.parameters() if parameter.dim() > 1]
    others = [id(parameter) for parameter in model.parameters() if parameter.dim() <= 1]
    assert [[id(parameter) for parameter in group["params"]] for group in groups] == [matrices, others]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert id(dict(model.named_parameters())["class_token"]) in matrices


def test_fresh_attention_learns_at_the_full_rate_in_every_layer(make_options: MakeOptions) -> None:
    options = make_options(full_width=True, layer_decay=0.5, learning_rate=1e-2)
    model = build(options, 2).model
    fresh = fresh_attention(model)
    assert len(fresh) == 4
    rates = of_parameters(model, adamw(model, options, fresh))
    inside = {id(parameter) for module in fresh for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in inside:
            assert rates[name][0] == 1e-2, name
    assert rates["transformer.blocks.0.pwff.fc1.weight"][0] == pytest.approx(1e-2 * 0.5**4)


def test_frozen_parameters_are_in_no_group(make_options: MakeOptions) -> None:
    options = make_options(layer_decay=0.5)
    built = build(options, 2)
    freeze(built.model, built.classifier)
    assert set(of_parameters(built.model, adamw(built.model, options, ()))) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("name", "known"), [("vit", True), (TIMM, True), ("cnn", False), ("resnet18", False)])
def test_which_models_tell_their_layers(name: str, known: bool, make_options: MakeOptions) -> None:
    assert has_layers(build(make_options(model=name, image_size=32), 2).model) is known


@pytest.mark.parametrize(("strategy", "fused"), [("auto", True), ("fsdp", None)])
def test_the_update_is_one_operation_on_a_cpu(strategy: str, fused: bool | None, make_options: MakeOptions) -> None:
    options = make_options(model="resvit", strategy=strategy)
    optimizer = adamw(build(options, 2).model, options, ())
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    # else Lightning refuses to clip in bf16-mixed and 16-mixed
    assert not optimizer._step_supports_amp_scaling

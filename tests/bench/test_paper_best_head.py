"""The analysis of the best head in a pretrained model, compared with a direct computation."""

import json

import pytest
import timm
import torch
from paper_modules import of_the_experiment

import rsattn

best_head, figure, experiment = (of_the_experiment(name) for name in ("best_head", "best_head_figure", "experiment"))


def plain_vit():
    torch.manual_seed(0)
    shape = dict(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)
    model = timm.models.vision_transformer.VisionTransformer(**shape).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


IMAGES = torch.randn(30, 3, 24, 24, generator=torch.Generator().manual_seed(1))  # two batches


def test_what_is_observed_is_what_eager_attention_computes():
    model = plain_vit()
    given = []
    hooks = [block.attn.register_forward_pre_hook(lambda module, x: given.append(x[0])) for block in model.blocks]
    with torch.inference_mode():
        before = model(IMAGES)
        for hook in hooks:
            hook.remove()
        with rsattn.patch(model, init_values=0.0):
            blocks = best_head.observe(model, IMAGES)
            torch.testing.assert_close(model(IMAGES), before)  # the gates are zero
        assert not any(module._forward_hooks for module in model.modules())
        for x, block, seen in zip(given, model.blocks, blocks):
            query, key, value = block.attn.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            probabilities = (query @ key.mT / 8**0.5).softmax(-1)
            output = probabilities @ value
            mean = output.mean(2)
            want = best_head.Block(
                best_head=probabilities.sum(2).amax(-1).argmax(1),
                received=probabilities.sum(2),
                value=value.norm(dim=-1),
                output=output.norm(dim=-1),
                centered=(output - mean[:, :, None]).square().sum((2, 3)).sqrt(),
                cosine=(mean * value[:, :, 0]).sum(-1) / (mean.norm(dim=-1) * value[:, :, 0].norm(dim=-1)),
                projected=block.attn.proj(output.transpose(1, 2).flatten(2)).norm(dim=-1),
            )
            for name, tensor in vars(want).items():
                torch.testing.assert_close(getattr(seen, name), tensor, atol=1e-4, rtol=1e-4)


def test_the_ratio_is_that_of_what_the_residual_adds():
    """Without a gate: the sum minus what was projected."""
    model = plain_vit()
    with rsattn.patch(model, init_values=0.0):
        block = best_head.observe(model, IMAGES)[0]
    projected, joined = [], []
    with rsattn.patch(model, init_values=None), torch.inference_mode():
        model.blocks[0].attn.proj.register_forward_hook(lambda module, x, made: projected.append(made.clone()))
        model.blocks[0].attn.register_forward_hook(lambda module, x, made: joined.append(made))
        model(IMAGES)
    ratio = ((joined[0] - projected[0]).norm(dim=-1) / projected[0].norm(dim=-1)).quantile(0.5)
    found = best_head.numbers(block, block.best_head, block.best_head)["added_over_projected"]
    assert found == pytest.approx(float(ratio), rel=1e-3)


def by_hand():
    """Two images, two heads, three tokens."""
    return best_head.Block(
        best_head=torch.tensor([0, 0]),
        received=torch.tensor([[[2.0, 0.5, 0.5], [0.5, 1.5, 1.0]], [[0.0, 1.0, 2.0], [2.5, 0.5, 0.0]]]),
        value=torch.tensor([[[1.0, 2.0, 4.0], [3.0, 1.0, 1.0]], [[2.0, 2.0, 2.0], [1.0, 1.0, 9.0]]]),
        output=torch.tensor([[[1.0, 2.0, 2.0], [1.0, 1.0, 1.0]], [[3.0, 0.0, 4.0], [2.0, 2.0, 2.0]]]),
        centered=torch.tensor([[1.5, 0.0], [4.0, 3.0]]),
        cosine=torch.tensor([[0.2, 0.9], [0.4, -0.5]]),
        projected=torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]]),
    )


def test_numbers_of_one_choice():
    found = best_head.numbers(by_hand(), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert found == {
        "class_token_most_attended": 0.5,
        "most_attended_receives_mean": 2.0,
        "most_attended_receives_max": 2.0,
        "class_value_over_median_patch_value": pytest.approx((1 / 3 + 1) / 2, abs=1e-4),
        "same_for_all_tokens": pytest.approx((1 - 2.25 / 9 + 1 - 16 / 25) / 2, abs=1e-4),
        "cosine_with_class_value": 0.3,
        # Lengths 1, 1, 1/2 and 3, 0, 2 of the projected, times the root of 2 heads.
        "added_over_projected": pytest.approx(2**0.5, abs=1e-3),
        "most_frequent_head": 0,
        "most_frequent_head_share": 1.0,
        "same_head_as_induced": 0.5,
    }


def test_numbers_of_all_heads():
    found = best_head.numbers(by_hand(), None, torch.tensor([0, 0]))
    assert found["class_token_most_attended"] == 0.5
    assert found["most_attended_receives_mean"] == 2.0
    assert found["most_attended_receives_max"] == 2.5
    assert "most_frequent_head" not in found


def test_each_rule_chooses_by_its_own_measure():
    heads = best_head.chosen(by_hand(), 1)
    assert heads["patches"].tolist() == [1, 0]
    assert heads["value-weighted"].tolist() == [0, 0]  # 2, 1.5 and 4, 2.5
    assert heads["centered"].tolist() == [0, 0]
    assert best_head.chosen(by_hand(), 2)["patches"].tolist() == [1, 0]


def test_every_choice_is_measured_in_every_block():
    model = plain_vit()
    found = best_head.measure(model, IMAGES)
    choices = ["induced", "entrywise", "confidence", "patches", "value-weighted", "centered", "all heads"]
    assert list(found) == choices
    assert {len(blocks) for blocks in found.values()} == {2}
    with rsattn.patch(model, init_values=0.0):  # with any other gate, block 1 would see what block 0 added
        blocks = best_head.observe(model, IMAGES)
    assert found["induced"] == [best_head.numbers(block, block.best_head, block.best_head) for block in blocks]
    assert [of["same_head_as_induced"] for of in found["induced"]] == [1.0, 1.0]
    assert [of["most_frequent_head"] for of in found["entrywise"]] == [0, 0]  # every head ties
    with rsattn.patch(model, norm="confidence"), torch.inference_mode(), rsattn.record(model) as record:
        model(IMAGES)
    for heads, of in zip(record.best_head, found["confidence"]):
        assert of["most_frequent_head_share"] == pytest.approx(float(heads.bincount().max()) / 30, abs=1e-4)


def test_images_are_spread_over_the_whole_set():
    assert best_head.evenly(4, 10) == [0, 2, 5, 7]
    assert len(set(best_head.evenly(120, 253))) == 120


def test_the_figure_shows_the_numbers_of_the_result_file():
    content = json.loads((experiment.RESULTS / "best_head.json").read_text())
    blocks = content["blocks"]
    assert {len(of) for of in blocks.values()} == {12}
    *panels, last = figure.draw(blocks).axes
    assert len(panels) == len(figure.PANELS)
    for axes, name in zip(panels, figure.PANELS):
        shown = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 12]
        assert shown == [[of[name] for of in blocks[choice]] for choice in ("all heads", "induced")]
        low, high = axes.get_ylim()
        assert all(low <= number <= high for numbers in shown for number in numbers)
    assert [bar.get_height() for bar in last.patches] == [of["most_frequent_head_share"] for of in blocks["induced"]]

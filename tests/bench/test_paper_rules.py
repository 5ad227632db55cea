"""The rules that discount attention sinks: their scores, the head that is added, and the gradients."""

import json

import numpy as np
import pytest
import timm
import torch
from paper_modules import of_the_experiment
from PIL import Image
from rich.console import Console

import rsattn
from rsattn.attention import attend
from rsattn.call import Call
from rsattn.finetune.splitting import SplitRow
from rsattn.module import ResidualOptions
from rsattn.recording import residual_modules

ablation, experiment, rules, sets = (of_the_experiment(name) for name in ("ablation", "experiment", "rules", "sets"))

RULES = ("patches", "value-weighted", "centered")

# Head 0 attends to token 0, whose value is short; head 1 attends to patches.
SINK = [[[0.8, 0.1, 0.1]] * 3, [[0.2, 0.6, 0.2], [0.2, 0.2, 0.6], [0.2, 0.6, 0.2]]]
VALUES = [[[0.1, 0, 0], [1, 0, 0], [0, 1, 0]], [[0.5, 0, 0], [0, 2, 0], [0, 0, 1]]]
# Columns of head 0 sum to 2.4, 0.3, 0.3, of head 1 to 0.6, 1.4, 1.0. All rows of head 0's output are alike; those of
# head 1 are (0.1, 1.2, 0.2) twice and (0.1, 0.4, 0.6), around a mean of (0.1, 14/15, 1/3).
BY_HAND = {"patches": [0.3, 1.4], "value-weighted": [0.3, 2.8], "centered": [0.0, (8 / 15) ** 0.5]}


def sink(dtype=torch.float64, requires_grad=False):
    """Query, key and value, (1, 2, 3, 3) each, whose probabilities at scale 1 are `SINK`."""
    inputs = torch.tensor(SINK).log(), torch.eye(3).expand(2, 3, 3), torch.tensor(VALUES)
    return [tensor.to(dtype)[None].clone().requires_grad_(requires_grad) for tensor in inputs]


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_computed_by_hand(rule):
    call = Call(tuple(sink()), scale=1.0)
    output = rsattn.residual_attention(*call.inputs, scale=1.0).output
    found = rules.scores(rule, call, output, prefix_tokens=1)
    torch.testing.assert_close(found.double(), torch.tensor([BY_HAND[rule]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_all_prefix_tokens_are_left_out_and_a_hidden_key_receives_nothing():
    query, key, value = sink()
    two = rules.scores("patches", Call((query, key, value), scale=1.0), value, prefix_tokens=2)
    torch.testing.assert_close(two, torch.tensor([[0.3, 1.0]]), atol=1e-6, rtol=0)
    hidden = Call((query, key, value), torch.tensor([True, False, True]).expand(1, 2, 3, 3), scale=1.0)
    # Without key 1, the last column is 1/9 three times in head 0, and 1/2, 3/4, 1/2 in head 1.
    want = torch.tensor([[1 / 3, 1.75]])
    torch.testing.assert_close(rules.scores("patches", hidden, value, prefix_tokens=1), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_sink_wins_by_the_induced_norm_and_loses_by_the_rule(rule):
    options = ablation.OtherHead(ResidualOptions(), rule, torch.Generator(), prefix_tokens=1)
    attended = attend(options.call(*sink(), scale=1.0), None, linked=True)
    assert attended.result.best_head.tolist() == [0]
    added = options.join(torch.zeros(1, 3, 6, dtype=torch.float64), attended, None)
    torch.testing.assert_close(added, attended.result.output[:, 1].repeat(1, 1, 2))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # PyTorch's gradients, and a kernel's
@pytest.mark.parametrize("rule", RULES)
def test_gradients_flow_through_the_chosen_head_alone(rule, dtype, gated):
    torch.manual_seed(0)
    gamma = torch.randn(6, dtype=dtype, requires_grad=True) if gated else None
    weights = torch.randn(1, 3, 6, dtype=dtype)
    inputs = sink(dtype, requires_grad=True)
    query, key, value = (tensor[:, 1] for tensor in inputs)
    plain = ((query @ key.mT).softmax(-1) @ value).repeat(1, 1, 2) * (1.0 if gamma is None else gamma)
    wanted = [*inputs, *([] if gamma is None else [gamma])]
    want = torch.autograd.grad((plain * weights).sum(), wanted)

    options = ablation.OtherHead(ResidualOptions(), rule, torch.Generator(), prefix_tokens=1)
    attended = attend(options.call(*inputs, scale=1.0), None, linked=True)
    joined = options.join(torch.zeros(1, 3, 6, dtype=dtype), attended, gamma)
    found = torch.autograd.grad((joined * weights).sum(), wanted)
    torch.testing.assert_close(found, want)
    assert all(torch.count_nonzero(gradient[:, 0]) == 0 for gradient in found[:3])
    assert options._call is None  # or it would keep the graph alive


@pytest.mark.parametrize("rule", RULES)
def test_scores_carry_no_gradient(rule):
    query, key, value = sink(requires_grad=True)
    output = (query @ key.mT).softmax(-1) @ value
    assert not rules.scores(rule, Call((query, key, value), scale=1.0), output, 1).requires_grad


class Watched:
    """Records Q, K, V and the added head of one timm attention."""

    def __init__(self, attention, gate):
        self.heads, self.gate = attention.num_heads, gate
        attention.qkv.register_forward_hook(lambda module, given, made: setattr(self, "qkv", made))
        attention.proj.register_forward_hook(self.after_projection)
        attention.register_forward_hook(lambda module, given, made: setattr(self, "joined", made))

    def after_projection(self, module, given, made):
        self.output = given[0].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        self.projected = made.clone()  # the sum may be written to it

    def added(self):
        """(B,): the head whose output is nearest to what was added."""
        added = (self.joined.float() - self.projected.float()) / self.gate
        wide = self.output.float().repeat(1, 1, 1, self.heads)
        distance = (added[:, None] - wide).square().mean((2, 3)) / wide.square().mean((2, 3))
        assert distance.amin(1).max() < 1e-3  # bfloat16 rounds to 0.4 %, twice
        assert distance.sort(1).values[:, 1].min() > 0.1
        return distance.argmin(1).tolist()

    def expected(self, rule, prefix):
        """(B,): by the rule's definition, in float64."""
        qkv = self.qkv.double().unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        probabilities = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        received, output = probabilities.sum(-2), probabilities @ value
        centered = output - output.mean(-2, keepdim=True)
        scores = {
            "patches": received[..., prefix:].amax(-1),
            "value-weighted": (received * value.norm(dim=-1)).amax(-1),
            "centered": centered.square().sum((-2, -1)),
        }
        return scores[rule].argmax(1).tolist()


def vit(**settings):
    """A small timm ViT with random weights, whose attention is sharp enough to distinguish the rules."""
    torch.manual_seed(0)
    shape = dict(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3)
    model = timm.models.vision_transformer.VisionTransformer(**shape, **settings)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


@pytest.mark.parametrize("init_values", [None, 0.5])
@pytest.mark.parametrize("rule", RULES)
def test_a_model_trains_with_the_rules_head_under_bfloat16_autocast(rule, init_values):
    model = vit()
    rsattn.patch(model, init_values=init_values)
    ablation.add_other_head(model, rule, torch.Generator())
    watched = [Watched(block.attn, init_values or 1.0) for block in model.blocks]
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(model.train()(torch.randn(8, 3, 24, 24)), torch.arange(8) % 3)
    loss.backward()
    for block, seen in zip(model.blocks, watched):
        assert seen.output.dtype == torch.bfloat16
        assert seen.added() == seen.expected(rule, prefix=1)
        learned = [block.attn.qkv.weight, *([] if init_values is None else [block.attn.gamma])]
        assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in learned)


def test_the_rules_tell_different_heads_here():
    """Otherwise the test above would show nothing."""
    model = vit().eval()
    watched = Watched(model.blocks[0].attn, 1.0)
    model(torch.randn(8, 3, 24, 24))
    assert len({tuple(watched.expected(rule, 1)) for rule in RULES}) == 3


def test_a_models_own_number_of_prefix_tokens_counts():
    model = vit(reg_tokens=4).eval()
    rsattn.patch(model, init_values=None)
    ablation.add_other_head(model, "patches", torch.Generator())
    watched = Watched(model.blocks[0].attn, 1.0)
    with torch.inference_mode():
        model(torch.randn(16, 3, 24, 24))
    assert watched.added() == watched.expected("patches", prefix=5)
    assert watched.added() != watched.expected("patches", prefix=1)


def test_a_batch_with_one_head_for_all_has_one_by_the_rule_too():
    model = vit().eval()
    rsattn.patch(model, scope="batch", init_values=None)
    ablation.add_other_head(model, "patches", torch.Generator())
    watched = Watched(model.blocks[0].attn, 1.0)
    with torch.inference_mode():
        model(torch.randn(16, 3, 24, 24))
    assert len(set(watched.added())) == 1
    assert len(set(watched.expected("patches", prefix=1))) > 1


@pytest.mark.parametrize("init_values", [None, 0.0])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_trains_and_tests_by_the_rule(rule, init_values, tmp_path, monkeypatch):
    """`load` builds the model anew before testing."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    used = []

    def noted(which, *rest):
        used.append((which, torch.is_grad_enabled()))
        return rules.scores(which, *rest)

    monkeypatch.setattr(ablation, "scores", noted)
    tested = []

    def changed(model, which, generator):
        tested.append(model)
        ablation.add_other_head(model, which, generator)

    monkeypatch.setattr(experiment, "add_other_head", changed)
    rows = []
    for number in range(40):
        label = ("no", "yes")[number % 2]
        (tmp_path / label).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
        rows.append(SplitRow(f"{label}/{number}.png", label, "", str(number)))
    command = "--model vit_tiny_patch16_224 --weights none --image-size 16 --epochs 1 --augment none"
    start = "none" if init_values is None else init_values
    variant = experiment.Variant(rule, ("--patch", f"--init-values={start}"), rule)
    run = experiment.Run("mri", "leak-free", experiment.Study("tiny", tuple(command.split())), variant, 0)
    images = sets.ImageSet("mri", tmp_path, ("no", "yes"), tuple(rows))
    experiment.do(run, images, tmp_path / "none", tmp_path / "work", Console(quiet=True))
    assert len(json.loads(run.file.read_text())["tested"]["correct"]) == 8
    assert set(used) == {(rule, True), (rule, False)}
    last = residual_modules(tested[-1])
    assert {module.options.which for module in last.values()} == {rule}
    assert used[-len(last) :] == [(rule, False)] * len(last)

"""What the best head is in a pretrained ViT that was trained without the residual, block by block.

    python -m bench.paper.best_head DATA --weights FILE [--out DIR]

The gates of the residual are zero, so the model computes what the plain one does. DATA and FILE are those of
`python -m bench.paper` (README.md). Writes results/best_head.json and figures/best_head.png, or both into DIR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rsattn
from rsattn.contract import Norm
from rsattn.recording import residual_modules

from . import best_head_figure, rules, sets
from .experiment import RESULTS, SMALL, machine

FIGURES = Path(__file__).parent / "figures"
IMAGES, SIZE, BATCH = 120, 112, 24
NORMS: tuple[Norm, ...] = ("induced", "entrywise", "confidence")
ALL_HEADS = "all heads"

Numbers = dict[str, float]


@dataclass(frozen=True)
class Block:
    """One block's attention in B images of N tokens each, the class token first.

    Attributes:
        best_head: (B,) int64.
        received: (B, H, N), the attention that each token receives from all of them together.
        value: (B, H, N), the length of each value vector.
        output: (B, H, N), the length of each output vector of each head.
        centered: (B, H), the length of a head's output without its mean over the tokens (`rules.centered`).
        cosine: (B, H), of a head's mean output and the class token's value.
        projected: (B, N), the length of each output vector of the projection, which the residual is added to.
    """

    best_head: Tensor
    received: Tensor
    value: Tensor
    output: Tensor
    centered: Tensor
    cosine: Tensor
    projected: Tensor


class Lengths:
    """The lengths of `Block`, of one of timm's attentions, from hooks on its two linear layers."""

    def __init__(self, attention: Any) -> None:
        self.heads: int = attention.num_heads
        self.noted: list[dict[str, Tensor]] = []
        self.hooks = (
            attention.qkv.register_forward_hook(self._after_qkv),
            attention.proj.register_forward_hook(self._after_projection),
        )

    def _after_qkv(self, module: nn.Module, inputs: tuple[Tensor], qkv: Tensor) -> None:
        value = self._by_head(qkv.chunk(3, dim=-1)[2])
        self.class_value = value[:, :, 0]
        self.noted.append({"value": rules.lengths(value)})

    def _after_projection(self, module: nn.Module, inputs: tuple[Tensor], projected: Tensor) -> None:
        output = self._by_head(inputs[0])
        self.noted[-1] |= {
            "output": rules.lengths(output),
            "centered": rules.centered(output),
            "cosine": nn.functional.cosine_similarity(output.mean(2), self.class_value, dim=-1),
            "projected": rules.lengths(projected),
        }

    def _by_head(self, joined: Tensor) -> Tensor:
        """(B, N, H*E) -> (B, H, N, E)."""
        return joined.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@torch.inference_mode()
def observe(model: nn.Module, images: Tensor) -> list[Block]:
    """Every block of `model`, a patched ViT of timm's, in one pass over `images` (B, 3, S, S)."""
    measured = [Lengths(module) for module in residual_modules(model).values()]
    with rsattn.record(model, received=True) as record:
        for batch in images.split(BATCH):
            model(batch)
    blocks = []
    for best_head, received, lengths in zip(record.best_head, record.received, measured):
        for hook in lengths.hooks:
            hook.remove()
        joined = {name: torch.cat([noted[name] for noted in lengths.noted]) for name in lengths.noted[0]}
        blocks.append(Block(best_head, received, **joined))
    return blocks


def chosen(block: Block, prefix_tokens: int) -> dict[str, Tensor]:
    """(B,) int64: the head that each rule of rules.py chooses."""
    scores = {
        "patches": rules.over_patches(block.received, prefix_tokens),
        "value-weighted": rules.value_weighted(block.received, block.value),
        "centered": block.centered,
    }
    return {rule: of.argmax(1) for rule, of in scores.items()}


def numbers(block: Block, heads: Tensor | None, induced: Tensor) -> Numbers:
    """What would be added if one head were chosen in each image.

    Args:
        heads: (B,), the heads chosen; None: all heads, counted alike.
        induced: (B,), the best heads by the induced norm.

    Returns:
        class_token_most_attended: the share of images (and heads) where no token receives more attention.
        most_attended_receives_mean, _max: over images, the attention which that token receives, in queries.
        class_value_over_median_patch_value: the ratio of their value vectors' lengths, median over images.
        same_for_all_tokens: the share of the output's squared length that its mean over tokens has, median.
        cosine_with_class_value: of that mean and the class token's value, median over images.
        added_over_projected: length of the tiled output over that of the projected one, median over images and tokens.
        most_frequent_head, _share: the head chosen in most images, and their share.
        same_head_as_induced: the share of images in which the induced norm has the same best head.
    """
    images, count, _tokens = block.value.shape
    picked = torch.ones(images, count, dtype=torch.bool)
    if heads is not None:
        picked = nn.functional.one_hot(heads, count).bool()
    received, value, output = block.received[picked], block.value[picked], block.output[picked]
    projected = block.projected[:, None].expand(-1, count, -1)[picked]
    same = 1 - block.centered[picked].square() / output.square().sum(1)
    # "tile" repeats the E channels D / E = H times, which makes the vector sqrt(H) times as long.
    added = count**0.5 * output / projected
    found = {
        "class_token_most_attended": (received.argmax(1) == 0).double().mean(),
        "most_attended_receives_mean": received.amax(1).mean(),
        "most_attended_receives_max": received.amax(),
        "class_value_over_median_patch_value": _median(value[:, 0] / value[:, 1:].quantile(0.5, dim=1)),
        "same_for_all_tokens": _median(same),
        "cosine_with_class_value": _median(block.cosine[picked]),
        "added_over_projected": _median(added),
    }
    if heads is not None:
        shares = picked.double().mean(0)
        found |= {
            "most_frequent_head": shares.argmax(),
            "most_frequent_head_share": shares.amax(),
            "same_head_as_induced": (heads == induced).double().mean(),
        }
    return {name: number.item() if number.dtype == torch.int64 else _rounded(number) for name, number in found.items()}


def _rounded(number: Tensor) -> float:
    return float(f"{float(number):.4g}")


def _median(values: Tensor) -> Tensor:
    return values.flatten().quantile(0.5)


def measure(model: Any, images: Tensor) -> dict[str, list[Numbers]]:
    """Choice of the head -> the numbers of every block of `model`, a plain ViT of timm's."""
    by_norm: dict[str, list[Block]] = {}
    for norm in NORMS:
        with rsattn.patch(model, norm=norm, init_values=0.0):
            by_norm[norm] = observe(model, images)
    heads = {norm: [block.best_head for block in blocks] for norm, blocks in by_norm.items()}
    blocks, induced = by_norm["induced"], heads["induced"]
    by_rule = [chosen(block, model.num_prefix_tokens) for block in blocks]
    heads |= {rule: [of[rule] for of in by_rule] for rule in by_rule[0]}
    found = {choice: [numbers(*of) for of in zip(blocks, picked, induced)] for choice, picked in heads.items()}
    return found | {ALL_HEADS: [numbers(block, None, best) for block, best in zip(blocks, induced)]}


def pretrained(weights: Path) -> Any:
    """The plain model of the experiment, without a classifier."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    model: Any = timm.create_model(SMALL, img_size=SIZE, num_classes=0)
    model.load_state_dict(checkpoint_filter_fn(torch.load(weights, weights_only=True), model))
    return model.eval()


def read(source: sets.ImageSet, config: dict[str, Any]) -> Tensor:
    """(B, 3, S, S): images of the set, the same ones every time, as a model of timm's with that config takes them."""
    from PIL import Image

    images = []
    for index in evenly(IMAGES, len(source.rows)):
        with Image.open(source.root / source.rows[index].file) as image:
            pixels = np.array(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
        images.append(torch.from_numpy(pixels / 255.0).permute(2, 0, 1))
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (torch.stack(images) - mean) / std


def evenly(count: int, total: int) -> list[int]:
    """`count` of the indices below `total`, the same distance apart."""
    return [number * total // count for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper.best_head", description="What the best head is.")
    parser.add_argument("data", type=Path, help="folder of the images and their tables (README.md)")
    parser.add_argument("--weights", type=Path, required=True, help="file of `python -m bench.paper.weights`")
    parser.add_argument("--out", type=Path, help="folder of both files (default: where the repository has them)")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"{given.data}: no such folder")
    model = pretrained(given.weights)
    with tempfile.TemporaryDirectory() as work:
        images = read(sets.mri(given.data, Path(work)), model.pretrained_cfg)
    settings = {"model": SMALL, "image_size": SIZE, "set": "mri", "images": IMAGES, "init_values": 0.0, "merge": "tile"}
    settings |= {"precision": str(images.dtype).removeprefix("torch.")}
    blocks = measure(model, images)
    content = {"settings": settings, "machine": machine(), "blocks": blocks}
    results, figures = (given.out, given.out) if given.out else (RESULTS, FIGURES)
    for folder in (results, figures):
        folder.mkdir(parents=True, exist_ok=True)
    (results / "best_head.json").write_text(json.dumps(content, indent=1) + "\n")
    best_head_figure.draw(blocks).savefig(figures / "best_head.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()

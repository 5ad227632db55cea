"""`python -m bench.cpu_training`: a training step of ViT-S/14 on a CPU in bfloat16, as `rsattn finetune` computes it.

Times the two choices of `rsattn.finetune` for a CPU against PyTorch's defaults: attention by matrix products
(cpu_attention.py) against the fused kernel, and AdamW's update as one operation (optimizer.py) against several.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import timm
import torch
from torch.nn import functional

from .clock import Variant, interleave, timer

PATCH, IMAGES = 14, 16
VARIANTS = {  # fused attention, update as one operation
    "PyTorch's defaults": (True, None),
    "update as one operation": (True, True),
    "matrix products": (False, None),
    "both": (False, True),
}


def step(side: int, fused_attention: bool, one_operation: bool | None) -> Callable[[int], object]:
    """A forward and a backward pass, and AdamW's update."""
    timm.layers.set_fused_attn(fused_attention)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=side, num_classes=4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=one_operation)
    images, labels = torch.randn(IMAGES, 3, side, side), torch.randint(4, (IMAGES,))

    def train(_: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[112, 224, 448], help="of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each side")
    given = parser.parse_args()
    cpu = torch.device("cpu")
    for side in given.sides:
        made = {name: timer(Variant(step(side, *choice)), cpu, 1) for name, choice in VARIANTS.items()}
        for one in made.values():
            one.seconds()  # creates the moments
        times = {name: median(each) for name, each in interleave(made, 1, given.seconds).items()}
        slowest = times["PyTorch's defaults"]
        print(f"{side} pixels, {1 + (side // PATCH) ** 2} tokens, {torch.get_num_threads()} threads:")
        for name, seconds in times.items():
            print(f"  {name:24} {1000 * seconds:7.0f} ms  {slowest / seconds:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()

"""The training recipes: the settings that `--recipe` chooses, and their sources.

The command line can override each setting. docs/fine-tuning.md gives the reason for each number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The training options that a recipe sets, under the names of `Options`.

    Attributes:
        text: the description in `--help`.
        learning_rate: None stands for `default_rate` of the model and its weights.
        dropout: for the ViT of pytorch_pretrained_vit, whose own default is 0.1.
        precision: "auto" is bfloat16 where the device supports it natively, else float32.
        residual: settings of residual attention that the recipe fixes: norm, scope, full_width.
    """

    text: str
    epochs: int
    least_steps: int = 0
    patience: int = 0
    keep: str = "last"
    batch_size: int = 16
    learning_rate: float | None = None
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.0
    dropout: float = 0.1
    warm_up: float = 0.1
    clip: float = 1.0
    label_smoothing: float = 0.1
    augment: str = "small"
    head_first: bool = False
    freeze: bool = False
    precision: str = "32-true"
    residual: tuple[tuple[str, object], ...] = ()


RECIPES = {
    # The classifier first: Kumar et al. 2022 (LP-FT, arXiv 2202.10054). Layer decay, drop path, warm-up and
    # smoothing: Bao et al. 2022 (BEiT, arXiv 2106.08254), He et al. 2022 (MAE, arXiv 2111.06377); RETFound (Zhou et al.
    # 2023) fine-tunes on retinal images with 0.65, 0.2, 10 of 50 epochs and 0.1. Clipping at 1: Steiner et al. 2022
    # (augreg, arXiv 2106.10270).
    "finetune": Recipe(
        "for pretrained weights: fit the classifier to frozen features, then train all layers, the lower ones at lower "
        "learning rates",
        epochs=12,
        least_steps=120,
        layer_decay=0.75,
        drop_path=0.1,
        head_first=True,
        precision="auto",
    ),
    "probe": Recipe(
        "train only the classifier, on features computed once per image",
        epochs=30,
        least_steps=300,
        learning_rate=1e-3,
        label_smoothing=0.0,
        augment="none",
        freeze=True,
        precision="auto",
    ),
    "scratch": Recipe(
        "for random weights: more epochs, and one larger learning rate",
        epochs=60,
        least_steps=300,
        batch_size=32,
        dropout=0.0,
    ),
    "paper": Recipe(
        "as Sharma & Verma describe it, as far as known: newly initialized full-width heads, entrywise "
        "norm, no gate, 20 epochs",
        epochs=20,
        learning_rate=1e-4,
        keep="best",
        warm_up=0.0,
        clip=0.0,
        label_smoothing=0.0,
        residual=(("full_width", True), ("norm", "entrywise"), ("scope", "batch")),
    ),
}


def default_recipe(weights: str, frozen: bool) -> str:
    """The recipe where none is given."""
    if frozen:
        return "probe"
    return "scratch" if weights == "none" else "finetune"

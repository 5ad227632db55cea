"""Compare an exported model with the trained one, and with the predictions that the run reports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ..cli.command import CommandError, why
from ..cli.terminal import tracked
from .cells import from_cell
from .loading import TrainedModel
from .program import Run
from .run_folder import RunFolder
from .splits import Splits
from .wording import counted

# The same float32 operations in other kernels: their sums of up to some thousand terms have another order. Measured on
# twelve models, ONNX and torch.export: at most 1.2e-7.
LARGEST = 1e-4
# The run may have tested on another device or in bfloat16, whose 8 bits round a logit of 8 by up to 1/64 and move a
# probability by up to a quarter of that; in a near tie, the best head may be another one. The mean of such differences
# is small; that of another model or of other images is not.
LARGEST_MEAN = 0.01
MOST_IMAGES = 500
RANDOM = 16  # images


def check(run: Run, trained: TrainedModel, folder: RunFolder, console: Console) -> str:
    """Run the exported model on test images of the run, or on random ones where they are gone.

    Args:
        run: the exported model.
        trained: the model that was exported.

    Returns:
        A line that says what was compared and how large the largest difference is.

    Raises:
        CommandError: the difference is larger than rounding explains.
    """
    side = trained.image_size
    single = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    _refuse((run(single) - _expected(trained, single)).abs().max(), "an image alone")
    try:
        splits = Splits(folder, side, trained.options.resize, trained.options.window)
        made, difference = _on_images(run, trained, splits, console)
    except CommandError as error:
        return _on_random_images(run, trained, str(error))
    of_all = len(splits.indices("test"))
    images = counted(len(made), "test image") if len(made) == of_all else f"{len(made)} of {of_all} test images"
    _refuse(difference, images)
    apart = (made - _predicted(folder, splits, len(made))).abs()
    if apart.mean() > LARGEST_MEAN:
        raise CommandError(
            f"the exported model differs from {folder.predictions} by {float(apart.mean()):.2g} on average (at most "
            f"{LARGEST_MEAN:g} expected), so nothing was kept: the images or the weights changed after the test; "
            f"`rsattn finetune --resume {folder.path}` tests the run again"
        )
    bfloat16 = ", which the run computed in bfloat16" if trained.options.precision == "bf16-mixed" else ""
    return (
        f"checked on {images}: the probabilities differ by at most {float(apart.max()):.1g} from those in "
        f"{folder.predictions.name}{bfloat16}, and by at most {float(difference):.1g} from the model's here"
    )


def _on_images(run: Run, trained: TrainedModel, splits: Splits, console: Console) -> tuple[Tensor, Tensor]:
    """The probabilities (n, classes) of the first test images, and the largest difference from the trained model's.

    The batches are those of the test, for scope="batch".
    """
    images = splits.dataset("test", trained.options)  # not normalized: `splits` has the identity
    made, largest = [], torch.tensor(0.0)
    batch_size = trained.options.batch_size
    total = min(-(-len(images) // batch_size), -(-MOST_IMAGES // batch_size))
    batches = (inputs for _, (inputs, _, _) in zip(range(total), DataLoader(images, batch_size)))
    for inputs in tracked(batches, "checking", console, total):
        made.append(run(inputs))
        largest = torch.maximum(largest, (made[-1] - _expected(trained, inputs)).abs().max())
    return torch.cat(made), largest


def _on_random_images(run: Run, trained: TrainedModel, reason: str) -> str:
    side = trained.image_size
    images = torch.rand(RANDOM, 3, side, side, generator=torch.Generator().manual_seed(0))
    difference = (run(images) - _expected(trained, images)).abs().max()
    _refuse(difference, f"{RANDOM} random images")
    return (
        f"note: not checked on the test images ({reason})\nchecked on {RANDOM} random images: the probabilities differ "
        f"by at most {float(difference):.1g} from the model's here"
    )


@torch.inference_mode()
def _expected(trained: TrainedModel, images: Tensor) -> Tensor:
    """The probabilities (B, classes) of the trained model, on the CPU in float32."""
    return trained.probabilities(trained.model(torch.stack([trained.normalize(image) for image in images])))


def _refuse(difference: Tensor, images: str) -> None:
    if not difference <= LARGEST:  # also NaN
        raise CommandError(
            f"the exported model is wrong, and was not kept: for {images}, its probabilities differ by up to "
            f"{float(difference):.2g} from those of the trained model (at most {LARGEST:g} expected); try the other "
            "--format, and report this with the output of `rsattn info`"
        )


def _predicted(folder: RunFolder, splits: Splits, number: int) -> Tensor:
    """The probabilities (number, classes) of the first test images in predictions.csv."""
    files = [splits.rows[index].file for index in splits.indices("test")]
    try:
        rows = list(_rows(folder.predictions))
        if [from_cell(row["file"]) for row in rows] != files:
            raise ValueError("its images are not those of the test split")
        return torch.tensor([[float(row[f"p_{name}"]) for name in splits.classes] for row in rows[:number]])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CommandError(
            f"{folder.predictions} is damaged: {why(error)}; `rsattn finetune --resume {folder.path}` writes it again"
        ) from None


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.DictReader(file, strict=True)

"""Datasets: the same input for the same seed, epoch and image, in any loader process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from rsattn.cli.command import CommandError
from rsattn.finetune import dataset
from rsattn.finetune.dataset import ImageDataset, Normalize, Store, numbered, squared
from rsattn.finetune.splitting import SplitRow

FILES = [f"across/{number:02}.png" for number in range(6)] + [f"down/{number:02}.png" for number in range(6)]
PLAIN = Normalize((0.0,) * 3, (1.0,) * 3)


def images(root: Path, augment: str = "mirror", seed: int = 0, epoch: int = 0) -> ImageDataset:
    return ImageDataset(Store(root, FILES, 16), range(12), [0] * 6 + [1] * 6, PLAIN, augment, seed, epoch)


def everything(of: ImageDataset, workers: int = 0) -> torch.Tensor:
    return torch.cat([pixels for pixels, _, _ in DataLoader(of, 4, num_workers=workers)])


def test_without_augmentation_pixels_are_the_file_s(stripes: Path) -> None:
    pixels, label, index = images(stripes, "none")[7]
    expected = np.asarray(Image.open(stripes / FILES[7]).convert("RGB")) / 255.0
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected, atol=1e-7)  # one rounding to float32
    assert (label, index) == (1, 7)


@pytest.mark.parametrize("augment", ["small", "flip", "mirror", "rotate"])
def test_random_changes_depend_on_seed_epoch_and_image_only(stripes: Path, augment: str) -> None:
    first = everything(images(stripes, augment, seed=3, epoch=2))
    assert torch.equal(first, everything(images(stripes, augment, seed=3, epoch=2), workers=2))
    alone = images(stripes, augment, seed=3, epoch=2)
    assert torch.equal(alone[9][0], first[9])
    assert not torch.equal(first, everything(images(stripes, augment, seed=3, epoch=3)))
    assert not torch.equal(first, everything(images(stripes, augment, seed=4, epoch=2)))
    assert not torch.equal(first, everything(images(stripes, "none")))
    assert 0.0 <= first.min() <= first.max() <= 1.0


def test_images_are_decoded_once_where_they_fit_and_the_same_where_not(
    stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []
    original = dataset.load_image

    def counting(path: Path, window: object) -> object:
        decoded.append(path)
        return original(path, window)

    monkeypatch.setattr(dataset, "load_image", counting)
    kept = Store(stripes, FILES, 16)
    first = [kept[i].clone() for i in (0, 1, 0, 1)]
    assert len(decoded) == 2
    monkeypatch.setattr(dataset, "KEPT_BYTES", 100)
    anew = Store(stripes, FILES, 16)
    assert all(torch.equal(anew[i], image) for i, image in zip((0, 1, 0, 1), first))
    assert len(decoded) == 6


def test_loader_processes_share_what_they_decode(stripes: Path) -> None:
    of = images(stripes, "none")
    everything(of, workers=2)
    assert of.store._ready.all()


def test_an_image_becomes_square_as_asked() -> None:
    """Left half white, right half red; the middle of the crop is the border between them."""
    wide = Image.new("RGB", (40, 10), "white")
    wide.paste("red", (20, 0, 40, 10))
    for resize in ("squash", "pad", "crop"):
        assert squared(wide, 16, resize).shape == (3, 16, 16)
    green = {resize: squared(wide, 16, resize)[1] for resize in ("squash", "pad", "crop")}
    for resize in ("squash", "crop"):
        assert bool((green[resize][:, :6] == 255).all())
        assert bool((green[resize][:, 10:] == 0).all())
    assert bool((green["pad"][6:10, :6] == 255).all())
    assert bool((green["pad"][[0, 1, 2, 3, 12, 13, 14, 15]] == 0).all())
    red = squared(wide, 16, "pad")[0]
    assert (int(red[8, 12]), int(red[0, 12])) == (255, 0)


def test_normalize_takes_out_mean_and_deviation_per_channel() -> None:
    made = Normalize((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))(torch.full((3, 2, 2), 0.6))
    torch.testing.assert_close(made[:, 0, 0], torch.tensor([1.0, 0.4, 0.15]))


def test_an_image_that_went_away_is_named(stripes: Path) -> None:
    with pytest.raises(CommandError, match=r"gone\.png"):
        Store(stripes, ["gone.png"], 16)[0]


def test_a_label_that_is_no_class_is_named() -> None:
    with pytest.raises(CommandError, match="cat"):
        numbered([SplitRow("a.png", "cat", "train", "0")], ["dog"])

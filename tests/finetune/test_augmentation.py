"""Augmentation: the allowed changes, and what they depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rsattn.finetune.augmentation import AUGMENTATIONS, Augmentation, augmented, described

NONE = Augmentation(turn=0.0, zoom=0.0, shift=0.0, brightness=0.0)
SIDE = 33


def entropy(count: int) -> list[tuple[int, int]]:
    return [(7, number) for number in range(count)]


def spot(row: int, column: int, count: int) -> Tensor:
    """Black images with one soft white spot."""
    places = torch.arange(SIDE)
    distance = (places[:, None] - row) ** 2 + (places - column) ** 2
    return torch.exp(-distance / 4.0).expand(count, 3, SIDE, SIDE).contiguous()


def centers(images: Tensor) -> Tensor:
    """(B, 2): row and column of the center of mass, from the middle."""
    mass = images.mean(1)
    places = torch.arange(SIDE) - SIDE // 2
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(2) * places).sum(1) / total, (mass.sum(1) * places).sum(1) / total], 1)


def test_nothing_changes_where_nothing_may() -> None:
    images = torch.rand(8, 3, SIDE, SIDE)
    torch.testing.assert_close(augmented(images, NONE, entropy(8)), images, atol=1e-5, rtol=0)  # bilinear, on the grid


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images = torch.rand(37, 3, SIDE, SIDE)
    together = augmented(images, AUGMENTATIONS[name], entropy(37))
    for number in (0, 5, 36):
        alone = augmented(images[number : number + 1], AUGMENTATIONS[name], entropy(37)[number : number + 1])
        assert torch.equal(alone[0], together[number])
    assert 0.0 <= together.min() <= together.max() <= 1.0
    assert len({image.sum().item() for image in together}) == 37


def test_rotations_keep_the_distance_to_the_middle_and_go_as_far_as_they_may() -> None:
    for turn, share in ((15.0, 0.5), (180.0, 1.0)):
        found = centers(augmented(spot(16, 21, 400), Augmentation(turn, False, False, 0.0, 0.0, 0.0), entropy(400)))
        angle = torch.rad2deg(torch.atan2(found[:, 0], found[:, 1]))
        assert torch.allclose(found.norm(dim=1), torch.tensor(5.0), atol=0.1)  # pixels; bilinear sampling
        assert 0.9 * turn < angle.abs().max() <= turn + 0.5
        assert abs(float((angle.abs() > 0.1).double().mean()) - share) < 0.08  # 400 draws: 3 standard deviations
        assert abs(float((angle > 0).double().sum() / (angle.abs() > 0.1).sum()) - 0.5) < 0.12


def test_shifts_and_zooms_and_brightness_have_their_limits() -> None:
    moved = centers(augmented(spot(16, 16, 400), Augmentation(0.0, False, False, 0.0, 0.125, 0.0), entropy(400))).abs()
    assert torch.all((moved.amax(0) > 3.8) & (moved.amax(0) < 4.2))  # an eighth of 33 pixels
    zoomed = (
        centers(augmented(spot(16, 24, 400), Augmentation(0.0, False, False, 0.1, 0.0, 0.0), entropy(400)))[:, 1] / 8.0
    )
    assert zoomed.min() == pytest.approx(0.9, abs=0.02)
    assert zoomed.max() == pytest.approx(1.1, abs=0.02)
    gray = torch.full((400, 3, SIDE, SIDE), 0.5)
    bright = augmented(gray, Augmentation(0.0, False, False, 0.0, 0.0, 0.1), entropy(400)).mean((1, 2, 3)) / 0.5
    assert bright.min() == pytest.approx(0.9, abs=0.01)
    assert bright.max() == pytest.approx(1.1, abs=0.01)


@pytest.mark.parametrize("turn", [0.0, 180.0])
def test_mirror_images_come_in_all_four_kinds_and_only_where_asked_for(turn: float) -> None:
    """Two spots distinguish an image from its mirror image at any rotation."""
    images = spot(16, 26, 400) + 0.5 * spot(8, 16, 400)
    for flips in (False, True):
        changed = augmented(images, Augmentation(turn, flips, flips, 0.0, 0.0, 0.0), entropy(400))
        bright = centers((changed > 0.75).float())
        dim = centers(((changed > 0.35) & (changed < 0.55)).float())
        handed = bright[:, 1] * dim[:, 0] - bright[:, 0] * dim[:, 1]
        share = float((handed > 0).double().mean())
        assert abs(share - 0.5) < 0.08 if flips else share in (0.0, 1.0)
    if turn == 0.0:
        kinds = {(bool(b[1] > 0), bool(d[0] > 0)) for b, d in zip(bright, dim)}
        assert len(kinds) == 4


def test_flip_keeps_top_and_bottom() -> None:
    """A spot at the top left comes out at the top left or at the top right, about equally often."""
    only_flips = replace(AUGMENTATIONS["flip"], turn=0.0, zoom=0.0, shift=0.0, brightness=0.0)
    found = centers(augmented(spot(8, 10, 400), only_flips, entropy(400)))
    assert torch.all(found[:, 0] < -7.5)
    assert abs(float((found[:, 1] > 0).double().mean()) - 0.5) < 0.08  # 400 draws: 3 standard deviations


def test_the_safe_augmentation_flips_nothing() -> None:
    assert not AUGMENTATIONS["small"].flip
    assert not AUGMENTATIONS["small"].upend


def test_augmentations_are_described() -> None:
    assert described("none") == "none"
    small = "shift up to 12.5 % of the side, zoom up to 10 %, brightness up to 10 %"
    assert described("small") == f"rotation up to 15 degrees, {small}, no flips"
    assert described("flip") == f"rotation up to 15 degrees, {small}, flips left to right"
    assert described("rotate") == f"rotation by any angle, {small}, flips left to right and top to bottom"


def test_cells_go_on_beyond_the_edge_and_slices_do_not() -> None:
    """Zooming out repeats a column at the edge beyond it, or reflects it."""
    images = torch.zeros(200, 3, SIDE, SIDE)
    images[..., :1] = 1.0
    smeared = augmented(images, Augmentation(0.0, False, False, 0.5, 0.0, 0.0), entropy(200)).amax(0)
    assert smeared[0, SIDE // 2, 3] > 0.9
    reflected = augmented(images, Augmentation(180.0, False, False, 0.0, 0.5, 0.0), entropy(200))
    assert float(reflected[:, 0].mean()) < 0.1

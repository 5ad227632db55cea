"""Groups of images: one per image, by similarity, and from a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from rsattn.cli.command import CommandError
from rsattn.finetune import grouping
from rsattn.finetune.folders import Found, ImageFile, find_images
from rsattn.finetune.grouping import components, group

FILES = ("no/1.png", "no/2.png", "yes/1.png", "yes/2.png")


def listed(root: Path) -> Found:
    """Images that are never opened."""
    images = tuple(ImageFile(file, file.split("/")[0], None) for file in FILES)
    return Found(root, ("no", "yes"), images, ())


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def smooth(seed: int) -> Image.Image:
    """An image without fine detail, so that scaling and saving preserve it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC)


def table(root: Path, *rows: str, encoding: str = "utf-8") -> str:
    path = root / "groups.csv"
    path.write_bytes("".join(f"{row}\n" for row in rows).encode(encoding, errors="surrogateescape"))
    return str(path)


def refusal(root: Path, groups: str) -> str:
    with pytest.raises(CommandError) as caught:
        group(listed(root), groups, quiet())
    return str(caught.value)


def test_without_groups_every_image_is_its_own(tmp_path: Path) -> None:
    assert group(listed(tmp_path), None, quiet()) == (list(FILES), "each image is its own group")


def test_near_identical_images_are_one_group_whatever_their_labels(tmp_path: Path) -> None:
    for label in ("no", "yes"):
        (tmp_path / label).mkdir()
    smooth(0).save(tmp_path / "no" / "1.png")
    smooth(0).save(tmp_path / "no" / "saved again.jpg", quality=60)
    smooth(0).resize((90, 90)).save(tmp_path / "yes" / "smaller.png")
    smooth(0).point(lambda level: 30 + level * 0.7).save(tmp_path / "yes" / "brighter.png")
    smooth(0).crop((2, 2, 158, 158)).save(tmp_path / "yes" / "cropped.png")
    smooth(0).crop((8, 8, 152, 152)).save(tmp_path / "yes" / "nearer.png")  # another view: 32 of the 144 bits differ
    smooth(0).convert("RGB").save(tmp_path / "yes" / "color.png")
    for seed in range(1, 6):
        smooth(seed).save(tmp_path / "yes" / f"{seed}.png")
    found = find_images(tmp_path)
    names, what = group(found, "phash", quiet())
    alike = {
        "no/1.png",
        "no/saved again.jpg",
        "yes/smaller.png",
        "yes/brighter.png",
        "yes/color.png",
        "yes/cropped.png",
    }
    files = [image.file for image in found.images]
    assert names == ["no/1.png" if file in alike else file for file in files]
    assert what == (
        "images that look alike are in one group: 12 images in 7 groups, 1 of them with images of several classes"
    )


def test_comparing_shows_a_bar(tmp_path: Path) -> None:
    for label in ("no", "yes"):
        (tmp_path / label).mkdir()
        smooth(len(label)).save(tmp_path / label / "1.png")
    console = quiet()
    _, what = group(find_images(tmp_path), "phash", console)
    assert "comparing images" in console.file.getvalue()  # type: ignore[attr-defined]
    assert what.endswith("2 images in 2 groups")


def linked_one_by_one(hashes: NDArray[np.uint64], most: int) -> list[int]:
    """The result of `components` from its definition: the smallest index that can be reached."""
    distances = [[sum(int(bits).bit_count() for bits in one ^ other) for other in hashes] for one in hashes]
    first = list(range(len(hashes)))
    for _ in hashes:
        first = [min(first[other] for other, bits in enumerate(row) if bits <= most) for row in distances]
    return first


@pytest.mark.parametrize("most", [0, 10, 13, 16])
def test_components_are_what_links_reach(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Two words with few bits set, so that links, chains and isolated images all occur; blocks of 7 rows."""
    monkeypatch.setattr(grouping, "ROWS", 7)
    bits = np.random.default_rng(most).random((40, 128)) < 0.09
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    hashes[33] = hashes[2]
    expected = linked_one_by_one(hashes, most)
    assert 1 < len(set(expected)) < 40
    assert components(hashes, most).tolist() == expected


def test_a_chain_over_many_blocks_is_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each differs from the next in one bit; the order joins the ends last."""
    monkeypatch.setattr(grouping, "ROWS", 4)
    chain = np.array([[(1 << length) - 1] for length in range(60)], dtype=np.uint64)
    order = np.random.default_rng(0).permutation(60)
    assert components(chain[order], 1).tolist() == [0] * 60
    assert components(chain[order], 0).tolist() == list(range(60))


def test_words_that_differ_in_every_bit_do_not_come_round_to_none() -> None:
    hashes = np.zeros((2, 4), dtype=np.uint64)
    hashes[1] = ~hashes[1]
    assert components(hashes, 255).tolist() == [0, 1]
    assert components(hashes, 256).tolist() == [0, 0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_groups_from_a_file_in_any_order_with_rows_to_spare(tmp_path: Path, encoding: str) -> None:
    rows = ["file,group,note", *(f"{file},patient {file[-5]},x" for file in reversed(FILES)), "other/1.png,p,", ",,x"]
    path = table(tmp_path, *rows, rows[1], "no/1.png,,", encoding=encoding)
    names, what = group(listed(tmp_path), path, quiet())
    assert names == ["patient 1", "patient 2", "patient 1", "patient 2"]
    assert what == (f"the groups are those of {path}: 4 images in 2 groups, 2 of them with images of several classes")


def test_odd_names_are_found_in_a_file(tmp_path: Path) -> None:
    images = tuple(ImageFile(file, "a", None) for file in ("a/\udcff.png", "a/two\r\nlines, one comma.png"))
    path = table(tmp_path, "file,group", "a/\udcff.png,g", '"a/two\r\nlines, one comma.png",h')
    assert group(Found(tmp_path, ("a",), images, ()), path, quiet())[0] == ["g", "h"]


def test_no_such_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "pash") == (
        "cannot read the groups in pash: No such file or directory; expected phash, or a CSV file with columns file "
        "and group"
    )
    assert "Is a directory" in refusal(tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    ("first", "missing"),
    [
        ("file,patient", "no column group"),
        ("name,group", "no column file"),
        ("a,b", "no column file and no column group"),
    ],
)
def test_missing_columns_are_refused(tmp_path: Path, first: str, missing: str) -> None:
    assert f"has {missing}: its first line should be file,group" in refusal(tmp_path, table(tmp_path, first, "1,2"))


def test_an_empty_file_and_one_that_is_no_table_are_refused(tmp_path: Path) -> None:
    assert "has no column file and no column group" in refusal(tmp_path, table(tmp_path))
    message = refusal(tmp_path, table(tmp_path, "file,group", "x" * 200_000))
    assert "is not a CSV file with the columns file and group" in message


def test_images_without_a_group_are_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, table(tmp_path, "file,group", "no/1.png,a", "no/2.png,", "yes/1.png"))
    assert (
        "gives a group to 1 of 4 images: add a row for 3 images, with files written like no/2.png, yes/1.png, yes/2.png"
        in (message)
    )


def test_a_file_about_other_images_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, table(tmp_path, "file,group", "1.png,a", "2.png,b"))
    assert (
        "gives a group to no image: add a row for 4 images, with files written like no/1.png, no/2.png, yes/1.png"
        in (message)
    )


def test_several_groups_for_a_file_are_refused(tmp_path: Path) -> None:
    rows = [f"{file},{name}" for file in FILES for name in "abb"]
    message = refusal(tmp_path, table(tmp_path, "file,group", *rows))
    assert "gives several groups to one file, such as no/1.png, no/2.png, yes/1.png: give each file one" in message


def test_one_file_in_two_places_is_one_group_whatever_the_groups_are(tmp_path: Path) -> None:
    for file in FILES[:3]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        smooth(FILES.index(file)).save(tmp_path / file)
    (tmp_path / FILES[3]).symlink_to(tmp_path / FILES[0])
    own = [FILES[0], FILES[1], FILES[2], FILES[0]]
    assert group(listed(tmp_path), None, quiet())[0] == own
    assert group(listed(tmp_path), "phash", quiet())[0] == own
    rows = [f"{file},{name}" for file, name in zip(FILES, ("first", "second", "third", "second"))]
    names, what = group(listed(tmp_path), table(tmp_path, "file,group", *rows), quiet())
    assert names == ["first", "first", "third", "first"]
    assert what.endswith("4 images in 2 groups, 1 of them with images of several classes")

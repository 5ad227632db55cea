"""Splits: no group is in two of them, every class is in all of them, and the same seed gives the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsattn.cli.command import CommandError
from rsattn.finetune.folders import Found, ImageFile
from rsattn.finetune.splitting import SplitRow, read_split, split_images, write_split


def found(*images: tuple[str, str | None], root: str = "data") -> Found:
    """Images of these labels and splits."""
    rows = tuple(ImageFile(f"{number:04}.png", label, split) for number, (label, split) in enumerate(images))
    return Found(Path(root), tuple(sorted({label for label, _ in images})), rows, ())


def unsplit(**counts: int) -> Found:
    return found(*((label, None) for label, count in counts.items() for _ in range(count)))


def own(of: Found) -> list[str]:
    return [image.file for image in of.images]


def by_class(of: Found, splits: Sequence[str]) -> Counter[tuple[str, str]]:
    return Counter((image.label, split) for image, split in zip(of.images, splits))


def refusal(of: Found, groups: Sequence[str]) -> str:
    with pytest.raises(CommandError) as caught:
        split_images(of, groups, 0)
    return str(caught.value)


def test_single_images_are_split_by_class_in_the_shares_asked_for() -> None:
    """The test split is a fold of 5; 0.15 of all images is 0.1875 of the rest, and the nearest is again a fold of 5."""
    of = unsplit(a=100, b=50, c=25)
    assert by_class(of, split_images(of, own(of), 3)) == {
        ("a", "test"): 20,
        ("b", "test"): 10,
        ("c", "test"): 5,
        ("a", "val"): 16,
        ("b", "val"): 8,
        ("c", "val"): 4,
        ("a", "train"): 64,
        ("b", "train"): 32,
        ("c", "train"): 16,
    }
    # 10 folds of 175, then the half of what is left, an image more or less for each class that is odd
    counts = Counter(split_images(of, own(of), 3, test_share=0.1, val_share=0.45))
    assert abs(counts["test"] - 17.5) <= 1.5
    assert abs(counts["val"] - counts["train"]) <= 3


def test_one_seed_gives_one_split_and_others_others() -> None:
    """Compare with fixed splits, because a seed has to give the same splits in later versions too."""
    of = unsplit(a=6, b=6)
    splits = {seed: split_images(of, own(of), seed) for seed in (0, 1, 2, 2**40)}
    assert len({tuple(one) for one in splits.values()}) == 4
    assert splits[0] == split_images(of, own(of), 0)
    letters = {"train": "-", "val": "v", "test": "t"}
    assert "".join(letters[split] for split in splits[0]) == "----tv-tv---"


def test_splits_are_plain_words() -> None:
    of = unsplit(a=5, b=5)
    assert {type(split) for split in split_images(of, own(of), 0)} == {str}


@pytest.mark.filterwarnings("error")
def test_the_least_class_that_can_be_split_is_in_every_split() -> None:
    of = unsplit(a=200, b=3)
    for seed in range(5):
        splits = split_images(of, own(of), seed)
        assert {by_class(of, splits)["b", split] for split in ("train", "val", "test")} == {1}
        # a fold of 5 of 203 images, and of the rest; one more or less for b
        assert abs(splits.count("test") - 41) <= 1
    of = unsplit(a=3, b=3)
    assert set(by_class(of, split_images(of, own(of), 0)).values()) == {1}


def test_few_groups_are_refused_by_class() -> None:
    of = unsplit(a=20, b=2, c=4)
    groups = [*own(of)[:22], "one", "one", "two", "two"]
    assert refusal(of, groups).startswith(
        "too few groups of images for train, test, val: b has 2 groups, c has 2 groups, and each class needs at least 3"
    )
    given = found(*[("a", "train")] * 5, ("b", "train"), ("a", "test"), ("b", "test"))
    assert "for train, val: b has 1 group, and each class needs at least 2" in refusal(given, own(given))


def test_splits_of_the_folder_stay_and_the_missing_is_taken_from_train() -> None:
    of = found(*[("a", "train")] * 20, *[("b", "train")] * 20, ("a", "test"), ("b", "test"))
    splits = split_images(of, own(of), 0)
    assert splits[-2:] == ["test", "test"]
    # 1 / 0.15 is nearest to 7 folds, of 40 images
    assert 5 <= splits[:-2].count("val") <= 6
    assert splits.count("test") == 2
    of = found(*[("a", "train")] * 20, *[("b", "train")] * 20, ("a", "val"), ("b", "val"))
    splits = split_images(of, own(of), 0)
    assert splits[-2:] == ["val", "val"]
    assert Counter(splits) == {"train": 32, "test": 8, "val": 2}


def test_splits_that_are_all_given_stay() -> None:
    given = ["train", "val", "test", "train", "val", "test"]
    of = found(*zip("aaabbb", given))
    assert split_images(of, own(of), 0) == given


def test_a_class_may_lack_in_a_split_of_the_folder() -> None:
    of = found(("a", "train"), ("b", "train"), ("a", "val"), ("a", "test"))
    assert split_images(of, own(of), 0) == ["train", "train", "val", "test"]


def test_images_to_train_whose_group_is_tested_are_left_out() -> None:
    of = found(
        *[("a", "train")] * 3,
        *[("b", "train")] * 3,
        ("a", "val"),
        ("b", "val"),
        ("b", "val"),
        ("a", "test"),
        ("b", "test"),
    )
    groups = ["t", "v", "x", "tv", "y", "z", "v", "tv", "w", "t", "tv"]
    assert split_images(of, groups, 0) == [
        *("left-out", "left-out", "train"),
        *("left-out", "train", "train"),
        *("val", "left-out", "val"),
        *("test", "test"),
    ]


def test_a_val_split_that_is_left_out_altogether_is_taken_from_train() -> None:
    of = found(*[("a", "train")] * 4, *[("b", "train")] * 4, ("a", "val"), ("b", "val"), ("a", "test"), ("b", "test"))
    splits = split_images(of, [*own(of)[:8], "t", "t", "t", "t"], 0)
    assert splits[8:] == ["left-out", "left-out", "test", "test"]
    assert {by_class(of, splits)[label, "val"] > 0 for label in "ab"} == {True}


def test_a_class_left_out_altogether_is_refused() -> None:
    of = found(("a", "train"), ("b", "train"), ("b", "train"), ("a", "val"), ("a", "test"), ("b", "test"))
    message = refusal(of, ["1", "2", "2", "3", "4", "2"])
    assert "b has 0 groups (2 images left out: their groups are in the test or val split)" in message


def test_groups_with_images_of_several_classes_stay_together() -> None:
    of = unsplit(a=12, b=12)
    groups = [str(number % 12) for number in range(24)]
    splits = split_images(of, groups, 0)
    assert splits[:12] == splits[12:]
    assert set(splits) == {"train", "val", "test"}


def test_groups_that_no_split_can_part_are_refused() -> None:
    """Three groups have class a and three have b, but two of these are the same groups."""
    of = unsplit(a=4, b=4)
    assert "too many groups have images of several classes" in refusal(of, list("11231245"))


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        # the first shuffle seldom serves
        ("aaaaaaaaaabbb", "0112333333412"),
        # a test of two of the three or four groups of b would leave too few to validate and to train
        ("aaaaaaaaabbbbb", "01111112233425"),
    ],
)
def test_entangled_groups_are_split_where_they_can_be(labels: str, groups: str) -> None:
    of = found(*((label, None) for label in labels))
    for seed in range(15):
        assert set(split_images(of, groups, seed)) == {"train", "val", "test"}


def test_a_group_larger_than_the_test_is_not_its_whole() -> None:
    """One group is half of class a: of the folds with every class, the one nearest to a fifth is used."""
    of = unsplit(a=40, b=40)
    groups = ["big"] * 20 + own(of)[20:]
    for seed in range(10):
        splits = split_images(of, groups, seed)
        assert splits[0] != "test"
        assert 10 <= splits.count("test") <= 20


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Found, list[str]]:
    """Two to four classes of 3 to 12 groups of 1 to 4 images; some trees have splits of their own."""
    images: list[tuple[str, str | None]] = []
    groups: list[str] = []
    trees: list[list[str | None]] = [[None], ["train", "test"], ["train", "val"], ["train", "val", "test"]]
    splits = draw(st.sampled_from(trees))
    for label in "abcd"[: draw(st.integers(2, 4))]:
        for number in range(draw(st.integers(3, 12))):
            # some groups have images of other classes too
            name = f"{draw(st.sampled_from([label] * 9 + ['a']))}{number}"
            for _ in range(draw(st.integers(1, 4))):
                images.append((label, draw(st.sampled_from(splits))))
                groups.append(name)
    order = draw(st.permutations(range(len(groups))))
    of = found(*(images[index] for index in order))
    return of, [groups[index] for index in order]


def few_groups(of: Found, groups: list[str]) -> bool:
    """Whether a class has fewer groups, outside the folder's own test and val splits, than splits that need one."""
    rows = list(zip(of.images, groups))
    held = {name for image, name in rows if image.split in ("test", "val")}
    tested = {name for image, name in rows if image.split == "test"}
    validated = {name for image, name in rows if image.split == "val"} - tested
    needed = 3 - bool(tested) - bool(validated)
    free = {label: {name for image, name in rows if image.label == label} - held for label in of.classes}
    return any(len(names) < needed for names in free.values())


def any_mixed(of: Found, groups: list[str]) -> bool:
    pairs = {(name, image.label) for image, name in zip(of.images, groups)}
    return len({name for name, _ in pairs}) < len(pairs)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(grouped(), st.integers(0, 2**32))
def test_of_any_images(case: tuple[Found, list[str]], seed: int) -> None:
    of, groups = case
    try:
        splits = split_images(of, groups, seed)
    except CommandError:
        assert few_groups(of, groups) or any_mixed(of, groups)
        return
    assert splits == split_images(of, groups, seed)
    assert len(splits) == len(groups)
    assert set(splits) <= {"train", "val", "test", "left-out"}
    homes: dict[str, set[str]] = {}
    for name, split in zip(groups, splits):
        homes.setdefault(name, set()).add(split)
    assert all(len(home - {"left-out"}) <= 1 for home in homes.values())
    own_splits = {image.split for image in of.images}
    for split in {"train", "val", "test"} - (own_splits - {"train"}):
        assert {label for label, where in by_class(of, splits) if where == split} == set(of.classes)
    for image, split in zip(of.images, splits):
        if image.split == "test":
            assert split == "test"
        if image.split == "val":
            assert split in ("val", "left-out")
        if split == "left-out":
            assert image.split is not None
    if own_splits == {None}:
        assert abs(splits.count("test") - 0.2 * len(splits)) <= 0.2 * len(splits) + 4
        assert splits.count("train") > 0.25 * len(splits)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(10, 60), min_size=2, max_size=4), st.integers(0, 1000))
def test_of_any_single_images_the_shares_are_near(counts: list[int], seed: int) -> None:
    of = unsplit(**dict(zip("abcd", counts)))
    splits = split_images(of, own(of), seed)
    for label, count in zip("abcd", counts):
        tested = by_class(of, splits)[label, "test"]
        # a fold holds a fifth of a class, up to an image for each class to even out
        assert abs(tested - count / 5) <= 2


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    files = ["a/1.png", "a/two\r\nlines, comma.png", 'b/"quoted".png', "b/\udcff.png", "b/\u00fc.png"]
    of = Found(tmp_path, ("a", "b"), tuple(ImageFile(file, file[0], None) for file in files), ())
    splits, groups = ["train", "val", "test", "left-out", "train"], ["g1", "g,2", "\u00fc", " g", ""]
    path = tmp_path / "split.csv"
    write_split(path, of, groups, splits)
    assert read_split(path) == [
        SplitRow(file, file[0], split, name) for file, split, name in zip(files, splits, groups)
    ]
    assert path.read_bytes().startswith(b"file,label,split,group\na/1.png,a,train,g1\n")


def test_a_split_that_cannot_be_written_leaves_the_older(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("mine")
    of = unsplit(a=1, b=1)
    with pytest.raises(ValueError, match="shorter"):
        write_split(path, of, own(of), ["train"])
    assert path.read_text() == "mine"
    with pytest.raises(CommandError, match="it is a folder"):
        write_split(tmp_path, of, own(of), ["train", "test"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file,label,split,group\n",
        "file,label,split\n1.png,a,train\n",
        "label,file,split,group\na,1.png,train,g\n",
        "file,label,split,group\n1.png,a,train\n",
        "file,label,split,group\n1.png,a,train,g,h\n",
        "file,label,split,group\n1.png,a,tests,g\n",
        "\x89PNG\r\n\x1a\n\0",
        'file,label,split,group\n"1.png"x,a,train,g\n',
    ],
)
def test_another_file_is_no_split(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CommandError, match=r"other\.csv is not a split"):
        read_split(path)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot read the split .*split\.csv: No such file"):
        read_split(tmp_path / "split.csv")

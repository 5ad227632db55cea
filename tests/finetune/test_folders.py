"""Layouts of folders: the images that are found, the notes on other files, and the errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rsattn.cli.command import CommandError, shown
from rsattn.finetune.folders import (
    Found,
    ImageFile,
    find_images,
    images_below,
    notes_on_missing,
)
from rsattn.finetune.same_files import same_files
from rsattn.finetune.wording import counted, some


def tree(root: Path, *files: str) -> Path:
    """Create empty files, and folders for names that end in /. Images are found by name, without reading them."""
    for file in files:
        place = root / file
        if file.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    return root


def triples(found: Found) -> list[tuple[str, str, str | None]]:
    return [(image.file, image.label, image.split) for image in found.images]


def refusal(root: Path) -> str:
    with pytest.raises(CommandError) as caught:
        find_images(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_class_folders(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "yes/b.png", "no/z.jpg", "yes/a.JPG", "no/deep/er/1.bmp", "no/test/"))
    assert found.root == tmp_path
    assert found.classes == ("no", "yes")
    assert found.notes == ()
    assert triples(found) == [
        ("no/deep/er/1.bmp", "no", None),
        ("no/z.jpg", "no", None),
        ("yes/a.JPG", "yes", None),
        ("yes/b.png", "yes", None),
    ]


def test_class_folders_with_images_only_deeper(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "cat/a/1.png", "dog/b/1.png"))
    assert triples(found) == [("cat/a/1.png", "cat", None), ("dog/b/1.png", "dog", None)]


def test_folders_of_patients_inside_a_class_folder_are_of_that_class(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "benign/p1/1.png", "benign/p2/1.png", "malignant/1.png"))
    assert [label for _, label, _ in triples(found)] == ["benign", "benign", "malignant"]


def test_an_empty_folder_for_a_split_that_is_there_is_not_noted(tmp_path: Path) -> None:
    files = [f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"]
    assert find_images(tree(tmp_path, *files, "testing/")).notes == ()


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [("train", "test", "val"), ("TRAIN", "Testing", "Validation"), ("training", "TEST", "valid")],
)
def test_splits_in_any_spelling(tmp_path: Path, train: str, test: str, val: str) -> None:
    tree(tmp_path, *(f"{split}/{label}/1.png" for split in (train, test, val) for label in "ab"))
    found = find_images(tmp_path)
    assert found.classes == ("a", "b")
    assert {(file.split("/")[0], split) for file, _, split in triples(found)} == {
        (train, "train"),
        (test, "test"),
        (val, "val"),
    }
    assert len(found.images) == 6
    assert found.notes == ()


def test_a_train_split_alone_is_a_split(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/a/1.png", "train/b/1.png"))
    assert {split for _, _, split in triples(found)} == {"train"}


def test_in_a_train_split_folders_of_patients_are_no_question(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, *(f"train/{place}/1.png" for place in ("a/p1", "a/p2", "b/p3", "b/p4"))))
    assert found.classes == ("a", "b")


def test_wrappers_inside_splits_are_walked_through(tmp_path: Path) -> None:
    found = find_images(
        tree(tmp_path, "train/images/x/a/1.png", "train/images/x/b/1.png", "test/images/a/1.png", "test/images/b/1.png")
    )
    assert found.classes == ("a", "b")
    assert [split for _, _, split in triples(found)] == ["test", "test", "train", "train"]


def test_one_class_folder_in_the_test_split_is_no_wrapper(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/p1/1.png", "test/a/p2/1.png"))
    assert found.classes == ("a", "b")
    assert found.notes == ("the class b has no images in the test split: its recall cannot be measured",)


def test_a_class_that_is_not_validated_is_noted(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png", "val/a/"))
    assert found.notes == ("the class a has no images in the val split: validation does not measure it",)


def test_missing_classes_are_those_of_a_split_that_is_there() -> None:
    images = [ImageFile("1", "a", "train"), ImageFile("2", "b", "train"), ImageFile("3", "a", "test")]
    (note,) = notes_on_missing(("a", "b"), images)
    assert "class b" in note
    assert "test" in note
    assert notes_on_missing(("a", "b"), [ImageFile("1", "a", None)]) == []


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    assert find_images(tree(tmp_path, "train/1.png", "car/1.png")).classes == ("car", "train")


@pytest.mark.parametrize("copy", ["brain_tumor_dataset", "again", "wrapped/again"])
def test_a_second_copy_of_the_class_folders_is_left_out(tmp_path: Path, copy: str) -> None:
    found = find_images(tree(tmp_path, "yes/1.jpg", "no/1.jpg", f"{copy}/yes/1.jpg", f"{copy}/no/1.jpg"))
    assert [file for file, _, _ in triples(found)] == ["no/1.jpg", "yes/1.jpg"]
    name = copy.split("/")[0]
    assert found.notes == (f"{name} (2 images) was left out: it has the same classes again",)


def test_a_copy_is_known_where_images_are_deeper_and_names_in_capitals(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "yes/x/1.jpg", "no/x/1.jpg", "all/YES/1.jpg", "all/No/1.jpg"))
    assert found.classes == ("no", "yes")


def test_a_folder_that_shares_some_classes_is_neither_a_copy_nor_a_class(tmp_path: Path) -> None:
    message = refusal(tree(tmp_path, "yes/1.jpg", "no/1.jpg", "more/yes/1.jpg", "more/other/1.jpg"))
    assert ". (with more, no, yes)" in message
    assert "more (with other, yes)" in message


def test_a_class_folder_that_holds_itself_again_is_refused(tmp_path: Path) -> None:
    message = refusal(tree(tmp_path, "yes/1.jpg", "no/yes/1.jpg", "no/no/1.jpg"))
    assert ". (with no, yes); no (with no, yes)" in message


def test_the_blood_cells_as_they_are_unpacked(tmp_path: Path) -> None:
    cells = "dataset2-master/dataset2-master/images"
    others = "dataset-master/dataset-master"
    tree(tmp_path, *(f"{cells}/{split}/{label}/1.jpeg" for split in ("TRAIN", "TEST", "TEST_SIMPLE") for label in "EL"))
    tree(tmp_path, f"{others}/JPEGImages/1.jpg", f"{others}/Annotations/1.xml", f"{others}/labels.csv")
    found = find_images(tmp_path)
    assert triples(found) == [
        (f"{cells}/TEST/E/1.jpeg", "E", "test"),
        (f"{cells}/TEST/L/1.jpeg", "L", "test"),
        (f"{cells}/TRAIN/E/1.jpeg", "E", "train"),
        (f"{cells}/TRAIN/L/1.jpeg", "L", "train"),
    ]
    assert found.notes == (
        "dataset-master (1 image) was left out: it is not one of the class folders",
        f"{cells}/TEST_SIMPLE (2 images) was left out: it has the same classes again",
        f"ignored 2 files that rsattn cannot read, such as {others}/labels.csv, {others}/Annotations/1.xml",
    )
    assert find_images(tmp_path / "dataset2-master").classes == ("E", "L")
    assert find_images(tmp_path / cells).classes == ("E", "L")


def test_a_split_named_itself_is_class_folders(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png").joinpath("train"))
    assert triples(found) == [("a/1.png", "a", None), ("b/1.png", "b", None)]


def test_splits_beside_a_copy_of_themselves(tmp_path: Path) -> None:
    files = [f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"]
    found = find_images(tree(tmp_path, *files, *(f"chest/{file}" for file in files)))
    assert len(found.images) == 4
    assert found.notes == ("chest (4 images) was left out: it has the same classes again",)


def test_wrappers_are_walked_through_and_loose_images_noted(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "cover.png", "data/x/yes/1.png", "data/x/no/1.png"))
    assert found.classes == ("no", "yes")
    assert found.notes == ("ignored 1 image outside class folders, such as cover.png",)


def test_splits_are_found_below_a_folder_with_a_loose_image(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "data/cover.png", "data/train/yes/1.png", "data/train/no/1.png"))
    assert found.classes == ("no", "yes")


def test_a_test_split_without_classes_is_left_out(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "val/"))
    assert {split for _, _, split in triples(found)} == {"train"}
    assert found.notes == (
        "test (1 image) was left out: it is not one of the class folders",
        "val has no images: the val split is taken from the train split",
    )


def test_what_systems_leave_is_ignored_and_other_files_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/1.png", "a/.hidden.png", ".git/c/1.png", "a/Thumbs.db", "desktop.ini")
    tree(tmp_path, "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1-checkpoint.png")
    assert len(find_images(tmp_path).images) == 2
    assert find_images(tmp_path).notes == ()
    found = find_images(tree(tmp_path, "readme.txt", "a/scan.raw", "a/print.pdf", "b/no_suffix"))
    assert found.notes == ("ignored 4 files that rsattn cannot read, such as readme.txt, a/print.pdf, a/scan.raw",)


def test_odd_names_are_found_and_written_on_one_line(tmp_path: Path) -> None:
    odd = "two\nlines \u00fc [red].png"
    tree(tmp_path, f"a b/{odd}", "\u00fc\n/1.png", "\u00fc\n/note\n.txt")
    tree(tmp_path, os.fsdecode(b"a b/\xff.png"))
    found = find_images(tmp_path)
    assert [file for file, _, _ in triples(found)] == [f"a b/{odd}", "a b/\udcff.png", "\u00fc\n/1.png"]
    assert found.classes == ("a b", "\u00fc\n")
    (note,) = found.notes
    assert note.endswith(r"\n/note\n.txt")


def test_links_are_followed_and_bad_ones_noted(tmp_path: Path) -> None:
    root, elsewhere = tree(tmp_path / "root", "a/1.png"), tree(tmp_path / "elsewhere", "2.png")
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "a" / "circle").symlink_to(root)
    (root / "a" / "deep").mkdir()
    (root / "a" / "deep" / "up").symlink_to(root / "a")
    (root / "a" / "itself.png").symlink_to(root / "a" / "itself.png")
    found = find_images(root)
    assert [file for file, _, _ in triples(found)] == ["a/1.png", "b/2.png"]
    assert found.notes == (
        f"used 1 linked folder: b -> {elsewhere}",
        "ignored 4 broken or circular links, such as a/circle, a/gone.png, a/itself.png",
    )


def test_links_of_images_to_outside_are_noted_and_those_inside_are_not(tmp_path: Path) -> None:
    root, elsewhere = (
        tree(tmp_path / "root", "a/1.png", "b/1.png", "raw.bin"),
        tree(tmp_path / "root elsewhere", "2.png"),
    )
    (root / "a" / "2\x1b.png").symlink_to(elsewhere / "2.png")
    (root / "b" / "3.png").symlink_to(root / "raw.bin")
    assert find_images(root).notes == (
        rf"used 1 linked image from outside the folder, such as a/2\x1b.png -> {elsewhere}/2.png",
        "ignored 1 file that rsattn cannot read, such as raw.bin",
    )


def test_a_root_that_is_a_link_is_not_noted(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree(tmp_path / "root", "a/1.png", "b/1.png"))
    assert find_images(tmp_path / "link").notes == ()


def test_one_file_in_two_places_is_noted(tmp_path: Path) -> None:
    """A link of a folder, a link of an image, and a second name."""
    root = tree(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png", "test/b/2.png")
    (root / "test" / "a").symlink_to(root / "train" / "a")
    (root / "train" / "b" / "3.png").symlink_to(root / "train" / "b" / "1.png")
    os.link(root / "test" / "b" / "2.png", root / "train" / "b" / "4.png")
    assert find_images(root).notes == (
        f"used 1 linked folder: test/a -> {root}/train/a",
        "some files appear more than once, as a link or under a second name (train/a/1.png and test/a/1.png, "
        "train/a/2.png and test/a/2.png, train/b/3.png and train/b/1.png; 4 images in all): the names of a file are "
        "kept in one split, so that no image is in both training and test",
    )


def test_files_that_a_file_system_does_not_number_are_not_the_same(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/1.png")
    with mock.patch.object(os, "stat", return_value=os.stat_result((0o100644, 0, *range(8)))):
        first = same_files(tmp_path, ["a/1.png", "b/1.png"])
    assert first == ["a/1.png", "b/1.png"]


def test_links_of_folders_to_one_another_end(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"{name}/1.png" for name in "abcdefghij"))
    for one in "abcdefghij":
        for other in "abcdefghij":
            (root / one / f"to {other}").symlink_to(root / other)
    assert f"links in {root} lead to {root}/" in refusal(root)
    assert "by more than 32 paths, such as a/to b/to c/" in refusal(root)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Make folders with these names unreadable, even for root."""
    names: set[str] = set()
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", guarded)
    return names


def test_a_folder_that_cannot_be_read_is_noted(tmp_path: Path, closed: set[str]) -> None:
    closed.add("deep")
    found = find_images(tree(tmp_path, "a/1.png", "b/1.png", "b/deep/2.png"))
    assert len(found.images) == 2
    assert found.notes == ("the folder b/deep cannot be read and was left out: Permission denied",)


def test_a_class_folder_that_cannot_be_read_is_refused(tmp_path: Path, closed: set[str]) -> None:
    closed.add("b")
    assert refusal(tree(tmp_path, "a/1.png", "b/1.png", "c/1.png")) == (
        f"cannot read the class folder {tmp_path}/b: Permission denied"
    )


def test_a_root_that_cannot_be_read_is_refused(tmp_path: Path, closed: set[str]) -> None:
    closed.add(tmp_path.name)
    assert refusal(tmp_path) == f"cannot read the folder {tmp_path}: Permission denied"


def test_no_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone").startswith(f"there is no folder {tmp_path}/gone")
    tree(tmp_path, "data.zip")
    assert refusal(tmp_path / "data.zip").startswith(f"{tmp_path}/data.zip is a file")


def test_no_images_are_refused_with_what_is_there_instead(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path)
        == f"{tmp_path} has no images that rsattn can read: give a folder with one folder of images per class"
    )
    assert "among its 2 files (such as a/1.raw, a/2.raw)" in refusal(tree(tmp_path, "a/1.raw", "a/2.raw"))


@pytest.mark.parametrize(
    "files",
    [["1.png", "2.png"], ["test/1.png", "train/1.png"], ["1.png", "more/2.png"], ["x/train/1.png", "x/val/1.png"]],
)
def test_images_without_class_folders_are_refused(tmp_path: Path, files: list[str]) -> None:
    assert f"(such as {files[0]}, {files[1]}) are not in class folders" in refusal(tree(tmp_path, *files))


@pytest.mark.parametrize(
    "files",
    [
        ["only/1.png"],
        ["x/only/1.png"],
        ["train/1.png", "train/only/a/1.png", "train/only/b/1.png"],
        ["train/only/1.png", "test/only/1.png"],
    ],
)
def test_one_class_only_is_refused(tmp_path: Path, files: list[str]) -> None:
    assert f"{tmp_path} has images of only one class (only)" in refusal(tree(tmp_path, *files))


@pytest.mark.parametrize(
    ("files", "empty"),
    [
        (["a/1.png", "b/1.png", "bare/"], "bare"),
        (["a/1.png", "bare/1.raw"], "bare"),
        (["x/a/1.png", "x/bare/", "x/less/"], "x/bare, x/less"),
        (["train/a/1.png", "train/b/1.png", "train/bare/", "test/a/1.png"], "train/bare"),
        (["train/a/x/1.png", "train/a/y/1.png", "train/bare/"], "train/bare"),
        (["train/a/1.png", "train/bare/", "test/a/1.png", "test/bare/1.png"], "train/bare"),
    ],
)
def test_a_class_folder_without_images_is_refused(tmp_path: Path, files: list[str], empty: str) -> None:
    assert f"class folders without images that rsattn can read: {empty};" in refusal(tree(tmp_path, *files))


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_class_that_is_not_trained_is_refused(tmp_path: Path, split: str) -> None:
    message = refusal(tree(tmp_path, "train/a/1.png", "train/b/1.png", f"{split}/a/1.png", f"{split}/c/1.png"))
    assert f"the {split} split of {tmp_path} has c, which the train split lacks" in message


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    message = refusal(
        tree(tmp_path, *(f"{split}/{label}/1.png" for split in ("train", "test", "testing") for label in "ab"))
    )
    assert "test and testing are both the test split" in message


def test_several_sets_of_class_folders_are_listed(tmp_path: Path) -> None:
    message = refusal(tree(tmp_path, "brain/yes/1.png", "brain/no/1.png", "skin/benign/1.png", "skin/malignant/1.png"))
    assert ". (with brain, skin); brain (with no, yes); skin (with benign, malignant)" in message


def test_a_set_beside_something_else_is_refused(tmp_path: Path) -> None:
    """`brain` and `docs` may be the classes, or `no` and `yes`."""
    message = refusal(tree(tmp_path, "brain/yes/1.png", "brain/no/1.png", "docs/figures/1.png"))
    assert ". (with brain, docs); brain (with no, yes)" in message


def test_class_folders_beside_splits_are_refused(tmp_path: Path) -> None:
    message = refusal(tree(tmp_path, "yes/1.png", "no/1.png", "splits/train/yes/1.png", "splits/train/no/1.png"))
    assert "splits/train (with no, yes)" in message


PATIENTS = ("benign/p1/1.png", "benign/p1/2.png", "benign/p2/1.png", "malignant/p2/1.png", "malignant/p3/1.png")


def test_subfolders_of_class_folders_are_groups_where_the_user_says_so(tmp_path: Path) -> None:
    root = tree(tmp_path, *PATIENTS)
    assert "give --groups folder if the first set is yours and its subfolders are patients" in refusal(root)
    found = find_images(root, groups="folder")
    assert found.classes == ("benign", "malignant")
    assert [(image.label, image.subfolder) for image in found.images] == [
        ("benign", "p1"),
        ("benign", "p1"),
        ("benign", "p2"),
        ("malignant", "p2"),
        ("malignant", "p3"),
    ]
    assert found.notes == ("the classes are benign and malignant; their 4 subfolders are the groups",)


def test_series_below_patients_are_of_the_patient(tmp_path: Path) -> None:
    places = ("benign/p1/s1", "benign/p1/s2", "benign/p2/s1", "malignant/p3/s1", "malignant/p4/s1", "malignant/p4/s2")
    found = find_images(tree(tmp_path, *(f"{place}/1.png" for place in places)), groups="folder")
    assert [image.subfolder for image in found.images] == ["p1", "p1", "p2", "p3", "p4", "p4"]


@pytest.mark.parametrize(
    "files",
    [
        ["hospital1/yes/1.png", "hospital1/no/1.png", "hospital2/yes/1.png", "hospital2/no/1.png"],
        ["yes/1.png", "no/1.png", "more/yes/1.png", "more/other/1.png"],
        ["a/train/yes/1.png", "a/train/no/1.png", "b/1.png"],
        [f"{place}/{split}/{label}/1.png" for place in "ab" for split in ("train", "test") for label in ("no", "yes")],
    ],
    ids=["classes in hospitals", "a class in a subfolder", "splits in a subfolder", "two sets with splits"],
)
def test_folders_that_are_not_of_groups_are_refused_also_as_groups(tmp_path: Path, files: list[str]) -> None:
    said = refusal(tree(tmp_path, *files))
    assert "has several sets of class folders" in said
    assert "--groups" not in said
    with pytest.raises(CommandError, match="has several sets of class folders"):
        find_images(tmp_path, groups="folder")


def test_groups_in_splits_are_the_subfolders_of_the_classes(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{split}/{file}" for split in ("train", "test") for file in PATIENTS))
    found = find_images(tmp_path, groups="folder")
    assert {(image.split, image.subfolder) for image in found.images} == {
        (split, name) for split in ("train", "test") for name in ("p1", "p2", "p3")
    }


@pytest.mark.parametrize("groups", [None, "phash", "groups.csv"])
def test_subfolders_that_are_not_the_groups_are_noted(tmp_path: Path, groups: str | None) -> None:
    note = (
        "the class folders have 4 subfolders, such as train/benign/p1; if these are patients, --groups folder makes "
        "the images of each one group"
    )
    found = find_images(tree(tmp_path, *(f"train/{file}" for file in PATIENTS)), groups=groups)
    assert found.notes == (() if groups == "groups.csv" else (note,))


def test_the_list_of_many_sets_is_short(tmp_path: Path) -> None:
    said = refusal(tree(tmp_path, *(f"{a}/{a}{b}/{c}/1.png" for a in "pq" for b in range(9) for c in "xy")))
    assert said.count("(with") == 4
    assert "; and 17 more. Give the folder" in said


def test_files_of_scanners_are_images(tmp_path: Path) -> None:
    """By the suffix, or by the mark at byte 128 of a file without one; the list of files on a disc is none."""
    root = tree(tmp_path, "yes/a.dcm", "yes/1.2.840.55", "no/b.nii.gz", "no/c.IMA", "no/d.nii", "no/DICOMDIR")
    (root / "yes" / "I1").write_bytes(128 * b"\0" + b"DICM" + 10 * b"\0")
    found = find_images(root)
    assert [image.file for image in found.images] == ["no/b.nii.gz", "no/c.IMA", "no/d.nii", "yes/I1", "yes/a.dcm"]
    assert found.notes == ("ignored 1 file that rsattn cannot read, such as yes/1.2.840.55",)


DICOM = "to read DICOM files: pip install 'rsattn[scans]'"


def test_without_the_packages_files_of_scanners_get_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsattn.cli.scans.is_installed", lambda package: False)
    dicom = tree(tmp_path / "dicom", "yes/", "no/")
    for label in ("yes", "no"):
        (dicom / label / "I1").write_bytes(128 * b"\0" + b"DICM" + 10 * b"\0")
    assert refusal(dicom).endswith(f"among its 2 files (such as no/I1, yes/I1): {DICOM}")
    assert refusal(tree(tmp_path / "half", "yes/1.png", "no/1.dcm")).endswith(f"that rsattn can read: no; {DICOM}")
    found = find_images(tree(tmp_path / "both", "yes/1.png", "no/1.png", "no/2.nii.gz", "no/3.DCM"))
    assert found.notes[0].endswith("; to read DICOM and NIfTI files: pip install 'rsattn[scans]'")
    found = find_images(tree(tmp_path / "neither", "yes/1.png", "no/1.png", "no/2.txt", "no/I3"))
    assert found.notes == ("ignored 2 files that rsattn cannot read, such as no/2.txt, no/I3",)


def test_a_deep_tree_is_read_in_time(tmp_path: Path) -> None:
    """Reading each folder twice would read the deepest one 2^60 times."""
    deep = "/".join("abc"[level % 3] for level in range(60))
    assert find_images(tree(tmp_path, f"{deep}/yes/1.png", f"{deep}/no/1.png")).classes == ("no", "yes")


def test_words_for_names_and_numbers() -> None:
    assert shown("a\tb") == r"a\tb"
    assert shown("\u00fc [x]") == "\u00fc [x]"
    assert some(["a", "b"], 2) == "a, b"
    assert some(["a", "b", "c"], 1) == "a and 2 more"
    assert [counted(number, "link") for number in (0, 1, 2)] == ["0 links", "1 link", "2 links"]


def test_outputs_of_commands_are_no_data(tmp_path: Path) -> None:
    """In the default folder, in a class folder, between splits, and a run of a version without the marker."""
    data = tree(tmp_path, "yes/1.png", "no/1.png", "rsattn-runs/a/.rsattn", "rsattn-runs/a/figures/curves.png")
    tree(data, "rsattn-runs/b/.rsattn", "yes/out/.rsattn", "yes/out/digits/3/1.png")
    tree(data, *(f"old/{name}" for name in ("config.json", "data.json", "split.csv", "figures/curves.png")))
    found = find_images(data, own=data / "rsattn-runs" / "b" / "runs")
    assert found.classes == ("no", "yes")
    assert triples(found) == [("no/1.png", "no", None), ("yes/1.png", "yes", None)]
    assert found.notes == ("skipped 3 folders that rsattn wrote: old, rsattn-runs/a, yes/out",)
    images, notes = images_below(data / "yes")
    assert (images, notes) == ([data / "yes" / "1.png"], ["skipped 1 folder that rsattn wrote: out"])


def test_a_folder_of_one_set_beside_outputs_is_found(tmp_path: Path) -> None:
    found = find_images(tree(tmp_path, "set/yes/1.png", "set/no/1.png", "rsattn-demo/.rsattn", "rsattn-demo/1.png"))
    assert [label for _, label, _ in triples(found)] == ["no", "yes"]


def test_an_output_is_refused_as_data(tmp_path: Path) -> None:
    tree(tmp_path, "runs/a/.rsattn", "runs/a/yes/1.png", "runs/a/no/1.png")
    tree(tmp_path, *(f"old/{name}" for name in ("config.json", "data.json", "split.csv", "figures/curves.png")))
    said = refusal(tmp_path / "runs" / "a")
    assert "runs/a, so its images are not read as data: give the folder of your images, or delete" in said
    assert refusal(tmp_path / "old").endswith("give the folder of your images")
    assert "has no images that rsattn can read, apart from what rsattn wrote (a): give" in refusal(tmp_path / "runs")

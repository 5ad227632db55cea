"""Groups of images: one per image, by similarity, and from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rsattn.cli.command import CommandError
from rsattn.cli.images import read_image
from rsattn.finetune.folders import Found, ImageFile, find_images
from rsattn.finetune.grouping import group
from rsattn.finetune.near_identical import perceptual_hash

NONE = np.zeros((0, 3), dtype=np.uint64)
FILES = ("no/1.png", "no/2.png", "yes/1.png", "yes/2.png")


def listed(root: Path) -> Found:
    """Images that are never opened."""
    images = tuple(ImageFile(file, file.split("/")[0], None) for file in FILES)
    return Found(root, ("no", "yes"), images, ())


def hashes_of(found: Found) -> NDArray[np.uint64]:
    return np.stack([perceptual_hash(read_image(found.root / image.file)[0]) for image in found.images])


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
        group(listed(root), groups, NONE)
    return str(caught.value)


def test_without_groups_every_image_is_its_own(tmp_path: Path) -> None:
    assert group(listed(tmp_path), None, NONE) == (list(FILES), "each image is its own group")


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
    names, what = group(found, "phash", hashes_of(found))
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_groups_from_a_file_in_any_order_with_rows_to_spare(tmp_path: Path, encoding: str) -> None:
    rows = ["file,group,note", *(f"{file},patient {file[-5]},x" for file in reversed(FILES)), "other/1.png,p,", ",,x"]
    path = table(tmp_path, *rows, rows[1], "no/1.png,,", encoding=encoding)
    names, what = group(listed(tmp_path), path, NONE)
    assert names == ["patient 1", "patient 2", "patient 1", "patient 2"]
    assert what == (f"the groups are those of {path}: 4 images in 2 groups, 2 of them with images of several classes")


def test_odd_names_are_found_in_a_file(tmp_path: Path) -> None:
    images = tuple(ImageFile(file, "a", None) for file in ("a/\udcff.png", "a/two\r\nlines, one comma.png"))
    path = table(tmp_path, "file,group", "a/\udcff.png,g", '"a/two\r\nlines, one comma.png",h')
    assert group(Found(tmp_path, ("a",), images, ()), path, NONE)[0] == ["g", "h"]


def test_no_such_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "pash") == (
        "cannot read the groups in pash: No such file or directory; expected patient, folder, phash, or a CSV file "
        "with the columns file and group"
    )
    assert "Is a directory" in refusal(tmp_path, str(tmp_path))


@pytest.mark.parametrize("header", ["File,Group", "GROUP, file ", '"group","file"', "id,group,file"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_of_any_spreadsheet_is_read(tmp_path: Path, header: str, delimiter: str) -> None:
    columns = [name.strip().strip('"').casefold() for name in header.split(",")]
    cells = [{"file": file, "group": f"p{number // 2}", "id": "7"} for number, file in enumerate(FILES)]
    rows = [delimiter.join(cell[name] for name in columns) for cell in cells]
    path = table(tmp_path, "", header.replace(",", delimiter), rows[0], "", *rows[1:], "  ")
    assert group(listed(tmp_path), path, NONE)[0] == ["p0", "p0", "p1", "p1"]


def test_excels_line_with_the_delimiter_is_skipped(tmp_path: Path) -> None:
    path = table(tmp_path, "sep=;", "file;group", *(f"{file};{file[0]}" for file in FILES))
    assert group(listed(tmp_path), path, NONE)[0] == ["n", "n", "y", "y"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252", "utf-8"])
def test_the_encodings_of_spreadsheets_are_read(tmp_path: Path, encoding: str) -> None:
    images = tuple(ImageFile(f"Läsion/{number}.png", "Läsion", None) for number in range(2))
    path = table(tmp_path, "file,group", "Läsion/0.png,Müller", "Läsion/1.png,Anders", encoding=encoding)
    assert group(Found(tmp_path, ("Läsion",), images, ()), path, NONE)[0] == ["Müller", "Anders"]


def test_another_encoding_is_refused_with_the_way_to_save_the_table(tmp_path: Path) -> None:
    images = tuple(ImageFile(f"guz/\u0142{number}.png", "guz", None) for number in range(2))
    path = table(tmp_path, "file,group", "guz/\u01420.png,a", "guz/\u01421.png,b", encoding="cp1250")
    with pytest.raises(CommandError, match=r"; if letters are wrong, save the table as CSV UTF-8$"):
        group(Found(tmp_path, ("guz",), images, ()), path, NONE)


@pytest.mark.parametrize("row", ["L\u00e4sion/Y1.png", "La\u0308sion/Y1.png", "l\u00c4sion\\y1.PNG", "Y1.PNG"])
@pytest.mark.parametrize("file", ["L\u00e4sion/Y1.png", "La\u0308sion/Y1.png"])
def test_case_and_the_way_accents_are_stored_do_not_matter_where_one_image_fits(
    tmp_path: Path, file: str, row: str
) -> None:
    found = Found(tmp_path, ("a",), (ImageFile(file, "a", None), ImageFile("a/2.png", "a", None)), ())
    path = table(tmp_path, "file,group", f"{row},g", "a/2.png,h")
    assert group(found, path, NONE)[0] == ["g", "h"]
    found = Found(tmp_path, ("a",), (*found.images, ImageFile("l\u00e4sion/y1.png", "a", None)), ())
    path = table(tmp_path, "file,group", "L\u00c4SION/Y1.PNG,g", "a/2.png,h")
    with pytest.raises(CommandError, match="could be"):
        group(found, path, NONE)


def test_files_may_be_written_from_other_folders_and_with_backslashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to DATA, to the table, to the folder above DATA and to the current one; absolute here and elsewhere."""
    data, elsewhere = tmp_path / "sets" / "mri", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for number, written in enumerate(
        (
            "{}",
            "./{}",
            "mri/{}",
            "sets/mri/{}",
            "../sets/mri/{}",
            f"{data}/{{}}",
            "/home/her/mri/{}",
            "C:\\Users\\her\\mri\\{}",
        )
    ):
        names = [written.format(file).replace("/", "\\" if number % 2 else "/") for file in FILES]
        path = table(tmp_path, "file,group", *(f"{name},{index}" for index, name in enumerate(names)))
        assert group(listed(data), path, NONE)[0] == ["0", "1", "2", "3"], written


def test_folders_may_be_left_out_where_no_other_image_has_the_name(tmp_path: Path) -> None:
    files = ("train/no/1.png", "train/yes/2.png", "test/yes/3.png", "test/no/2.png")
    images = Found(tmp_path, ("no", "yes"), tuple(ImageFile(file, "no", None) for file in files), ())
    path = table(tmp_path, "file,group", "1.png,a", "train/yes/2.png,b", "yes/3.png,c", "no/2.png,d", "other/3.png,e")
    assert group(images, path, NONE)[0] == ["a", "b", "c", "d"]
    with pytest.raises(CommandError, match=r"the row 2\.png could be train/yes/2\.png or test/no/2\.png$"):
        group(images, table(tmp_path, "file,group", "1.png,a", "2.png,b", "3.png,c"), NONE)


def test_a_row_with_the_path_of_an_image_wins_over_one_with_its_name(tmp_path: Path) -> None:
    path = table(tmp_path, "file,group", *(f"{file},{file}" for file in FILES), "/another/set/no/1.png,x")
    assert group(listed(tmp_path), path, NONE)[0] == list(FILES)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            "file,patient",
            "has no column group: its first line is 'file,patient'; name the columns file and group there",
        ),
        (
            "Filename;Patient_ID",
            "has no column file and no column group: its first line is 'Filename;Patient_ID'; name",
        ),
        ("no/1.png,p1", "has no column file and no column group: its first line is 'no/1.png,p1'; name the"),
        ("file,group,Group", "has several columns group: rename the others"),
        ("", "is empty: its first line should be file,group"),
    ],
)
def test_other_columns_are_named_with_what_is_expected(tmp_path: Path, first: str, message: str) -> None:
    refused = refusal(tmp_path, table(tmp_path, first, *(["1,2"] if first else [])))
    assert f"groups.csv {message}" in refused
    assert "\n" not in refused


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, table(tmp_path, "file,group", "x" * 200_000))
    assert "is not a CSV file with the columns file and group" in message
    (tmp_path / "groups.xlsx").write_bytes(b"PK\x03\x04rest")
    assert "is an Excel or OpenDocument file: save it as CSV" in refusal(tmp_path, str(tmp_path / "groups.xlsx"))


def test_images_without_a_group_are_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, table(tmp_path, "file,group", "no/1.png,a", "no/2.png,", "yes/1.png"))
    assert message.endswith(
        "gives a group to 1 of 4 images: add a row with a group for 3 images, with files written like no/2.png, "
        "yes/1.png, yes/2.png"
    )


def test_a_file_about_other_images_is_refused_with_an_example(tmp_path: Path) -> None:
    message = refusal(tmp_path, table(tmp_path, "file,group", "Y1,a", "Y2,b"))
    assert message.endswith(
        "gives a group to no image: add a row with a group for 4 images, with files written like no/1.png, "
        "no/2.png, yes/1.png; "
        "rows such as Y1 name no image"
    )


def test_several_groups_for_a_file_are_refused(tmp_path: Path) -> None:
    rows = [f"{file},{name}" for file in FILES for name in "abb"]
    message = refusal(tmp_path, table(tmp_path, "file,group", *rows))
    assert message.endswith("gives several groups to 4 images, such as no/1.png (a, b): give each file one group")


def test_one_file_in_two_places_is_one_group_whatever_the_groups_are(tmp_path: Path) -> None:
    for file in FILES[:3]:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        smooth(FILES.index(file)).save(tmp_path / file)
    (tmp_path / FILES[3]).symlink_to(tmp_path / FILES[0])
    own = [FILES[0], FILES[1], FILES[2], FILES[0]]
    assert group(listed(tmp_path), None, NONE)[0] == own
    assert group(listed(tmp_path), "phash", hashes_of(listed(tmp_path)))[0] == own
    rows = [f"{file},{name}" for file, name in zip(FILES, ("first", "second", "third", "second"))]
    names, what = group(listed(tmp_path), table(tmp_path, "file,group", *rows), NONE)
    assert names == ["first", "first", "third", "first"]
    assert what.endswith("4 images in 2 groups, 1 of them with images of several classes")


def test_patients_are_groups_that_do_not_hold_their_identifiers(tmp_path: Path) -> None:
    names, what = group(listed(tmp_path), "patient", NONE, ["MRN 4711", "MRN 4712", "MRN 4711", "MRN 4713"])
    assert names == ["no/1.png", "no/2.png", "no/1.png", "yes/2.png"]
    assert what == (
        "the images of one patient (PatientID) are in one group: 4 images in 3 groups, 1 of them with images of "
        "several classes"
    )


@pytest.mark.parametrize("lacking", ["", None])
def test_an_image_without_a_patient_is_refused_and_named(tmp_path: Path, lacking: str | None) -> None:
    with pytest.raises(CommandError) as caught:
        group(listed(tmp_path), "patient", NONE, ["MRN 4711", lacking, "MRN 4711", lacking])
    assert str(caught.value) == (
        "--groups patient needs a PatientID in every image, and 2 of 4 have none, such as no/2.png: give --groups a "
        "CSV file with the columns file and group"
    )


def test_a_subfolder_with_one_name_in_several_classes_is_one_group(tmp_path: Path) -> None:
    files = ("no/p1/1.png", "no/p1/2.png", "yes/p1/1.png", "yes/p2/1.png")
    images = tuple(ImageFile(file, file.split("/")[0], None, file.split("/")[1]) for file in files)
    names, what = group(Found(tmp_path, ("no", "yes"), images, ()), "folder", NONE)
    assert names == ["p1", "p1", "p1", "p2"]
    assert what == (
        "the images in one subfolder of the class folders are in one group: 4 images in 2 groups, 1 of them with "
        "images of several classes"
    )


def test_an_image_in_no_subfolder_has_no_group(tmp_path: Path) -> None:
    assert refusal(tmp_path, "folder") == (
        "--groups folder needs each image in a subfolder of its class folder, and 4 of 4 are in none, such as "
        "no/1.png: move them, or give --groups a CSV file with the columns file and group"
    )

"""Damaged images are named and left out; an error says where the rest is not enough to train."""

from __future__ import annotations

import io
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rsattn.cli.command import CommandError
from rsattn.finetune import checking
from rsattn.finetune.checking import check, over_images
from rsattn.finetune.folders import Found, find_images


def images(root: Path, *files: str) -> Path:
    """Write a small image to each file; files named bad get only the beginning of one."""
    for number, file in enumerate(files):
        place = root / file
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
        if "bad" in file:
            place.write_bytes(place.read_bytes()[:200])
    return root


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def refusal(found: Found) -> str:
    with pytest.raises(CommandError) as caught:
        check(found, "squash", quiet())
    return str(caught.value)


def test_whole_images_are_left_as_they_are(tmp_path: Path) -> None:
    found = find_images(images(tmp_path, "a/1.png", "a/2.jpg", "b/1.png", "readme/1.png"))
    checked = check(found, "squash", quiet())
    assert (checked.found, checked.damaged) == (found, ())


def test_damaged_images_are_left_out_with_the_reason(tmp_path: Path) -> None:
    images(tmp_path, "a/1.png", "a/bad.png", "a/3.png", "b/1.png", "b/bad.png")
    (tmp_path / "b" / "words.png").write_text("no image")
    found = find_images(tmp_path)
    checked = check(found, "squash", quiet())
    left, damaged = checked.found, checked.damaged
    assert [image.file for image in left.images] == ["a/1.png", "a/3.png", "b/1.png"]
    assert [one.file for one in damaged] == ["a/bad.png", "b/bad.png", "b/words.png"]
    assert damaged[2].why == f"{tmp_path}/b/words.png is not an image that rsattn can read"
    assert all(str(tmp_path / one.file) in one.why for one in damaged)
    assert (left.root, left.classes, left.notes) == (found.root, found.classes, found.notes)


def with_content(root: Path) -> Found:
    """Two images of 16 bits, one of floating-point values, a TIFF file of two pages, an animation, a wide image."""
    images(root, "a/1.png", "b/1.png")
    levels = np.arange(400, dtype=np.uint16).reshape(20, 20)
    for file in ("a/deep.png", "b/deep.tif"):
        Image.fromarray(levels).save(root / file)
    Image.fromarray(levels.astype(np.float32)).save(root / "a" / "float.tif")
    frames = [Image.new("L", (20, 20), level) for level in (0, 200)]
    for file in ("a/pages.tif", "b/moving.gif"):
        frames[0].save(root / file, save_all=True, append_images=frames[1:])
    Image.new("L", (60, 20)).save(root / "b" / "wide.png")
    Image.new("L", (21, 20)).save(root / "b" / "nearly square.png")
    return find_images(root)


def test_what_the_model_does_not_see_as_it_is_is_noted(tmp_path: Path) -> None:
    found = with_content(tmp_path)
    checked = check(found, "squash", quiet())
    assert checked.damaged == ()
    assert checked.found.notes == (
        "3 images have more than 8 bits per pixel; each is stretched from its own smallest and largest value to 0 to "
        "255",
        "2 files have several pages or frames; the first one is used",
        "1 image is not square; it is squashed to a square. The longest is 3.0 times as long as wide; --resize pad "
        "keeps the shape",
    )
    assert checked.hashes.shape == (len(found.images), 3)


def png_of_16_bits(path: Path, color_type: int, channels: int) -> None:
    """Pillow cannot write it; the levels are at most 4095."""
    header = struct.pack(">IIBBBBB", 8, 8, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + struct.pack(f">{8 * channels}H", *[4095] * 8 * channels) for _ in range(8))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            crc = zlib.crc32(name + content)
            file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc))


def test_colors_of_16_bits_are_noted(tmp_path: Path) -> None:
    found = images(tmp_path, "a/1.png", "b/1.png")
    for color_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        png_of_16_bits(tmp_path / "a" / f"{channels} of 16.png", color_type, channels)
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "24.bmp")
    assert check(find_images(found), "squash", quiet()).found.notes[1:] == (
        "3 images have 16 bits per channel; the upper 8 bits are used, so colors of 12 bits are almost black",
    )


def test_windows_and_middle_slices_of_scans_are_noted(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pip install 'rsattn[scans]'")
    pytest.importorskip("nibabel", reason="pip install 'rsattn[scans]'")
    from scan_files import dicom, nifti

    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    dicom(tmp_path / "a" / "1.dcm", values, WindowCenter=40, WindowWidth=400)
    dicom(tmp_path / "a" / "2", values)
    nifti(tmp_path / "b" / "1.nii", np.stack(3 * [values], axis=-1))
    (tmp_path / "b" / "2.dcm").write_text("no image")
    checked = check(find_images(tmp_path), "squash", quiet())
    assert checked.found.notes == (
        "1 image has more than 8 bits per pixel and a window in the header, which is used",
        "2 images have more than 8 bits per pixel; each is stretched from its own smallest and largest value to 0 to "
        "255",
        "1 file has several slices or frames; the one in the middle is used",
    )
    assert [one.file for one in checked.damaged] == ["b/2.dcm"]


def test_patients_are_counted_where_they_are_not_the_groups(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pip install 'rsattn[scans]'")
    from scan_files import dicom

    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8)
    for number, patient in enumerate(["A", "B ", "A", None]):
        tags = {} if patient is None else {"PatientID": patient}
        dicom(tmp_path / "ab"[number % 2] / f"{number}.dcm", pixels, **tags)
    Image.fromarray(pixels).save(tmp_path / "b" / "4.png")
    found = find_images(tmp_path)
    checked = check(found, "squash", quiet())
    assert checked.patients == ("A", "A", "B", "", None)
    note = "3 DICOM files are of 2 patients by PatientID; --groups patient makes the images of each patient one group"
    assert checked.found.notes == check(found, "squash", quiet(), groups="phash").found.notes == (note,)
    for other in ("patient", "groups.csv"):
        assert check(found, "squash", quiet(), groups=other).found.notes == ()


def test_a_window_is_noted_also_where_it_has_no_effect(tmp_path: Path) -> None:
    found = with_content(tmp_path / "deep")
    assert check(found, "pad", quiet(), (40, 400)).found.notes[0] == (
        "3 images have more than 8 bits per pixel; by the window 40,400, values from -160 to 240 become 0 to 255"
    )
    flat = find_images(images(tmp_path / "flat", "a/1.png", "b/1.png"))
    assert check(flat, "pad", quiet(), (40, 400)).found.notes == (
        "no image has more than 8 bits per pixel, so the window 40,400 has no effect",
    )


def test_what_happens_to_oblong_images_depends_on_the_resize(tmp_path: Path) -> None:
    found = with_content(tmp_path)
    cropped = check(found, "crop", quiet()).found.notes[2]
    assert "it is cropped to the square in the middle. The longest is 3.0" in cropped
    assert len(check(found, "pad", quiet()).found.notes) == 2


def test_the_previews_in_a_photograph_are_no_pages(tmp_path: Path) -> None:
    images(tmp_path, "a/1.png", "b/1.png")
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a" / "2.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a" / "2.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
    assert check(find_images(tmp_path), "squash", quiet()).found.notes == ()


def test_the_reason_is_one_line(tmp_path: Path) -> None:
    found = find_images(images(tmp_path, "a/bad\n.png", "a/1.png", "b/1.png"))
    (damaged,) = check(found, "squash", quiet()).damaged
    assert "a/bad\\n.png" in damaged.why
    assert "\n" not in damaged.why


def test_any_fault_of_a_decoder_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = checking.read_image

    def decode(path: Path, window: object) -> object:
        if path.name == "2.png":
            raise IndexError("index\nout of range")
        return original(path, window)

    monkeypatch.setattr(checking, "read_image", decode)
    found = find_images(images(tmp_path, "a/1.png", "a/2.png", "b/1.png"))
    damaged = check(found, "squash", quiet()).damaged
    assert [one.why for one in damaged] == [rf"{tmp_path}/a/2.png is a damaged image: index\nout of range"]


def test_results_are_in_the_order_of_the_images_and_a_bar_is_shown(tmp_path: Path) -> None:
    found = find_images(images(tmp_path, *(f"{label}/{number}.png" for label in "ab" for number in range(6))))
    started = []

    def slow_at_first(path: Path) -> str:
        started.append(path)
        time.sleep(0.02 if len(started) < 4 else 0)
        return path.relative_to(tmp_path).as_posix()

    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    assert over_images(found, slow_at_first, "doing it", console) == [image.file for image in found.images]
    assert "doing it" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "100%" in console.file.getvalue()  # type: ignore[attr-defined]
    plain = quiet()
    over_images(found, slow_at_first, "doing it", plain)
    assert plain.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_filters_of_warnings_are_as_before(tmp_path: Path) -> None:
    """Opening an image changes the filters for a moment, and threads would restore those of other threads."""
    found = find_images(images(tmp_path, "a/1.png", "b/1.png"))
    before = list(warnings.filters)
    over_images(found, lambda path: warnings.simplefilter("error"), "", quiet())
    assert list(warnings.filters) == before


@pytest.mark.filterwarnings("error")
def test_what_decoders_warn_of_does_not_tear_the_bar(tmp_path: Path) -> None:
    found = find_images(images(tmp_path, "a/1.png", "b/1.png"))
    assert over_images(found, lambda path: warnings.warn("odd", stacklevel=1), "", quiet()) == [None, None]


def test_an_interruption_does_not_wait_for_the_images_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_images(images(tmp_path, *(f"{label}/{number}.png" for label in "ab" for number in range(100))))
    done = []

    def work(path: Path) -> None:
        time.sleep(0.005)
        done.append(path)

    def interrupted(results: Iterator[None], *_: object, **__: object) -> Iterator[None]:
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "tracked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        over_images(found, work, "", quiet())
    assert len(done) < 200


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    message = refusal(find_images(images(tmp_path, "a/bad.png", "b/bad.png")))
    assert message.startswith(f"none of the 2 images in {tmp_path} can be read; for example: ")
    assert f"{tmp_path}/a/bad.png" in message


def test_a_class_with_none_left_is_refused(tmp_path: Path) -> None:
    message = refusal(find_images(images(tmp_path, "a/1.png", "b/bad.png", "c/1.png")))
    assert message.startswith("none of the training images of the class b can be read")


def test_a_class_with_none_left_to_train_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path, "train/a/1.png", "train/b/bad.png", "test/a/1.png", "test/b/1.png")
    assert "training images of the class b can be read" in refusal(find_images(root))


def test_a_split_with_none_left_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/bad.png", "test/b/bad.png")
    assert refusal(find_images(root)).startswith("none of the images in the test split can be read")


def test_a_class_with_none_left_to_test_is_noted_once(tmp_path: Path) -> None:
    root = images(tmp_path, *(f"train/{label}/1.png" for label in "abc"), "test/a/1.png", "test/b/bad.png")
    found = find_images(root)
    assert len(found.notes) == 1
    left = check(found, "squash", quiet()).found
    assert left.notes == (
        "the class c has no images in the test split: its recall cannot be measured",
        "the class b has no images in the test split: its recall cannot be measured",
    )

"""Cross-validation: every image is tested once, groups stay whole, and the command lines that ask for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from runs import MakeOptions, table
from test_commands import asked as asked  # a fixture
from test_config import parsed
from test_splitting import by_class, found, own, unsplit

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import compare as comparing
from rsattn.finetune import running
from rsattn.finetune.compare import Entrant
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.splitting import split_fold


def test_every_image_is_tested_once_and_groups_and_classes_are_in_every_fold() -> None:
    of = unsplit(a=60, b=30)
    groups = [f"p{number // 3}" for number in range(90)]

    folds = [split_fold(of, groups, 5, fold, 0, seed=fold) for fold in range(5)]

    assert all(tested.count("test") == 1 for tested in zip(*folds))
    for splits in folds:
        assert by_class(of, splits)["a", "test"] == 12
        assert by_class(of, splits)["b", "test"] == 6
        homes = {name: {split for own, split in zip(groups, splits) if own == name} for name in groups}
        assert all(len(home) == 1 for home in homes.values())
        assert {label for label, split in by_class(of, splits) if split == "val"} == {"a", "b"}
        assert 9 <= splits.count("val") <= 18  # 0.15 of 90 images is 13.5
        assert set(splits) == {"train", "val", "test"}


def test_the_folds_depend_on_their_own_seed_and_val_on_that_of_the_run() -> None:
    of = unsplit(a=20, b=20)
    first, again, other_val, other_folds = (
        split_fold(of, own(of), 4, 1, folds_seed, seed) for folds_seed, seed in ((0, 1), (0, 1), (0, 2), (1, 1))
    )

    def tested(splits: list[str]) -> list[int]:
        return [index for index, split in enumerate(splits) if split == "test"]

    assert first == again
    assert tested(first) == tested(other_val)
    assert first != other_val
    assert tested(first) != tested(other_folds)


def test_two_folds_leave_images_to_train_and_validate() -> None:
    of = unsplit(a=12, b=12)

    assert Counter(split_fold(of, own(of), 2, 0, 0, 0)) == {"test": 12, "train": 8, "val": 4}


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_with_its_own_split_is_refused(split: str) -> None:
    of = found(*[("a", "train")] * 9, *[("b", "train")] * 9, ("a", split), ("b", split))

    with pytest.raises(CommandError, match=f"--folds tests every image once, but data has its own {split} split: use"):
        split_fold(of, own(of), 3, 0, 0, 0)


def test_classes_with_fewer_groups_than_folds_are_refused() -> None:
    of = unsplit(a=20, b=4)

    with pytest.raises(
        CommandError, match="too few groups of images for 5 folds: b has 4 groups, and each class needs"
    ):
        split_fold(of, own(of), 5, 0, 0, 0)
    with pytest.raises(CommandError, match="for 2 folds: b has 2 groups, and each class needs at least 3"):
        split_fold(unsplit(a=20, b=2), own(unsplit(a=20, b=2)), 2, 0, 0, 0)


def test_groups_that_no_shuffle_can_divide_are_refused() -> None:
    """p1 has a fold of its own; of the other groups, any two that share a fold leave the third without a class."""
    of = unsplit(a=3, b=3, c=3)
    groups = ["p1", "p2", "p3", "p1", "p2", "p4", "p1", "p3", "p4"]

    with pytest.raises(CommandError, match="the groups do not allow every class to be in every split"):
        split_fold(of, groups, 3, 0, 0, 0)


def test_a_fold_is_asked_for_with_its_seed(asked: list[Options]) -> None:
    assert cli.main(["finetune", "slides", "--folds", "5", "--fold", "3"]) == 0
    assert cli.main(["finetune", "slides", "--folds", "5", "--fold", "3", "--seed", "7"]) == 0
    first, second = asked
    assert (first.folds, first.fold, first.seed, second.seed) == (5, 3, 3, 7)
    assert first.out == "rsattn-runs/slides-resvit-fold-3-of-5"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["finetune", "--folds", "5"], "--folds needs --fold I, the fold to test; rsattn compare --folds K tests all"),
        (["finetune", "--fold", "0"], "--fold needs --folds K"),
        (["finetune", "--folds", "5", "--fold", "5"], "--fold 5: expected a fold from 0 to 4"),
        (["finetune", "--folds", "1", "--fold", "0"], "--folds: '1' is too few: cross-validation needs 2 folds"),
        (["compare", "--folds", "5", "--seeds", "5"], "--seeds and --folds cannot be given together"),
    ],
)
def test_folds_that_make_no_sense_are_refused(
    words: list[str], complaint: str, asked: list[Options], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert (code, complaint in error, error.count("\n")) == (2, True, 1)
    assert not asked


@pytest.mark.parametrize(
    ("words", "numbers", "folds"), [([], 5, None), (["--seeds", "2"], 2, None), (["--folds", "3"], 3, 3)]
)
def test_compare_runs_all_seeds_or_all_folds(
    words: list[str], numbers: int, folds: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Entrant], range]] = []
    monkeypatch.setattr(comparing, "compare", lambda entrants, seeds, out, console: seen.append((entrants, seeds)) or 0)

    assert cli.main(["compare", *words]) == 0

    ((entrants, seeds),) = seen
    assert seeds == range(numbers)
    assert {entrant.options.folds for entrant in entrants} == {folds}


def test_a_config_with_folds_gives_way_to_the_command_line(tmp_path: Path, make_options: MakeOptions) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(make_options(folds=5, fold=2, seed=2))))

    again = parsed(["finetune", "--config", str(file)])
    other = parsed(["finetune", "--config", str(file), "--fold", "3"])
    all_folds, seeds = (
        parsed(["compare", "--config", str(file), *words, "--models", "vit"]) for words in ([], ["--seeds", "4"])
    )

    assert (again.folds, again.fold, again.seed) == (5, 2, 2)
    assert (other.folds, other.fold, other.seed) == (5, 3, None)
    assert (all_folds.folds, all_folds.seeds) == (5, None)
    assert (seeds.folds, seeds.seeds) == (None, 4)


def test_the_files_of_a_run_have_the_fold_and_the_checksums(
    make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    data = Path(str(make_options().data))
    tested = []
    for fold in range(3):
        folder = RunFolder(tmp_path / str(fold))
        folder.path.mkdir()
        running.prepare(folder, make_options(folds=3, fold=fold, seed=fold, out=str(folder.path)), console)
        tested += [row["file"] for row in table(folder.split) if row["split"] == "test"]
    files = sorted(path for path in data.rglob("*.png"))
    assert sorted(tested) == [path.relative_to(data).as_posix() for path in files]
    checksums = json.loads(folder.data.read_text())["checksums"]
    assert checksums["split"] == hashlib.sha256(folder.split.read_bytes()).hexdigest()
    lines = sorted(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(data)}\n" for path in files)
    assert checksums["images"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert not list(folder.path.glob(".*.partial"))


def test_another_image_changes_the_checksum(make_options: MakeOptions, console: Console, tmp_path: Path) -> None:
    data = tmp_path / "images"
    shutil.copytree(str(make_options().data), data)
    checksums = []
    for name in ("before", "after"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        running.prepare(folder, make_options(data=str(data), out=str(folder.path)), console)
        checksums.append(json.loads(folder.data.read_text())["checksums"])
        shutil.copy(data / "across" / "01.png", data / "across" / "00.png")

    before, after = checksums
    assert before["images"] != after["images"]
    assert before["split"] == after["split"]

"""The redone experiment: whose output is added, that its splits do not leak, and that its tables are its results'."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paper_modules import of_the_experiment
from PIL import Image
from rich.console import Console
from torch import Tensor

import rsattn
from rsattn.finetune.chosen_options import GATE_RATE
from rsattn.finetune.recipes import RECIPES
from rsattn.finetune.splitting import SplitRow
from rsattn.recording import residual_modules

ablation, command, experiment, sets, side_by_side, tables, weights = (
    of_the_experiment(name)
    for name in ("ablation", "__main__", "experiment", "sets", "side_by_side", "tables", "weights")
)
add_other_head = ablation.add_other_head


def module_and_splits(
    merge: str = "tile", dtype: torch.dtype = torch.float64
) -> tuple[rsattn.ResidualSelfAttention, Tensor, Tensor, Tensor, Tensor]:
    """A module, its input, its plain projection (B,N,D), its heads' outputs (B,H,N,E) and norms (B,H)."""
    torch.manual_seed(0)
    module = rsattn.ResidualSelfAttention(24, num_heads=3, merge=merge, dtype=dtype)  # type: ignore[arg-type]
    x = torch.randn(4, 7, 24, dtype=dtype)
    query, key, value = module.qkv(x).view(4, 7, 3, 3, 8).permute(2, 0, 3, 1, 4)
    attention = rsattn.residual_attention(query, key, value, backend="reference")
    return module, x, module.proj(attention.output.transpose(1, 2).flatten(2)), attention.output, attention.norms


@pytest.mark.parametrize("which", ["best", "worst", "fixed", "mean"])
def test_the_head_that_is_named_is_what_is_added(which: str) -> None:
    module, x, projected, output, norms = module_and_splits()
    expected = {
        "best": output[torch.arange(4), norms.argmax(1)],
        "worst": output[torch.arange(4), norms.argmin(1)],
        "fixed": output[:, 0],
        "mean": output.mean(1),
    }[which]
    add_other_head(module, which, torch.Generator())
    added = module(x) - projected
    torch.testing.assert_close(added, expected.repeat(1, 1, 3))


def test_a_random_head_is_one_of_the_heads_and_another_every_time() -> None:
    module, x, projected, output, _ = module_and_splits()
    heads = []
    for _ in range(2):  # the same seed draws the same heads
        add_other_head(module, "random", torch.Generator().manual_seed(3))
        for _ in range(8):
            added = (module(x) - projected)[..., :8]
            distance = (added[:, None] - output).abs().amax((2, 3))
            assert distance.amin(1).max() < 1e-12  # float64, two roundings
            heads.append(distance.argmin(1))
    drawn = torch.stack(heads)
    assert set(drawn.flatten().tolist()) == {0, 1, 2}
    assert len(drawn[:8].unique(dim=0)) > 4
    assert torch.equal(drawn[:8], drawn[8:])


def test_one_model_is_changed_and_keeps_its_other_options() -> None:
    first, x, *_ = module_and_splits("slot")
    other, *_ = module_and_splits("slot")
    before = first(x)
    add_other_head(torch.nn.Sequential(other), "worst", torch.Generator())
    assert not torch.equal(other(x), before)
    assert torch.equal(first(x), before)
    assert (other.options.merge, other.options.norm) == ("slot", "induced")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # PyTorch's gradients, and a kernel's
def test_the_other_heads_gradient_is_that_of_its_output(dtype: torch.dtype) -> None:
    module, x, projected, output, norms = module_and_splits(dtype=dtype)
    worst = output[torch.arange(4), norms.argmin(1)].repeat(1, 1, 3)
    parameters = [module.qkv.weight, module.proj.weight]
    want = torch.autograd.grad((projected + worst).square().sum(), parameters)
    add_other_head(module, "worst", torch.Generator())
    torch.testing.assert_close(torch.autograd.grad(module(x).square().sum(), parameters), want)


@pytest.fixture
def noise(tmp_path: Path) -> Any:
    """Forty small images of two classes."""
    rows = []
    random = np.random.default_rng(0)
    for number in range(40):
        label = ("no", "yes")[number % 2]
        (tmp_path / label).mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
        rows.append(SplitRow(f"{label}/{number}.png", label, "", str(number)))
    return sets.ImageSet("mri", tmp_path, ("no", "yes"), tuple(rows))


def tiny(freeze: bool, variant: Any) -> Any:
    """A run of one epoch of a small ViT of timm's, and its classifier's fit."""
    command = "--model vit_tiny_patch16_224 --weights none --image-size 16 --epochs 1 --augment none --head-first"
    return experiment.Run(
        "mri", "leak-free", experiment.Study("tiny", (*command.split(), *["--freeze"] * freeze)), variant, 5
    )


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_trains_and_tests_with_the_head_of_its_variant(
    freeze: bool, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    given = []

    def noted(model: torch.nn.Module, which: str, generator: torch.Generator) -> None:
        assert residual_modules(model)
        given.append((model, which, generator))
        add_other_head(model, which, generator)

    monkeypatch.setattr(experiment, "add_other_head", noted)
    run = tiny(freeze, experiment.Variant("random head", ("--patch", "--init-values=none"), "random"))
    experiment.do(run, noise, tmp_path / "no-weights", tmp_path / "work", Console(quiet=True))
    assert len(json.loads(run.file.read_text())["tested"]["correct"]) == 8
    (trained, _, generator), (tested, _, same) = given
    assert {which for _, which, _ in given} == {"random"}
    assert trained is not tested
    assert generator is same  # or testing would draw the heads of training again
    assert generator.initial_seed() == 5


@pytest.mark.parametrize("freeze", [False, True])
def test_a_run_tells_what_its_gates_became(
    freeze: bool, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind gates that stay at zero a frozen model's features are the plain one's; trained gates have left it."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    contents = {}
    for variant in (experiment.PLAIN, experiment.GATED[0]):
        run = tiny(freeze, variant)
        experiment.do(run, noise, tmp_path / "no-weights", tmp_path / "work", Console(quiet=True))
        contents[variant.name] = json.loads(run.file.read_text())
    plain, gated = contents.values()
    options = gated["run"]["options"]
    assert (options["init_values"], options["gate_rate"]) == (0.0, None if freeze else GATE_RATE)
    assert plain["gates"] == []
    assert len(gated["gates"]) == 12
    if freeze:
        assert gated["gates"] == [0.0] * 12
        assert gated["tested"] == plain["tested"]
    else:
        assert min(gated["gates"]) > 0.0


def test_features_of_images_in_another_order_are_made_anew(
    noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept from a run whose rows came otherwise, they gave images the features of others, across the split too."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    run, tested = tiny(True, experiment.PLAIN), []
    backwards = sets.ImageSet(noise.name, noise.root, noise.classes, noise.rows[::-1])
    for images, work in ((noise, "work"), (backwards, "work"), (backwards, "fresh")):
        experiment.do(run, images, tmp_path / "no-weights", tmp_path / work, Console(quiet=True))
        kept = torch.load(tmp_path / work / "features" / "mri-plain.pt")
        assert kept["images"] == [row.file for row in images.rows]
        tested.append((kept["features"], json.loads(run.file.read_text())["tested"]))
    assert torch.equal(tested[1][0], tested[2][0])
    # Some processors sum the rows of a batch in an order that depends on the place of the row, here in bfloat16; the
    # features of two images differ by about 1.
    torch.testing.assert_close(tested[1][0], tested[0][0].flip(0), atol=0.05, rtol=0)
    assert tested[1][1] == tested[2][1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder like the real one: 40 MRI images, two of a kind; 20 photographs of blood with four copies each."""
    folder = tmp_path / "data"
    folder.mkdir()
    mri = [(f"{label}/{n}.jpg", label, n // 2 + 100 * (label == "yes")) for label in ("no", "yes") for n in range(20)]
    _table(folder / "brain_mri_clusters.csv", ["file", "class", "cluster"], mri)
    _zip(folder / "brain_mri_gray384_jpg90.zip", [row[0] for row in mri])
    kinds = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
    cells = [
        ("TEST" if photograph % 5 == 4 else "TRAIN", kinds[photograph % 4], f"_{photograph}_{copy}.jpeg", photograph)
        for photograph in range(20)
        for copy in range(4)
    ]
    sources = [(*cell, 5 if cell[2] == "_0_0.jpeg" else 40, 6) for cell in cells]  # one uncertain
    header = ["split", "class", "file", "source_id", "inliers", "second_inliers"]
    _table(folder / "blood_source_map.csv", header, sources)
    # Photographs 3 and 4 show one field, and 4 is in TEST; 1 and 2 only seem to.
    pairs = [(40, 3, 4, "", ""), (10, 1, 2, "", "")]
    _table(folder / "blood_duplicate_originals.csv", ["orb_inliers", "id_a", "id_b", "label_a", "label_b"], pairs)
    names = [f"{split}/{label}/{Path(file).stem}.webp" for split, label, file, _ in cells]
    _zip(folder / "blood_full_128x128_webp85.zip", names)
    return folder


def _table(path: Path, header: list[str], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


def splits_of(rows: list[Any]) -> dict[str, set[str]]:
    """group -> the splits its images are in."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.group, set()).add(row.split)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_leak_free_mri_splits_no_cluster_and_the_authors_split_does(data: Path, tmp_path: Path, seed: int) -> None:
    images = sets.mri(data, tmp_path)
    assert len(images.rows) == 40
    whole = splits_of(sets.divided(images, "leak-free", seed))
    assert all(len(splits) == 1 for splits in whole.values())
    assert {split for splits in whole.values() for split in splits} == {"train", "val", "test"}
    assert any(len(splits) > 1 for splits in splits_of(sets.divided(images, "authors", seed)).values())


def test_leak_free_blood_keeps_the_test_split_and_leaves_its_photographs_out_of_training(
    data: Path, tmp_path: Path
) -> None:
    images = sets.blood(data, tmp_path)
    assert len(images.rows) == 79  # one of an uncertain photograph
    rows = sets.divided(images, "leak-free", 0)
    assert {row.file for row in rows if row.split == "test"} == {r.file for r in images.rows if r.split == "test"}
    assert splits_of(rows)["3"] == {"left-out", "test"}
    assert all(len(splits) == 1 for group, splits in splits_of(rows).items() if group != "3")
    assert {row.split for row in sets.divided(images, "authors", 0)} == {"train", "val", "test"}


def test_thinning_keeps_the_shares_of_the_classes_and_most_photographs(data: Path, tmp_path: Path) -> None:
    images = sets.blood(data, tmp_path)
    few = sets.thinned(images, 4)
    assert {row.label: 0 for row in few.rows}.keys() == set(images.classes)
    for split in ("train", "test"):
        for label in images.classes:
            here = [row for row in few.rows if (row.split, row.label) == (split, label)]
            there = [row for row in images.rows if (row.split, row.label) == (split, label)]
            assert len(here) == -(-len(there) // 4)
            assert len({row.group for row in here}) == len(here)
    assert sets.thinned(images, 1).rows == tuple(sorted(images.rows, key=lambda r: (r.split, r.label, r.group, r.file)))


def test_quantized_weights_become_timms() -> None:
    matrix = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    arrays: dict[str, np.ndarray] = {"embeddings.cls_token": np.ones((1, 1, 4), np.float16)}
    for part in ("query", "key", "value"):
        name = f"encoder.layer.7.attention.attention.{part}.weight"
        arrays[f"{name}|q"], arrays[f"{name}|s"] = matrix, np.array([1.0, 0.5, 0.25], np.float32)
    named = weights.for_timm(weights.dequantized(arrays))
    assert set(named) == {"cls_token", "blocks.7.attn.qkv.weight"}
    one = torch.tensor(matrix).float() * torch.tensor([[1.0], [0.5], [0.25]])
    assert torch.equal(named["blocks.7.attn.qkv.weight"], torch.cat([one, one, one]))


def test_every_cell_of_a_grid_has_a_file_of_its_own() -> None:
    for grid in (list(experiment.two_cores()), list(experiment.everything())):
        assert len({run.file for run in grid}) == len(grid)
    assert {run.variant for run in experiment.everything()} >= {run.variant for run in experiment.two_cores()}


@pytest.fixture
def begun(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that `main` begins of the five plain frozen ones of MRI; the one of seed 1 fails."""
    monkeypatch.setattr(experiment, "RESULTS", tmp_path / "results")
    names: list[str] = []

    def do(run: Any, *_: Any) -> None:
        names.append(run.file.stem)
        if run.seed == 1:
            raise RuntimeError("no such weights")

    monkeypatch.setattr(command, "do", do)
    words = [str(data), "--work", str(tmp_path / "work"), "--only", "mri_leak-free_frozen_plain"]
    monkeypatch.setattr("sys.argv", ["bench.paper", *words])
    return names


def test_a_run_that_fails_does_not_hold_up_the_others(begun: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="failed: 1 of 5 runs"):
        command.main()
    assert begun == [f"mri_leak-free_frozen_plain_seed-{seed}" for seed in range(5)]
    assert "no such weights" in capsys.readouterr().err


def test_a_run_that_another_process_is_at_is_left_to_it(begun: list[str], tmp_path: Path) -> None:
    name = "mri_leak-free_frozen_plain_seed-{}"
    with side_by_side.locked(tmp_path / "work" / "run" / f"{name.format(1)}.lock", wait=False) as ours:
        assert ours
        command.main()
    assert begun == [name.format(seed) for seed in (0, 2, 3, 4)]


def test_runs_come_in_the_order_of_the_patterns_and_none_twice() -> None:
    grid = list(experiment.two_cores())
    nets = [run for run in grid if run.set == "mri" and run.study in experiment.NETS]
    mri = [run for run in grid if run.set == "mri" and run not in nets]
    assert command.chosen(grid, ["mri.*_(cnn|alexnet|resnet18)_", "^mri"]) == [*nets, *mri]
    assert command.chosen(grid, [""]) == grid


def test_a_run_is_what_the_command_would_do_with_its_arguments() -> None:
    """Its recipe is the shipped one, whatever that becomes, except for the augmentation of the results."""
    made = {}
    for name in ("mri", "blood"):
        run = experiment.Run(name, "leak-free", experiment.TUNED, experiment.GATED[1], 3)
        made[name] = experiment.options_of(run, Path("w.pt"), Path("out"))
    recipe = RECIPES["finetune"]
    mri = made["mri"]
    assert (mri.recipe, mri.head_first, mri.epochs, mri.keep) == ("finetune", True, recipe.epochs, recipe.keep)
    assert (mri.patch, mri.norm, mri.init_values, mri.gate_rate) == (True, "entrywise", 0.0, GATE_RATE)
    assert (mri.weights, mri.image_size, mri.seed, mri.augment) == ("w.pt", 112, 3, "mirror")
    assert made["blood"] == replace(mri, data="blood", augment="rotate")


def test_the_readme_has_the_tables_of_the_result_files() -> None:
    """`python -m bench.paper --tables` has nothing to change."""
    text = tables.README.read_text()
    assert tables.summary() in text
    assert tables.tables() in text


def written(
    folder: Path, study: str, variant: str, seed: int, correct: list[int], device: str = "CPU, 1 threads"
) -> None:
    """The result file of a run that was tested with four images."""
    run = {"set": "mri", "split": "leak-free", "study": {"name": study}, "variant": {"name": variant}, "seed": seed}
    wrong = 4 - sum(correct)
    content = {
        "run": run,
        "confusion": [[2, 0], [wrong, 2 - wrong]],
        "tested": {"picture": [0, 1, 2, 3], "group": ["a", "b", "c", "d"], "correct": correct},
        "pictures": {"train": 8, "val": 2, "test": 4},
        "groups": {"train": 4, "val": 1, "test": 4},
        "val_loss": 0.5,
        "machine": {"device": device},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{study}_{variant}_{seed}.json").write_text(json.dumps(content))


def test_a_table_s_numbers_are_those_of_the_runs(tmp_path: Path) -> None:
    """Two seeds of four images: plain 3 and 2 right, the other 4 and 2."""
    for name, right in (("plain", ([1, 1, 1, 0], [1, 1, 0, 0])), ("other", ([1, 1, 1, 1], [1, 1, 0, 0]))):
        for seed, correct in enumerate(right):
            written(tmp_path / "mri", "frozen", name, seed, correct)
            written(tmp_path / "mri-gpu", "frozen", name, seed, correct, device="Some GPU")
    text = tables.tables(tmp_path)
    assert [line.split("**")[1] for line in text.splitlines() if line[:2] == "**"] == [
        "Brain MRI, frozen, leak-free split",
        "Brain MRI, frozen, leak-free split, on one Some GPU",
    ]
    plain, other = [line.split(" | ") for line in text.splitlines() if line[:3] in ("| p", "| o")][:2]
    assert plain[1:3] == ["2", "62.5 ± 17.7"]
    assert other[1:3] == ["2", "75.0 ± 35.4"]
    assert other[5] == "+12.5"
    assert (
        "1 of 4 groups of which *plain* misses more than half of the images with every seed: d (25.0 %); the "
        "percentages are shares of the test images. These groups account for 25.0 of the 37.5 points that it misses."
    ) in text


def test_convolutional_networks_are_compared_with_the_fine_tuned_vit(tmp_path: Path) -> None:
    written(tmp_path / "mri", "fine-tuned", "plain", 0, [1, 1, 1, 0])
    written(tmp_path / "mri", "cnn", "plain", 0, [1, 0, 0, 0])
    written(tmp_path / "mri-gpu", "cnn", "plain", 0, [1, 0, 0, 0], device="Some GPU")
    text = tables.tables(tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| cnn")]
    assert [row[5] for row in rows if len(row) > 5] == ["-50.0"]
    assert len(rows) == 2  # the GPU has no ViT to compare with
    assert text.count("**Brain MRI, convolutional networks") == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("data", "--only", "("), "'(' is not a regular expression"),
        (("data", "--only", "nothing like this"), "no run has a match of --only"),
        (("nowhere",), "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["bench.paper", *words, "--work", "work"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "work").exists()

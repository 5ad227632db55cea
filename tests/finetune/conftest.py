"""Images that a tiny model can classify, and the options of a run that takes a second."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from runs import MakeOptions

from rsattn.finetune import compare, evaluation, memory, report
from rsattn.finetune.options import Options

SIDE = 16
COUNTED = memory._counted
FIGURES = {
    evaluation: ("draw_samples", "head_choices", "norm_map"),
    report: ("confusion_matrix", "reliability", "training_curves", "roc_and_pr", "gate_sizes"),
}


def striped(kind: str, number: int) -> Image.Image:
    """Horizontal or vertical stripes, two pixels wide, with random phase and noise."""
    random = np.random.default_rng(number)
    line = 60 + 120 * ((np.arange(SIDE) + random.integers(4)) // 2 % 2)
    pixels = np.tile(line[:, None] if kind == "across" else line[None, :], (1, SIDE) if kind == "across" else (SIDE, 1))
    noisy = pixels[..., None] + random.normal(0, 10, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """The figures of runs are not composed and PNG files not drawn, except in `full_figures`."""
    save = Figure.savefig

    def savefig(figure: Figure, file: Any, **given: Any) -> None:
        if given.get("format", Path(str(file)).suffix[1:]) == "png":
            Image.new("RGB", (8, 8), "white").save(file, "png")
        else:
            save(figure, file, **given)

    with pytest.MonkeyPatch.context() as patched:  # its own, because tests undo the fixture's
        if not request.node.get_closest_marker("full_figures"):
            patched.setattr(Figure, "savefig", savefig)
            for user, names in FIGURES.items():
                for name in names:
                    patched.setattr(user, name, lambda *given: Figure())
        yield


@pytest.fixture(scope="session", autouse=True)
def raster_only() -> Iterator[None]:
    """SVG and PDF figures, which take two seconds a run, are empty; the tests that need them draw them."""

    def touch(figure: Figure, stem: Path) -> None:
        for kind in ("svg", "pdf"):
            stem.with_name(f"{stem.name}.{kind}").touch()

    with pytest.MonkeyPatch.context() as patched:
        for user in (compare, report):
            patched.setattr(user, "save_vector", touch)
        yield


@pytest.fixture(scope="session", autouse=True)
def digits_are_few(few_digits: None) -> None:
    """A run of digits takes a second; test_digits.py writes all of them."""


@pytest.fixture(scope="session", autouse=True)
def memory_counted_once() -> Iterator[None]:
    """The memory of runs that differ in little is counted once; `counted_anew` counts each."""
    known = dict[Any, Any]()

    def of_alike(options: Options, classes: int) -> Any:
        key = (options.model, options.size, options.image_size, options.batch_size, options.freeze, options.patch)
        if key not in known:
            known[key] = COUNTED(options, classes)
        return known[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "_counted", of_alike)
        yield


@pytest.fixture
def counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of every run is counted, also where a test replaces the models."""
    monkeypatch.setattr(memory, "_counted", COUNTED.__wrapped__)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes of 30 images each."""
    root = tmp_path_factory.mktemp("images") / "stripes"
    for label, kind in enumerate(("across", "down")):
        (root / kind).mkdir(parents=True)
        for number in range(30):
            striped(kind, 100 * label + number).save(root / kind / f"{number:02}.png")
    return root


@pytest.fixture
def make_options(stripes: Path, tmp_path: Path) -> MakeOptions:
    """`Options` of a tiny residual ViT on `stripes`; keywords change them."""
    plain = Options(
        out=str(tmp_path / "run"),
        data=str(stripes),
        model="resvit",
        patch=False,
        norm="induced",
        scope="sample",
        merge="tile",
        full_width=False,
        size="tiny",
        weights="none",
        image_size=16,
        epochs=3,
        patience=0,
        batch_size=8,
        learning_rate=2e-3,
        weight_decay=0.05,
        augment="none",
        seed=0,
        split_seed=None,
        freeze=False,
        class_weights=False,
        groups=None,
        workers=0,
        precision="32-true",
        devices="1",
        strategy="auto",
        nodes=1,
    )

    def make(**changes: Any) -> Options:
        return replace(plain, **changes)

    return make


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=1000)  # so that no path, of any length, breaks a line

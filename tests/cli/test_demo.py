"""`rsattn demo`: whole runs, the model it trains and keeps, its judgment of wrong blocks, its images in and out."""

from __future__ import annotations

import copy
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from pytorch_pretrained_vit.transformer import Block
from torch import Tensor

import rsattn
from rsattn.cli import drawing
from rsattn.cli import main as cli
from rsattn.cli.command import CommandError, finished_file
from rsattn.cli.demo import cache, reader, scenes
from rsattn.cli.demo.blocks import BlockReport, Error, Float64Block, report
from rsattn.cli.demo.figure import compose, spaced
from rsattn.cli.demo.inputs import as_input, build_model, center_square
from rsattn.cli.demo.words import Setting
from rsattn.cli.images import load_image
from rsattn.cli.weights import fit_weights
from rsattn.contract import Norm
from rsattn.integrations import pytorch_pretrained_vit as integration

ROW = re.compile(
    r"^\s*(?P<block>\d+)\s+(?P<head>\d+)(?P<tie>\??)\s+(?P<norm>\S+)\s+(?P<spread>\S+)%"
    r"\s+(?P<largest>\S+e-\d+)\s+(?P<overall>\S+e-\d+)\s+(?P<budget>\S+e-\d+)\s+\S+\s+\S+\s*$",
    re.MULTILINE,
)


@dataclass
class Demo:
    """One run of the command."""

    code: int
    said: str
    folder: Path

    @property
    def pixels(self) -> np.ndarray[Any, Any]:
        with Image.open(self.folder / "residual-attention.png") as image:
            return np.asarray(image.convert("RGB"), dtype=float)


def demo(folder: Path, *words: str) -> Demo:
    said = io.StringIO()
    with redirect_stdout(said):
        code = cli.main(["demo", "--out", str(folder), *words])
    return Demo(code, said.getvalue(), folder)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Training that takes a moment, and a cache folder of its own, which is returned."""
    folder = tmp_path_factory.mktemp("cache") / "new"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        for module, name, value in (
            *((reader, "STEPS", 10), (reader, "BATCH", 4), (reader, "TESTED", 20)),
            *((scenes, "CROPS", 3), (scenes, "VARIANTS", 1)),
        ):
            monkeypatch.setattr(module, name, value)
        yield folder


@pytest.fixture(scope="module")
def first_demo(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Trains the small model, whose file is then in the cache."""
    return demo(tmp_path_factory.mktemp("demo") / "new" / "out")


@pytest.fixture(scope="module")
def loaded_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """ViT-B/16 with a weights file of another image size and number of classes, and an image of one's own."""
    folder = tmp_path_factory.mktemp("loaded")
    weights = build_model(48, seed=7).state_dict()
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(3, 768), torch.zeros(3)
    torch.save(weights, folder / "mine.pth")
    Image.effect_noise((90, 60), 80).save(folder / "own [b]$x.png")
    result = demo(
        folder / "out",
        *("--image-size", "32", "--norm", "entrywise", "--merge", "slot"),
        *("--weights", str(folder / "mine.pth"), "--image", str(folder / "own [b]$x.png")),
    )
    (folder / "mine.pth").unlink()
    return result


def test_demo_tells_of_every_block_within_its_budget(first_demo: Demo) -> None:
    assert first_demo.code == 0
    rows = list(ROW.finditer(first_demo.said))
    assert [int(row["block"]) for row in rows] == list(range(reader.BLOCKS))
    for row in rows:
        assert 0 < float(row["overall"]) <= float(row["budget"]) < 1e-5
        assert 0 < float(row["largest"]) < 1e-4
        assert 0 <= int(row["head"]) < reader.HEADS
        assert 1 <= float(row["norm"]) <= 65
    assert "N = 65 (8x8 patches" in first_demo.said
    assert "All 4 blocks agree with float64" in first_demo.said


def test_the_notes_of_demo_fit_in_80_columns(first_demo: Demo, loaded_demo: Demo) -> None:
    """A terminal breaks longer lines, and the second line would not be indented."""
    said = first_demo.said + loaded_demo.said
    notes = re.findall(r"^(?:spread|\?|error|budget|ms|reads|best|looks|  ) {3}.*", said, re.MULTILINE)
    assert len(notes) > 20
    assert [line for line in notes if len(line) > 80] == []


def kept_model(folder: Path) -> tuple[Any, reader.Trained]:
    """The model of `first_demo`, from the cache."""
    (path,) = (folder / "rsattn").iterdir()
    trained = cache.read(path)
    assert trained is not None
    model = reader.build_reader(seed=0).eval()
    rsattn.patch(model)
    model.load_state_dict(trained.state)
    return model, trained


def test_demo_says_what_the_trained_model_does(first_demo: Demo, quick: Path) -> None:
    model, trained = kept_model(quick)
    scene = reader.test_scenes(seed=0).example()
    with rsattn.record(model, received=True) as record, torch.no_grad():
        answer = int(model(scene.pixels).argmax())
    winners = record.best_head[:, 0].tolist()
    assert [int(row["head"]) for row in ROW.finditer(first_demo.said)] == winners
    assert f"heads of blocks 0 to 3: {', '.join(map(str, winners))}" in first_demo.said
    tested = reader.test_scenes(seed=0).make(reader.TESTED)
    with torch.no_grad():
        assert trained.accuracy == pytest.approx(
            float((model(tested.pixels).argmax(1) == tested.digits).float().mean())
        )
    assert f"reads    {trained.accuracy:.1%} of" in first_demo.said
    assert f"here it reads {answer} (" in first_demo.said
    assert f"and the digit is {int(scene.digits)}" in first_demo.said
    on_digit = scene.on_digit.flatten()
    received = record.received[range(4), 0, winners].double()
    shares = received[:, 1:][:, on_digit].sum(1) / received.sum(1)
    assert f"{', '.join(f'{share:.0%}' for share in shares)} in this image" in first_demo.said
    assert "the digit covers 14% of the image" in first_demo.said


def test_demo_draws_an_image_and_nothing_else(first_demo: Demo, loaded_demo: Demo) -> None:
    for run in (first_demo, loaded_demo):
        assert sorted(path.name for path in run.folder.iterdir()) == [".rsattn", "residual-attention.png"]
        height, width, _ = run.pixels.shape
        assert width == 1680
        assert 1000 < height < 1600
        # The image, the map and the panels of the lower row each hold colors, not one color.
        assert run.pixels[300:640, 90:470].std() > 10
        assert run.pixels[1000:1250, 90:410].std() > 10
        assert run.pixels[1000:1250, 1290:1590].std() > 10
    assert first_demo.pixels[300:640, 620:1310].std() > 10


def test_a_later_run_takes_the_trained_model_from_the_cache(
    first_demo: Demo, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "train_reader", None)
    again = demo(tmp_path)
    assert again.code == 0
    assert "Training" not in again.said
    (path,) = (quick / "rsattn").iterdir()
    assert f"delete {path}\n" in again.said
    assert np.array_equal(again.pixels, first_demo.pixels)


def test_a_damaged_model_is_trained_again_and_the_demo_says_so(first_demo: Demo, quick: Path, tmp_path: Path) -> None:
    (path,) = (quick / "rsattn").iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-100], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        path.write_bytes(damaged)
        again = demo(tmp_path)
        assert again.code == 0
        assert f"The trained model in {path} is damaged.\nTraining" in again.said
        assert [found.read_bytes() for found in (quick / "rsattn").iterdir()] == [whole]
        assert np.array_equal(again.pixels, first_demo.pixels)


def test_interrupted_training_leaves_nothing(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any) -> None:
        next(iter(arguments[-1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "train_reader", stopped)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert demo(tmp_path / "out").code == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("refused", ["folder", "disk"])
def test_a_model_that_cannot_be_kept_is_used_once(
    refused: str, quick: Path, first_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("cache" if refused == "folder" else "new")))
    reason = "Not a directory"
    if refused == "disk":
        reason = "No space left on device"
        monkeypatch.setattr(cache, "write", lambda *_: (_ for _ in ()).throw(OSError(28, reason)))
    run = demo(tmp_path / "out")
    assert run.code == 0
    (note,) = [line for line in run.said.splitlines() if line.startswith("note: cannot write")]
    assert reason in note
    assert note.endswith("; the next run trains the model again")
    assert "for the next runs" not in run.said
    assert np.array_equal(run.pixels, first_demo.pixels)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "out"}


def test_every_setting_has_a_file_of_its_own_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = {cache.cache_file(norm, seed) for norm in ("induced", "confidence") for seed in (0, 1)}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path / ".cache" / "rsattn"}
    paths.add(cache.cache_file("induced", 0))
    monkeypatch.setattr("inspect.getsource", lambda module: "another recipe")
    assert len(paths) == 4
    assert cache.cache_file("induced", 0) not in paths


def test_the_small_model_learns_to_look_at_the_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the training is too little to read, and enough to find the digit."""
    for module, name, value in (
        *((reader, "STEPS", 100), (reader, "TESTED", 200)),
        *((scenes, "CROPS", 20), (scenes, "VARIANTS", 5)),
    ):
        monkeypatch.setattr(module, name, value)
    threads = torch.get_num_threads()
    trained = reader.train_reader(0, "induced", "sample", "tile", torch.device("cpu"), range(reader.STEPS))
    assert torch.get_num_threads() == threads
    assert trained.best_on_digit[0] > 0.5
    gates = [value for name, value in trained.state.items() if name.endswith("gamma")]
    assert len(gates) == reader.BLOCKS
    assert all(gate.abs().max() > 1e-3 for gate in gates)


def test_the_seed_decides_the_scenes_and_the_frame_holds_the_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "CROPS", 3)
    maker, again = (scenes.SceneMaker(("DejaVuSans",), seed=3) for _ in range(2))
    first, second = maker.make(20), again.make(20)
    assert torch.equal(first.pixels, second.pixels)
    assert first.digits.unique().numel() > 5
    maker.crops = np.zeros_like(maker.crops)
    dark = maker.make(50)
    drawn = dark.pixels.amax(1) > -1.0
    in_frame = dark.on_digit.repeat_interleave(scenes.PATCH, 1).repeat_interleave(scenes.PATCH, 2)
    assert bool((drawn <= in_frame).all())
    assert bool(drawn.flatten(1).any(1).all())
    assert (dark.on_digit.flatten(1).sum(1) == 9).all()


def test_the_model_is_tested_on_other_fonts_and_parts_of_the_photograph_than_it_is_trained_on(quick: Path) -> None:
    assert not set(scenes.TRAINING_FONTS) & set(scenes.TEST_FONTS)
    training, test = scenes.SceneMaker(scenes.TRAINING_FONTS, seed=0), reader.test_scenes(seed=0)
    assert not np.array_equal(training.crops[0], test.crops[0])


def test_an_image_of_ones_own_needs_the_weights_of_vit_b16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--image-size", "32", "--out", str(tmp_path / "out")]) == 2
    assert "needs --pretrained or --weights PATH" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_entrywise_norms_tie_and_the_demo_says_so(loaded_demo: Demo) -> None:
    rows = list(ROW.finditer(loaded_demo.said))
    assert [(row["head"], row["tie"], row["norm"], row["spread"]) for row in rows] == [("0", "", "5", "0.0")] * 12
    assert "tie by definition" in loaded_demo.said


def test_names_with_markup_are_shown_as_they_are(loaded_demo: Demo) -> None:
    assert "own [b]$x.png" in loaded_demo.said


def test_a_backend_that_errs_gives_a_warning_and_exit_code_1(
    first_demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = integration.attend_and_join

    def wrong(*arguments: Any) -> Tensor:
        options = next(a.options for a in arguments if hasattr(a, "options"))
        return right(*arguments) + (1e-4 if options.backend is None else 0.0)

    monkeypatch.setattr(integration, "attend_and_join", wrong)
    result = demo(tmp_path / "out")
    assert result.code == 1
    assert "WARNING" in result.said
    assert "in block 0, 1, 2, 3." in result.said
    assert (tmp_path / "out" / "residual-attention.png").exists()


def test_weights_that_overflow_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = build_model(16, seed=0).state_dict()
    weights["transformer.blocks.0.pwff.fc1.weight"] *= 1e38
    torch.save(weights, tmp_path / "huge.pth")
    words = ["--weights", str(tmp_path / "huge.pth"), "--image-size", "16", "--out", str(tmp_path / "out")]
    assert cli.main(["demo", *words]) == 2
    assert "overflow" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["huge.pth"]


def small_block(init_values: float | None = None) -> Any:
    """A patched block of 4 heads, outside a model."""
    torch.manual_seed(5)
    block = Block(dim=32, num_heads=4, ff_dim=64, dropout=0.1).eval()
    rsattn.patch(block, init_values=init_values)
    return block


def judged(block: Any, shift: float = 0.0, head: int | None = None) -> BlockReport:
    """The report on `block`, its output moved by `shift` or its best head said to be `head`."""
    x = torch.randn(1, 11, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with rsattn.record(block, received=True) as record:
            output = block(x, None)
        best_head = record.best_head[0] if head is None else torch.tensor([head])
        return report(block, x, output + shift, record.norms[0], best_head, record.received[0])


def test_report_accepts_a_right_block_and_reads_its_heads() -> None:
    right = judged(small_block())
    assert right.passed
    assert right.decided
    assert right.best_head == right.oracle_head == int(right.norms.argmax())
    norms = right.norms.tolist()
    assert right.spread == pytest.approx((max(norms) - min(norms)) / max(norms))
    # Rows of P sum to one; the largest column sum is the induced norm of the head that won.
    assert float(right.received.sum()) == pytest.approx(11)
    assert float(right.received.max()) == pytest.approx(max(norms), rel=1e-5)


@pytest.mark.parametrize("shift", [1e-4, torch.nan], ids=str)
def test_report_refuses_an_output_over_budget(shift: float) -> None:
    assert not judged(small_block(), shift=shift).passed


def test_report_refuses_another_head_than_float64s() -> None:
    block = small_block()
    winner = judged(block).best_head
    wrong = judged(block, head=(winner + 1) % 4)
    assert wrong.error.within(wrong.budget)
    assert not wrong.passed


def test_report_does_not_compare_heads_that_float32_cannot_tell_apart() -> None:
    """Heads with the same projections tie; whichever was added, its own float64 output is the measure."""
    block = small_block()
    width = 8
    winner = judged(block).best_head
    twin = (winner + 1) % 4
    own, other = (slice(head * width, (head + 1) * width) for head in (winner, twin))
    with torch.no_grad():
        for proj in (block.attn.proj_q, block.attn.proj_k):
            proj.weight[other], proj.bias[other] = proj.weight[own].clone(), proj.bias[own].clone()
    tied = judged(block)
    assert not tied.decided
    assert tied.passed
    oracle = Float64Block(block, torch.randn(1, 11, 32, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(oracle.output(winner), oracle.output(twin))
    assert not judged(block, head=next(iter({0, 1, 2, 3} - {winner, twin}))).passed


def test_report_leaves_the_block_as_it_was() -> None:
    block = small_block()
    before = copy.deepcopy(block.state_dict())
    judged(block)
    assert type(block) is integration.ResidualBlock
    assert block.attn.scores is None
    assert block.options.backend is None
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


@pytest.mark.parametrize("init_values", [None, 0.3], ids=["no gate", "gate"])
def test_float64_block_is_the_patched_block_in_float64(init_values: float | None) -> None:
    block = small_block(init_values)
    x = torch.randn(1, 11, 32)
    oracle = Float64Block(block, x)
    expected = copy.deepcopy(block).double()(x.double(), None)
    assert torch.allclose(oracle.output(int(oracle.attention.best_head)), expected, rtol=1e-13, atol=1e-13)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    name = "transformer.blocks.0.proj.weight"
    first, again, other = (build_model(16, seed).get_parameter(name) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_of_the_models_own_size_are_loaded_bit_for_bit() -> None:
    source, target = build_model(16, seed=1), build_model(16, seed=2)
    fit_weights(target, source.state_dict(), "source")
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_position_embeddings_of_another_size_are_resized_as_the_library_does() -> None:
    from pytorch_pretrained_vit.utils import resize_positional_embedding_

    source, target = build_model(48, seed=1), build_model(32, seed=2)
    fit_weights(target, {name: value.half() for name, value in source.state_dict().items()}, "source")
    name = "positional_embedding.pos_embedding"
    expected = resize_positional_embedding_(source.state_dict()[name].half().float(), torch.zeros(1, 5, 768))
    assert torch.equal(target.state_dict()[name], expected)


def test_image_is_cropped_about_its_center_and_normalized(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), dtype=np.uint8)
    pixels[:, 64:128] = (255, 0, 51)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image, name = load_image(tmp_path / "wide.png")
    channels = as_input(center_square(image, 32))
    assert name == "wide.png"
    assert channels.shape == (1, 3, 32, 32)
    inner = channels[0, :, 2:-2, 2:-2]
    assert torch.allclose(inner, torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand_as(inner), atol=1e-6)


def test_deep_grey_levels_are_stretched_and_transparency_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 3000]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png")[0]).tolist() == [[[0] * 3, [255] * 3]]
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert np.asarray(load_image(tmp_path / "clear.png")[0]).tolist() == [[[255] * 3]]


def interrupted(path: Path) -> None:
    with finished_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_finished_file_keeps_the_old_one_when_the_work_fails(tmp_path: Path) -> None:
    old, new = tmp_path / "old.png", tmp_path / "a" / "b" / "new.png"
    old.write_text("old")
    for path in (old, new):
        with pytest.raises(KeyboardInterrupt):
            interrupted(path)
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    with finished_file(new) as partial:
        partial.write_text("whole")
        assert not new.exists()
    assert new.read_text() == "whole"
    assert [path.name for path in new.parent.iterdir()] == ["new.png"]


def test_finished_file_says_when_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CommandError, match="No space left on device"), finished_file(tmp_path / "a" / "new.png"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_few_blocks_from_the_first_to_the_last() -> None:
    assert spaced(12, 4) == [0, 4, 7, 11]
    assert spaced(2, 4) == [0, 1]
    assert spaced(1, 4) == [0]


def block_report(norms: Tensor, tokens: int) -> BlockReport:
    error = Error(1e-6, 1e-7)
    received = torch.rand(tokens, generator=torch.Generator().manual_seed(0)) * 1e-3
    return BlockReport(norms, int(norms.argmax()), int(norms.argmax()), True, error, error, received, 1.0, 1.0)


def widest_norms(norm: str, tokens: int, heads: int) -> Tensor:
    """Norms of the heads that take the most room; uniform attention has the smallest ones, one key the largest."""
    least, most = {"confidence": (1 / tokens, 0.89), "induced": (1.0, tokens), "entrywise": (tokens, tokens)}[norm]
    return torch.linspace(least, most, heads)


@pytest.mark.parametrize("norm", ["confidence", "induced", "entrywise"])
@pytest.mark.parametrize("size", [64, 224, 384, 1024])
def test_no_words_of_the_figure_overlap_or_leave_the_page(norm: Norm, size: int) -> None:
    """Of the small model, whose image has 64 pixels, and of ViT-B/16 at the usual sizes and at the largest."""
    own_model = size == 64
    blocks, heads, grid = (4, 8, 8) if own_model else (12, 12, size // 16)
    norms = widest_norms(norm, grid**2 + 1, heads)
    on_digit = torch.zeros(grid, grid, dtype=torch.bool)
    on_digit[2:5, 3:6] = True
    trained = reader.Trained({}, 0.5, [0.5] * blocks, [0.5] * blocks)
    reading = reader.Reading(trained, 8, 8, 0.9999, on_digit.flatten()) if own_model else None
    setting = Setting(
        source="a-name-of-a-file-w...-longest-shown.jpeg",
        image_size=size,
        grid=grid,
        model="small ViT (4 blocks of 8 heads)" if own_model else "ViT-B/16",
        weights="weights of a-name-of-a-file-w...-longest-shown.pth",
        norm=norm,
        scope="sample",
        merge="tile",
        backend="cpu",
        device="cpu",
        reading=reading,
    )
    image = np.zeros((size, size, 3), dtype=np.uint8)
    figure = compose(image, [block_report(norms, grid**2 + 1)] * blocks, setting)
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent().padded(4, 0)) for text in texts]
    assert drawing.number(float(norms[0])) in dict(boxes)
    outside = [words for words, box in boxes if not (figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max))]
    assert outside == []
    overlapping = [(one[0], two[0]) for one, two in itertools.combinations(boxes, 2) if one[1].overlaps(two[1])]
    assert overlapping == []
    cells = [axes.get_window_extent() for axes in figure.axes]
    assert [words for words, box in boxes if any(box.shrunk(0.98, 0.98).overlaps(cell) for cell in cells)] == []

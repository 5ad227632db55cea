"""`rsattn demo`: a whole run, its judgement of blocks that are wrong, its pictures in and out."""

from __future__ import annotations

import copy
import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_pretrained_vit.transformer import Block
from torch import Tensor

import rsattn
from rsattn.cli import main as cli
from rsattn.cli.command import CommandError, finished_file
from rsattn.cli.demo.blocks import BlockReport, Float64Block, report
from rsattn.cli.demo.inputs import as_input, build_model, centre_square
from rsattn.cli.demo.picture import spaced
from rsattn.cli.images import load_image
from rsattn.cli.weights import fit_weights
from rsattn.integrations import pytorch_pretrained_vit as integration

WARNING = "Random weights: the maps mean nothing yet"
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
        with Image.open(self.folder / "residual-attention.png") as picture:
            return np.asarray(picture.convert("RGB"), dtype=float)


def demo(folder: Path, *words: str) -> Demo:
    said = io.StringIO()
    with redirect_stdout(said):
        code = cli.main(["demo", "--out", str(folder), *words])
    return Demo(code, said.getvalue(), folder)


@pytest.fixture(scope="module")
def random_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.mktemp("demo") / "new" / "out", "--image-size", "48")


@pytest.fixture(scope="module")
def loaded_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """With a weights file of another picture size and number of classes, and a picture of one's own."""
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


def test_demo_tells_of_every_block_within_its_budget(random_demo: Demo) -> None:
    assert random_demo.code == 0
    rows = list(ROW.finditer(random_demo.said))
    assert [int(row["block"]) for row in rows] == list(range(12))
    for row in rows:
        assert 0 < float(row["overall"]) <= float(row["budget"]) < 1e-5
        assert 0 < float(row["largest"]) < 1e-4
        assert 0 <= int(row["head"]) < 12
        assert 1 <= float(row["norm"]) <= 10
    assert "12/12" in random_demo.said
    assert "N = 10 (3x3 patches" in random_demo.said


def test_demo_names_the_winners_that_the_model_recorded(random_demo: Demo) -> None:
    model = build_model(48, seed=0)
    square = centre_square(load_image(None)[0], 48)
    with rsattn.patch(model, init_values=None), rsattn.record(model) as record, torch.no_grad():
        model(as_input(square))
    told = [int(row["head"]) for row in ROW.finditer(random_demo.said)]
    assert told == record.best_head[:, 0].tolist()


def test_demo_draws_a_picture_and_nothing_else(random_demo: Demo, loaded_demo: Demo) -> None:
    for run in (random_demo, loaded_demo):
        assert [path.name for path in run.folder.iterdir()] == ["residual-attention.png"]
        height, width, _ = run.pixels.shape
        assert width == 1600
        assert 1000 < height < 1600
        # The picture, the map and the panels of the lower row each hold colours, not one colour.
        assert run.pixels[200:600, 80:460].std() > 10
        assert run.pixels[780:1060, 80:400].std() > 10
        assert run.pixels[780:1060, 1200:1520].std() > 10
    assert random_demo.pixels[230:600, 600:1290].std() > 10


def test_random_weights_are_called_meaningless_and_loaded_ones_are_not(random_demo: Demo, loaded_demo: Demo) -> None:
    assert WARNING in random_demo.said
    assert "--pretrained" in random_demo.said
    assert loaded_demo.code == 0
    assert WARNING not in loaded_demo.said
    assert "weights of mine.pth" in loaded_demo.said
    warning_ink = np.array([0xB3, 0x26, 0x1E])
    foot = slice(-80, None)
    assert (random_demo.pixels[foot] == warning_ink).all(axis=2).any()
    assert not (loaded_demo.pixels[foot] == warning_ink).all(axis=2).any()


def test_entrywise_norms_tie_and_the_demo_says_so(loaded_demo: Demo) -> None:
    rows = list(ROW.finditer(loaded_demo.said))
    assert [(row["head"], row["tie"], row["norm"], row["spread"]) for row in rows] == [("0", "", "5", "0.0")] * 12
    assert "tie by definition" in loaded_demo.said


def test_names_with_markup_are_shown_as_they_are(loaded_demo: Demo) -> None:
    assert "own [b]$x.png" in loaded_demo.said


def test_a_backend_that_errs_gives_a_warning_and_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = integration.attend_and_join

    def wrong(*arguments: Any) -> Tensor:
        options = next(a.options for a in arguments if hasattr(a, "options"))
        return right(*arguments) + (1e-4 if options.backend is None else 0.0)

    monkeypatch.setattr(integration, "attend_and_join", wrong)
    result = demo(tmp_path / "out", "--image-size", "16")
    assert result.code == 1
    assert "WARNING" in result.said
    assert "in block 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11." in result.said
    assert (tmp_path / "out" / "residual-attention.png").exists()


def test_weights_that_overflow_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = build_model(16, seed=0).state_dict()
    weights["transformer.blocks.0.pwff.fc1.weight"] *= 1e38
    torch.save(weights, tmp_path / "huge.pth")
    words = ["--weights", str(tmp_path / "huge.pth"), "--image-size", "16", "--out", str(tmp_path / "out")]
    assert cli.main(["demo", *words]) == 2
    assert "overflow" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["huge.pth"]


def small_block() -> Any:
    """A patched block of 4 heads, outside a model."""
    torch.manual_seed(5)
    block = Block(dim=32, num_heads=4, ff_dim=64, dropout=0.1).eval()
    rsattn.patch(block, init_values=None)
    return block


def judged(block: Any, shift: float = 0.0, head: int | None = None) -> BlockReport:
    """The report on `block`, its output moved by `shift` or its best head said to be `head`."""
    x = torch.randn(1, 11, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with rsattn.record(block) as record:
            output = block(x, None)
        best_head = record.best_head[0] if head is None else torch.tensor([head])
        return report(block, x, output + shift, record.norms[0], best_head)


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


def test_float64_block_is_the_patched_block_in_float64() -> None:
    block = small_block()
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


def test_picture_is_cropped_about_its_centre_and_normalised(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), dtype=np.uint8)
    pixels[:, 64:128] = (255, 0, 51)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    picture, name = load_image(tmp_path / "wide.png")
    channels = as_input(centre_square(picture, 32))
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

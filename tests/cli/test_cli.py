"""The command line: `rsattn info`; an error is one line, has exit code 2 and writes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import textwrap
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text

import rsattn
from rsattn.cli import info
from rsattn.cli import main as cli
from rsattn.cli.command import shown
from rsattn.cli.demo import subjects
from rsattn.cli.demo.inputs import build_model
from rsattn.cli.terminal import Terminal

Fails = Callable[..., str]


def run(*argv: object) -> int:
    """The exit code of `main`, or of the parser."""
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run `rsattn demo`, check that it fails with exit code 2 and writes nothing, and return its one line."""

    def check(*argv: object, out: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        target = tmp_path / "made" / "out" if out is None else out
        assert run("demo", "--out", target, "--image-size", 32, *argv) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("rsattn demo: ")
        assert complaint.count("\n") == 1
        assert complaint.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return complaint

    return check


def in_a_fresh_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=Path(rsattn.__file__).parents[1],
        check=False,
    )


def test_info_tells_versions_and_every_backend_with_its_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsattn.cli.info.faults_apart", lambda packages: {})
    assert run("info") == 0
    said = capsys.readouterr().out
    assert rsattn.__version__ in said
    assert torch.__version__ in said
    for name, status in rsattn.backends("cpu").items():
        verdicts = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert any("runs" in verdict for verdict in verdicts) or not status.available
        for reason in status.reasons:
            assert any(f"cannot run: {reason}" in verdict for verdict in verdicts)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_stops_early_is_no_fault(buffered: bool) -> None:
    """`rsattn info | head -1` prints no traceback, whether lines are written one by one or when Python exits."""
    interpreter = [sys.executable] if buffered else [sys.executable, "-u"]
    with subprocess.Popen(
        [*interpreter, "-m", "rsattn", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_info_without_onnx_names_only_the_format_that_needs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsattn.cli.info.is_installed", lambda package: package != "onnx")
    monkeypatch.setattr("rsattn.cli.info.faults_apart", lambda packages: {})
    assert run("info") == 0
    said = capsys.readouterr().out
    assert "rsattn export --format onnx cannot run: onnx not installed (pip install 'rsattn[export]')" in said
    assert "rsattn export cannot run" not in said


def test_a_command_and_a_module_are_the_same() -> None:
    """`rsattn`, `python -m rsattn` and `python -m rsattn.cli` have the same output and exit code."""
    command = shutil.which("rsattn", path=sysconfig.get_path("scripts"))
    assert command is not None, "rsattn is not installed: pip install -e . in its folder"
    runs = [
        subprocess.run([*start, "paint"], capture_output=True, text=True, check=False)
        for start in ([command], [sys.executable, "-m", "rsattn"], [sys.executable, "-m", "rsattn.cli"])
    ]
    # The message has the name of the program and its commands.
    assert [(run.returncode, run.stdout) for run in runs] == [(2, "")] * 3
    assert runs[0].stderr.startswith("rsattn: argument ")
    assert runs[0].stderr == runs[1].stderr == runs[2].stderr


def test_info_and_the_demos_complaint_in_a_base_install() -> None:
    """With only torch and numpy, info works and lists what the demo lacks; the demo names the extra."""
    result = in_a_fresh_python(
        """
        import sys
        for package in ("rich", "matplotlib", "PIL", "skimage", "scipy", "pytorch_pretrained_vit", "triton"):
            sys.modules[package] = None
        from rsattn.cli import info
        from rsattn.cli.main import main
        info.faults_apart = lambda packages: {}  # which imports the packages in a process that has them
        assert main(["info"]) == 0
        sys.exit(main(["demo", "--out", "/nowhere/at/all"]))
        """
    )
    assert result.returncode == 2, result.stderr
    assert "Triton is not installed" in result.stdout
    assert "rsattn demo cannot run: matplotlib, PIL, pytorch_pretrained_vit, rich, scipy, skimage" in result.stdout
    assert result.stderr == (
        "rsattn demo: the demo needs matplotlib, PIL, pytorch_pretrained_vit, rich, scipy: pip install 'rsattn[demo]'\n"
    )


def test_info_describes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "Imaginary GPU", 9, 0, 80 * 2**30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert any("cuda:0   Imaginary GPU, compute capability 9.0, 80 GiB" in line for line in info._devices())


def status(available: bool, automatic: bool, width: int | None, *reasons: str) -> rsattn.BackendStatus:
    return rsattn.BackendStatus(available, reasons, automatic, (torch.float16,), width)


@pytest.mark.parametrize(
    ("backend", "default", "words"),
    [
        (status(False, False, None, "no compiler", "no luck"), "a", "cannot run: no compiler; no luck"),
        (status(True, True, None), "b", "backend=None uses it first (float16; any head_dim"),
        (status(True, True, 64), "a", "the backends above do not support (float16; head_dim up to 64"),
        (status(True, False, 64), "a", "runs only with backend='b'"),
    ],
    ids=["missing", "default", "second", "on request"],
)
def test_info_says_when_a_backend_is_used(backend: rsattn.BackendStatus, default: str, words: str) -> None:
    assert words in info._verdict("b", backend, default)


def test_missing_image(fails: Fails, tmp_path: Path) -> None:
    assert "none.png: No such file" in fails("--image", tmp_path / "none.png")


def test_folder_as_image(fails: Fails, tmp_path: Path) -> None:
    assert "Is a directory" in fails("--image", tmp_path)


def test_text_as_image(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "notes\nof two lines.png"
    path.write_text("not an image")
    assert "is not an image" in fails("--image", path)


EVIL = "evil\x1b[31m\x1b]0;title\x07\rname\u202e"
ESCAPED = r"evil\x1b[31m\x1b]0;title\x07\rname\u202e"


def test_a_name_in_an_error_is_text_to_the_terminal(fails: Fails, tmp_path: Path) -> None:
    complaint = fails("--image", tmp_path / f"{EVIL}.png")
    assert complaint.strip().isprintable()
    assert "evil\\x1b[31m" in complaint


def test_a_name_in_the_parsers_complaint_is_text_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", f"{EVIL}\n") == 2
    complaint = capsys.readouterr().err
    assert complaint.strip().isprintable()
    assert complaint.count("\n") == 1


def test_a_terminal_shows_what_it_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.print(f"{EVIL}\nnext", markup=False)
    assert capsys.readouterr().out == f"{ESCAPED}\nnext\n"
    assert shown(EVIL) == shown(shown(EVIL)) == ESCAPED


def test_a_cell_is_measured_as_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "share")
    table.add_row(EVIL, "100%")
    Terminal().print(table)
    assert f" {ESCAPED} " in capsys.readouterr().out
    Terminal().print(Text("evil\x1b[31m"))
    assert capsys.readouterr().out == "evil\\x1b[31m\n"


@pytest.mark.parametrize(
    ("line", "shown_as"),
    [
        ("at least 22 MB of memory", ["at least 22 MB of", "memory"]),
        ("that takes about 61 s", ["that takes about", "61 s"]),
        ("with the seed 0, N = 65 tokens", ["with the seed 0,", "N = 65 tokens"]),
        ("of class 000, where p = 1.00", ["of class 000, where", "p = 1.00"]),
        ("report: runs/a-very-long/folder/report.html", ["report:", "runs/a-very-long/folder/report.html"]),
        ("runs/a-very-long/folder is new\n  two", ["runs/a-very-long/folder", "is new", "  two"]),
        ("画像の分類の結果 精度 91.5%", ["画像の分類の結果", "精度 91.5%"]),
    ],
)
def test_a_terminal_breaks_lines_between_words(
    line: str, shown_as: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Terminal().print(line)
    assert capsys.readouterr().out == f"{line}\n"  # a file keeps its lines whole
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(Terminal, "is_terminal", True)
    Terminal().print(line)
    Terminal().print(Text(line))
    assert capsys.readouterr().out.splitlines() == [*shown_as, *shown_as]


def test_letters_that_no_terminal_obeys_are_shown_as_they_are() -> None:
    names = "50\u00a0%", "\u6771\u3000\u4eac", "\U0001f469\u200d\U0001f52c", "\u0644\u200c\u0647"
    assert list(map(shown, names)) == list(names)
    for obeyed in "\0\t\n\r\x7f\x9b\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\udcff":
        assert shown(obeyed) == repr(obeyed)[1:-1]


def test_a_folder_that_may_not_be_searched_is_one_line(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(subjects, "load_image", refused)
    assert fails("--image", "closed/a.png") == "rsattn demo: closed/a.png: Permission denied\n"


def test_half_an_image(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.effect_noise((90, 90), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "truncated" in fails("--image", path)


def test_missing_weights(fails: Fails, tmp_path: Path) -> None:
    assert "none.pth: No such file" in fails("--weights", tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", bytes(range(256)) * 8], ids=["empty", "text", "bytes"])
def test_weights_that_are_no_torch_file(fails: Fails, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert "or not a file of weights" in fails("--weights", path)


def test_weights_that_would_run_code_are_not_loaded(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "or not a file of weights" in fails("--weights", path)


def test_checkpoint_around_the_weights(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, "state_dict": {}}, path)
    assert "holds no state_dict" in fails("--weights", path)


def test_weights_of_the_wrong_shape_are_all_named(fails: Fails, tmp_path: Path) -> None:
    weights = build_model(32, seed=0).state_dict()
    weights["transformer.blocks.3.proj.bias"] = torch.zeros(5)
    weights["positional_embedding.pos_embedding"] = torch.zeros(1, 4, 768)
    weights["extra.weight"] = torch.zeros(1)
    weights["norm.bias"] = torch.full((768,), torch.nan)
    weights["fc.bias"] = torch.zeros(3)
    del weights["transformer.blocks.1.norm1.weight"], weights["transformer.blocks.2.norm1.weight"]
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    complaint = fails("--weights", path)
    assert "transformer.blocks.3.proj.bias (5,) instead of (768,)" in complaint
    assert "positional_embedding.pos_embedding (1, 4, 768) instead of (1, 5, 768)" in complaint
    assert "missing transformer.blocks.{1,2}.norm1.weight" in complaint
    assert "unknown extra.weight" in complaint
    assert "NaN or infinity in norm.bias" in complaint
    assert "fc." not in complaint


def test_weights_of_another_model_are_named_in_few_words(fails: Fails, tmp_path: Path) -> None:
    weights = {f"{name}.weight": torch.zeros(1) for name in "abcde"}
    torch.save(weights | {"class_token": torch.zeros(3)}, tmp_path / "weights.pth")
    complaint = fails("--weights", tmp_path / "weights.pth")
    assert "class_token (3,) instead of (1, 1, 768); missing " in complaint
    assert complaint.endswith("; unknown a.weight, b.weight, c.weight, 2 more\n")
    assert len(complaint) < 500


def test_pretrained_without_a_network(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(url: str, **options: object) -> None:
        print(f"Downloading: {url}", file=sys.stderr)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    complaint = fails("--pretrained")
    assert "no route to host" in complaint
    assert "--weights B_16_imagenet1k.pth" in complaint


def test_pretrained_with_a_damaged_download(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(url: str, **options: object) -> None:
        raise RuntimeError("PytorchStreamReader failed reading zip archive")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", damaged)
    assert "B_16_imagenet1k.pth is damaged; delete it" in fails("--pretrained")


def test_out_is_a_file(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert "it is not a folder" in fails(out=path)
    assert "Not a directory" in fails(out=path / "below")
    assert path.read_text() == "mine"


def test_out_cannot_be_written(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *options: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    assert "Permission denied" in fails()


def test_a_folder_has_the_figures_name(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "out" / "residual-attention.png").mkdir(parents=True)
    assert "residual-attention.png: it is a folder" in fails(out=tmp_path / "out")


def test_backend_that_cannot_run(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "backend triton cannot run" in fails("--backend", "triton")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image-size", "100"), "'100' is not a multiple of 16"),
        (("--image-size", "0"), "'0' is not a multiple of 16"),
        (("--image-size", "-16"), "'-16' is not a multiple of 16"),
        (("--image-size", "1040"), "'1040' is not a multiple of 16 from 16 to 1024"),
        (("--image-size", "big"), "'big' is not a multiple of 16"),
        (("--seed", str(2**63)), "is not a whole number"),
        (("--norm", "l1"), "invalid choice: 'l1'"),
        (("--pretrained", "--weights", "w.pth"), "not allowed with argument"),
    ],
    ids=" ".join,
)
def test_words_the_parser_refuses(fails: Fails, words: tuple[str, ...], said: str) -> None:
    assert said in fails(*words)


@pytest.mark.parametrize("words", [(), ("paint",)], ids=["none", "unknown"])
def test_no_such_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said", "meant"),
    [
        (("finetun",), "rsattn: argument", "did you mean finetune?"),
        (("demo", "--norm", "indused"), "rsattn demo: argument --norm", "did you mean induced?"),
        (("finetune", "--epoch", "3"), "rsattn finetune: unrecognized arguments: --epoch", "did you mean --epochs?"),
        (("finetune", "--lrr=2"), "rsattn finetune: unrecognized arguments: --lrr=2", "did you mean --lr?"),
    ],
    ids=["command", "choice", "option", "option_with_value"],
)
def test_a_misspelled_word_gets_the_closest_one(
    words: tuple[str, ...], said: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert meant in error


def test_words_that_resemble_nothing_get_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--quickly") == 2
    error = capsys.readouterr().err
    assert "rsattn info: unrecognized arguments: --quickly (see rsattn info --help)" in error


def test_an_error_on_a_terminal_breaks_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run("info", "--quickly") == 2
    line = capsys.readouterr().err.rstrip("\n")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("info", "--quickly") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == line


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"rsattn {rsattn.__version__}\n"


@pytest.mark.parametrize(
    "command", [(), *[(name,) for name in ("info", "demo", "bench", "finetune", "compare", "predict")]]
)
def test_help_fits_in_80_columns_and_keeps_names_whole(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert not any(line.endswith("-") for line in lines)


def test_help_of_finetune_starts_with_what_is_needed_most(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("finetune", "--help") == 0
    said = capsys.readouterr().out
    parts = (
        "usage: rsattn finetune [DATA] [options]\n",
        "DATA is a folder",
        "examples:",
        "--model",
        "--out",
        "\nmodel:",
    )
    parts += ("--weights", "\ndata:", "--groups", "\ntraining:", "\nresidual attention:", "\nmachine:", "\nrecipes")
    places = [said.index(part) for part in parts[:3]]
    for part in parts[3:]:
        places.append(said.index(part, places[-1]))
    assert places == sorted(places)


def test_help_says_what_is_written_and_gives_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--help") == 0
    said = capsys.readouterr().out
    for words in ("residual-attention.png", "examples:", "--pretrained", "exit code", "default: rsattn-demo"):
        assert words in said

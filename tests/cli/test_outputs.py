"""Output folders: their marker, what an error leaves of them, and their lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rsattn.cli.command import CommandError
from rsattn.cli.outputs import LOCK, MARKER, is_inside, is_output, locked, names_in, output_folder, warning_inside

HOLDER = """
import sys; from pathlib import Path; from rsattn.cli.outputs import locked
with locked(Path(sys.argv[1])): print("locked", flush=True); sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that locks the folder; it releases the lock when its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def test_a_new_or_an_empty_folder_gets_the_marker(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "new", tmp_path / "empty"):
        for _ in range(2):
            with output_folder(folder):
                assert is_output(names_in(folder))
        assert (folder / MARKER).read_text().startswith("rsattn wrote this folder.")


def test_a_folder_with_files_of_the_user_does_not(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    with output_folder(tmp_path):
        assert names_in(tmp_path) == {"1.png"}
    assert not is_output(names_in(tmp_path))


def interrupted(folder: Path, *files: str) -> None:
    with output_folder(folder):
        for file in files:
            (folder / file).touch()
        raise KeyboardInterrupt


def test_an_error_leaves_the_folders_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "new", tmp_path / "empty"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_an_error_keeps_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "new", "1.png")
    assert names_in(tmp_path / "new") == {MARKER, "1.png"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="it is not a folder"), output_folder(tmp_path / "file"):
        pass
    with pytest.raises(CommandError, match="Not a directory"), output_folder(tmp_path / "file" / "below"):
        pass


def test_an_output_inside_the_data_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for out, data in (("a/b", "a"), ("a", "."), ("a", "link"), ("link/a", tmp_path), ("a", "a")):
        assert is_inside(Path(out), Path(data))
        assert warning_inside(Path(out), Path(data)).startswith(f"warning: the output {out} is inside the data {data}")
    for out, data in (("ab", "a"), ("a", "a/b"), ("../a", ".")):
        assert warning_inside(Path(out), Path(data)) == ""


def test_a_locked_folder_is_refused_until_its_process_ends(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        with (
            pytest.raises(CommandError, match=rf"is in use by process {process.pid} on .*another --out"),
            locked(tmp_path),
        ):
            pass
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        assert names_in(tmp_path) == set()
        with locked(tmp_path):
            assert names_in(tmp_path) == {LOCK}
    assert names_in(tmp_path) == set()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.kill()
    assert names_in(tmp_path) == {LOCK}
    with locked(tmp_path):
        pass
    assert names_in(tmp_path) == set()


def test_a_lock_that_was_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process ends between the opening and the locking of its file."""
    import fcntl

    lock, seen = fcntl.lockf, []

    def end_before(file: int, how: int) -> None:
        if not seen:
            (tmp_path / LOCK).unlink()
        seen.append(file)
        lock(file, how)

    monkeypatch.setattr("fcntl.lockf", end_before)
    with locked(tmp_path):
        assert names_in(tmp_path) == {LOCK}
    assert len(seen) == 2

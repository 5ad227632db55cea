"""What is uploaded to PyPI, and the workflow files that upload it."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import rsattn

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTENTS = runpy.run_path(str(ROOT / ".ci" / "wheel_contents.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scikit_build_core", reason="needs the build backend: pip install scikit-build-core")
    folder = tmp_path_factory.mktemp("wheel")
    code = (
        "import sys; from scikit_build_core.build import build_wheel; "
        "build_wheel(sys.argv[1], {'wheel.cmake': 'false', 'build-dir': sys.argv[1] + '/build'})"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    return next(folder.glob("*.whl"))


def test_a_wheel_as_it_is_built(wheel: Path) -> None:
    assert CONTENTS["of_wheel"](wheel, compiled=False) == []


@pytest.mark.parametrize("name", ["rsattn/bench/results/run-1.json", "rsattn/_C.so", "tests/conftest.py", "notes.txt"])
def test_a_file_that_does_not_belong(name: str, wheel: Path, tmp_path: Path) -> None:
    planted = Path(shutil.copy(wheel, tmp_path))
    with zipfile.ZipFile(planted, "a") as archive:
        archive.writestr(name, "")
    assert CONTENTS["of_wheel"](planted, compiled=False) == [f"{name} does not belong in it"]


def test_a_file_that_is_missing_and_another_platform(wheel: Path, tmp_path: Path) -> None:
    """A wheel with the kernels has to have them, and a tag of the systems it runs on."""
    faults = CONTENTS["of_wheel"](wheel, compiled=True)
    assert faults == ["rsattn/_C.so is missing", "it is for any"]


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == CONTENTS["VERSION"] == rsattn.__version__
    assert newest is not None
    assert newest[1] == rsattn.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_ask_for_no_more_than_they_need(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    writes = {
        (name, permission)
        for name, job in workflow["jobs"].items()
        for permission, access in job.get("permissions", {}).items()
        if access == "write"
    }
    assert writes <= {("publish", "id-token"), ("publish", "pages")}
    called = {job["uses"] for job in workflow["jobs"].values() if "uses" in job}
    assert all((ROOT / name).is_file() for name in called)

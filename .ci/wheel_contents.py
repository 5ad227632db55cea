"""What is in the files for PyPI, and what must not be: `python wheel_contents.py FOLDER`, from any folder."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "rsattn/__init__.py").read_text(), re.MULTILINE)[1]
# Folders of the repository -> where a wheel has them. All of a wheel's files come from here.
PACKAGES = {"rsattn": "rsattn", "kernels": "rsattn/kernels", "bench": "rsattn/bench"}
SOURCES = {"csrc", "CMakeLists.txt", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", *PACKAGES}
RESULTS = re.compile(r"^bench/(results|paper)/")
NOT_INSTALLED = re.compile(r"(^|/)(test_[^/]*|conftest)\.py$|\.(md|sh|cpp)$")
LARGEST = 4 * 2**20  # several times what they have: bulk gets noticed


def main(folder: Path) -> int:
    """Print what is wrong with the files in a folder; the exit code."""
    (source,) = folder.glob("*.tar.gz")
    pure, compiled = sorted(folder.glob("*.whl"), key=lambda path: "-none-any" not in path.name)
    faults = [f"{source.name}: {fault}" for fault in of_source(source)]
    faults += [f"{pure.name}: {fault}" for fault in of_wheel(pure, compiled=False)]
    faults += [f"{compiled.name}: {fault}" for fault in of_wheel(compiled, compiled=True)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def tracked() -> set[str]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in names.splitlines() if not RESULTS.match(name)}


def of_source(path: Path) -> list[str]:
    """What is wrong with a source distribution."""
    top = f"rsattn-{VERSION}/"
    with tarfile.open(path) as archive:
        found = {member.name.removeprefix(top) for member in archive if member.isfile()}
    expected = {name for name in tracked() if PurePosixPath(name).parts[0] in SOURCES}
    return differences(found, expected | {"PKG-INFO"}) + too_large(path)


def of_wheel(path: Path, *, compiled: bool) -> list[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = f"rsattn-{VERSION}.dist-info/"
        missing = {about + name for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")} - names
        if missing:
            return [f"{name} is missing" for name in sorted(missing)]
        metadata = Parser().parsestr(archive.read(about + "METADATA").decode())
        tags = Parser().parsestr(archive.read(about + "WHEEL").decode()).get_all("Tag", [])
    expected = {
        f"{PACKAGES[folder]}/{rest}"
        for folder, _, rest in (name.partition("/") for name in tracked() if not NOT_INSTALLED.search(name))
        if folder in PACKAGES
    }
    if compiled:
        expected.add("rsattn/_C.so")
    faults = differences({name for name in names if not name.startswith(about)}, expected) + too_large(path)
    if (metadata["Version"], metadata["License-Expression"]) != (VERSION, "Apache-2.0"):
        faults.append(f"METADATA says version {metadata['Version']}, license {metadata['License-Expression']}")
    if not {"torch>=2.10", "numpy"} <= set(metadata.get_all("Requires-Dist", [])):
        faults.append("METADATA does not ask for torch>=2.10 and numpy")
    platforms = path.stem.split("-none-")[1].split(".")
    if sorted(tags) != sorted(f"py3-none-{platform}" for platform in platforms):
        faults.append(f"WHEEL has other tags than the file's name: {', '.join(tags)}")
    if not all(platform.startswith("manylinux_" if compiled else "any") for platform in platforms):
        faults.append(f"it is for {', '.join(platforms)}")
    return faults


def differences(found: set[str], expected: set[str]) -> list[str]:
    return [f"{name} is missing" for name in sorted(expected - found)] + [
        f"{name} does not belong in it" for name in sorted(found - expected)
    ]


def too_large(path: Path) -> list[str]:
    size = path.stat().st_size
    return [f"it has {size:,} bytes, more than {LARGEST:,}"] if size > LARGEST else []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

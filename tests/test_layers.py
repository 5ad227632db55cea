"""Who may import whom, read from the sources: lazy imports and the remapped folders included."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

from rsattn.integrations import LOOKS_FOR

ROOT = Path(__file__).parents[1]
FOLDERS = {"rsattn": "rsattn", "rsattn.kernels": "kernels", "rsattn.bench": "bench"}

# From the bottom up; a module imports from its own layer and those below. A name stands for a module or a package.
LAYERS = (
    ("contract", "philox"),
    ("call",),
    ("slices",),
    ("reference",),
    ("kernels",),
    ("backends",),
    ("ops",),
    ("attention", "epilogue", "received"),
    ("module",),
    ("recording", "integrations"),
    ("patching",),
    ("",),  # rsattn itself: the public names
    (
        *("cli.command", "cli.drawing", "cli.gray", "cli.help", "cli.images", "cli.outputs", "cli.packages"),
        *("cli.scans", "cli.suggestions", "cli.terminal", "cli.versions", "cli.weights"),
    ),
    ("plot",),
    ("bench", "cli.demo", "finetune"),
    ("cli.info",),
    ("cli.main",),
    ("__main__", "cli"),
)


@cache
def modules() -> dict[str, Path]:
    """Name of every module of the package -> its file."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            words = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(words).removesuffix(".__init__")] = file
    return found


@cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> the modules of ours that it imports anywhere in its code, in a function or under a condition too."""
    graph = {}
    for name, file in modules().items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(package.split(".")[: 1 - node.level or None]) if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                wanted |= {deepest(f"{base}.{alias.name}") for alias in node.names}
        graph[name] = frozenset(wanted & modules().keys()) - {name}
    # By name, at run time.
    graph["rsattn"] |= {"rsattn.plot"}
    graph["rsattn.integrations"] |= {f"rsattn.integrations.{library}" for library in LOOKS_FOR}
    return graph


def deepest(name: str) -> str:
    """The module that `from package import name` loads: `name` is one itself, or a thing inside `package`."""
    return name if name in modules() else name.rpartition(".")[0]


def layer(module: str) -> int:
    own = module.removeprefix("rsattn").removeprefix(".")
    for length in range(own.count(".") + 1, -1, -1):
        prefix = ".".join(own.split(".")[:length])
        for height, names in enumerate(LAYERS):
            if prefix in names and (prefix or not own):
                return height
    raise AssertionError(f"{module} belongs to no layer of LAYERS; give it one")


def test_the_graph_is_read_right() -> None:
    """Lazy and relative imports, and those of folders that are installed under another name, are in it."""
    assert "rsattn.kernels" in imports()["rsattn.backends.triton"]  # inside a function, two levels up
    assert "rsattn.philox" in imports()["rsattn.kernels.launch"]
    assert "rsattn.bench.measure" in imports()["rsattn.bench.command"]  # inside a function
    assert "rsattn.ops" in imports()["rsattn.attention"]
    assert len(modules()) > 100


def test_no_module_imports_itself_by_any_way() -> None:
    try:
        list(graphlib.TopologicalSorter(imports()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


def test_every_layer_imports_only_downward() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others - {"rsattn.plot"}  # which `rsattn` only loads when it is asked for
        if layer(other) > layer(module)
    ]
    assert upward == []


def test_backends_do_not_import_each_other() -> None:
    names = {f"rsattn.backends.{name}" for name in ("cpu", "cuda", "reference", "triton")}
    assert {name: imports()[name] & names for name in names} == dict.fromkeys(names, frozenset())

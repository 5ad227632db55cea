"""`case`: every model of every library, from the files library_*.py beside this one."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

# Library -> how it comes here.
LIBRARIES = {
    "timm": "pip install -e '.[test]'",
    "torch": "",
}


def _cases() -> list[object]:
    parameters: list[object] = []
    for library, how in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            skip = pytest.mark.skip(reason=f"{library} is not installed; {how}")
            parameters.append(pytest.param(None, id=library, marks=skip))
        else:
            module = importlib.import_module(f"library_{library}")
            parameters.extend(pytest.param(case, id=case.name) for case in module.CASES)
    return parameters


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _cases())

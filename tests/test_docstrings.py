"""Every public name has a docstring that names its parameters and has an example, and the example runs."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import rsattn.finetune
import rsattn.plot
from rsattn.integrations.interface import Integration

PUBLIC = {
    **{f"rsattn.{name}": getattr(rsattn, name) for name in rsattn.__all__},
    **{f"rsattn.plot.{name}": getattr(rsattn.plot, name) for name in rsattn.plot.__all__},
    "rsattn.integrations.interface.Integration": Integration,
    "rsattn.finetune.load": rsattn.finetune.load,
}
TIMM = "rsattn.integrations.timm.ResidualAttention"


def public(name: str) -> Any:
    if name != TIMM:
        return PUBLIC[name]
    pytest.importorskip("timm", reason="pip install timm")
    from rsattn.integrations.timm import ResidualAttention

    return ResidualAttention


def section(docstring: str, title: str) -> list[str] | None:
    """What a section of a Google-style docstring describes, without types; None where there is no such section."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    return found and re.findall(r"^    (\S[^:]*):", found[1], re.MULTILINE)


def parameters(function: Any) -> list[str]:
    """As a docstring names them: all but `self`, with stars."""
    given = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in given]


def fields(kind: type) -> list[str] | None:
    """The public fields of a named tuple or a data class; None for other classes."""
    names = getattr(kind, "_fields", getattr(kind, "__dataclass_fields__", None))
    return names and [name for name in names if not name.startswith("_")]


def expected_args(thing: Any) -> list[str] | None:
    """The parameters that `thing` has to document; None where fields are documented instead, or nothing."""
    if not inspect.isclass(thing):
        return parameters(thing)
    return parameters(thing.__init__) if "__init__" in vars(thing) and not fields(thing) else None


def public_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Those that the class itself defines."""
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            yield name, method


@pytest.mark.parametrize("name", [*PUBLIC, TIMM])
def test_documents_its_parameters_and_fields(name: str) -> None:
    thing = public(name)
    docstring = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert docstring, f"{name} has no docstring"
    assert section(docstring, "Args") == expected_args(thing), f"'Args:' of {name} must list its parameters, in order"
    if inspect.isclass(thing) and fields(thing):
        assert section(docstring, "Attributes") == fields(thing), f"'Attributes:' of {name} must list its fields"


@pytest.mark.parametrize("name", [*PUBLIC, TIMM])
def test_its_public_methods_have_docstrings(name: str) -> None:
    thing = public(name)
    for method_name, method in public_methods(thing) if inspect.isclass(thing) else ():
        assert method.__doc__, f"{name}.{method_name} has no docstring"
        documented = section(method.__doc__, "Args")
        assert documented in (None, parameters(method)), f"'Args:' of {name}.{method_name} must list its parameters"


@pytest.mark.parametrize("name", [*PUBLIC, TIMM])
def test_its_examples_run(name: str, request: pytest.FixtureRequest) -> None:
    if name == "rsattn.finetune.load":
        request.getfixturevalue("in_a_folder_with_a_run")
    examples = doctest.DocTestFinder().find(public(name), name, globs={})  # its own and those of its methods
    assert name in [example.name for example in examples], f"{name} has no `>>>` example"
    for example in examples:
        printed: list[str] = []
        result = doctest.DocTestRunner().run(example, out=printed.append)
        assert result.failed == 0, "".join(printed)


def test_sections_and_parameters_are_read_right() -> None:
    def function(one: int, *two: int, three: int = 0) -> None:
        """Do nothing.

        Args:
            one: a number: any.
                More: of it.
            *two: numbers.

        Returns:
            None: always.
        """

    assert section(function.__doc__ or "", "Args") == ["one", "*two"]
    assert section(function.__doc__ or "", "Raises") is None
    assert parameters(function) == ["one", "*two", "three"]
    assert expected_args(rsattn.BackendStatus) is None
    assert expected_args(rsattn.ResidualOptions) == ["norm", "scope", "merge", "backend", "init_values"]

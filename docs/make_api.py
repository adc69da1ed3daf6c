"""Writes docs/api.md, the public names with their docstrings: `python docs/make_api.py`."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parent / "api.md"
# Names that a module lower in this list has from one above it stand there alone.
MODULES = (
    "sparsekern",
    "sparsekern.nn",
    "sparsekern.growth",
    "sparsekern.masks",
    "sparsekern.tost",
    "sparsekern.models",
    "sparsekern.data",
    "sparsekern.training",
    "sparsekern.export",
    "sparsekern.testing",
)
HEAD = """# Names

The public classes and functions, and what their docstrings say. `python docs/make_api.py` writes this page.
"""


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or else the public functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    own = vars(module).items()
    return [
        name for name, value in own if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


class Named:
    """A function or class in the place of a default, shown by its name."""

    def __init__(self, value: Any) -> None:
        self.name = value.__name__

    def __repr__(self) -> str:
        return self.name


def shown(default: Any) -> Any:
    return Named(default) if callable(default) and default is not inspect.Parameter.empty else default


def call(value: Any) -> str:
    """How it is called, without types: the docstring has them."""
    try:
        plain = inspect.signature(value)
    except ValueError:  # an exception has none
        return value.__name__
    parameters = [
        each.replace(annotation=each.empty, default=shown(each.default)) for each in plain.parameters.values()
    ]
    plain = plain.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return f"{value.__name__}{plain}"


def methods(value: type) -> list[tuple[str, Any]]:
    """Public methods with a docstring of their own."""
    found = []
    for name, member in vars(value).items():
        function = getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, function))
    return found


def entry(path: str, value: Any) -> str:
    lines = [f"### {path}", "", "```text", call(value), "", inspect.getdoc(value) or "", "```", ""]
    if isinstance(value, type):
        for name, method in methods(value):
            lines += [f"`.{name}`: {summary(method)}", ""]
    return "\n".join(lines)


def summary(value: Any) -> str:
    """The first paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def page() -> str:
    seen: set[int] = set()
    index, entries = [], []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        rows = []
        for name in public_names(module):
            value = getattr(module, name)
            if id(value) in seen or not (inspect.isfunction(value) or isinstance(value, type)):
                continue
            seen.add(id(value))
            path = f"{module_name}.{name}"
            rows.append(f"| [`{name}`](#{path.replace('.', '').lower()}) | {summary(value).replace('|', '&#124;')} |")
            entries.append(entry(path, value))
        index.append("\n".join([f"**{module_name}**", "", "| | |", "|---|---|", *rows, ""]))
    return "\n".join([HEAD, *index, *entries])


if __name__ == "__main__":
    PAGE.write_text(page())

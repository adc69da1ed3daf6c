"""A module imports only from floors below its own in CONTRIBUTING's map, which has them all."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sparsekern"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
TOP = ("__init__", "__main__")  # the package's own, above all floors


def floors():
    """Folders and modules of the package, from the lowest to the highest."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("| floor |") : text.index("\n\n", text.index("| floor |"))]
    named = [name for line in table.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])]
    return ["_C", *(Path(name).stem for name in named if (PACKAGE / name.removeprefix("sparsekern/")).exists())]


def imported(path):
    """Names of the package's modules that a file imports, in its functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sparsekern")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparsekern":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                whole = inner in MODULES or f"{inner}.__init__" in MODULES or node.module == "sparsekern"
                yield inner if whole else node.module


def test_the_map_has_all_floors():
    assert sorted(floors()) == sorted({"_C", *(name.split(".")[1] for name in MODULES)} - {*TOP})


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[1] not in TOP])
def test_imports_go_down(module):
    order = floors()
    mine = module.split(".")[1]
    for other in imported(MODULES[module]):
        theirs = other.split(".")[1]
        assert theirs == mine or order.index(theirs) < order.index(mine), f"{module} imports {other}"


def test_no_modules_import_each_other():
    graph = {
        name: {other if other in MODULES else f"{other}.__init__" for other in imported(path)} & MODULES.keys()
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


def test_the_library_needs_no_command_line_and_no_extra():
    heavy = "{'tyro', 'rich', 'torchvision', 'PIL', 'matplotlib', 'sklearn', 'scipy', 'timm', 'transformers'}"
    code = f"import sys, sparsekern; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

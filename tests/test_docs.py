"""The pages under docs/ do what they say: their Python runs, their commands exist, their links lead somewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from documents import ROOT, blocks, check_command, commands, run_python, run_sparsekern

DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
# Its blocks are run on several processes, and with other libraries, by test_distributed_docs.py.
WITH_PYTHON = [
    name
    for name, text in PAGES.items()
    if any(language == "python" for language, _ in blocks(text)) and name != "distributed.md"
]
WITH_COMMANDS = [name for name, text in PAGES.items() if commands(text)]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_has_a_language_that_is_tested(name):
    found = blocks(PAGES[name])
    assert {language for language, _ in found} <= {"python", "sh", "text"}
    assert PAGES[name].count("```") == 2 * len(found)


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_the_python_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(PAGES[name], name)


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    lines = commands(PAGES[name])
    text = "\n".join(lines)
    if "RUN" in text:
        run_sparsekern("sparsekern train --output RUN")
    for line in lines:
        if "onnx" in line and find_spec("onnxscript") is None:
            continue
        if line.startswith("sparsekern "):
            run_sparsekern(line)
        else:
            check_command(line, tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[name]):
        path, _, heading = target.partition("#")
        page = DOCS / path if path else DOCS / name
        assert page.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def test_every_page_can_be_found():
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", PAGES["README.md"])) == PAGES.keys() - {"README.md"}


def test_the_names_are_those_that_there_are(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(DOCS)!r}); import make_api; print(make_api.page(), end='')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert made.stdout == PAGES["api.md"], "python docs/make_api.py"

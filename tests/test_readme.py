"""README.md does what it says: its Python runs, in order, and its commands exist and run."""

import re

import pytest
from documents import ROOT, blocks, check_command, commands, run_python, run_sparsekern

from benchmarks.readme import CHARTS, TABLES, updated

TEXT = (ROOT / "README.md").read_text()
BLOCKS = blocks(TEXT)
COMMANDS = commands(TEXT)
INLINE = re.findall(r"`((?:make|python -m|pip|sparsekern) [^`]+)`", TEXT.replace("\n", " "))


def test_every_block_has_a_language_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_the_python_runs_and_learns(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    scope = run_python(TEXT, "README.md")
    assert "total of the replaced" in capsys.readouterr().out
    assert scope["loss"].item() < 0.5  # from log(10)
    assert scope["layer"].weight.shape == (7373,)
    for name in re.findall(r"`(Sparse\w+|sparsify|forbid_dense)`", TEXT):
        assert name in vars(scope["sparsekern"]) or name in scope


def test_sparsekern_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    lines = [line for line in COMMANDS if line.startswith("sparsekern ")]
    assert len(lines) >= 3
    for line in lines:  # the one to resume is the first command's
        run_sparsekern(line)


def test_other_commands_exist(tmp_path):
    others = [line for line in (*COMMANDS, *INLINE) if not line.startswith("sparsekern ")]
    assert any(line.startswith("make train") for line in others)
    for line in others:
        check_command(line, tmp_path)


def test_its_tables_and_charts_are_the_measured_ones():
    assert len(TABLES.findall(TEXT)) == TEXT.count("<!-- tables of") > 0
    assert len(CHARTS.findall(TEXT)) == TEXT.count("<!-- chart") > 0
    for _, page, _, shown, _ in TABLES.findall(TEXT):
        assert shown.count("\n|") > 3 or not (ROOT / page).exists(), f"{page} is not shown: python -m benchmarks readme"
    assert updated(TEXT) == TEXT, "python -m benchmarks readme"


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:csrc|sparsekern|benchmarks)/[\w/.]*)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / path).exists(), path

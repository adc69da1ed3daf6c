"""README.md does what it says: its Python runs, in order, and its commands exist and run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.readme import CHARTS, TABLES, updated

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
INLINE = re.findall(r"`((?:make|python -m|pip|sparsekern) [^`]+)`", TEXT.replace("\n", " "))


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{shlex.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_block_has_a_language_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_the_python_runs_and_learns(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what the network is this small for
    scope = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), scope)
    torch.set_num_threads(threads)
    assert "total of the replaced" in capsys.readouterr().out
    assert scope["loss"].item() < 0.5  # from log(10)
    assert scope["layer"].weight.shape == (7373,)
    for name in re.findall(r"`(Sparse\w+|sparsify|forbid_dense)`", TEXT):
        assert name in vars(scope["sparsekern"]) or name in scope


def test_sparsekern_commands_run(tmp_path):
    pytest.importorskip("sklearn")
    commands = [shlex.split(line) for line in COMMANDS if line.startswith("sparsekern ")]
    assert len(commands) >= 3
    for words in commands:
        # One epoch of a small network in place of the whole run; the one to resume is the first command's.
        small = []
        if words[1] == "compare":
            small = ["--dry-run"]
        elif words[1] in ("train", "mask") and "--resume" not in words:
            small = ["--epochs", "1", *["--no-plots"][: words[1] == "train"], *small_network(words)]
        run([sys.executable, "-m", "sparsekern", *words[1:], *small], tmp_path)


def small_network(words):
    return ["--depth", "1", "--width", "16", "--heads", "2"] if "vit" in words else ["--depth", "8", "--width", "8"]


def test_other_commands_exist(tmp_path):
    others = [line for line in (*COMMANDS, *INLINE) if not line.startswith("sparsekern ")]
    assert any(line.startswith("make train") for line in others)
    for line in others:
        words = shlex.split(line)
        if words[0] == "make":
            assert shutil.which("make") is None or run([*words, "--dry-run", "-C", ROOT], tmp_path)
        elif words[:2] == ["python", "-m"]:
            run([sys.executable, *words[1:], "--help"], ROOT)
        else:
            assert words[:2] == ["pip", "install"], line
            assert "torch" in line or words[2:] == ["--no-build-isolation", "."], line


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

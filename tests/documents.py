"""Markdown pages as tests see them: their code blocks, run as a reader would."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from sparsekern.cli import main
from sparsekern.commands.train import parse
from sparsekern.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent


def blocks(text):
    """(language, code) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_python(text, name):
    """Runs a page's Python blocks from top to bottom; returns what they defined."""
    scope = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # what the pages' networks are this small for
    try:
        for language, block in blocks(text):
            if language == "python":
                exec(compile(block, name, "exec"), scope)
    finally:
        torch.set_num_threads(before)
    return scope


def commands(text):
    """The lines of all shell blocks, continued ones joined."""
    lines = [block.replace("\\\n", " ") for language, block in blocks(text) if language == "sh"]
    return [line for line in "".join(lines).splitlines() if line and not line.startswith("#")]


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{shlex.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_sparsekern(line):
    """Runs a `sparsekern` command here, with one epoch of a small network in place of the whole run."""
    words = shlex.split(line)
    if "imagenet" in line:  # which is not at hand
        parse(words[2:], TrainConfig())
        return
    small = []
    if words[1] == "compare":
        small = ["--dry-run"]
    elif words[1] in ("train", "mask") and not ("--resume" in words and "auto" not in words):
        network = (
            ["--depth", "1", "--width", "16", "--heads", "2"] if "vit" in words else ["--depth", "8", "--width", "8"]
        )
        small = ["--epochs", "1", *["--no-plots"][: words[1] == "train"], *network]
    if "--rewind" in words:
        small += ["--rewind", "1"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*words[1:], *small]) == 0, line
    finally:
        torch.set_num_threads(before)


def check_command(line, folder):
    """That a command which is too long, or changes too much, for a test is one that there is."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word) or "make" in line]
    if words[0] == "torchrun":
        parse(words[words.index("train") + 1 :], TrainConfig())
    elif words[0] == "make":
        assert shutil.which("make") is None or run([*words, "--dry-run", "-C", ROOT], folder)
    elif words[:2] == ["python", "-m"]:
        run([sys.executable, *words[1:], "--help"], ROOT)
    elif words[:1] == ["python"]:
        assert (ROOT / words[1]).is_file(), line
    else:
        assert words[:2] == ["pip", "install"], line
        assert "torch" in line or words[2:] == ["--no-build-isolation", "."], line

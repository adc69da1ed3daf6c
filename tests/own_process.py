"""Runs modules of tests in a process of their own: what says how GPU kernels run is read once, as they are imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run(names, environment):
    """Has pytest run the modules of these names; none of their tests may fail, nor be skipped."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "SPARSEKERN_"))}
    path = os.pathsep.join([str(TESTS.parent), inherited.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys"]
    process = subprocess.run(
        [*command, *(str(TESTS / f"{name}.py") for name in names)],
        env={**inherited, "PYTHONPATH": path, **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"^\d+ passed", process.stdout, re.MULTILINE), process.stdout
    assert "skipped" not in process.stdout, process.stdout

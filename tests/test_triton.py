"""The Triton kernels: run in Triton's interpreter, compiled for GPUs that need not be there, and run on one that is."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
RUNNING = ("running_triton.py", "running_triton_conv2d.py")
# The interpreter is chosen before triton is imported, and cannot be left: each way has a process of its own.
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed, so the GPU kernels are not tested here: pip install torch==<yours> 'triton>=3.7'",
)


def run(environment, *names):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(TESTS / name) for name in names)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "SPARSEKERN_"))}
    path = os.pathsep.join([str(TESTS.parent), inherited.get("PYTHONPATH", "")])
    process = subprocess.run(
        command, env={**inherited, "PYTHONPATH": path, **environment}, cwd=TESTS.parent, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"^\d+ passed", process.stdout, re.MULTILINE), process.stdout
    assert "skipped" not in process.stdout, process.stdout


def test_kernels_in_the_interpreter():
    run({"TRITON_INTERPRET": "1"}, *RUNNING)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: the kernels are only interpreted here")
def test_kernels_on_the_gpu():
    run({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, *RUNNING)


def test_kernels_compiled_for_sm_80_and_sm_90(tmp_path):
    run({"TRITON_CACHE_DIR": str(tmp_path)}, "compiled_triton.py")

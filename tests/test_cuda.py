"""The CUDA kernels: run thread by thread on the CPU, over csrc/cuda/emulation and under AddressSanitizer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return emulated_cuda.build(tmp_path_factory.mktemp("emulated"))


@pytest.mark.skipif(emulated_cuda.preload() is None, reason="the C++ compiler has no AddressSanitizer")
def test_kernels_emulated_under_address_sanitizer(emulated):
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SPARSEKERN_")},
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        "SPARSEKERN_EMULATED_CUDA": str(emulated),
        "LD_PRELOAD": emulated_cuda.preload(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    tests = [str(TESTS / name) for name in ("running_cuda.py", "running_cuda_tiles.py")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", *tests]
    process = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"^\d+ passed", process.stdout, re.MULTILINE), process.stdout
    assert "skipped" not in process.stdout, process.stdout

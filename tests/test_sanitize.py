"""That `make sanitize` would say so: the build that it makes reports a read past an end and an overflow."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif("SPARSEKERN_SANITIZE" not in os.environ, reason="the build of `make sanitize` only")


@pytest.mark.parametrize(
    ("call", "report"),
    [("read_past_the_end(7)", "heap-buffer-overflow"), ("overflow(2**31 - 1)", "signed integer overflow")],
)
def test_a_deliberate_error_is_reported(call, report):
    # To stderr: the run's own reports go to files, each of which fails the run.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1"}
    code = f"import torch\nfrom sparsekern import _C\nprint('before', flush=True)\n_C.{call}\nprint('after')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **options}, check=False
    )
    assert found.returncode != 0
    assert found.stdout == "before\n"
    assert report in found.stderr

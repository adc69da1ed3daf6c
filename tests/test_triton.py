"""The Triton kernels: run in Triton's interpreter, compiled for GPUs that need not be there, and run on one that is."""

from importlib.metadata import version
from importlib.util import find_spec

import numpy
import pytest
import torch
from own_process import run

MODULES = ("running_gpu", "running_triton", "running_triton_conv2d")
BACKEND = {"SPARSEKERN_TESTED_BACKEND": "triton"}
# The interpreter is chosen before triton is imported, and cannot be left: each way has a process of its own.
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed, so the GPU kernels are not tested here: pip install torch==<yours> 'triton>=3.7'",
)


def interpreter_runs():
    """Triton 3.6 makes an index of an array of one element, which NumPy 2.4 no longer does."""
    triton, np = (tuple(map(int, each.split(".")[:2])) for each in (version("triton"), numpy.__version__))
    return triton >= (3, 7) or np < (2, 4)


@pytest.mark.skipif(
    find_spec("triton") is not None and not interpreter_runs(),
    reason="this Triton's interpreter fails with this NumPy: pip install torch==<yours> 'numpy<2.4'",
)
def test_kernels_in_the_interpreter():
    run((*MODULES, "interpreted_triton"), {**BACKEND, "TRITON_INTERPRET": "1"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU: the kernels are only interpreted here")
def test_kernels_on_the_gpu():
    run(MODULES, {**BACKEND, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def test_kernels_compiled_for_sm_80_and_sm_90(tmp_path):
    run(["compiled_triton"], {"TRITON_CACHE_DIR": str(tmp_path)})

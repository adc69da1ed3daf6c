"""The compiled CUDA kernels: ``sparsekern._cuda``, or in tests the same sources compiled to run on the CPU."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# A file of the module `_cuda_emulated`: the kernels run thread by thread on CPU tensors. For tests.
EMULATED = "SPARSEKERN_EMULATED_CUDA"


def is_emulated() -> bool:
    return EMULATED in os.environ


def is_built() -> bool:
    return is_emulated() or find_spec("sparsekern._cuda") is not None


@cache
def kernels() -> ModuleType:
    """The module with the kernels.

    Raises:
        ImportError: where it was not built.
    """
    if not is_emulated():
        return import_module("sparsekern._cuda")
    spec = spec_from_file_location("_cuda_emulated", os.environ[EMULATED])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def queue_of(tensor: Tensor) -> Any:
    """The tensor's device and the stream on which torch now computes there, as the kernels take them."""
    if not tensor.is_cuda:
        return kernels().Queue(0, 0)
    device = tensor.get_device()
    return kernels().Queue(device, torch.cuda.current_stream(device).cuda_stream)

"""What the Triton and the CUDA backend ask of a GPU."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

# Of activations that have kernels.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def is_from_sm_80(device: torch.device) -> bool:
    """Whether an NVIDIA GPU is of that generation or a later one."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Where launches and scratch are on x's device; by themselves they are on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()

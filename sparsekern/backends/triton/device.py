"""What devices and dtypes the kernels are written for."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _new_enough(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def serves(product: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product ("linear", "conv2d") of such activations has a kernel here; the reference has all."""
    return product in ("linear", "conv2d") and dtype in _DTYPES and _new_enough(device)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Where Triton launches on x's device; by itself it does on the current one, wherever the tensors are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()

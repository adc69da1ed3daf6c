"""What has a kernel here, and whose the rest is."""

from importlib.util import find_spec
from types import ModuleType

import torch

from sparsekern.backends import reference, triton
from sparsekern.backends.cuda.extension import is_emulated
from sparsekern.backends.gpu import DTYPES, is_from_sm_80


def serves(product: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product ("linear", "conv2d") of such activations has a kernel here; :func:`other` has the rest.

    Shapes that no tile of shared memory holds (kernels of some thousand taps) go to the rest all the same.
    """
    if product not in ("linear", "conv2d") or dtype not in DTYPES:
        return False
    return is_emulated() if device.type == "cpu" else torch.version.hip is None and is_from_sm_80(device)


def other(product: str, dtype: torch.dtype, device: torch.device) -> ModuleType:
    """The backend of what has no kernel here: Triton where that serves, else the reference."""
    usable = device.type == "cuda" and find_spec("triton") is not None
    return triton if usable and triton.serves(product, dtype, device) else reference

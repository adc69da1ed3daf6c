"""What has a kernel here, and whose the rest is."""

from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch

from sparsekern.backends import reference, triton
from sparsekern.backends.cuda.extension import is_emulated
from sparsekern.backends.gpu import DTYPES, is_from_sm_80

_MOST = 2**31 - 1  # edges, and majors: the kernels count them in 32 bits
# At a lower density a thread block of the largest tile, 1024 majors, brings activations into shared memory for less
# than one edge each: a gather from memory moves less.
_LEAST_DENSITY = 1 / 1024


class Extent(NamedTuple):
    """Of a linear layer's sparse matrix."""

    rows: int
    columns: int
    nnz: int


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


def elsewhere(
    product: str, dtype: torch.dtype, device: torch.device, extent: Extent | None = None
) -> ModuleType | None:
    """The backend that computes a product of such activations instead of this one, or None.

    Args:
        extent: of a linear product's matrix, which may be too large for the kernels here, or too sparse; None where it
            is not known.
    """
    if not serves(product, dtype, device) or (extent is not None and max(extent) > _MOST):
        return other(product, dtype, device)
    if extent is None or extent.nnz >= _LEAST_DENSITY * extent.rows * extent.columns:
        return None
    instead = other(product, dtype, device)
    return None if instead is reference else instead

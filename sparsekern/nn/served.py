"""Which backend a layer's products go through."""

from typing import Any

from torch import Tensor

from sparsekern.backends import choice
from sparsekern.nn.conv2d import SparseConv2d
from sparsekern.nn.linear import SparseLinear


def backend_of(served: Any) -> str:
    """The backend that now computes the products of a layer or a tensor: "cpu", "triton", "cuda" or "reference".

    Args:
        served: a SparseLinear or SparseConv2d, asked with activations of its weight's dtype, or a tensor, taken as a
            SparseLinear's input. Only a layer says how large and how sparse it is; a SparseConv2d does not say of which
            size its images are, and kernels of thousands of taps may go elsewhere all the same.

    Raises:
        TypeError: for anything else.
        ValueError: where the backend asked for, by :func:`sparsekern.backend` or SPARSEKERN_BACKEND, cannot take
            tensors of that device.
    """
    if isinstance(served, Tensor):
        return choice.chosen("linear", served.dtype, served.device)
    if isinstance(served, SparseLinear):
        extent = choice.Extent(*served.matrix_shape, served.nnz)
        return choice.chosen("linear", served.weight.dtype, served.weight.device, extent)
    if isinstance(served, SparseConv2d):
        return choice.chosen("conv2d", served.weight.dtype, served.weight.device)
    raise TypeError(f"served is a {type(served).__name__}; expected a SparseLinear, a SparseConv2d or a tensor")

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
            SparseLinear's input.

    Raises:
        TypeError: for anything else.
        ValueError: where the backend asked for, by :func:`sparsekern.backend` or SPARSEKERN_BACKEND, cannot take
            tensors of that device.
    """
    if isinstance(served, Tensor):
        return choice.chosen("linear", served.dtype, served.device)
    for kind, product in ((SparseLinear, "linear"), (SparseConv2d, "conv2d")):
        if isinstance(served, kind):
            return choice.chosen(product, served.weight.dtype, served.weight.device)
    raise TypeError(f"served is a {type(served).__name__}; expected a SparseLinear, a SparseConv2d or a tensor")

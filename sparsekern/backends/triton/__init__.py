"""The products as Triton kernels: NVIDIA GPUs from sm_80 on, and CPU tensors in Triton's interpreter.

Importing this package does not import triton: the first product does. What no kernel is written for, :func:`serves`
says, and goes to the reference. Results are the same from call to call: no sum's order is left to chance.
"""

from sparsekern.backends.triton.conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends.triton.device import serves
from sparsekern.backends.triton.linear import (
    linear,
    linear_backward,
    linear_direct,
    linear_input_grad,
    linear_weight_grad,
)

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "linear",
    "linear_backward",
    "linear_direct",
    "linear_input_grad",
    "linear_weight_grad",
    "serves",
]

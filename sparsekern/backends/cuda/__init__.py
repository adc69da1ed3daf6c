"""The products as CUDA C++ kernels: NVIDIA GPUs from sm_80 on, where the package was built with nvcc.

What has no kernel here goes to Triton where that serves, else to the reference: :func:`elsewhere`. Results
are the same from call to call: no sum's order is left to chance.
"""

from sparsekern.backends.cuda.conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends.cuda.extension import is_built, is_emulated
from sparsekern.backends.cuda.linear import (
    linear,
    linear_backward,
    linear_direct,
    linear_input_grad,
    linear_weight_grad,
)
from sparsekern.backends.cuda.served import Extent, elsewhere

__all__ = [
    "Extent",
    "conv2d",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "elsewhere",
    "is_built",
    "is_emulated",
    "linear",
    "linear_backward",
    "linear_direct",
    "linear_input_grad",
    "linear_weight_grad",
]

"""The C++ kernels, on CPU tensors."""

from sparsekern.backends._cpu_conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends._cpu_linear import linear, linear_backward, linear_input_grad, linear_weight_grad

__all__ = [
    "conv2d",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "linear",
    "linear_backward",
    "linear_input_grad",
    "linear_weight_grad",
]

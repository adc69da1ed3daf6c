"""Plain torch twins of every kernel: what the products mean, and the products on devices without kernels."""

from sparsekern.backends._reference_conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends._reference_linear import linear, linear_backward, linear_input_grad, linear_weight_grad

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

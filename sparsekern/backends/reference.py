"""Plain torch twins of every kernel: what the products mean, and the products on devices without kernels."""

from sparsekern.backends._reference_activation import gelu, gelu_backward
from sparsekern.backends._reference_attention import attention, attention_backward
from sparsekern.backends._reference_conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends._reference_linear import (
    linear,
    linear_backward,
    linear_direct,
    linear_input_grad,
    linear_weight_grad,
)
from sparsekern.backends._reference_norm import batch_norm, batch_norm_backward, batch_norm_inference

__all__ = [
    "attention",
    "attention_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "conv2d",
    "conv2d_backward",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "gelu",
    "gelu_backward",
    "linear",
    "linear_backward",
    "linear_direct",
    "linear_input_grad",
    "linear_weight_grad",
]

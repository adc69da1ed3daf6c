"""The C++ kernels, on CPU tensors.

The widest instruction set that the processor has is used; the environment variable SPARSEKERN_ISA names another.
"""

import os

from sparsekern import _C
from sparsekern.backends._cpu_activation import gelu, gelu_backward
from sparsekern.backends._cpu_attention import attention, attention_backward
from sparsekern.backends._cpu_conv2d import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad
from sparsekern.backends._cpu_linear import (
    linear,
    linear_backward,
    linear_direct,
    linear_input_grad,
    linear_weight_grad,
)
from sparsekern.backends._cpu_norm import batch_norm, batch_norm_backward, batch_norm_inference

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

if os.environ.get("SPARSEKERN_ISA", _C.isa()) != _C.isa():
    raise ValueError(
        f"SPARSEKERN_ISA is {os.environ['SPARSEKERN_ISA']!r}; expected one of {', '.join(_C.available_isas())}, "
        "which this build and this processor have"
    )

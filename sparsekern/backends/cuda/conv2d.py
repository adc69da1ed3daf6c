"""The convolutions: none has a kernel here."""

from sparsekern.backends.reference import conv2d, conv2d_backward, conv2d_input_grad, conv2d_weight_grad

__all__ = ["conv2d", "conv2d_backward", "conv2d_input_grad", "conv2d_weight_grad"]

"""The linear product without torch's dispatcher, where nobody would see the difference.

A call of an operator written in Python takes some 20 us on its way through the dispatcher: more than a small product.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparsekern.backends import cpu


def _can_ask() -> bool:
    """Whether this torch answers the questions of :func:`is_plain`, which have no public names."""
    names = ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_get_tracing_state", "_is_any_autocast_enabled")
    return (
        all(hasattr(torch._C, name) for name in names)
        and hasattr(torch._C._functorch, "peek_interpreter_stack")
        and hasattr(torch.autograd, "_profiler_enabled")
        and hasattr(forward_ad, "_current_level")
    )


_CAN_ASK = _can_ask()


def is_plain() -> bool:
    """Whether an operator called now is nothing but its kernel: nobody traces, transforms, casts or records calls."""
    if torch.compiler.is_compiling():  # alone: what follows is not for its tracer
        return False
    if not _CAN_ASK:
        return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not torch._C._is_any_autocast_enabled()
        and not torch.autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


def linear(x: Tensor, w: Tensor, bias: Tensor | None, *topology: Tensor) -> Tensor:
    """``torch.ops.sparsekern.linear`` of matrices, its checks and errors included; without gradients."""
    if is_plain():
        y = cpu.linear_direct(x, w, bias, *topology)
        if y is not None:
            return y
    return torch.ops.sparsekern.linear.default(x, w, bias, *topology)

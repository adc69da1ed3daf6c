"""The products without torch's dispatcher, where nobody would see the difference.

A call of an operator written in Python takes some 20 us on its way through the dispatcher, and several times as long
when the caches hold activations: more than a small product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sparsekern.backends import cpu
from sparsekern.ops import implementations


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


def _is_plain_argument(value: Any) -> bool:
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        return value.is_cpu and not value.is_neg()
    return not isinstance(value, Tensor)


def _operator(name: str) -> Callable[..., Any]:
    """``torch.ops.sparsekern.<name>``, its checks and errors included; without gradients."""
    implementation = implementations.CPU[name]
    dispatched = getattr(torch.ops.sparsekern, name).default

    def call(*args: Any, **options: Any) -> Any:
        if is_plain() and not torch.is_grad_enabled() and all(map(_is_plain_argument, args)):
            return implementation(*args, **options)
        return dispatched(*args, **options)

    return call


linear_backward = _operator("linear_backward")
linear_input_grad = _operator("linear_input_grad")
linear_weight_grad = _operator("linear_weight_grad")
conv2d = _operator("conv2d")
conv2d_backward = _operator("conv2d_backward")
conv2d_input_grad = _operator("conv2d_input_grad")
conv2d_weight_grad = _operator("conv2d_weight_grad")


def linear(x: Tensor, w: Tensor, bias: Tensor | None, *topology: Tensor) -> Tensor:
    """``torch.ops.sparsekern.linear`` of matrices, its checks and errors included; without gradients."""
    if is_plain():
        y = cpu.linear_direct(x, w, bias, *topology)
        if y is not None:
            return y
    return torch.ops.sparsekern.linear.default(x, w, bias, *topology)

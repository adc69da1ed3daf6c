"""Self-attention over queries, keys and values that one linear layer made: operators, derivatives, the function."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparsekern.backends import cpu, reference
from sparsekern.backends._reference_attention import log_sums as exact_log_sums
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.ops.checks import FLOAT_DTYPES
from sparsekern.ops.schemas import LIBRARY

LIBRARY.define("attention(Tensor qkv, SymInt heads) -> (Tensor, Tensor)")
LIBRARY.define("attention_backward(Tensor grad, Tensor qkv, Tensor log_sums, SymInt heads) -> Tensor")


def _check(qkv: Tensor, heads: int) -> None:
    if qkv.dtype not in FLOAT_DTYPES:
        raise TypeError(f"qkv has dtype {qkv.dtype}; expected one of float32, float64, bfloat16, float16")
    if heads < 1:
        raise ValueError(f"heads is {heads}; expected at least 1")
    if qkv.dim() != 3 or qkv.shape[2] == 0 or qkv.shape[2] % (3 * heads):
        raise ValueError(
            f"qkv has shape {tuple(qkv.shape)}; expected (batch, tokens, features), "
            f"features a positive multiple of 3 * heads, {3 * heads}"
        )


def _check_backward(grad: Tensor, qkv: Tensor, log_sums: Tensor, heads: int) -> None:
    _check(qkv, heads)
    batch, tokens, features = qkv.shape
    wide = accumulation_dtype(qkv.dtype)
    for name, tensor, shape, dtype in (
        ("grad", grad, (batch, tokens, features // 3), qkv.dtype),
        ("log_sums", log_sums, (batch, heads, tokens), wide),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != qkv.device:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype} on {tensor.device}; "
                f"expected {shape} and {dtype} on {qkv.device}"
            )


def _register(backend: ModuleType, key: str) -> None:
    def attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        _check(qkv, heads)
        return backend.attention(qkv, heads)

    def attention_backward(grad: Tensor, qkv: Tensor, log_sums: Tensor, heads: int) -> Tensor:
        _check_backward(grad, qkv, log_sums, heads)
        return backend.attention_backward(grad, qkv, log_sums, heads)

    LIBRARY.impl("attention", attention, key)
    LIBRARY.impl("attention_backward", attention_backward, key)


_register(cpu, "CPU")
_register(reference, "CUDA")


@torch.library.register_fake("sparsekern::attention", lib=LIBRARY)
def _fake(qkv, heads):  # type: ignore[no-untyped-def]
    _check(qkv, heads)
    batch, tokens, features = qkv.shape
    log_sums = qkv.new_empty(batch, heads, tokens, dtype=accumulation_dtype(qkv.dtype))
    return qkv.new_empty(batch, tokens, features // 3), log_sums


@torch.library.register_fake("sparsekern::attention_backward", lib=LIBRARY)
def _fake_backward(grad, qkv, log_sums, heads):  # type: ignore[no-untyped-def]
    _check_backward(grad, qkv, log_sums, heads)
    return qkv.new_empty(qkv.shape)


class Attention(Function):
    """(output, log_sums), of (qkv, heads). Backward computes the weights again: none are held."""

    @staticmethod
    def forward(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        return torch.ops.sparsekern.attention(qkv, heads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        qkv, ctx.heads = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(qkv, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        qkv, log_sums = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A derivative of this may be asked for: the twin has it, by way of the sums too.
            return reference.attention_backward(grad, qkv, exact_log_sums(qkv, ctx.heads), ctx.heads), None
        return torch.ops.sparsekern.attention_backward(grad, qkv, log_sums, ctx.heads), None


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of every token to every token of its sequence; without mask and dropout.

    Args:
        qkv: (B, T, 3 * heads * size), any strides, float32, float64, bfloat16 or float16: of each token first the
            queries of all heads, then the keys, then the values.
        heads: that divide the features.

    Returns:
        (B, T, heads * size), of the input's dtype. Sums are kept in float32, or float64 for a float64 input.

    Raises:
        ValueError, TypeError: naming the argument whose shape or dtype is wrong.
    """
    return (Attention.apply if torch.is_grad_enabled() else Attention.forward)(qkv, heads)[0]

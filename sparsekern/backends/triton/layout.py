"""How the kernels want their operands: activations by feature, rows in the order in which they start."""

import torch
from torch import Tensor

from sparsekern.backends.kept import Kept

# A feature's tokens are read 16 bytes at a time, whatever the dtype, where each feature starts at a multiple of this.
_ALIGNMENT = 16

# What a program of one warp has under way at once: four loads of 16 bytes a thread.
_GATHERED_BYTES = 2048

_orders: Kept[Tensor] = Kept()


def padded(tokens: int) -> int:
    """The tokens a feature is given room for."""
    return -(-tokens // _ALIGNMENT) * _ALIGNMENT


def by_feature(x: Tensor) -> Tensor:
    """The transpose of x (tokens, features) with adjacent tokens: (features, ``padded(tokens)``), zeros at the end.

    An edge then reads whole cache lines. The copy is of the activations' size; where x lies so already there is none.
    """
    tokens, features = x.shape
    aligned = x.stride(1) % _ALIGNMENT == 0 and x.data_ptr() % _ALIGNMENT == 0
    if tokens == padded(tokens) and x.stride(0) == 1 and aligned:
        return x.t()
    transposed = torch.empty(features, padded(tokens), dtype=x.dtype, device=x.device)
    transposed[:, :tokens].copy_(x.t())
    transposed[:, tokens:].zero_()
    return transposed


def tile(x: Tensor, gathers: int) -> tuple[int, int]:
    """(edges, tokens), both powers of two, of the activations x (features, tokens) that a program gathers at once.

    Args:
        gathers: how many such operands the program gathers from.
    """
    tokens = next(size for size in (16, 32, 64) if size == 64 or x.shape[1] <= size)
    return _GATHERED_BYTES // (gathers * tokens * x.element_size()), tokens


def longest_first(pointers: Tensor) -> Tensor:
    """The rows (n,) int32 of a CSR (or CSC) matrix, those with most edges first; kept while the pointers live.

    Programs start in the order of their numbers, so a long row is never what all others wait for at the end.
    """
    order = _orders.get(pointers)
    if order is None:
        order = pointers.diff().argsort(descending=True, stable=True).int()
        _orders.put(order, pointers)
    return order

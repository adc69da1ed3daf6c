"""How the kernels want their operands: activations by feature, rows in the order in which they start."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.backends.kept import KeptOnDevice

# A feature's tokens are read 16 bytes at a time, whatever the dtype, where each feature starts at a multiple of this.
ALIGNMENT = 16

# What a program of one warp has under way at once: four loads of 16 bytes a thread, or eight of one element.
_GATHERED_BYTES = 2048
_GATHERED_ELEMENTS = 256

# Programs of one warp that fill a large GPU: an H200 has room for about 28 on each of 132 multiprocessors.
_PROGRAMS = 4096
MOST_WARPS = 8

_orders: KeptOnDevice[Tensor] = KeptOnDevice()
_narrow: KeptOnDevice[Tensor] = KeptOnDevice()


def padded(tokens: int) -> int:
    """The tokens a feature is given room for."""
    return -(-tokens // ALIGNMENT) * ALIGNMENT


def power_of_two(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


def room(tokens: int, features: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised activations (*features, ``padded(tokens)``) of the dtype and on the device of ``like``."""
    last = padded(tokens)
    size = torch.Size(features).numel() * last
    # By token first, as all activations are made: `forbid_dense` knows them by that.
    made = torch.empty(tokens, -(-size // max(1, tokens)), dtype=like.dtype, device=like.device)
    return made.view(-1)[:size].view(*features, last)


def by_feature(x: Tensor) -> Tensor:
    """x (tokens, *features) with adjacent tokens: (*features, ``padded(tokens)``), zeros at the end.

    An edge then reads whole cache lines. The copy is of the activations' size; where x lies so already there is none.
    """
    tokens, *features = x.shape
    aligned = all(stride % ALIGNMENT == 0 for stride in x.stride()[1:]) and x.data_ptr() % ALIGNMENT == 0
    if tokens == padded(tokens) and x.stride(0) == 1 and aligned:
        return x.movedim(0, -1)
    from sparsekern.backends.triton.transpose import transpose

    transposed = room(tokens, features, x)
    if tokens and x[0].is_contiguous():
        transpose(x.flatten(1), transposed.flatten(0, -2))
        return transposed
    transposed[..., :tokens].copy_(x.movedim(0, -1))
    transposed[..., tokens:].zero_()
    return transposed


def by_token(y: Tensor, tokens: int) -> Tensor:
    """The contiguous (tokens, *features) of y (*features, ``padded(tokens)``), contiguous."""
    from sparsekern.backends.triton.transpose import transpose

    result = torch.empty(tokens, *y.shape[:-1], dtype=y.dtype, device=y.device)
    transpose(y.flatten(0, -2), result.flatten(1))
    return result


def gathered(x: Tensor, wide: bool = True) -> int:
    """Elements of x, a power of two, that one warp gathers at once, 16 bytes at a time or, if not ``wide``, singly."""
    return _GATHERED_BYTES // x.element_size() if wide else _GATHERED_ELEMENTS


def row_tile(elements: int, tokens: int) -> tuple[int, int]:
    """(edges, tokens), powers of two: of ``tokens`` tokens, what the program of one row gathers at once."""
    at_once = min(64, max(16, power_of_two(tokens)))
    return elements // at_once, at_once


def edge_tile(elements: int, tokens: int, nnz: int) -> tuple[int, int, int]:
    """(edges, tokens, warps), powers of two: what a program that sums over all tokens of nnz edges works on at once.

    Few edges are spread over more programs, of fewer edges and longer stretches of tokens, then over more warps.

    Args:
        elements: what one warp gathers at once from two operands together.
        tokens: beyond this many at once there are no more.
    """
    at_once = min(64, max(16, power_of_two(tokens)))
    edges = elements // (2 * at_once)
    while edges > 1 and nnz < edges * _PROGRAMS and at_once < tokens:
        edges, at_once = edges // 2, at_once * 2
    warps = 1
    while warps < MOST_WARPS and nnz * warps < edges * _PROGRAMS and at_once < tokens:
        warps, at_once = warps * 2, at_once * 2
    return edges, at_once, warps


def longest_first(pointers: Tensor) -> Tensor:
    """The rows (n,) int32 of a CSR (or CSC) matrix, those with most edges first; kept while the pointers live.

    Programs start in the order of their numbers, so a long row is never what all others wait for at the end.
    """
    order = _orders.get(pointers)
    if order is None:
        order = pointers.diff().argsort(descending=True, stable=True).int()
        _orders.put(order, pointers)
    return order


def index_dtype(below: int) -> torch.dtype:
    """The smaller of int16 and int32 that holds indices less than ``below``."""
    return torch.int16 if below <= torch.iinfo(torch.int16).max + 1 else torch.int32


def narrow(indices: Tensor, below: int) -> Tensor:
    """Indices (nnz,), all less than ``below``, in int16 where that holds them; kept while the indices live.

    Each stretch of tokens reads them again.
    """
    if index_dtype(below) != torch.int16:
        return indices
    short = _narrow.get(indices)
    if short is None:
        short = indices.to(torch.int16)
        _narrow.put(short, indices)
    return short

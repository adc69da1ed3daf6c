"""Products of two dense matrices at the edges of a pattern alone: the gradient of the values."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.backends.triton.layout import edge_tile, gathered


@triton.jit
def columns_of(edge, known, pointers, columns, steps):  # type: ignore[no-untyped-def]
    """The columns of the stored edges: the last ones that start there or before, by ``steps`` halvings."""
    low = tl.zeros_like(edge)
    high = low + columns
    for _ in range(steps):
        middle = low + (high - low) // 2
        before = tl.load(pointers + middle, mask=known, other=0) <= edge
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=["nnz", "columns", "steps"])
def sddmm_kernel(  # type: ignore[no-untyped-def]
    out,
    grad,
    x,
    pointers,
    row_indices,
    nnz,
    columns,
    steps,
    tokens,
    grad_stride,
    x_stride,
    EDGES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """out[k] = the sum over t of grad[row_k, t] x[col_k, t], for EDGES adjacent k."""
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    known = edge < nnz
    # Adjacent edges mostly share their column: its activations come from the cache for all but the first.
    column = columns_of(edge, known, pointers, columns, steps)
    row = tl.load(row_indices + edge, mask=known, other=0).to(tl.int64)
    grad_at = grad + row[:, None] * grad_stride
    x_at = x + column[:, None] * x_stride
    sums = tl.zeros((EDGES, TOKENS), tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        wanted = known[:, None] & (token < tokens)[None, :]
        g = tl.load(grad_at + token[None, :], mask=wanted, other=0.0).to(tl.float32)
        sums += g * tl.load(x_at + token[None, :], mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + edge, tl.sum(sums, axis=1).to(out.dtype.element_ty), mask=known)


def sddmm(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    """The inner products of grad (rows, tokens) and x (columns, tokens) at the edges of a CSC pattern: (nnz,), dtype.

    Sums are float32. All programs have as many edges, so columns may be as unequal as they like.

    Args:
        grad, x: as :func:`~sparsekern.backends.triton.layout.by_feature` makes them.
        ccol: (columns + 1,).
        row: (nnz,), contiguous.
    """
    nnz, columns, tokens = row.numel(), ccol.numel() - 1, x.shape[1]
    out = torch.empty(nnz, dtype=dtype, device=x.device)
    if nnz == 0:
        return out
    edges_at_once, tokens_at_once, warps = edge_tile(gathered(x), tokens, nnz)
    sddmm_kernel[(triton.cdiv(nnz, edges_at_once),)](
        out,
        grad,
        x,
        ccol,
        row,
        nnz,
        columns,
        columns.bit_length(),
        tokens,
        grad.stride(0),
        x.stride(0),
        EDGES=edges_at_once,
        TOKENS=tokens_at_once,
        num_warps=warps,
        num_stages=1,  # as in spmm
    )
    return out

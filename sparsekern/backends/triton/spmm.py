"""Gathers and sums along the rows of a sparse matrix: forward by rows of W, and the input's gradient by its columns."""

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.backends.triton.layout import gathered, longest_first, room, row_tile

WARPS = 1


@triton.jit(do_not_specialize=["rows"])
def spmm_kernel(  # type: ignore[no-untyped-def]
    y, x, values, pointers, indices, bias, order, rows, tokens, x_stride, EDGES: tl.constexpr, TOKENS: tl.constexpr
):
    """y[r, t] = bias[r] + the sum of values[k] x[indices[k], t] over the edges k of row r, for one r and some t."""
    # The rows of one stretch of tokens are worked on together: what they gather stays in the caches.
    program = tl.program_id(0)
    row = tl.load(order + program % rows)
    token = (program // rows).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    start = tl.load(pointers + row).to(tl.int64)  # or the loop could step past the last int32
    end = tl.load(pointers + row + 1).to(tl.int64)
    sums = tl.zeros((EDGES, TOKENS), tl.float32)
    for first in range(start, end, EDGES):
        edge = first + tl.arange(0, EDGES)
        known = edge < end
        feature = tl.load(indices + edge, mask=known, other=0).to(tl.int64)
        value = tl.load(values + edge, mask=known, other=0.0).to(tl.float32)
        part = tl.load(
            x + feature[:, None] * x_stride + token[None, :], mask=known[:, None] & inside[None, :], other=0.0
        )
        sums += value[:, None] * part.to(tl.float32)
    total = tl.sum(sums, axis=0)
    if bias is not None:
        total += tl.load(bias + row).to(tl.float32)
    tl.store(y + row.to(tl.int64) * tokens + token, total.to(y.dtype.element_ty), mask=inside)


def spmm(x: Tensor, count: int, values: Tensor, pointers: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
    """The product of a sparse matrix (rows, features), as CSR, with x (features, tokens): (rows, tokens), as x's dtype.

    Sums are float32. A program works on one row and up to 64 tokens, so a row of many edges takes as long as it has
    edges; those start first.

    Args:
        x: as :func:`~sparsekern.backends.triton.layout.by_feature` makes it, of ``count`` tokens.
        values, indices: (nnz,), contiguous, by row; indices of any integer dtype.
        pointers: (rows + 1,).
        bias: (rows,), contiguous, or None.
    """
    rows, tokens = pointers.numel() - 1, x.shape[1]
    y = room(count, (rows,), x)
    if y.numel() == 0:
        return y
    edges_at_once, tokens_at_once = row_tile(gathered(x), tokens)
    # One dimension: the others end at 65,535. More than 2**31 programs would need more than 2**36 elements in y.
    spmm_kernel[(rows * triton.cdiv(tokens, tokens_at_once),)](
        y,
        x,
        values,
        pointers,
        indices,
        bias,
        longest_first(pointers),
        rows,
        tokens,
        x.stride(0),
        EDGES=edges_at_once,
        TOKENS=tokens_at_once,
        num_warps=WARPS,
        num_stages=1,  # gathers as plain loads: copies into shared memory would pass the L1 cache by
    )
    return y

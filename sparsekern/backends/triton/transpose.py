"""The transpose of a matrix, read and written in whole cache lines."""

import triton
import triton.language as tl
from torch import Tensor

SIDE = 64
WARPS = 4


@triton.jit(do_not_specialize=["rows", "columns", "row_tiles"])
def transpose_kernel(  # type: ignore[no-untyped-def]
    out, x, rows, columns, x_columns, filled, out_stride, x_stride, row_tiles, SIDE: tl.constexpr
):
    """out[c, r] = x[r, c], and 0 for r from ``rows`` to ``filled``, of one tile."""
    program = tl.program_id(0)
    row = (program % row_tiles).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    column = (program // row_tiles).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    known = (row < rows)[:, None] & (column < x_columns)[None, :]
    part = tl.load(x + row[:, None] * x_stride + column[None, :], mask=known, other=0.0)
    wanted = (column < columns)[:, None] & (row < filled)[None, :]
    tl.store(out + column[:, None] * out_stride + row[None, :], tl.trans(part), mask=wanted)


def transpose(x: Tensor, out: Tensor) -> None:
    """Writes the transpose of x (rows, columns or more) to out (columns, rows or more), zeros after the rows.

    Args:
        x, out: with adjacent columns.
    """
    columns, filled = out.shape
    if out.numel() == 0:
        return
    row_tiles = triton.cdiv(filled, SIDE)
    transpose_kernel[(row_tiles * triton.cdiv(columns, SIDE),)](
        out,
        x,
        x.shape[0],
        columns,
        x.shape[1],
        filled,
        out.stride(0),
        x.stride(0),
        row_tiles,
        SIDE=SIDE,
        num_warps=WARPS,
    )

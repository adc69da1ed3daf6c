"""The linear products; those in float16 and bfloat16 are here. Arguments were checked by the operators; signatures are
the reference's.

Forward is a sum along the rows of W, the input's gradient one along its columns: the same kernel, on the slots of the
edges by row and by column. The values' gradient goes by column as well.
"""

from types import ModuleType

import torch
from torch import Tensor

from sparsekern.backends import reference
from sparsekern.backends.cuda import linear_float32
from sparsekern.backends.cuda.activations import ByFeature, by_feature
from sparsekern.backends.cuda.cuts import chunk_of, spmm_tile
from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.cuda.served import Extent, elsewhere
from sparsekern.backends.cuda.slots import DTYPE_CODES, GROUPS_A_BLOCK, Layout, layout, packed
from sparsekern.backends.gpu import on_device_of

_ALL = 2**31 - 1  # blocks: one order of the minors for all
_MOST_SPLITS = 16  # of the tokens, each with sums of its own

linear_direct = reference.linear_direct


def _elsewhere(x: Tensor, ccol: Tensor, row: Tensor, rows: int) -> ModuleType | None:
    """What is to compute with these activations and this matrix instead, or None."""
    backend = elsewhere("linear", x.dtype, x.device, Extent(rows, ccol.numel() - 1, row.numel()))
    if backend is not None:
        return backend
    return linear_float32 if x.dtype == torch.float32 else None


def _by_column(ccol: Tensor, row: Tensor, rows: int, chunk: int) -> Layout:
    """The slots by column, one order of the rows for all: for the input's gradient and the values'."""
    return layout(ccol, row, None, rows, chunk, GROUPS_A_BLOCK, _ALL)


def _sums_along(
    pointers: Tensor,
    minors: Tensor,
    permutation: Tensor | None,
    size: int,
    x: ByFeature,
    w: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """(tokens, majors): along each major of a compressed matrix with ``size`` minors, values times activations."""
    module, dtype, device = kernels(), x.tensor.dtype, x.tensor.device
    majors, nnz = pointers.numel() - 1, minors.numel()
    y = torch.empty(x.tokens, majors, dtype=dtype, device=device)
    if y.numel() == 0:
        return y
    if nnz == 0:
        return y.zero_() if bias is None else y.copy_(bias.expand_as(y))
    queue = queue_of(x.tensor)
    limits = module.shared_bytes(queue), module.processors(queue)
    tile, chunk = spmm_tile(x.tokens, majors, size, nnz, *limits)
    if permutation is None:
        made = _by_column(pointers, minors, size, chunk)
    else:
        made = layout(pointers, minors, permutation, size, chunk, 1, module.spmm_set_blocks)
    slots = packed(made, w, dtype)
    wide_bias = None if bias is None else bias.float().contiguous()
    module.spmm(
        queue,
        tile,
        DTYPE_CODES[dtype],
        x.tokens,
        majors,
        made.cut,
        made.order_address,
        made.pointers.data_ptr(),
        slots.data_ptr(),
        x.tensor.data_ptr(),
        x.tensor.shape[1],
        0 if wide_bias is None else wide_bias.data_ptr(),
        y.data_ptr(),
    )
    return y


def _at_edges(gathered: ByFeature, stationary: ByFeature, made: Layout, nnz: int, dtype: torch.dtype) -> Tensor:
    """(nnz,): inner products of the minors' and the majors' activations at the edges of a layout."""
    module, x = kernels(), gathered.tensor
    out = torch.empty(nnz, dtype=dtype, device=x.device)
    queue = queue_of(x)
    # Their sums are never of the dense weight's size.
    most = x.shape[0] * stationary.tensor.shape[0] // (2 * made.places.numel())
    splits = module.sddmm_splits(queue, made.most_groups, gathered.tokens, min(_MOST_SPLITS, most))
    partial = torch.empty(splits * made.places.numel(), device=x.device)
    module.sddmm(
        queue,
        splits,
        DTYPE_CODES[x.dtype],
        DTYPE_CODES[dtype],
        gathered.tokens,
        stationary.tensor.shape[0],
        made.cut,
        made.order_address,
        made.groups,
        made.most_groups,
        made.places.data_ptr(),
        made.edges.data_ptr(),
        made.lists.data_ptr(),
        x.data_ptr(),
        x.shape[1],
        stationary.tensor.data_ptr(),
        stationary.tensor.shape[1],
        partial.data_ptr(),
        out.data_ptr(),
    )
    return out


def _weight_grad(by_row: ByFeature, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    nnz, rows = row.numel(), by_row.tensor.shape[0]
    if nnz == 0 or by_row.tokens == 0:
        return torch.zeros(nnz, dtype=dtype, device=x.device)
    chunk = chunk_of(kernels().shared_bytes(queue_of(x)), kernels().sddmm_tokens, rows)
    made = _by_column(ccol, row, rows, chunk)
    return _at_edges(by_row, by_feature(x, interleaved=True), made, nnz, dtype)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor,
) -> Tensor:
    backend = _elsewhere(x, ccol, row, crow.numel() - 1)
    if backend is not None:
        return backend.linear(x, w, bias, ccol, row, crow, col, perm)
    with on_device_of(x):
        return _sums_along(crow, col, perm, x.shape[1], by_feature(x), w, bias)


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    backend = _elsewhere(grad, ccol, row, grad.shape[1])
    if backend is not None:
        return backend.linear_input_grad(grad, w, ccol, row)
    with on_device_of(grad):
        return _sums_along(ccol, row, None, grad.shape[1], by_feature(grad), w, None)


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    backend = _elsewhere(x, ccol, row, grad.shape[1])
    if backend is not None:
        return backend.linear_weight_grad(grad, x, ccol, row, dtype)
    with on_device_of(x):
        return _weight_grad(by_feature(grad), x, ccol, row, dtype)


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _elsewhere(x, ccol, row, grad.shape[1])
    if backend is not None:
        return backend.linear_backward(grad, x, w, ccol, row, bias_dtype)
    with on_device_of(x):
        by_row = by_feature(grad, sums=bias_dtype is not None)
        dx = _sums_along(ccol, row, None, grad.shape[1], by_row, w, None)
        dw = _weight_grad(by_row, x, ccol, row, w.dtype)
        if by_row.sums is None or bias_dtype is None:
            return dx, dw, grad.new_empty(0)
        return dx, dw, by_row.sums.sum(0).to(bias_dtype)

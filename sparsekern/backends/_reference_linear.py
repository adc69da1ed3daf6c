"""Plain torch twins of the linear kernels: any device, slow, in chunks of edges so that memory stays bounded."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Gathered activations held at once, in elements.
_CHUNK_ELEMENTS = 1 << 24


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which products of ``dtype`` are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def edge_columns(ccol: Tensor, nnz: int) -> Tensor:
    """The column (nnz,) of each stored edge."""
    columns = torch.arange(ccol.numel() - 1, device=ccol.device)
    return torch.repeat_interleave(columns, ccol.long().diff(), output_size=nnz)  # or the host would wait for it


def _chunks(nnz: int, batch: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, batch))
    return (slice(start, min(nnz, start + step)) for start in range(0, nnz, step))


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
    """y[b, o] = bias[o] + sum of w[k] x[b, col_k] over the edges k of row o; (B, in) -> (B, out)."""
    wide = accumulation_dtype(x.dtype)
    y = torch.zeros(x.shape[0], crow.numel() - 1, dtype=wide, device=x.device)
    if bias is not None:
        y += bias.to(wide)
    columns, rows = edge_columns(ccol, row.numel()), row.long()
    for part in _chunks(row.numel(), x.shape[0]):
        y.index_add_(1, rows[part], x[:, columns[part]].to(wide) * w[part].to(wide))
    return y.to(x.dtype)


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    """dx[b, i] = sum of w[k] grad[b, row_k] over the edges k of column i; (B, out) -> (B, in)."""
    wide = accumulation_dtype(grad.dtype)
    dx = torch.zeros(grad.shape[0], ccol.numel() - 1, dtype=wide, device=grad.device)
    columns, rows = edge_columns(ccol, row.numel()), row.long()
    for part in _chunks(row.numel(), grad.shape[0]):
        dx.index_add_(1, columns[part], grad[:, rows[part]].to(wide) * w[part].to(wide))
    return dx.to(grad.dtype)


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    """dw[k] = sum over b of grad[b, row_k] x[b, col_k]; (nnz,) of ``dtype``."""
    wide = accumulation_dtype(x.dtype)
    dw = torch.empty(row.numel(), dtype=wide, device=x.device)
    columns, rows = edge_columns(ccol, row.numel()), row.long()
    for part in _chunks(row.numel(), x.shape[0]):
        dw[part] = (grad[:, rows[part]].to(wide) * x[:, columns[part]].to(wide)).sum(0)
    return dw.to(dtype)


def linear_direct(*operands: Tensor | None) -> Tensor | None:
    """None: here every product goes through the operator's checks."""
    return None


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients (dx, dw, dbias); the last, of ``bias_dtype``, has no elements where that is None."""
    dx, dw = linear_input_grad(grad, w, ccol, row), linear_weight_grad(grad, x, ccol, row, w.dtype)
    if bias_dtype is None:
        return dx, dw, grad.new_empty(0)
    return dx, dw, grad.sum(0, dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)

"""What a batch says about each row and each column of a layer's weight, without its gradient.

A weight gradient is a sum over batch rows of delta[row] * h[column]; for a convolution every output position
of every image is a batch row. Each function returns (per column f, (groups, columns); per row g, (rows,)) in
float32 (float64 for float64 activations). Nothing here unfolds a convolution's input.
"""

import math

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES
from sparsekern.growth.ranks import WHOLE_BATCH, GlobalBatch
from sparsekern.nn.conv2d import SparseConv2d
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern

_CHUNK = 1 << 18  # elements whose absolute values are held at a time


def absolute_sums(
    layer: SparseLayer, x: Tensor, grad: Tensor, batch: GlobalBatch = WHOLE_BATCH
) -> tuple[Tensor, Tensor]:
    """f = sum of abs(h), g = sum of abs(delta), over the batch rows: GraBo (arXiv 2401.06898).

    Args:
        layer: the layer that x and grad come from.
        x: its product's input, (..., in) or (N, C, H, W) or (C, H, W).
        grad: the gradient of its output, in the same layout.
        batch: what x and grad are a part of; x is empty where it is none.
    """
    return batch.sums(layer, lambda: _absolute_sums(layer, x, grad), x.numel() == 0)


def _absolute_sums(layer: SparseLayer, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(layer, SparseConv2d):
        x, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        return _sum_abs(x, (0,)).unsqueeze(0), _sum_abs(grad, (0,))
    x, grad = _batched(x), _batched(grad)
    return _windowed(layer, _sum_abs(x, (0,)), grad.shape[2:]), _sum_abs(grad, (0, 2, 3))


def _windowed(layer: SparseConv2d, plane: Tensor, out_size: torch.Size) -> Tensor:
    """(groups, columns): what each column's kernel position sees of a (C, H, W) plane, added up over all outputs."""
    planes = plane.double().cpu()
    sums = torch.empty(plane.shape[0] * math.prod(layer.kernel_size), dtype=torch.float64, device="cpu")
    geometry = layer.kernel_size, layer.stride, layer.product_padding, layer.dilation
    _C.sum_windows(
        planes.data_ptr(), plane.shape[0], *geometry, tuple(plane.shape[1:]), tuple(out_size), sums.data_ptr()
    )
    return sums.to(plane.device, plane.dtype).view(layer.groups, -1)


def sketched_sums(
    layer: SparseLayer, x: Tensor, grad: Tensor, generator: torch.Generator, batch: GlobalBatch = WHOLE_BATCH
) -> tuple[Tensor, Tensor]:
    """f = abs(sum of s h), g = abs(sum of s delta), with the same random sign s of each batch row in both:
    GraEst (arXiv 2401.06898, after the AMS sketch).

    Args:
        layer, x, grad, batch: as for :func:`absolute_sums`.
        generator: a CPU generator, of the signs.
    """
    empty = x.numel() == 0
    signs = batch.signs((0,) if empty else _sign_size(layer, grad), generator)
    f, g = batch.sums(layer, lambda: _sketched_sums(layer, x, grad, signs), empty)
    return f.abs(), g.abs()


def _sign_size(layer: SparseLayer, grad: Tensor) -> tuple[int, ...]:
    """One for each batch row, in the layout that an output gradient of one channel has."""
    if not isinstance(layer, SparseConv2d):
        return (grad.numel() // grad.shape[-1],)
    grad = _batched(grad)
    return (grad.shape[0], 1, *grad.shape[2:])


def _sketched_sums(layer: SparseLayer, x: Tensor, grad: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _sum_dtype(x)
    if not isinstance(layer, SparseConv2d):
        x, grad = x.reshape(-1, x.shape[-1]).to(dtype), grad.reshape(-1, grad.shape[-1]).to(dtype)
        signs = signs.to(x)
        return torch.mv(x.t(), signs).unsqueeze(0), torch.mv(grad.t(), signs)
    x, grad = _batched(x), _batched(grad)
    if x.device.type == "cpu":
        f, g = _signed_sums(layer, x, signs), _signed_sums(None, grad, signs)
    else:
        f, g = _signed_products(layer, x, grad, signs)
    return f.view(layer.groups, -1), g


def _signed_products(layer: SparseConv2d, x: Tensor, grad: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Both sums of a convolution under the signs, on any device."""
    signs = signs.to(device=x.device, dtype=x.dtype)
    # A weight gradient with one output channel, whose delta is the signs.
    columns = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1]
    every = Pattern.from_csc(
        (1, columns), torch.arange(columns + 1, dtype=torch.int32), torch.zeros(columns, dtype=torch.int32)
    ).to(x.device)
    f = torch.ops.sparsekern.conv2d_weight_grad(
        signs,
        x,
        every.ccol_indices,
        every.row_indices,
        layer.kernel_size,
        layer.stride,
        layer.product_padding,
        layer.dilation,
        1,
    )
    dtype = _sum_dtype(x)
    per_image = torch.bmm(grad.flatten(2).to(dtype), signs.flatten(1).to(dtype).unsqueeze(2))
    return f, per_image.sum((0, 2))


def _signed_sums(layer: SparseConv2d | None, x: Tensor, signs: Tensor) -> Tensor:
    """What each position of the layer's kernel (1x1 if None) sees of each channel, added up under the signs."""
    geometry = ((1, 1), (1, 1), (0, 0), (1, 1))
    if layer is not None:
        geometry = (layer.kernel_size, layer.stride, layer.product_padding, layer.dilation)
    x = x.contiguous()
    sums = torch.empty(x.shape[1] * math.prod(geometry[0]), dtype=torch.float64, device="cpu")
    _C.signed_sums(
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        *x.shape[:2],
        *geometry,
        tuple(x.shape[2:]),
        tuple(signs.shape[2:]),
        signs.data_ptr(),
        sums.data_ptr(),
    )
    return sums.to(_sum_dtype(x))


def _sum_abs(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum of abs(x) over ``dims``, the first among them, a few items at a time: abs(x) is as large as x."""
    dtype = _sum_dtype(x)
    if x.device.type == "cpu" and x.dtype == dtype:
        x = x.contiguous()
        sums = torch.empty(x.shape[1:], dtype=torch.float64, device="cpu")
        _C.sum_magnitudes(
            x.data_ptr(), x.shape[0], sums.numel(), sums.numel(), sums.data_ptr(), x.dtype == torch.float64
        )
        return (sums.sum([dim - 1 for dim in dims[1:]]) if dims[1:] else sums).to(dtype)
    items = max(1, _CHUNK // max(1, math.prod(x.shape[1:])))
    parts = x.split(items)
    total = parts[0].abs().sum(dims, dtype=dtype)
    for part in parts[1:]:
        total += part.abs().sum(dims, dtype=dtype)
    return total


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x.unsqueeze(0)

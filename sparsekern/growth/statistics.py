"""What a batch says about each row and each column of a layer's weight, without its gradient.

A weight gradient is a sum over batch rows of delta[row] * h[column]; for a convolution every output position
of every image is a batch row. Each function returns (per column f, (groups, columns); per row g, (rows,)) in
float32 (float64 for float64 activations). Nothing here unfolds a convolution's input.
"""

import torch
from torch import Tensor

from sparsekern.backends.choice import topology_of
from sparsekern.growth.ranks import WHOLE_BATCH, GlobalBatch
from sparsekern.nn.conv2d import SparseConv2d
from sparsekern.nn.layer import SparseLayer


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
    geometry = layer.kernel_size, layer.stride, layer.product_padding, layer.dilation
    sums: Tensor = topology_of(plane.device).window_sums(plane, *geometry, out_size)
    return sums.view(layer.groups, -1)


def sketched_sums(
    layer: SparseLayer, x: Tensor, grad: Tensor, generator: torch.Generator, batch: GlobalBatch = WHOLE_BATCH
) -> tuple[Tensor, Tensor]:
    """f = abs(sum of s h), g = abs(sum of s delta), with the same random sign s of each batch row in both:
    GraEst (arXiv 2401.06898, after the AMS sketch).

    Args:
        layer, x, grad, batch: as for :func:`absolute_sums`.
        generator: of the signs: a CPU generator, or one of the activations' device.
    """
    empty = x.numel() == 0
    signs = batch.signs((0,) if empty else _sign_size(layer, grad), x.device, generator)
    f, g = batch.sums(layer, lambda: _sketched_sums(layer, x, grad, signs), empty)
    return f.abs(), g.abs()


def _sign_size(layer: SparseLayer, grad: Tensor) -> tuple[int, ...]:
    """One for each batch row, in the layout that an output gradient of one channel has."""
    if not isinstance(layer, SparseConv2d):
        return (grad.numel() // grad.shape[-1],)
    grad = _batched(grad)
    return (grad.shape[0], 1, *grad.shape[2:])


def _sketched_sums(layer: SparseLayer, x: Tensor, grad: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    topology = topology_of(x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(layer, SparseConv2d):
        x, grad = x.reshape(-1, x.shape[-1]).to(dtype), grad.reshape(-1, grad.shape[-1]).to(dtype)
        signs = signs.to(x)
        return torch.mv(x.t(), signs).unsqueeze(0), torch.mv(grad.t(), signs)
    x, grad = _batched(x), _batched(grad)
    f = topology.signed_sums(x, signs, layer.kernel_size, layer.stride, layer.product_padding, layer.dilation)
    return f.view(layer.groups, -1), topology.signed_sums(grad, signs)


def _sum_abs(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum of abs(x) over ``dims``, the first among them."""
    sums: Tensor = topology_of(x.device).sum_magnitudes(x, dims)
    return sums


def _batched(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x.unsqueeze(0)

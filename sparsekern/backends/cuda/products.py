"""The products over tiles in shared memory: what linear and conv2d have in common, a linear layer being a conv2d.

Activations lie by place and then by image (:func:`~sparsekern.backends.cuda.tiles.images_innermost`), for few images as
they came.
"""

import torch
from torch import Tensor

from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.cuda.gather import GatherPlan, gather, plan_gather
from sparsekern.backends.cuda.inner import InnerPlan, inner, plan_inner
from sparsekern.backends.cuda.tiles import Shape, Source, as_it_lies, images_innermost
from sparsekern.backends.gpu import on_device_of

# Kernels number edges and blocks by 32 bits.
_MOST = 2**31 - 1


def limits(tensor: Tensor) -> tuple[int, int]:
    """Bytes of shared memory that a block may have, and processors, of a tensor's device."""
    queue = queue_of(tensor)
    return kernels().shared_bytes(queue), kernels().processors(queue)


class Operand:
    """Activations, copied to where the kernels read them at most once for each of both orders."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._by_image: Source | None = None

    def source(self, by_pixel: bool) -> Source:
        if by_pixel:
            return as_it_lies(self.x)
        if self._by_image is None:
            with on_device_of(self.x):
                self._by_image = images_innermost(self.x)
        return self._by_image


def sum_plan(shape: Shape, back: bool, row: Tensor, operand: Operand) -> GatherPlan | None:
    """The plan of the forward product or the input gradient; None where the kernels cannot have it."""
    plan = plan_gather(shape, back, operand.x.element_size() == 2, row.numel(), *limits(operand.x))
    if plan is None or max(plan.room(row.numel()), plan.blocks) > _MOST:
        return None
    size = shape.out_size if back else shape.size
    return plan if operand.source(plan.tile.by_pixel).fits(size) else None


def inner_plan(shape: Shape, row: Tensor, x: Operand, grad: Operand) -> InnerPlan | None:
    """The plan of the values' gradient; None where the kernels cannot have it."""
    plan = plan_inner(shape, x.x.element_size() == 2, row.numel(), *limits(x.x))
    if plan is None or plan.units * plan.unit_edges > _MOST:
        return None
    by_pixel = plan.tile.by_pixel
    fits = x.source(by_pixel).fits(shape.size) and grad.source(by_pixel).fits(shape.out_size)
    return plan if fits else None


def sums(plan: GatherPlan, operand: Operand, w: Tensor, bias: Tensor | None, ccol: Tensor, row: Tensor) -> Tensor:
    """The forward product or the input gradient: (N, channels, height, width)."""
    with on_device_of(operand.x):
        return _sums(plan, operand, w, bias, ccol, row)


def _sums(plan: GatherPlan, operand: Operand, w: Tensor, bias: Tensor | None, ccol: Tensor, row: Tensor) -> Tensor:
    shape, back = plan.shape, plan.back
    height, width = shape.size if back else shape.out_size
    batch, rows = shape.batch, shape.channels if back else shape.out_channels
    new = torch.empty if plan.tile.y_shape.covers and plan.tile.x_shape.covers else torch.zeros
    source = operand.source(plan.tile.by_pixel)
    w, bias = w.contiguous(), None if bias is None else bias.float().contiguous()
    if plan.tile.by_pixel:
        out = new(batch, rows, height, width, dtype=operand.x.dtype, device=w.device)
        gather(plan, source, w, bias, ccol, row, out, (height * width, width, 1, rows * height * width))
        return out
    if height * width == 1:
        out = new(batch, rows, 1, 1, dtype=operand.x.dtype, device=w.device)
        gather(plan, source, w, bias, ccol, row, out, (1, 0, 0, rows))
        return out
    images = -(-batch // 8) * 8
    by_image = new(rows, height, width, images, dtype=operand.x.dtype, device=w.device)
    gather(plan, source, w, bias, ccol, row, by_image, (height * width * images, width * images, images, 1))
    out = torch.empty(batch, rows, height, width, dtype=operand.x.dtype, device=w.device)
    features = rows * height * width
    sizes = features, batch, images
    kernels().transpose(queue_of(out), by_image.data_ptr(), *sizes, out.data_ptr(), features, out.element_size())
    return out


def inner_products(plan: InnerPlan, x: Operand, grad: Operand, ccol: Tensor, row: Tensor) -> Tensor:
    """The values' gradient (nnz,), float32."""
    by_pixel = plan.tile.by_pixel
    with on_device_of(x.x):
        return inner(plan, x.source(by_pixel), grad.source(by_pixel), ccol, row)

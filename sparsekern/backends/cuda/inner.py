"""float32 gradients of the values, by csrc/cuda/inner.h: inner products over all tokens at the edges of a pattern."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.cuda.axes import ceil_div
from sparsekern.backends.cuda.extension import kernels
from sparsekern.backends.cuda.gather import spanned_groups
from sparsekern.backends.cuda.lists import deal, most_groups
from sparsekern.backends.cuda.plans import edges_of, kept_layout
from sparsekern.backends.cuda.tiles import Shape, Source, Tile, best_tile, queue_of

_ELEMENTS = 4
_PARTS = 4  # of a warp, each with units of its own
_COPIES = 6.0  # elements that a processor copies from the L2 cache in a clock
_PRODUCTS = 28.0  # that it forms
_MOST_PARTIAL = 1 << 26  # elements of the sums over slices of the tokens, which are added up afterwards
_FILLED = 0.9  # of a block's units, or random patterns would often need one block more


@dataclass(frozen=True)
class InnerPlan:
    """How blocks share a weight's gradient, as ``Inner`` in csrc/cuda/inner.h has it."""

    shape: Shape
    tile: Tile
    nnz: int
    block_rows: int
    chunk_planes: int
    chunks: int
    warps: int
    slices: int

    @property
    def row_blocks(self) -> int:
        return ceil_div(self.shape.out_channels, self.block_rows)

    @property
    def places(self) -> int:
        return self.row_blocks * self.chunks

    @property
    def block_units(self) -> int:
        return self.warps * _PARTS * kernels().LANE_UNITS

    @property
    def units(self) -> int:
        return most_groups(self.nnz, self.places * self.block_rows, kernels().UNIT_EDGES)

    @property
    def items(self) -> int:
        return self.units // self.block_units + self.places


class InnerLayout(NamedTuple):
    items: Tensor  # (items, 4) int32
    rows: Tensor  # (units,) int32
    cells: Tensor  # (units * UNIT_EDGES,) int16
    sources: Tensor  # (units * UNIT_EDGES,) int32


@cache
def plan_inner(shape: Shape, nnz: int, shared_bytes: int, processors: int) -> InnerPlan | None:
    """The plan for the values' gradient of a layer of this shape; None where no tile fits into shared memory."""
    rows = shape.out_channels
    group_channels = shape.channels // shape.groups
    density = nnz / max(1, rows * group_channels * shape.taps)
    warps, edges_of_unit = kernels().INNER_WARPS, kernels().UNIT_EDGES
    units = warps * _PARTS * kernels().LANE_UNITS
    tokens_in_all = shape.batch * shape.out_size[0] * shape.out_size[1]
    best: tuple[float, InnerPlan] | None = None
    for tokens in (32, 64, 128, 256):
        if tokens > 32 and tokens >= 2 * tokens_in_all:
            break
        for block_rows in (8, 16, 32, 64, 128, 256, 512):
            if block_rows > 8 and block_rows >= 2 * rows:
                break
            used = min(rows, block_rows)
            tile = best_tile(shape, False, tokens, _ELEMENTS, used * density * shape.taps / (_PRODUCTS / _COPIES))
            of_outputs = tile.of_outputs()
            edges = density * shape.taps / tile.classes  # of a row and a plane
            planes = spanned_groups(rows, shape.groups, block_rows) * group_channels * tile.classes
            fixed = tile.table_bytes + of_outputs.table_bytes + 32 * ceil_div(tile.token_cells, 8) + 128
            fixed += block_rows * of_outputs.plane_bytes
            fitting = (shared_bytes - fixed) // tile.plane_bytes
            fitting = min(fitting, (1 << 16) // tile.pitches[3], planes)
            held = int((units * _FILLED / used - 0.5) * edges_of_unit / max(edges, 1e-9))
            fitting = min(fitting, max(1, held))
            if fitting < 1:
                continue
            chunks = max(1, ceil_div(planes, fitting))
            chunk_planes = ceil_div(planes, chunks)
            filled = used * (chunk_planes * edges / edges_of_unit + 0.5)
            copies = (chunk_planes * tile.plane_cells + used * of_outputs.plane_cells) * _ELEMENTS
            clocks = copies / _COPIES + filled * edges_of_unit * tokens / _PRODUCTS
            cost = clocks * tile.count * chunks * ceil_div(rows, block_rows)
            if best is None or cost < best[0]:
                best = cost, InnerPlan(shape, tile, nnz, block_rows, chunk_planes, chunks, warps, 1)
    if best is None:
        return None
    plan = best[1]
    slices = min(
        ceil_div(2 * processors, plan.items),
        max(1, plan.tile.count),
        max(1, _MOST_PARTIAL // max(1, plan.units * edges_of_unit)),
        65535,
    )
    return InnerPlan(shape, plan.tile, nnz, plan.block_rows, plan.chunk_planes, plan.chunks, warps, slices)


def _layout(plan: InnerPlan, ccol: Tensor, row: Tensor) -> InnerLayout:
    shape, tile = plan.shape, plan.tile
    edges = edges_of(shape, ccol, row, False)
    _, plane, cell = tile.locate(edges)
    block = torch.div(edges.row, plan.block_rows, rounding_mode="floor")
    group_rows = shape.out_channels // shape.groups
    groups_before = edges.row // group_rows - block * plan.block_rows // group_rows
    plane = plane + groups_before * (shape.channels // shape.groups * tile.classes)
    cell = cell + plane % plan.chunk_planes * tile.pitches[3]
    place = block * plan.chunks + plane // plan.chunk_planes
    size = kernels().UNIT_EDGES
    lists = deal(place * plan.block_rows + edges.row % plan.block_rows, plan.places * plan.block_rows, size)
    room = plan.units * size
    unit = torch.arange(plan.units, device=row.device)
    unit_list = torch.searchsorted(lists.begins, unit, right=True) - 1
    return InnerLayout(
        _items(plan, lists.begins),
        (unit_list % plan.block_rows).int(),
        lists.place(cell, room, 0, torch.int32).to(torch.int16),
        lists.sources(room),
    )


def _items(plan: InnerPlan, begins: Tensor) -> Tensor:
    """Pieces of at most a block's units of one place, those without units last."""
    at = begins[:: plan.block_rows]
    first, end = at[:-1], at[1:]
    pieces = (end - first + plan.block_units - 1) // plan.block_units
    after = pieces.cumsum(0)
    number = torch.arange(plan.items, device=begins.device)
    place = torch.searchsorted(after, number, right=True).clamp_(max=plan.places - 1)
    piece = number - (after - pieces)[place]
    begin = first[place] + piece * plan.block_units
    stop = torch.minimum(begin + plan.block_units, end[place])
    begin = torch.minimum(begin, stop)
    return torch.stack([place, begin, stop, torch.zeros_like(place)], 1).int()


def inner(
    plan: InnerPlan, x: Source, grad: Source, ccol: Tensor, row: Tensor
) -> Tensor:
    """The gradient (nnz,) of the values."""
    layout: InnerLayout = kept_layout(ccol, row, plan, lambda: _layout(plan, ccol, row))
    nnz, queue = row.numel(), queue_of(row)
    room = layout.sources.numel()
    partial = torch.empty(plan.slices, room, dtype=torch.float32, device=row.device)
    out = torch.empty(nnz, dtype=torch.float32, device=row.device)
    shape = plan.shape
    numbers = (
        shape.out_channels, shape.groups, shape.channels // shape.groups, plan.block_rows, plan.chunk_planes,
        plan.chunks, plan.warps, plan.items, plan.slices,
    )  # fmt: skip
    tiles = plan.tile.kernel_argument(), plan.tile.of_outputs().kernel_argument()
    task = kernels().Inner(*tiles, numbers, plan.units, x.strides, grad.strides)
    addresses = (tensor.data_ptr() for tensor in (layout.items, layout.rows, layout.cells, partial))
    kernels().inner(queue, task, x.address, grad.address, *addresses)
    kernels().add_slices(queue, room, plan.slices, partial.data_ptr(), layout.sources.data_ptr(), out.data_ptr())
    return out

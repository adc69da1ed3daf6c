"""Gradients of the values, inner products over all tokens at the edges of a pattern: float32 by csrc/cuda/inner.h, of
16-bit activations by csrc/cuda/gather_half.h.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.cuda.axes import ceil_div
from sparsekern.backends.cuda.cell_slots import BLOCK, cell_slots, edges_of_slots, most_slot_groups
from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.cuda.gather import groups_before, spanned_groups
from sparsekern.backends.cuda.lists import deal, most_groups
from sparsekern.backends.cuda.plans import edges_of, kept_layout
from sparsekern.backends.cuda.slots import DTYPE_CODES, GROUP, MOST_MINORS, Layout
from sparsekern.backends.cuda.tiles import Shape, Source, Tile, best_tile

_PARTS = 4  # of a warp, each with units of its own, in float32
_COPIES = {4: 6.0, 8: 12.0}  # elements that a processor copies from the L2 cache in a clock
_PRODUCTS = {4: 28.0, 8: 40.0}  # that it forms, useful ones or not
_TILE_CLOCKS = 300  # that a tile takes before and after
_FILLED = 0.9  # of a block's units, or random patterns would often need one block more


@dataclass(frozen=True)
class InnerPlan:
    """How blocks share a weight's gradient, as ``Inner`` and ``InnerHalf`` in csrc/cuda have it.

    Edges are dealt to units: in float32 ``UNIT_EDGES`` of one row, else groups of slots of one block of 8 rows.
    """

    shape: Shape
    tile: Tile
    nnz: int
    block_rows: int
    chunk_planes: int
    chunks: int
    warps: int
    unit_warps: int  # with units of their own; the others have the same ones, and other tokens
    slices: int

    @property
    def half(self) -> bool:
        return self.tile.elements == 8

    @property
    def row_blocks(self) -> int:
        return ceil_div(self.shape.out_channels, self.block_rows)

    @property
    def places(self) -> int:
        return self.row_blocks * self.chunks

    @property
    def block_units(self) -> int:
        return self.unit_warps * int(kernels().WARP_GROUPS if self.half else _PARTS * kernels().LANE_UNITS)

    @property
    def unit_edges(self) -> int:
        return GROUP if self.half else int(kernels().UNIT_EDGES)

    @property
    def units(self) -> int:
        rows = self.row_blocks * self.block_rows
        if self.half:
            return most_slot_groups(self.nnz, rows, self.chunks)
        return most_groups(self.nnz, self.chunks * rows, self.unit_edges)

    @property
    def items(self) -> int:
        return self.units // self.block_units + self.places

    def numbers(self) -> tuple[int, ...]:
        shape = self.shape
        split = self.block_rows, self.chunk_planes, self.chunks, self.warps, self.unit_warps, self.items, self.slices
        return shape.out_channels, shape.groups, shape.channels // shape.groups, *split


class InnerLayout(NamedTuple):
    items: Tensor  # (items, 4) int32
    rows: Tensor  # (units,) int32
    cells: Tensor  # (units * UNIT_EDGES,) int16
    sources: Tensor  # (units * UNIT_EDGES,) int32


class InnerSlots(NamedTuple):
    items: Tensor  # (items, 4) int32
    slots: Layout
    sources: Tensor  # (units * 16,) int32


@cache
def plan_inner(shape: Shape, half: bool, nnz: int, shared_bytes: int, processors: int) -> InnerPlan | None:
    """The plan for the values' gradient of a layer of this shape; None where no tile fits into shared memory.

    Blocks share out edges first, then tokens: each slice of them has sums of its own, added up afterwards. These are
    kept from coming to the size of the dense weight, so that small layers have fewer edges a block instead, whose warps
    share the tokens.
    """
    warps = unit_warps = kernels().INNER_HALF_WARPS if half else kernels().INNER_WARPS
    dense = shape.out_channels * shape.channels // shape.groups * shape.taps
    # Their sums meet in shared memory at the end.
    while warps > 1 and 2 * warps * _sum_bytes(half) > shared_bytes:
        warps = unit_warps = warps // 2
    found = None
    while unit_warps:
        best = _best_plan(shape, half, nnz, shared_bytes, warps, unit_warps)
        if best is None:
            return found
        partial = max(dense // 2, 3 * nnz)
        most = max(1, partial // max(1, best.units * best.unit_edges))
        slices = min(ceil_div(2 * processors, best.items), max(1, best.tile.count), most, 65535)
        found = replace(best, slices=slices)
        if best.items * slices >= processors:
            break
        unit_warps //= 2
    return found


def _sum_bytes(half: bool) -> int:
    """Of a warp's sums."""
    return 4 * (kernels().WARP_GROUPS * GROUP if half else 32 * kernels().LANE_UNITS)


def _best_plan(shape: Shape, half: bool, nnz: int, shared_bytes: int, warps: int, unit_warps: int) -> InnerPlan | None:
    rows = shape.out_channels
    group_channels = shape.channels // shape.groups
    density = nnz / max(1, rows * group_channels * shape.taps)
    tokens_in_all = shape.batch * shape.out_size[0] * shape.out_size[1]
    elements, unit_rows, step_cells = (8, BLOCK, 4) if half else (4, 1, 8)
    most_cells = MOST_MINORS if half else 1 << 16
    best: tuple[float, InnerPlan] | None = None
    parts = warps // unit_warps  # that a tile's tokens are dealt to
    for tokens in (32, 64, 128, 256, 512):
        if tokens > 32 and tokens >= 2 * tokens_in_all:
            break
        for block_rows in (16, 32, 64, 128, 256, 512):
            if block_rows > 16 and block_rows >= 2 * rows:
                break
            used = min(rows, block_rows)
            reuse = used * density * shape.taps * _COPIES[elements] / _PRODUCTS[elements]
            tile = best_tile(shape, False, tokens, elements, reuse, half)
            of_outputs = tile.of_outputs()
            planes = spanned_groups(rows, shape.groups, block_rows) * group_channels * tile.classes
            plan = InnerPlan(shape, tile, nnz, block_rows, 1, 1, warps, unit_warps, 1)
            fixed = tile.table_bytes + of_outputs.table_bytes + 256
            fixed += 8 * step_cells * ceil_div(tile.token_cells, step_cells)
            # Twice: one tile is copied while another is computed with.
            room = (shared_bytes - fixed) // 2 - block_rows * of_outputs.plane_bytes
            fitting = min(room // tile.plane_bytes, most_cells // tile.pitches[3], planes)
            # Units of a list, of which there is one for each unit_rows rows: full ones and half a one.
            lists = used / unit_rows
            edges = density * shape.taps / tile.classes * unit_rows  # of a list and a plane
            held = int((plan.block_units * _FILLED / lists - 0.5) * plan.unit_edges / max(edges, 1e-9))
            fitting = min(fitting, max(1, held))
            if fitting < 1 or fixed + warps * _sum_bytes(half) > shared_bytes:
                continue
            chunks = ceil_div(planes, fitting)
            chunk_planes = ceil_div(planes, chunks)
            units = lists * (chunk_planes * edges / plan.unit_edges + 0.5)
            copies = (chunk_planes * tile.plane_cells + used * of_outputs.plane_cells) * elements
            steps = ceil_div(tile.token_cells, step_cells)
            idle = ceil_div(steps, parts) * parts / steps
            products = idle * units * plan.unit_edges * tokens / _PRODUCTS[elements]
            clocks = max(copies / _COPIES[elements], products) + _TILE_CLOCKS
            cost = clocks * tile.count * chunks * ceil_div(rows, block_rows)
            if best is None or cost < best[0]:
                best = cost, replace(plan, chunk_planes=chunk_planes, chunks=chunks)
    return None if best is None else best[1]


def _located(plan: InnerPlan, ccol: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each edge's row, chunk and cell within the chunk."""
    shape, tile = plan.shape, plan.tile
    edges = edges_of(shape, ccol, row, False)
    _, plane, cell = tile.locate(edges)
    before = groups_before(edges.row, shape.out_channels // shape.groups, plan.block_rows)
    plane = plane + before * (shape.channels // shape.groups * tile.classes)
    cell = cell + plane % plan.chunk_planes * tile.pitches[3]
    return edges.row, plane // plan.chunk_planes, cell


def _layout(plan: InnerPlan, ccol: Tensor, row: Tensor) -> InnerLayout:
    rows, chunk, cell = _located(plan, ccol, row)
    place = rows // plan.block_rows * plan.chunks + chunk
    keys = place * plan.block_rows + rows % plan.block_rows
    lists = deal(keys, plan.places * plan.block_rows, plan.unit_edges)
    room = plan.units * plan.unit_edges
    unit = torch.arange(plan.units, device=row.device)
    unit_list = torch.searchsorted(lists.begins, unit, right=True) - 1
    at = lists.begins[:: plan.block_rows]
    return InnerLayout(
        _items(plan, at[:-1], at[1:]),
        (unit_list % plan.block_rows).int(),
        lists.place(cell, room, 0, torch.int32).to(torch.int16),
        lists.sources(room),
    )


def _slots(plan: InnerPlan, ccol: Tensor, row: Tensor) -> InnerSlots:
    rows, chunk, cell = _located(plan, ccol, row)
    slots = cell_slots(rows, chunk, cell, plan.row_blocks * plan.block_rows, plan.chunks)
    step = plan.block_rows // BLOCK
    pointers = slots.pointers[:-1].view(plan.chunks, -1).long()
    items = _items(plan, pointers[:, :-1:step].flatten(), pointers[:, step::step].flatten())
    return InnerSlots(items, slots, edges_of_slots(slots))


def _items(plan: InnerPlan, first: Tensor, end: Tensor) -> Tensor:
    """Pieces of at most a block's units of one place, those without units last.

    Args:
        first, end: (places,), the units of each place.
    """
    pieces = (end - first + plan.block_units - 1) // plan.block_units
    after = pieces.cumsum(0)
    number = torch.arange(plan.items, device=first.device)
    place = torch.searchsorted(after, number, right=True).clamp_(max=plan.places - 1)
    begin = first[place] + (number - (after - pieces)[place]) * plan.block_units
    stop = torch.minimum(begin + plan.block_units, end[place])
    return torch.stack([place, torch.minimum(begin, stop), stop, torch.zeros_like(place)], 1).int()


def inner(plan: InnerPlan, x: Source, grad: Source, ccol: Tensor, row: Tensor) -> Tensor:
    """The gradient (nnz,) of the values, float32."""
    queue, module = queue_of(row), kernels()
    room = plan.units * plan.unit_edges
    partial = torch.empty(plan.slices, room, dtype=torch.float32, device=row.device)
    tiles = plan.tile.kernel_argument(), plan.tile.of_outputs().kernel_argument()
    argument = *tiles, plan.numbers(), plan.units, x.strides, grad.strides
    if plan.half:
        slots: InnerSlots = kept_layout(ccol, row, plan, lambda: _slots(plan, ccol, row))
        sources = slots.sources
        tensors = slots.items, slots.slots.places, slots.slots.lists, partial
        addresses = (tensor.data_ptr() for tensor in tensors)
        dtype = DTYPE_CODES[x.tensor.dtype]
        module.inner_half(queue, module.InnerHalf(*argument), dtype, x.address, grad.address, *addresses)
    else:
        layout: InnerLayout = kept_layout(ccol, row, plan, lambda: _layout(plan, ccol, row))
        sources = layout.sources
        addresses = (tensor.data_ptr() for tensor in (layout.items, layout.rows, layout.cells, partial))
        module.inner(queue, module.Inner(*argument), x.address, grad.address, *addresses)
    out = torch.empty(row.numel(), dtype=torch.float32, device=row.device)
    module.add_slices(queue, room, plan.slices, partial.data_ptr(), sources.data_ptr(), out.data_ptr())
    return out

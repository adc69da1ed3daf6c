"""Sums over the edges of each row, the forward product and the input gradient: float32 by csrc/cuda/gather.h, 16-bit
activations by csrc/cuda/gather_half.h.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.cuda.axes import ceil_div
from sparsekern.backends.cuda.cell_slots import cell_slots, most_slot_groups
from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.cuda.lists import deal, most_groups
from sparsekern.backends.cuda.plans import edges_of, kept_layout
from sparsekern.backends.cuda.slots import DTYPE_CODES, GROUP, MOST_MINORS, Layout, packed
from sparsekern.backends.cuda.tiles import CELL_BYTES, Shape, Source, Tile, best_tile

_LIST_EDGES = 8  # that a list should have, or the lists' ends cost as much as the edges
# Products that a processor forms, and elements that it copies from the L2 cache, in the same time.
_PRODUCTS_PER_COPY = {4: 3.7, 8: 1.7}


@dataclass(frozen=True)
class GatherPlan:
    """How blocks share a product, as ``Gather`` and ``GatherHalf`` in csrc/cuda have it."""

    shape: Shape
    back: bool
    tile: Tile
    rows: int
    groups: int
    group_channels: int
    block_rows: int
    chunk_planes: int
    chunks: int
    token_warps: int
    warps: int
    warp_cells: int  # of tokens, that a warp has

    @property
    def half(self) -> bool:
        return self.tile.elements == 8

    @property
    def row_blocks(self) -> int:
        return ceil_div(self.rows, self.block_rows)

    @property
    def blocks(self) -> int:
        return self.tile.count * self.tile.out_classes * self.row_blocks

    @property
    def lists(self) -> int:
        """Of float32."""
        return self.tile.out_classes * self.row_blocks * self.chunks * self.block_rows

    def room(self, nnz: int) -> int:
        """Places for edges."""
        if self.half:
            return GROUP * most_slot_groups(nnz, self.tile.out_classes * self.row_blocks * self.block_rows, self.chunks)
        return 2 * most_groups(nnz, self.lists, 2)

    def numbers(self) -> tuple[int, ...]:
        shared = self.rows, self.groups, self.group_channels, self.block_rows, self.chunk_planes, self.chunks
        return (*shared, self.token_warps, self.warps, *(() if self.half else (self.warp_cells,)))


class GatherLayout(NamedTuple):
    ranges: Tensor  # (lists + 1, 2) int32: the first edge of each list and its end
    cells: Tensor  # (room,) int32
    sources: Tensor  # (room,) int32


def spanned_groups(rows: int, groups: int, block_rows: int) -> int:
    """Groups that the rows of a block belong to, at most."""
    return min(groups, (block_rows - 2) // (rows // groups) + 2)


def _warps_by_rows(needed: int, most: int) -> int:
    """Warps side by side in rows: many, for they share what is copied, but few of them idle in the last block."""
    return min(range(1, most + 1), key=lambda warps: ceil_div(needed, warps) * warps * (1 + 0.5 / warps))


@cache
def plan_gather(
    shape: Shape, back: bool, half: bool, nnz: int, shared_bytes: int, processors: int
) -> GatherPlan | None:
    """The plan for a product of this shape on a GPU with so much shared memory a block, and so many processors.

    None where no tile fits into shared memory: kernels of many hundred taps.
    """
    rows, sources = shape.out_channels, shape.channels
    if back:
        rows, sources = sources, rows
    group_channels = sources // shape.groups
    density = nnz / max(1, rows * group_channels * shape.taps)
    y, x = shape.axis(0, back), shape.axis(1, back)
    tokens = shape.batch * y.places * x.places
    elements = 8 if half else 4
    most_warps = kernels().GATHER_HALF_WARPS if half else kernels().GATHER_WARPS

    def plan(cells: int, warp_rows: int, row_warps: int, token_warps: int) -> GatherPlan | None:
        block_rows = row_warps * warp_rows
        reuse = min(rows, block_rows) * density * shape.taps / (y.out_classes * x.out_classes)
        reuse /= _PRODUCTS_PER_COPY[elements]
        tile = best_tile(shape, back, token_warps * cells * elements, elements, reuse, half)
        fixed = tile.table_bytes + CELL_BYTES * token_warps * cells
        planes = spanned_groups(rows, shape.groups, block_rows) * group_channels * tile.classes
        # Two blocks a processor, if that leaves them room.
        for limit in (shared_bytes // 2 - 1024, shared_bytes):
            fitting = (limit - fixed) // tile.plane_bytes
            if half:
                fitting = min(fitting, MOST_MINORS // tile.pitches[3])
            if fitting > 0:
                chunks = max(1, ceil_div(planes, fitting))
                chunk_planes = max(1, ceil_div(planes, chunks))
                split = block_rows, chunk_planes, chunks, token_warps, row_warps * token_warps, cells
                return GatherPlan(shape, back, tile, rows, shape.groups, group_channels, *split)
        return None

    choices = ((kernels().WARP_CELLS, 16),) if half else ((32, 8), (16, 16), (8, 32))
    for cells, warp_rows in choices:
        row_warps = _warps_by_rows(ceil_div(rows, warp_rows), most_warps)
        token_warps = min(most_warps // row_warps, max(1, ceil_div(tokens, cells * elements)))
        found = plan(cells, warp_rows, row_warps, token_warps)
        # Smaller where tiles do not fit, and where processors would be idle.
        while token_warps > 1 and (found is None or found.blocks < 2 * processors):
            token_warps = ceil_div(token_warps, 2)
            found = plan(cells, warp_rows, row_warps, token_warps) or found
        while row_warps > (1 if found is None else 4) and (found is None or found.blocks < 2 * processors):
            row_warps = ceil_div(row_warps, 2)
            found = plan(cells, warp_rows, row_warps, token_warps) or found
        filled = tokens > cells * elements // 2
        if cells == 8 or (found is not None and filled and nnz >= _LIST_EDGES * found.lists):
            return found
    return None


def _located(plan: GatherPlan, ccol: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each edge's row, output class, chunk and cell within the chunk."""
    edges = edges_of(plan.shape, ccol, row, plan.back)
    out_class, plane, cell = plan.tile.locate(edges)
    plane = plane + groups_before(edges.row, plan.rows // plan.groups, plan.block_rows) * (
        plan.group_channels * plan.tile.classes
    )
    cell = cell + plane % plan.chunk_planes * plan.tile.pitches[3]
    return edges.row, out_class, plane // plan.chunk_planes, cell


def groups_before(row: Tensor, group_rows: int, block_rows: int) -> Tensor:
    """Groups of a row's block that come before the row's own."""
    return row // group_rows - row // block_rows * block_rows // group_rows


def _layout(plan: GatherPlan, ccol: Tensor, row: Tensor) -> GatherLayout:
    rows, out_class, chunk, cell = _located(plan, ccol, row)
    block, within = rows // plan.block_rows, rows % plan.block_rows
    keys = ((out_class * plan.row_blocks + block) * plan.chunks + chunk) * plan.block_rows + within
    lists = deal(keys, plan.lists, 2)
    room = plan.room(row.numel())
    begins = lists.begins * 2
    ends = torch.cat([begins[:-1] + lists.sizes, begins[-1:]])
    ranges = torch.stack([begins, ends], 1).int()
    return GatherLayout(ranges, lists.place(cell, room, 0, torch.int32), lists.sources(room))


def _slots(plan: GatherPlan, ccol: Tensor, row: Tensor) -> Layout:
    rows, out_class, chunk, cell = _located(plan, ccol, row)
    class_rows = plan.row_blocks * plan.block_rows
    return cell_slots(out_class * class_rows + rows, chunk, cell, plan.tile.out_classes * class_rows, plan.chunks)


def gather(
    plan: GatherPlan,
    source: Source,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    out: Tensor,
    strides: tuple[int, int, int, int],
) -> None:
    """Writes a product's results to ``out``, whose strides are those of row, y, x and image, in elements.

    Args:
        w: (nnz,) contiguous, as stored.
        bias: (rows,) float32, contiguous, or None.
    """
    queue, module = queue_of(out), kernels()
    bias_address = 0 if bias is None else bias.data_ptr()
    argument = plan.tile.kernel_argument(), plan.numbers(), source.strides, strides
    if plan.half:
        slots: Layout = kept_layout(ccol, row, plan, lambda: _slots(plan, ccol, row))
        values = packed(slots, w, out.dtype)
        dtype = DTYPE_CODES[out.dtype]
        addresses = source.address, slots.pointers.data_ptr(), values.data_ptr(), bias_address, out.data_ptr()
        module.gather_half(queue, module.GatherHalf(*argument), dtype, *addresses)
        return
    layout: GatherLayout = kept_layout(ccol, row, plan, lambda: _layout(plan, ccol, row))
    room = layout.cells.numel()
    edges = torch.empty(room, 2, dtype=torch.float32, device=out.device)
    packing = layout.cells.data_ptr(), layout.sources.data_ptr(), w.data_ptr(), edges.data_ptr()
    module.pack_edges(queue, room, *packing)
    addresses = source.address, layout.ranges.data_ptr(), edges.data_ptr(), bias_address, out.data_ptr()
    module.gather(queue, module.Gather(*argument), *addresses)
